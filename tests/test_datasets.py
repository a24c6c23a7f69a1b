"""Demonstrations: what goes in comes out, whatever was killed, full or damaged on the way."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from s2robot.datasets import DemoDataset, Episode, EpisodeParts, merge, write_dataset
from s2robot.episodes import FIELDS, split_episodes
from s2robot.errors import CorruptFile, InvalidInput, OutOfSpace

resource = pytest.importorskip("resource")  # not on Windows
CAMERAS = ["agentview", "robot0_eye_in_hand"]
PYTHON_ENV = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{Path.cwd()}"}
ENV_ARGS = {"env_name": "Lift", "env_kwargs": {"robots": "Panda"}}


def make_episode(seed: int, **changes: Any) -> Episode:
    """An episode that is a function of its seed."""
    rng, length = np.random.default_rng(seed), 3 + seed % 4

    def floats(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    fields: dict[str, Any] = {
        "frames": rng.integers(0, 256, (length, 2, 8, 8, 3), dtype=np.uint8),
        "proprioception": 9 * floats(length, 5),
        **{name: floats(length, 7) for name in ("actions", "executed_actions")},
        "rewards": floats(length),
        "states": rng.normal(size=(length, 11)),
        "goal": np.tile(np.eye(4, dtype=np.float32)[seed % 4], (length, 1)),
    }
    return Episode(seed, seed % 3 > 0, **{**fields, **changes})


def same(one: Any, other: Any) -> bool:
    alike = (one.seed, one.success) == (other.seed, other.success)
    return alike and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


def write(path: Path, seeds: list[int]) -> DemoDataset:
    return write_dataset(path, [make_episode(seed) for seed in seeds], ENV_ARGS, CAMERAS)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    dataset = write(tmp_path / "a.hdf5", [5, 2, 9])
    assert (len(dataset), dataset.cameras, dataset.total) == (3, tuple(CAMERAS), 4 + 5 + 4)
    assert dataset.env_args == {"type": 1, **ENV_ARGS}
    for episode, seed in zip(dataset, [5, 2, 9], strict=True):
        written = make_episode(seed)
        assert len(episode) == len(written)
        assert same(episode, written)
        assert all(getattr(episode, name).dtype == dtype for name, (dtype, _) in FIELDS.items())
        episode.load().validate()
    dataset.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]


def test_episodes_without_states_have_none(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "a.hdf5", [make_episode(0, states=None)], ENV_ARGS, CAMERAS)
    assert dataset.episode(0).states is None
    dataset.verify()


def test_the_layout_is_robomimics(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5", [0, 1])
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "Lift"
        assert not file["data"].attrs.get_id("env_args").get_type().is_variable_str()  # HDF5 may hang on damaged ones
        assert file["data"].attrs["total"] == 3 + 4
        demo = file["data/demo_1"]
        assert demo.attrs["num_samples"] == 4
        assert set(demo) == {"obs", "actions", "executed_actions", "rewards", "dones", "states"}
        assert set(demo["obs"]) == {"agentview_image", "robot0_eye_in_hand_image", "proprioception", "goal"}
        assert demo["obs/agentview_image"].chunks == (4, 4, 8, 3)
        assert demo["dones"][()].tolist() == [0, 0, 0, 1]
        masks = {name: [key.decode() for key in file[f"mask/{name}"]] for name in ("train", "valid")}
    assert sorted(masks["train"] + masks["valid"]) == ["demo_0", "demo_1"]


@pytest.mark.parametrize("steps", [None, 2, -1, [3, 0, 0], slice(1, 3), slice(None, None, 2), [], np.array([1, 2])])
def test_frames_of_some_steps_are_those_steps(tmp_path: Path, steps: Any) -> None:
    frames = write(tmp_path / "a.hdf5", [5]).frames(0, steps)
    expected = make_episode(5).frames[[steps] if isinstance(steps, int) else slice(None) if steps is None else steps]
    assert np.array_equal(frames, expected)
    assert frames.shape[1:] == (2, 8, 8, 3)


def test_what_is_not_there_is_refused_with_what_is(tmp_path: Path) -> None:
    dataset = write(tmp_path / "a.hdf5", [5])
    with pytest.raises(InvalidInput, match=r"No episode 1 .* it has 0 to 0"):
        dataset.episode(1)
    with pytest.raises(InvalidInput, match="episode 0, which has 0 to 3"):
        dataset.frames(0, [4])
    with pytest.raises(InvalidInput, match="s2robot collect"):
        DemoDataset(tmp_path / "b.hdf5")


NAN = np.full((4, 5), np.nan, np.float32)
MISTAKES = {
    "NaN": ({"proprioception": NAN}, "proprioception holds NaN or infinity, first at step 0"),
    "range": ({"actions": np.full((4, 7), 1.5, np.float32)}, r"actions leaves \[-1, 1\], first at step 0"),
    "length": ({"rewards": np.zeros(3, np.float32)}, r"rewards is \(3,\); expected 4 rows"),
    "dtype": ({"actions": np.zeros((4, 7))}, r"actions is float64 \(4, 7\); expected float32"),
    "axes": ({"frames": np.zeros((4, 8, 8, 3), np.uint8)}, r"frames is uint8 \(4, 8, 8, 3\); expected uint8 \(L, V, H"),
    "channels": ({"frames": np.zeros((4, 1, 8, 8, 4), np.uint8)}, "expected RGB"),
    "pair": ({"executed_actions": np.zeros((4, 6), np.float32)}, r"executed_actions are \(4, 6\); expected \(4, 7\)"),
    "empty": ({"states": np.zeros((4, 0))}, "none empty"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_validate_names_seed_field_and_remedy(tmp_path: Path, mistake: str) -> None:
    changes, message = MISTAKES[mistake]
    with pytest.raises(InvalidInput, match=f"Episode of seed 5: .*{message}"):
        EpisodeParts(tmp_path / "parts").write(make_episode(5, **changes))
    assert EpisodeParts(tmp_path / "parts").seeds_done() == []


def test_the_content_does_not_depend_on_who_collected_when(tmp_path: Path) -> None:
    prints = set()
    for run, order in enumerate(([1, 2, 3, 4], [4, 2, 1, 3])):
        parts = EpisodeParts(tmp_path / f"parts{run}")
        for seed in order:
            parts.write(make_episode(seed))
        assert parts.seeds_done() == [1, 2, 3, 4]
        assert parts.successes() == {1: True, 2: True, 3: False, 4: True}
        dataset = merge(parts, tmp_path / f"{run}.hdf5", ENV_ARGS, CAMERAS, seeds=[4, 1, 2])
        assert [episode.seed for episode in dataset] == [4, 1, 2]
        assert not parts.folder.exists()
        prints.add(dataset.fingerprint)
    assert len(prints) == 1


def test_the_fingerprint_changes_with_any_content(tmp_path: Path) -> None:
    one = make_episode(1)
    nudged = one.frames.copy()
    nudged[2, 1, 3, 3, 0] ^= 1
    variants: list[Callable[[Path], DemoDataset]] = [
        lambda path: write_dataset(path, [one], ENV_ARGS, CAMERAS),
        lambda path: write_dataset(path, [make_episode(1, frames=nudged)], ENV_ARGS, CAMERAS),
        lambda path: write_dataset(path, [make_episode(1, rewards=one.rewards[::-1])], ENV_ARGS, CAMERAS),
        lambda path: write_dataset(path, [one], ENV_ARGS, CAMERAS[::-1]),
        lambda path: write_dataset(path, [one], {"env_name": "Stack"}, CAMERAS),
        lambda path: write_dataset(path, [one, make_episode(2)], ENV_ARGS, CAMERAS),
    ]
    prints = [make(tmp_path / f"{k}.hdf5").fingerprint for k, make in enumerate(variants)]
    assert len(set(prints)) == len(prints)


COLLECT = """
import sys, time
from test_datasets import CAMERAS, ENV_ARGS, make_episode
from s2robot.datasets import EpisodeParts, merge
from pathlib import Path
if not Path(sys.argv[2]).exists():
    parts = EpisodeParts(sys.argv[1])
    for seed in range(40):
        if seed not in parts.seeds_done():
            parts.write(make_episode(seed))
            print(seed, flush=True)
    merge(parts, sys.argv[2], ENV_ARGS, CAMERAS)
