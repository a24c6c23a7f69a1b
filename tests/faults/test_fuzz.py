"""Property-based fuzzing (hypothesis) of what takes arguments, files and bytes of others.

S2ROBOT_FAULTS_EXAMPLES: how many examples a property; 400 by itself.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from small_policies import flat, observations, small_policy

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from s2robot import config as configuration  # noqa: E402
from s2robot import multiscale, scales  # noqa: E402
from s2robot.adapters import serve_policy, wire  # noqa: E402
from s2robot.adapters.serve_request import LARGEST_NUMBER, read_request  # noqa: E402
from s2robot.datasets import DemoDataset  # noqa: E402
from s2robot.errors import InvalidInput, S2RobotError, UsageError  # noqa: E402
from s2robot.types import FRAMES, PROPRIOCEPTION, check_observation  # noqa: E402

pytestmark = pytest.mark.faults

EXAMPLES = int(os.environ.get("S2ROBOT_FAULTS_EXAMPLES", "400"))
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
Count = Callable[..., None]


def tried(count: Count, what: str, test: Any) -> None:
    """Run a property and count its examples."""
    count("fuzzing", what)  # lost, until it is known better
    outcomes: dict[str, int] = {"right": 0, "clear error": 0}
    test(outcomes)
    count("fuzzing", what, outcomes)


# -- multiscale -------------------------------------------------------------------------------------------------------


def patches(images: torch.Tensor) -> torch.Tensor:
    """A 'model' of patch 4: each patch's mean as a token."""
    return torch.nn.functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2)


def test_multiscale(count: Count) -> None:
    """Its output is, scale by scale, what the model gives of the whole resized image, pooled; or it refuses."""

    def run(outcomes: dict[str, int]) -> None:
        side = st.sampled_from([8, 16, 24, 32]) | st.integers(1, 40)
        wanted = st.lists(st.sampled_from([1, 2, 3, 0.5]) | st.floats(-1, 6, width=16), min_size=1, max_size=3)
        largest = st.sampled_from([None, 8, 16, 32]) | st.integers(-2, 64)
        shape = st.sampled_from(["bnc"] * 6 + ["bchw", "x"])

        @fuzzed
        @given(st.integers(1, 3), side, wanted, largest, st.integers(-1, 1), st.sampled_from([0, 0, 0, 1]), shape)
        def check(batch: int, side: int, wanted: Any, largest: Any, to: int, prefix: int, shape: str) -> None:
            images = torch.rand(batch, 3, side, side)
            try:
                found = multiscale.multiscale_forward(
                    patches, images, scales=wanted, max_split_size=largest, resize_output_to_idx=to,
                    num_prefix_token=prefix, output_shape=shape,
                )  # fmt: skip
            except InvalidInput:
                outcomes["clear error"] += 1
                return
            except RuntimeError as error:  # the model's own: of patch 4 it cannot take tiles of 3 pixels
                if "too small" not in str(error):
                    raise
                outcomes["clear error"] += 1
                return
            assert found.shape[0] == batch and found.isfinite().all()
            assert found.shape[-1] == 3 * len(wanted)
            alone = multiscale.multiscale_forward(
                patches, images[-1:], scales=wanted, max_split_size=largest, resize_output_to_idx=to,
                num_prefix_token=prefix, output_shape=shape,
            )  # fmt: skip
            torch.testing.assert_close(found[-1:], alone)
            outcomes["right"] += 1

        check()

    tried(count, "multiscale_forward", run)


