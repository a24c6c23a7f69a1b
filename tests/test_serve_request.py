"""What an observation on the wire is: both ways to say it mean the same, and what is no observation is explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_policies import CAMERAS, EYE, FRAME, flat, observations, small_policy

from s2robot.adapters import serve_policy, wire
from s2robot.adapters.serve_policy import Interface
from s2robot.adapters.serve_request import read_request
from s2robot.compression import Shapes
from s2robot.errors import InvalidInput, UsageError
from s2robot.malformed import KINDS
from s2robot.types import GOAL, PROPRIOCEPTION, check_observation

pytest.importorskip("msgpack")


@pytest.fixture(scope="module")
def interfaces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Interface]:
    folder = tmp_path_factory.mktemp("policies")
    return {task: interface(small_policy(folder / task, task=task)) for task in ("Lift", "PickColor")}


@pytest.fixture
def lift(interfaces: dict[str, Interface]) -> Interface:
    return interfaces["Lift"]


@pytest.fixture
def pick(interfaces: dict[str, Interface]) -> Interface:
    return interfaces["PickColor"]


def interface(run: Path, **settings: Any) -> Interface:
    return serve_policy.load(run, **{"engine": "torch", "precision": None, "execute": 0, **settings})[1]


def read(message: dict[str, Any], wants: Interface) -> Any:
    """As it comes off the wire: read-only."""
    return read_request(wire.unpack(wire.pack(message)), wants)


def same(got: Any, expected: dict[str, Any]) -> None:
    check_observation(got)
    assert set(got) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(got[key], value)
        assert got[key].flags.writeable


def test_our_keys_and_openpis_mean_the_same(lift: Interface) -> None:
    for row in observations(3):
        same(read(row, lift).observation, row)
        same(read(flat(row), lift).observation, row)
        listed = {**flat(row), "observation/state": [float(value) for value in row[PROPRIOCEPTION]]}
        same(read(listed, lift).observation, row)


def test_a_goal_is_numbers_or_a_prompt_that_names_it(pick: Interface) -> None:
    for row in observations(3, "PickColor"):
        same(read(row, pick).observation, row)
        name = pick.goal_names[int(row[GOAL].argmax())]
        for prompt in (name, f"Pick the {name.upper()} cube.", f"PickColor {name}"):
            same(read({**flat(row), "prompt": prompt}, pick).observation, row)


@pytest.mark.parametrize(("prompt", "says"), [
    ("pick a cube", "names no goal; expected exactly one .red, green, blue, yellow"), ("the reddish one", "no goal"),
    ("the red one, not the blue", "names red, blue"), ("", "no goal"), (5, "expected text"),
])  # fmt: skip
def test_a_prompt_that_names_no_goal_or_two_is_refused(prompt: Any, says: str, pick: Interface) -> None:
    row = observations(1, "PickColor")[0]
    with pytest.raises(InvalidInput, match=says):
        read({**flat(row), "prompt": prompt}, pick)
    with pytest.raises(InvalidInput, match="lacks 'goal'"):
        read(flat(row), pick)
    with pytest.raises(InvalidInput, match="Both 'goal' and 'prompt'"):
        read({**row, "prompt": "red"}, pick)


def test_a_policy_without_a_goal_is_told_nothing_else_than_what_it_does(lift: Interface) -> None:
    row = observations(1)[0]
    for prompt in ("", "lift the cube", "Lift"):
        same(read({**flat(row), "prompt": prompt}, lift).observation, row)
    with pytest.raises(InvalidInput, match="does Lift whatever it is told"):
        read({**flat(row), "prompt": "bring me a banana"}, lift)
    with pytest.raises(InvalidInput, match=r"'goal' is \(2,\); this policy takes \(0,\)"):
        read({**row, GOAL: np.ones(2, np.float32)}, lift)


def changed(**changes: Any) -> dict[str, Any]:
    row = {**flat(observations(1)[0]), **{key.replace("__", "/"): value for key, value in changes.items()}}
    return {key: value for key, value in row.items() if value is not None}


IMAGE = np.zeros((FRAME, FRAME, 3), np.uint8)
WIDE = {f"observation/{camera}": np.zeros((48, 64, 3), np.uint8) for camera in CAMERAS}


@pytest.mark.parametrize(("message", "says"), [
    (changed(observation__agentview=np.moveaxis(IMAGE, -1, 0)), "colours seem to come first"),
    (changed(observation__agentview=IMAGE / np.float32(255)), "do not normalise"),
    (changed(observation__agentview=IMAGE[..., 0]), r"is uint8 \(64, 64\); expected uint8 \(H, W, 3\)"),
    (changed(observation__agentview=None), "lacks observation/agentview: send all 2 cameras"),
    (changed(observation__agentveiw=IMAGE), "Did you mean 'observation/agentview'"),
    (changed(observation__agentview=IMAGE[:32, :32]), "agentview 32x32, observation/robot0_eye_in_hand 64x64"),
    ({**changed(), **WIDE}, "Frames are 48x64 .rows x columns.; this policy was trained on 64x64"),
    (changed(frames=np.stack([IMAGE] * 2)), "Both 'frames' and observation/agentview"),
    ({"observation/state": [0.0] * 7}, "Neither 'frames' nor observation/agentview"),
    ({"frames": IMAGE[None], "proprioception": [0.0] * 7}, "expected 2 views: agentview, robot0_eye_in_hand"),
    ({"frames": np.zeros((2, 4096, 4096, 3), np.uint8), "proprioception": [0.0] * 7}, "largest side may be 2048"),
    (changed(observation__state=None), "Neither 'proprioception' nor 'observation/state'"),
    (changed(proprioception=[0.0] * 7), "Both 'proprioception' and 'observation/state'"),
    (changed(observation__state=np.zeros(5)), r"is \(5,\); this policy takes \(7,\) \(gripper_x"),
    (changed(observation__state=np.full(7, np.nan)), "holds NaN"),
    (changed(observation__state=np.full(7, 1e300)), "holds NaN"),
    (changed(observation__state=np.full(7, 1e30, np.float32)), r"beyond 1e\+06"),
    (changed(observation__state=["a"] * 7), "is a list; expected numbers"),
    (changed(reset=1), "expected true or false"), (changed(execute=2), "together with 'reset'"),
    ({}, "Neither"), ({"reset": False}, "Neither"),
], ids=range(22))  # fmt: skip
def test_what_is_no_observation_is_explained(message: dict[str, Any], says: str, lift: Interface) -> None:
    with pytest.raises(UsageError, match=says):
        read(message, lift)


def test_frames_of_another_size_are_taken_if_their_shape_is_the_same(lift: Interface, tmp_path: Path) -> None:
    for size in (16, 100, 640):
        row = observations(1, frame=size)[0]
        same(read(flat(row), lift).observation, row)
    for kind in ("cnn", "finetune"):
        pixels = serve_policy.describe(*_pixel_policy(kind))
        assert pixels.fits((64, 64)) and pixels.fits((480, 480)) and not pixels.fits((48, 64))
        assert not pixels.fits((24, 24)) and pixels.fitting == "frames of that shape from 32 pixels on"
        policy, about = _pixel_policy(kind)
        assert serve_policy.describe(policy, {**about, "frame_size": 24}).fitting == "no others"
    with pytest.raises(InvalidInput, match="expected a map"):
        read_request([1], lift)


def _pixel_policy(kind: str) -> tuple[Any, dict[str, Any]]:
    from s2robot import registry
    from s2robot.policies.acting import PixelPolicy

    module = registry.policy_module(kind)
    shapes = Shapes(2, 1, 8, (4, 4), 7, 4, 0)
    settings = {"size": 32, "widths": (8, 8, 8), "blocks": 1} if kind == "cnn" else {"size": 32}
    network = module.NETWORK.bare(module.CONFIG(**settings), shapes, EYE)
    return PixelPolicy(network), {"kind": kind, "task": None, "cameras": list(CAMERAS), "frame_size": FRAME}


def test_the_metadata_tell_all_a_client_needs_in_plain_values(pick: Interface, tmp_path: Path) -> None:
    told = wire.unpack(wire.pack(pick.metadata))
    assert told == pick.metadata
    assert told["cameras"] == list(CAMERAS) and told["frame"] == [FRAME, FRAME] and told["task"] == "PickColor"
    assert told["goal_names"] == ["red", "green", "blue", "yellow"] and told["goal"] == 4
    assert len(told["proprioception_names"]) == told["proprioception"] == 7
    assert told["action_names"] == ["dx", "dy", "dz", "gripper"] and told["actions"] == 4
    assert (told["chunk"], told["execute"], told["context"], told["control_hz"]) == (8, 4, 1, 20)
    assert told["encoder"]["fingerprint"] == EYE.build("cpu").fingerprint
    assert interface(small_policy(tmp_path / "p"), execute=2).metadata["execute"] == 2


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("task", ["Lift", "PickColor"])
def test_every_kind_of_malformed_message_is_refused(kind: Any, task: str, interfaces: dict[str, Interface]) -> None:
    """So that `bench serve` may count an answer to one of them as a fault."""
    rng = np.random.default_rng(0)
    row = observations(1, task)[0]
    said = {**flat(row), **({GOAL: row[GOAL]} if GOAL in row else {})}
    for _ in range(150):
        with pytest.raises(UsageError) as refused:
            _answerable(kind(said, rng), interfaces[task])
        assert str(refused.value)


def _answerable(message: bytes, wants: Interface) -> None:
    request = read_request(wire.unpack(message), wants)
    if request.execute is not None and not 1 <= request.execute <= 8:  # which only the policy can refuse
        raise InvalidInput("execute")