"""


def test_a_collection_killed_again_and_again_ends_as_if_it_never_was(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.hdf5", list(range(40)))
    command = [sys.executable, "-c", COLLECT, str(tmp_path / "parts"), str(tmp_path / "killed.hdf5")]
    rng = random.Random(0)
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=PYTHON_ENV) as process:
            for _ in range(rng.randrange(5, 15)):
                process.stdout.readline()  # type: ignore[union-attr]
            time.sleep(rng.random() / 100)
            process.send_signal(signal.SIGKILL)
    assert 10 <= len(EpisodeParts(tmp_path / "parts").seeds_done()) < 40
    subprocess.run(command, env=PYTHON_ENV, check=True, stdout=subprocess.DEVNULL)
    killed = DemoDataset(tmp_path / "killed.hdf5")
    killed.verify()
    assert killed.fingerprint == whole.fingerprint
    assert all(same(one, other) for one, other in zip(whole, killed, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.hdf5", "whole.hdf5"]


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond `size`, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_nothing_that_was_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = EpisodeParts(tmp_path / "parts")
    for seed in range(4):
        parts.write(make_episode(seed))
    written, open_file = [], h5py.File

    def spy(path: Any, mode: str, **options: Any) -> h5py.File:
        written.extend([path] * (mode != "r"))
        return open_file(path, mode, **options)

    monkeypatch.setattr(h5py, "File", spy)
    with largest_file(3000):
        with pytest.raises(OutOfSpace, match=r"while writing .*a\.hdf5: "):
            merge(parts, tmp_path / "a.hdf5", ENV_ARGS, CAMERAS)
        with pytest.raises(OutOfSpace, match=r"while writing .*seed-5\.hdf5: "):
            parts.write(make_episode(5))
    assert all(not isinstance(place, str | Path) for place in written)  # HDF5 crashes on a full disk
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]
    assert parts.seeds_done() == [0, 1, 2, 3]
    assert merge(parts, tmp_path / "a.hdf5", ENV_ARGS, CAMERAS).total == 3 + 4 + 5 + 6


def test_a_kill_while_parts_are_removed_leaves_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = EpisodeParts(tmp_path / "parts")
    parts.write(make_episode(0))
    monkeypatch.setattr("shutil.rmtree", lambda _: None)
    merge(parts, tmp_path / "a.hdf5", ENV_ARGS, CAMERAS)
    monkeypatch.undo()
    assert not parts.folder.exists()
    assert write(tmp_path / "b.hdf5", [1]).total == 4  # and swept what was left
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.hdf5", "b.hdf5"]


def test_parts_of_another_setting_are_not_mixed_in(tmp_path: Path) -> None:
    EpisodeParts(tmp_path / "parts", {"task": "Lift", "noise": 0.1}).write(make_episode(0))
    assert EpisodeParts(tmp_path / "parts", {"noise": 0.1, "task": "Lift"}).seeds_done() == [0]
    with pytest.raises(InvalidInput, match=r"noise: 0.1 there, 0.2 now.*rm -r"):
        EpisodeParts(tmp_path / "parts", {"task": "Lift", "noise": 0.2})


def test_merge_refuses_what_is_missing_or_does_not_fit(tmp_path: Path) -> None:
    parts = EpisodeParts(tmp_path / "parts")
    parts.write(make_episode(0))
    with pytest.raises(InvalidInput, match=r"Missing: \[7\]"):
        merge(parts, tmp_path / "a.hdf5", ENV_ARGS, CAMERAS, [0, 7])
    with pytest.raises(InvalidInput, match="a view for each of the cameras"):
        merge(parts, tmp_path / "a.hdf5", ENV_ARGS, ["agentview"])
    parts.write(make_episode(1, proprioception=np.zeros((4, 6), np.float32)))
    with pytest.raises(InvalidInput, match=r"Episode of seed 1 has shapes .*'proprioception': \(6,\)"):
        merge(parts, tmp_path / "a.hdf5", ENV_ARGS, CAMERAS)
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_a_damaged_part_is_named_while_it_can_be_collected_again(tmp_path: Path) -> None:
    parts = EpisodeParts(tmp_path / "parts")
    for seed in (0, 1):
        parts.write(make_episode(seed))
    data = parts.path(1).read_bytes()
    parts.path(1).write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptFile, match=r"the episode of seed 1 .*rm .*seed-1\.hdf5"):
        merge(parts, tmp_path / "a.hdf5", ENV_ARGS, CAMERAS)
    parts.write(make_episode(1))
    assert same(parts.read(1), make_episode(1))


def _mutations(data: bytes, count: int) -> list[bytes]:
    rng, made = np.random.default_rng(0), []
    for k in range(count):
        mutant = bytearray(data)
        if k % 4 == 0:
            mutant = mutant[: rng.integers(len(data))]
        elif k % 4 == 1:
            mutant[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        elif k % 4 == 2:  # a hole, as a power cut or a broken copy leaves
            start = int(rng.integers(len(data)))
            mutant[start : start + 512] = bytes(len(mutant[start : start + 512]))
        else:
            for at in rng.integers(len(data), size=8):
                mutant[at] = rng.integers(256)
        made.append(bytes(mutant))
    return made


def test_a_damaged_file_is_corrupt_or_right_but_never_wrong(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.hdf5", [1, 2])
    corrupt = 0
    for k, mutant in enumerate(_mutations(whole.path.read_bytes(), 96)):
        path = tmp_path / f"{k}.hdf5"
        path.write_bytes(mutant)
        try:
            dataset = DemoDataset(path)
            assert dataset.fingerprint == whole.fingerprint
            assert all(same(episode, make_episode(seed)) for episode, seed in zip(dataset, [1, 2], strict=True))
        except CorruptFile:
            corrupt += 1
    assert corrupt > 60


def test_damage_in_an_episode_names_it(tmp_path: Path) -> None:
    dataset = write(tmp_path / "a.hdf5", [1, 2])
    with h5py.File(tmp_path / "a.hdf5") as file:
        chunk = file["data/demo_1/obs/agentview_image"].id.get_chunk_info(1)
    data = bytearray(dataset.path.read_bytes())
    data[chunk.byte_offset + 9] ^= 1
    dataset.close()
    dataset.path.write_bytes(data)
    damaged = DemoDataset(dataset.path)
    assert same(damaged.episode(0), make_episode(1))
    for read in (lambda: damaged.frames(1), damaged.verify):
        with pytest.raises(CorruptFile, match="episode demo_1"):
            read()


def test_an_edited_file_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5", [1, 2])
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        del file["data/demo_1"]
    with pytest.raises(CorruptFile, match="edited since it was written"):
        DemoDataset(tmp_path / "a.hdf5")
    write(tmp_path / "b.hdf5", [1])
    with h5py.File(tmp_path / "b.hdf5", "a") as file:
        file["data/demo_0/rewards"][0] += 1
    with pytest.raises(CorruptFile, match="rewards is not what was written"):
        _ = DemoDataset(tmp_path / "b.hdf5").episode(0).rewards


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(500)])
def test_other_files_are_no_demonstrations(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.hdf5").write_bytes(content)
    with pytest.raises(CorruptFile, match=r"a\.hdf5"):
        DemoDataset(tmp_path / "a.hdf5")


def robomimic_file(path: Path, image_key: str = "agentview_image") -> Episode:
    made = make_episode(5)
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["total"] = 4
        file["data"].attrs["env_args"] = json.dumps(ENV_ARGS)
        for name in ("demo_10", "demo_2"):
            demo = file["data"].create_group(name)
            demo.attrs["num_samples"] = 4
            demo["actions"] = made.actions.astype(np.float64)
            demo["rewards"] = np.array([0, 0, 0, 1.0 if name == "demo_2" else 0.0])
            demo[f"obs/{image_key}"] = made.frames[:, 0]
            demo["obs/agentview_depth"] = np.zeros((4, 8, 8, 1), np.float32)
            for key, width in (("robot0_eef_pos", 3), ("robot0_eef_quat", 4), ("robot0_gripper_qpos", 2)):
                demo[f"obs/{key}"] = np.full((4, width), width, np.float64)
    return made


def test_plainrobomimic_files_are_read(tmp_path: Path) -> None:
    made = robomimic_file(tmp_path / "a.hdf5")
    dataset = DemoDataset(tmp_path / "a.hdf5")
    assert (len(dataset), dataset.cameras, dataset.env_args, dataset.total) == (2, ("agentview",), ENV_ARGS, 8)
    first, second = (episode.load() for episode in dataset)
    assert (first.seed, first.success, second.success) == (-1, True, False)  # demo_2 before demo_10
    assert np.array_equal(first.frames, made.frames[:, :1])
    assert np.array_equal(first.actions, made.actions)
    assert np.array_equal(first.executed_actions, made.actions)
    assert len(dataset.fingerprint) == 64
    assert first.proprioception.tolist() == [[3] * 3 + [4] * 4 + [2] * 2] * 4
    dataset.close()
    with h5py.File(dataset.path, "a") as file:
        file["data/demo_2/obs/agentview_image"][0, 0, 0, 0] ^= 1
    assert DemoDataset(dataset.path).fingerprint != dataset.fingerprint


def test_arobomimic_file_without_images_says_how_to_make_them(tmp_path: Path) -> None:
    robomimic_file(tmp_path / "a.hdf5", image_key="object")
    with pytest.raises(CorruptFile, match=r"no camera images.*robot0_eef_pos.*s2robot render"):
        DemoDataset(tmp_path / "a.hdf5")


def test_split_deals_whole_episodes_once(tmp_path: Path) -> None:
    for count in (1, 2, 3, 10, 57):
        for fraction in (0.0, 0.1, 0.5, 0.99):
            train, valid = split_episodes(count, fraction, seed=3)
            assert sorted(train + valid) == list(range(count))
            assert train
            assert bool(valid) == (fraction > 0 and count > 1)
    assert split_episodes(57, 0.1, 3) == split_episodes(57, 0.1, 3) != split_episodes(57, 0.1, 4)
    with pytest.raises(InvalidInput, match="valid_fraction is 1"):
        write(tmp_path / "a.hdf5", [1]).split(1.0)


def test_a_dataset_travels_to_other_processes(tmp_path: Path) -> None:
    dataset = write(tmp_path / "a.hdf5", [1])
    other = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(other.frames(0), dataset.frames(0))
    dataset.close()
    assert np.array_equal(dataset.frames(0), make_episode(1).frames)
