"""The replay buffer of features: what is sampled is what was added, its successor too, in as many bytes as said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from s2robot.errors import CorruptFile, InvalidInput, UnknownName

pytest.importorskip("stable_baselines3")
from stable_baselines3.common.buffers import DictReplayBuffer, DictRolloutBuffer
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl

from s2robot.adapters.sb3 import FeatureReplayBuffer, transition_bytes

Look = dict[str, np.ndarray]
Step = tuple[Look, Look, np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]
N = 3  # environments
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)


def space(dtype: str = "float16") -> spaces.Dict:
    most = np.finfo(dtype).max
    return spaces.Dict(
        {
            "features": spaces.Box(-most, most, (2, 4, 3), np.dtype(dtype).type),
            "proprioception": spaces.Box(-10.0, 10.0, (5,), np.float32),
            "mode": spaces.Discrete(4),
        }
    )


def stream(length: int, seed: int = 0, dtype: str = "float16", *, surprises: bool = True) -> Iterator[Step]:
    """Steps of N environments as algorithms add them: episodes end, run out of time, and are reset between steps."""
    rng = np.random.default_rng(seed)

    def look() -> Look:
        return {
            "features": rng.normal(size=(N, 2, 4, 3)).astype(dtype),
            "proprioception": rng.normal(size=(N, 5)).astype(np.float32),
            "mode": rng.integers(0, 4, N),
        }

    now = look()
    for step in range(length):
        after, first = look(), look()
        done = rng.random(N) < 0.2
        timeout = done & (rng.random(N) < 0.5)
        infos = [{"TimeLimit.truncated": bool(out)} for out in timeout]
        yield now, after, rng.uniform(-1, 1, (N, 2)).astype(np.float32), rng.normal(size=N), done, infos
        fresh = np.ones(N, bool) if surprises and step % 7 == 6 else done  # `learn` again: all reset, nothing is done
        now = {
            key: np.where(fresh.reshape(N, *[1] * (value.ndim - 1)), first[key], value) for key, value in after.items()
        }


def copied(step: Step) -> Step:
    """Buffers may reshape what they are given in place."""
    return tuple({k: v.copy() for k, v in part.items()} if isinstance(part, dict) else part for part in step)  # type: ignore[return-value]


def same_samples(ours: FeatureReplayBuffer, theirs: DictReplayBuffer, count: int = 200) -> None:
    np.random.seed(1)  # noqa: NPY002 - the state that buffers draw from
    got = ours.sample(count)
    np.random.seed(1)  # noqa: NPY002
    expected = theirs.sample(count)
    for name in ("observations", "next_observations"):
        for key, value in getattr(expected, name).items():
            found = getattr(got, name)[key]
            assert np.array_equal(found.numpy(), value.numpy().astype(found.numpy().dtype)), (name, key)
    for name in ("actions", "rewards", "dones"):
        assert np.array_equal(getattr(got, name).numpy(), getattr(expected, name).numpy()), name


@pytest.mark.parametrize("rows", [1, 2, 5, 17, 100])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_it_samples_what_stable_baselines3s_own_buffer_does(rows: int, dtype: str) -> None:
    """At every length: before it is full, at the seam, and after several rounds; float32 comes back as float16."""
    ours = FeatureReplayBuffer(rows * N, space(dtype), ACTIONS, n_envs=N)
    theirs = DictReplayBuffer(rows * N, space(dtype), ACTIONS, n_envs=N)
    for step in stream(60, dtype=dtype):
        ours.add(*copied(step))
        theirs.add(*copied(step))
        same_samples(ours, theirs, 40)
    assert ours.observations["features"].dtype == np.float16 and ours.size() == theirs.size()


def test_what_episodes_end_with_takes_room_for_those_in_the_buffer_alone() -> None:
    ours = FeatureReplayBuffer(20 * N, space(), ACTIONS, n_envs=N)
    for step in stream(2000):
        ours.add(*copied(step))
    kept = len(ours._ends["features"])
    assert kept == 64 == (ours._end >= 0).sum() + len(ours._free)
    quiet = FeatureReplayBuffer(20 * N, space(), ACTIONS, n_envs=N)
    calm = [(now, after, *rest) for now, after, *rest in stream(1)]
    for _ in range(30):  # a world in which nothing happens
        quiet.add(calm[0][0], calm[0][0], *calm[0][2:])  # type: ignore[arg-type]
    assert len(quiet._ends["features"]) == 0


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_figure_is_what_the_arrays_take(dtype: str) -> None:
    rows, observed = 50, space(dtype)
    ours = FeatureReplayBuffer(rows * N, observed, ACTIONS, n_envs=N)
    assert ours.nbytes == rows * N * transition_bytes(observed, ACTIONS, half=ours.half)
    theirs = DictReplayBuffer(rows * N, observed, ACTIONS, n_envs=N)
    arrays = [*theirs.observations.values(), *theirs.next_observations.values()]
    arrays += [theirs.actions, theirs.rewards, theirs.dones, theirs.timeouts]
    assert sum(array.nbytes for array in arrays) == rows * N * transition_bytes(observed, ACTIONS)
    for step in stream(rows):
        ours.add(*copied(step))
    ends = sum(array.nbytes for array in [*ours._ends.values(), *ours._pending.values()])
    assert ours.nbytes == rows * N * transition_bytes(observed, ACTIONS, half=ours.half) + ends


def test_their_buffers_keep_float16() -> None:
    """So `DictReplayBuffer` and `DictRolloutBuffer` hold features as they are, twice and once."""
    replay = DictReplayBuffer(10, space(), ACTIONS)
    rollout = DictRolloutBuffer(10, space(), ACTIONS)
    for array in (replay.observations, replay.next_observations, rollout.observations):
        assert array["features"].dtype == np.float16 and array["proprioception"].dtype == np.float32


@pytest.mark.parametrize("way", ["npz", "pickle"])
@pytest.mark.parametrize("length", [4, 33])
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been(tmp_path: Path, way: str, length: int) -> None:
    steps = list(stream(length + 25))
    ours = FeatureReplayBuffer(12 * N, space(), ACTIONS, n_envs=N)
    theirs = DictReplayBuffer(12 * N, space(), ACTIONS, n_envs=N)
    for step in steps[:length]:
        ours.add(*copied(step))
        theirs.add(*copied(step))
    if way == "npz":
        again = FeatureReplayBuffer(12 * N, space(), ACTIONS, n_envs=N)
        again.add(*copied(steps[-1]))  # forgotten
        ours.save(tmp_path / "buffer.npz")
        again.load(tmp_path / "buffer.npz")
    else:
        save_to_pkl(tmp_path / "buffer.pkl", ours)
        again = load_from_pkl(tmp_path / "buffer.pkl")
    same_samples(again, theirs)
    for step in steps[length:]:
        again.add(*copied(step))
        theirs.add(*copied(step))
    same_samples(again, theirs)


def test_other_files_are_refused(tmp_path: Path) -> None:
    ours = FeatureReplayBuffer(12 * N, space(), ACTIONS, n_envs=N)
    for step in stream(20):
        ours.add(*copied(step))
    ours.save(tmp_path / "buffer.npz")
    with pytest.raises(InvalidInput, match=r"holds actions float32 \(12, 3, 2\)"):
        FeatureReplayBuffer(10 * N, space(), ACTIONS, n_envs=N).load(tmp_path / "buffer.npz")
    with pytest.raises(InvalidInput, match="observations/features"):
        FeatureReplayBuffer(12 * N, space("float32"), ACTIONS, n_envs=N, half=()).load(tmp_path / "buffer.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "buffer.npz").read_bytes()[:3000])
    with pytest.raises(CorruptFile, match=r"cut\.npz"):
        ours.load(tmp_path / "cut.npz")
    with pytest.raises(CorruptFile):
        ours.load(tmp_path / "none.npz")
    assert ours.size() == 12  # a file that cannot be read changes nothing


def test_a_reset_buffer_knows_nothing() -> None:
    ours = FeatureReplayBuffer(12 * N, space(), ACTIONS, n_envs=N)
    theirs = DictReplayBuffer(12 * N, space(), ACTIONS, n_envs=N)
    for step in stream(20):
        ours.add(*copied(step))
    ours.reset()
    for step in stream(9, seed=3):
        ours.add(*copied(step))
        theirs.add(*copied(step))
    same_samples(ours, theirs)


def test_a_buffer_that_memory_does_not_hold_is_said_before_it_fills() -> None:
    with pytest.raises(InvalidInput, match=r"100000000000 steps of 100 bytes .* buffer_size=\d+ or less"):
        FeatureReplayBuffer(10**11, space(), ACTIONS)


def test_nan_and_what_float16_cannot_hold_are_refused() -> None:
    ours = FeatureReplayBuffer(12 * N, space("float32"), ACTIONS, n_envs=N)
    (now, *rest), *_ = stream(1, dtype="float32")
    for key, value, words in (
        ("features", np.nan, "holds NaN"),
        ("features", 1e5, "beyond float16"),
        ("features", np.inf, "beyond float16"),
        ("proprioception", np.nan, "NaN"),
    ):
        torn = {name: array.copy() for name, array in now.items()}
        torn[key].reshape(-1)[0] = value
        with pytest.raises(InvalidInput, match=f"'{key}' .*{words}"):
            ours.add(torn, *rest)
    assert ours.size() == 0
    with pytest.raises(UnknownName, match="Did you mean 'features'"):
        FeatureReplayBuffer(12, space(), ACTIONS, half=("feature",))
    with pytest.raises(InvalidInput, match="once already"):
        FeatureReplayBuffer(12, space(), ACTIONS, optimize_memory_usage=True)
    with pytest.raises(InvalidInput, match="Dict"):
        FeatureReplayBuffer(12, space()["features"], ACTIONS)