def test_tiles(count: Count) -> None:
    def run(outcomes: dict[str, int]) -> None:
        sizes = st.integers(0, 24)

        @fuzzed
        @given(st.integers(0, 3), sizes, sizes, st.integers(-1, 12), st.integers(-1, 12))
        def check(batch: int, height: int, width: int, h: int, w: int) -> None:
            images = torch.rand(batch, 2, height, width)
            try:
                tiles = multiscale.split_tiles(images, (h, w))
                assert torch.equal(multiscale.merge_tiles(tiles, height // h, width // w), images)
            except InvalidInput:
                outcomes["clear error"] += 1
                return
            outcomes["right"] += 1

        check()

    tried(count, "split_tiles and merge_tiles", run)


def test_plans(count: Count) -> None:
    """Every plan's tiles cover what it says, and none is larger than allowed."""

    def run(outcomes: dict[str, int]) -> None:
        side = st.integers(1, 700)

        @fuzzed
        @given(
            side, side, st.lists(st.integers(1, 512), min_size=1, max_size=3), st.integers(1, 256), st.integers(1, 16)
        )
        def check(height: int, width: int, sizes: list[int], largest: int, patch: int) -> None:
            try:
                plan = scales.make_plan((height, width), sizes, largest, patch)
            except S2RobotError:
                outcomes["clear error"] += 1
                return
            for scale in plan.scales:
                assert scale.image == (scale.rows * scale.tile[0], scale.cols * scale.tile[1])
                assert min(scale.tile) <= largest and not (scale.tile[0] % patch or scale.tile[1] % patch)
            assert all(corner >= 0 and corner + crop <= size + 2 * pad for corner, crop, size, pad in zip(
                plan.corner, plan.crop, (height, width), plan.pad, strict=True))  # fmt: skip
            outcomes["right"] += 1

        check()

    tried(count, "make_plan", run)


# -- dataset readers --------------------------------------------------------------------------------------------------

KEYS = ("actions", "rewards", "dones", "states", "obs/agentview_image", "obs/robot0_eef_pos", "obs/robot0_eef_quat")
KEYS += ("obs/robot0_gripper_qpos",)
ODD = ("obs/proprioception", "obs/goal", "obs", "obs/image")
DTYPES = ("u1", "f4", "f8", "i8", "f2", "?", "S5", "c8")


@st.composite
def foreign_files(draw: Any) -> list[tuple[str, Any]]:
    """What somebody's HDF5 file may hold: right in most places, and then not."""
    length = draw(st.sampled_from([0, 1, 3, 5, 5]))
    found: list[tuple[str, Any]] = []
    gone = draw(st.just(set()) | st.sets(st.sampled_from(KEYS), max_size=2))
    keys = [key for key in KEYS if key not in gone] + draw(st.just([]) | st.lists(st.sampled_from(ODD), max_size=1))
    for key in keys:
        usual: tuple[int, ...] = (length,) if key in ("rewards", "dones") else (length, draw(st.integers(1, 4)))
        usual = (length, 8, 8, 3) if "image" in key else usual
        shape = draw(st.sampled_from([usual] * 40 + [(), (0,), (length + 1, 3), (length, 2, 2), (length,)]))
        usually = "u1" if "image" in key else "f8"
        dtype = draw(st.sampled_from([usually] * 60 + list(DTYPES)))
        fill = draw(st.sampled_from([0.0, 0.5, 1.0] * 30 + [math.nan, math.inf, 2.0, -3.0]))
        if math.isfinite(fill) or dtype in ("f4", "f8", "f2", "c8"):
            found.append((key, np.full(shape, fill).astype(dtype)))
    return found


@pytest.mark.filterwarnings("ignore")
def test_dataset_readers(count: Count, tmp_path: Path) -> None:
    def run(outcomes: dict[str, int]) -> None:
        attributes = st.sampled_from(["{}", "[]", "", "nonsense", '{"task": 3}', '{"env_name": "Lift"}', 5, b"\xff"])
        path = tmp_path / "foreign.hdf5"

        @fuzzed
        @given(foreign_files(), attributes, st.sampled_from([None, 0, 3, -1, 1 << 40, "many", 2.5]))
        def check(parts: Any, env_args: Any, samples: Any) -> None:
            path.unlink(missing_ok=True)
            with h5py.File(path, "w") as file:
                demo = file.create_group("data/demo_0")
                file["data"].attrs["env_args"] = np.void(env_args) if isinstance(env_args, bytes) else env_args
                if samples is not None:
                    demo.attrs["num_samples"] = samples
                for key, value in parts:
                    if key not in demo and not (key == "obs" and "obs" in demo):
                        try:
                            demo[key] = value
                        except (ValueError, TypeError, KeyError, OSError):  # below something that is no group
                            continue
            try:
                dataset = DemoDataset(path)
                for k in range(len(dataset)):
                    episode = dataset.episode(k).load()
                    dataclasses.replace(episode, seed=max(0, episode.seed)).validate()  # foreign files name none
            except S2RobotError:
                outcomes["clear error"] += 1
                return
            outcomes["right"] += 1

        check()

    tried(count, "dataset readers", run)


# -- configuration ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    width: int = 3
    rate: float = 0.5
    scales: tuple[float, ...] = (1.0, 2.0)
    file: str | None = None
    on: bool = False


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    inner: Inner = field(default_factory=Inner)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
TREES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(["name", "inner", "width", "rate", "scales", "file", "on", "x"]) | st.integers(), inner, max_size=4
), max_leaves=12)  # fmt: skip
NAMES = [f"--{key}" for key in configuration.keys(Outer)] + ["--inner", "--", "-", "--inner.nothing", "--inner.width.x"]
WORDS = st.lists(
    st.sampled_from(NAMES) | st.text(max_size=10) | st.from_regex(r"--inner\.(width|rate|on)=.{0,8}"), max_size=5
)


