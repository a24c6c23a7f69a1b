"""Policies around policies keep the contract, and do what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from s2robot.errors import InvalidInput
from s2robot.policies.wrappers import ActionQueue, Recorder, TemporalEnsemble
from s2robot.rollouts import rollout
from s2robot.types import FRAMES, PROPRIOCEPTION, Observation, Policy, check_observation


class Clock:
    """Every action says when it was decided and for which step: (now, then)."""

    def __init__(self, chunk: int = 4, execute: int = 3) -> None:
        self.chunk, self.execute, self.seconds = chunk, execute, {"encode": 0.5, "act": 0.1}
        self.reset()

    def act(self, observation: Observation) -> NDArray[np.float32]:
        self.asked.append(int(observation[PROPRIOCEPTION][0]))
        now = self.asked[-1]
        return np.array([[now, now + k] for k in range(self.chunk)], np.float32)

    def reset(self) -> None:
        self.asked: list[int] = []


def seen(step: int) -> Observation:
    return {FRAMES: np.full((1, 2, 2, 3), step, np.uint8), PROPRIOCEPTION: np.array([step], np.float32)}


@pytest.mark.parametrize("wrap", [ActionQueue, TemporalEnsemble])
def test_a_wrapped_policy_gives_one_action_for_every_step(wrap: type) -> None:
    policy = wrap(Clock())
    assert isinstance(policy, Policy) and policy.execute == 1
    for _ in range(2):
        actions = [policy.act(seen(step)) for step in range(7)]
        assert [action.shape for action in actions] == [(1, 2)] * 7
        assert [action[0, 1] for action in actions] == list(range(7))  # the action that was meant for that step
        policy.reset()


def test_how_many_actions_to_execute_is_asked_of_the_policy_inside(tmp_path: Path) -> None:
    inner = Clock()
    recorder = Recorder(inner, tmp_path)
    recorder.execute = 2
    assert recorder.execute == inner.execute == 2
    with pytest.raises(InvalidInput, match="ActionQueue gives one action a call"):
        ActionQueue(inner).execute = 2
    assert inner.execute == 2


def test_a_queue_asks_when_it_has_run_out_and_after_a_reset() -> None:
    inner = Clock()
    policy = ActionQueue(inner)
    for step in range(7):
        policy.act(seen(step))
        assert policy.seconds["encode"] == (0.5 if step % 3 == 0 else 0)
    assert inner.asked == [0, 3, 6]
    policy.reset()
    policy.act(seen(10))
    assert inner.asked == [10]


def test_a_recorder_keeps_what_a_queue_over_a_remote_policy_did(tmp_path: Path) -> None:
    remote = Clock()
    remote.seconds = {"encode": 0.5, "act": 0.1, "wire": 0.2}  # as `RemotePolicy` has it
    with Recorder(ActionQueue(remote), tmp_path) as policy:
        for step in range(4):
            policy.act(seen(step))
    with np.load(tmp_path / "episode-00000.npz") as data:
        assert data["seconds_wire"].tolist() == [0.2, 0, 0, 0.2]


def test_what_is_no_array_is_named() -> None:
    listed: Any = {**seen(0), PROPRIOCEPTION: [0.1]}
    with pytest.raises(InvalidInput, match="'proprioception' is a list; expected a numpy array"):
        check_observation(listed)


class Walk(gymnasium.Env[Any, Any]):
    """Somebody's own environment: three steps, and then what it says of them."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return seen(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return seen(self.steps), 0.0, self.steps == 3, False, self.told if self.steps == 3 else {}


def test_an_episode_of_which_nobody_says_whether_it_succeeded_is_no_failure() -> None:
    for told, success in (({"success": True}, True), ({"is_success": True}, True), ({"success": False}, False)):
        assert [each.success for each in rollout(Clock(execute=2), Walk(told), 1)] == [success]
    with pytest.raises(InvalidInput, match=r'has no "success" .* It has: score, steps'):
        rollout(Clock(execute=2), Walk({"score": 1}), 1)


def test_an_ensemble_weighs_all_chunks_that_reach_the_step() -> None:
    """ACT's weights: exp(-decay * i), the oldest first."""
    policy = TemporalEnsemble(Clock(chunk=4), decay=0.5)
    decided = [policy.act(seen(step))[0, 0] for step in range(6)]
    weights = np.exp(-0.5 * np.arange(4))
    for step, found in enumerate(decided):
        said = np.arange(max(0, step - 3), step + 1)  # when the chunks were made that reach it, oldest first
        assert found == pytest.approx(np.average(said, weights=weights[: len(said)]), abs=1e-6)
    with pytest.raises(InvalidInput, match="decay"):
        TemporalEnsemble(Clock(), decay=float("nan"))


def test_recordings_go_on_counting_whatever_else_is_there(tmp_path: Path) -> None:
    for name in ("episode-99999.npz", "episode-note.npz"):
        (tmp_path / name).touch()
    with Recorder(Clock(), tmp_path) as policy:
        for step in range(3):
            policy.act(seen(step))
            policy.reset()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"episode-100000.npz", "episode-100001.npz", "episode-100002.npz"} <= names


def test_recordings_are_what_was_seen_and_decided(tmp_path: Path) -> None:
    with Recorder(Clock(), tmp_path) as policy:
        policy.reset()  # before anything happened: no empty episode
        for episode in range(2):
            for step in range(2 + episode):
                policy.act(seen(step))
            if episode == 0:
                policy.reset()
    with Recorder(Clock(), tmp_path) as policy:  # goes on counting
        policy.act(seen(5))
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["episode-00000.npz", "episode-00001.npz", "episode-00002.npz"]
    with np.load(tmp_path / "episode-00001.npz") as data:
        assert data[FRAMES].shape == (3, 1, 2, 2, 3) and data[FRAMES].dtype == np.uint8
        assert data["chunk"].shape == (3, 4, 2) and data[PROPRIOCEPTION][:, 0].tolist() == [0, 1, 2]
        assert data["seconds_encode"].tolist() == [0.5] * 3