def _fits(config: Any) -> None:
    assert isinstance(config, Outer) and isinstance(config.inner, Inner)
    assert isinstance(config.name, str) and type(config.inner.width) is int and isinstance(config.inner.rate, float)
    assert isinstance(config.inner.scales, tuple) and all(isinstance(each, float) for each in config.inner.scales)
    assert config.inner.file is None or isinstance(config.inner.file, str)
    assert isinstance(config.inner.on, bool)


@pytest.mark.filterwarnings("ignore")
def test_configuration(count: Count, tmp_path: Path) -> None:
    def run(outcomes: dict[str, int]) -> None:
        path = tmp_path / "c.yaml"

        @fuzzed
        @given(st.one_of(TREES, st.text(max_size=60), st.binary(max_size=60)), WORDS)
        def check(tree: Any, words: list[str]) -> None:
            if isinstance(tree, bytes):
                path.write_bytes(tree)
            else:
                text = tree if isinstance(tree, str) else yaml.safe_dump(tree)
                path.write_text(text, encoding="utf-8", errors="surrogatepass")
            try:
                config = configuration.load(Outer, str(path), words)
            except S2RobotError:
                outcomes["clear error"] += 1
                return
            _fits(config)
            path.write_text(configuration.dump(config), encoding="utf-8")
            again = configuration.load(Outer, str(path))
            assert repr(again) == repr(config)  # NaN is no equal of itself
            outcomes["right"] += 1

        check()

    tried(count, "config parser", run)


# -- the server's protocol --------------------------------------------------------------------------------------------

ARRAYS = st.sampled_from([
    np.zeros((64, 64, 3), np.uint8), np.zeros((2, 64, 64, 3), np.uint8), np.zeros(7), np.full(7, np.nan, np.float32),
    np.zeros((7, 1), np.float16), np.array(3), np.zeros((0, 3), np.uint8), np.full(7, 1e30), np.ones(7, bool),
])  # fmt: skip
VALUES = st.recursive(
    PLAIN.filter(lambda value: not isinstance(value, int) or abs(value) < 1 << 63) | st.binary(max_size=9) | ARRAYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=8,
)  # fmt: skip
MESSAGE_KEYS = ("frames", "proprioception", "goal", "prompt", "reset", "execute", "observation/state", "observation/x")


def test_bytes_off_the_wire(count: Count) -> None:
    def run(outcomes: dict[str, int]) -> None:
        @fuzzed
        @given(st.binary(max_size=300))
        def check(message: bytes) -> None:
            try:
                wire.unpack(message)
            except wire.BadMessage:
                outcomes["clear error"] += 1
                return
            outcomes["right"] += 1

        @fuzzed
        @given(VALUES)
        def roundtrip(value: Any) -> None:
            again = wire.unpack(wire.pack({"value": value}))["value"]
            np.testing.assert_equal(_listed(again), _listed(value))
            outcomes["right"] += 1

        check()
        roundtrip()

    tried(count, "wire format", run)


def _listed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.shape, value.tobytes()]
    if isinstance(value, dict):
        return {key: _listed(each) for key, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, list | tuple) else value


def test_requests(count: Count, tmp_path: Path) -> None:
    """A request is refused in words, or becomes an observation that the policy's table allows."""
    _, wants = serve_policy.load(small_policy(tmp_path / "run"), engine="torch", precision=None, execute=0)
    good = flat(observations(1)[0])

    def run(outcomes: dict[str, int]) -> None:
        keys = st.sampled_from([*MESSAGE_KEYS, *good])

        @fuzzed
        @given(st.dictionaries(keys, VALUES, max_size=3), st.sets(keys, max_size=2), st.booleans())
        def check(changes: dict[str, Any], gone: set[str], on_top: bool) -> None:
            message = {**(good if on_top else {}), **changes}
            message = {key: value for key, value in message.items() if key not in gone}
            try:
                request = read_request(wire.unpack(wire.pack(message)), wants)
            except UsageError:
                outcomes["clear error"] += 1
                return
            if request.observation is not None:
                check_observation(request.observation)
                assert request.observation[FRAMES].dtype == np.uint8
                assert (np.abs(request.observation[PROPRIOCEPTION]) <= LARGEST_NUMBER).all()
            outcomes["right"] += 1

        check()

    tried(count, "server's requests", run)
