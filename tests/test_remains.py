"""Files that lost their end: what lies before the cut is read as written, what lies beyond it is named."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_dataset_view import damage_frames
from test_datasets import CAMERAS, ENV_ARGS, make_episode, robomimic_file, same, write
from test_store import FakeConfig

from s2robot import cli
from s2robot.collect import CollectConfig, collect
from s2robot.convert import to_s2robot
from s2robot.datasets import DemoDataset, EpisodeParts, merge
from s2robot.errors import CorruptFile
from s2robot.parts import DAMAGE
from s2robot.remains import open_hdf5
from s2robot.shelf import find_datasets
from s2robot.sources import StateDataset, open_dataset
from s2robot.store import encode_dataset

SEEDS = [3, 1, 7, 11, 15, 19]  # their episodes have 6, 4, 6, 6, 6, 6 steps
HEADER = 512  # HDF5 reads so many bytes of a header before it knows how long the header is


def cut(source: Path, size: int) -> Path:
    """The first bytes of a file, beside it."""
    path = source.with_name(f"{source.stem}-{size}.hdf5")
    path.write_bytes(source.read_bytes()[:size])
    return path


def half(path: Path) -> Path:
    """A dataset of ours that was cut in half."""
    return cut(path, write(path, SEEDS).path.stat().st_size // 2)


def intact(path: Path) -> set[int]:
    """Numbers of the episodes that are handed out, each as it was written; none of a file that cannot be opened."""
    try:
        dataset = DemoDataset(path)
    except CorruptFile:
        return set()
    assert [episode.seed for episode in dataset] == SEEDS
    assert dataset.lengths == tuple(len(make_episode(seed)) for seed in SEEDS)
    whole = set()
    for k, seed in enumerate(SEEDS):
        with contextlib.suppress(CorruptFile):
            assert same(dataset.episode(k).load(), make_episode(seed))
            whole.add(k)
    dataset.close()
    return whole


@pytest.mark.parametrize("words", ["", "x" * 70_000])  # HDF5 keeps long attributes in another way
def test_what_lies_before_the_cut_is_kept_and_nothing_is_wrong(tmp_path: Path, words: str) -> None:
    parts = EpisodeParts(tmp_path / "parts")
    for seed in SEEDS:
        parts.write(make_episode(seed), {"model_file": words} if words else None)
    path = merge(parts, tmp_path / "a.hdf5", ENV_ARGS, CAMERAS, SEEDS).path
    data, found = path.read_bytes(), []
    for size in np.linspace(48, len(data), 41).astype(int).tolist():
        kept = intact(cut(path, size))
        # What HDF5 itself reads right with noise in place of the rest does not need the rest.
        noise = np.random.default_rng(size).bytes(len(data) - size)
        (noisy := tmp_path / f"noisy-{size}.hdf5").write_bytes(data[:size] + noise)
        assert kept <= intact(noisy)
        assert words or intact(noisy) <= intact(cut(path, min(size + HEADER, len(data))))
        found.append(len(kept))
    assert found == sorted(found) and found[-1] == len(SEEDS)
    assert found[20] >= 2 and found[34] >= 4  # at 50 % and 85 %: an episode lies together, none of it at the end


def foreign_file(path: Path, *, chunked: bool) -> list[np.ndarray]:
    """robomimic's layout without compression or checksums, its list first. No row is zero."""
    rows = [np.random.default_rng(k).integers(1, 256, (9, 8, 8, 3), dtype=np.uint8) for k in range(6)]
    with h5py.File(path, "w") as file:
        demos = [file.create_group(f"data/demo_{k}") for k in range(6)]
        for demo, frames in zip(demos, rows, strict=True):
            demo.attrs["num_samples"] = 9
            demo.create_dataset("obs/agentview_image", data=frames, chunks=(1, 8, 8, 3) if chunked else None)
            for name in ("actions", "rewards", "obs/proprioception"):
                demo[name] = frames.reshape(9, -1)[:, 0 if name == "rewards" else slice(7)] / 256
    return rows


@pytest.mark.parametrize("chunked", [False, True])
def test_a_foreign_file_without_checksums_never_yields_zeros(tmp_path: Path, *, chunked: bool) -> None:
    rows = foreign_file(tmp_path / "a.hdf5", chunked=chunked)
    found = []
    for size in np.linspace(96, (tmp_path / "a.hdf5").stat().st_size, 41).astype(int).tolist():
        try:
            dataset = DemoDataset(cut(tmp_path / "a.hdf5", size))
        except CorruptFile:
            found.append(0)
            continue
        assert len(dataset) == 6
        for k, frames in enumerate(rows):
            if k in dataset.lost:
                for read, what in ((dataset.frames, [0]), (dataset.field, "rewards"), (dataset.has, "goal")):
                    with pytest.raises(CorruptFile, match=f"episode demo_{k} "):
                        read(k, what)  # type: ignore[operator]
            else:
                episode = dataset.episode(k).load()
                assert np.array_equal(episode.frames[:, 0], frames)
                assert np.array_equal(episode.actions, (frames.reshape(9, -1)[:, :7] / 256).astype(np.float32))
        found.append(6 - len(dataset.lost))
        dataset.close()
    assert found == sorted(found) and found[-1] == 6 and {1, 2, 3, 4, 5} <= set(found)


@pytest.mark.parametrize("chunked", [False, True])
def test_rows_beyond_the_cut_are_no_zeros_for_hdf5_either(tmp_path: Path, *, chunked: bool) -> None:
    rows = foreign_file(tmp_path / "a.hdf5", chunked=chunked)
    for size in np.linspace(20_000, (tmp_path / "a.hdf5").stat().st_size, 20).astype(int).tolist():
        read = 0
        with open_hdf5(cut(tmp_path / "a.hdf5", size)) as file:
            for k, frames in enumerate(rows):
                with contextlib.suppress(*DAMAGE):
                    assert np.array_equal(file[f"data/demo_{k}/obs/agentview_image"][()], frames)
                    read += 1
        assert read > 0 and (read < 6 or size > 30_000)


def test_the_command_in_the_warning_makes_a_clean_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path = half(tmp_path / "my data.hdf5")
    with caplog.at_level(logging.WARNING):
        lost, _ = DemoDataset(path).lost, open_dataset(path)
    (said,) = caplog.messages
    assert f"{len(lost)} of its 6 episodes are lost (demo_{lost[0]}, " in said and "\n" not in said
    s2robot, *words = shlex.split(said.partition("rest: ")[2])
    assert s2robot == "s2robot" and cli.main(words) == 1
    told = capsys.readouterr().out
    assert all(f"demo_{k} is left out" in told for k in lost)
    clean = DemoDataset(words[-1])
    clean.verify()
    assert [episode.seed for episode in clean] == [seed for k, seed in enumerate(SEEDS) if k not in lost]
    assert not clean.lost and 2 <= len(clean) <= 4


def test_encoding_and_training_name_what_is_damaged_and_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [half(tmp_path / "a.hdf5"), tmp_path / "a.hdf5"]
    damage_frames(paths[1], "demo_4")
    foreign_file(tmp_path / "b.hdf5", chunked=False)
    paths.append(cut(tmp_path / "b.hdf5", (tmp_path / "b.hdf5").stat().st_size // 2))
    for path in paths:
        root = tmp_path / f"features-{path.stem}"
        with pytest.raises(CorruptFile, match=r"episode demo_\d .*clean file of the rest: s2robot convert ") as caught:
            encode_dataset(path, FakeConfig(), root, workers=1)  # type: ignore[arg-type]
        assert root.exists() == (path == paths[1])  # what is lost shows before anything is encoded
        words = shlex.split(str(caught.value).partition("rest: s2robot ")[2].rstrip("."))
        assert cli.main(words) == 1
        encode_dataset(words[-1], FakeConfig(), root, workers=1)  # type: ignore[arg-type]
    capsys.readouterr()
    assert cli.main(["train", str(paths[0]), "--out", str(tmp_path / "run")]) == 1
    assert "clean file of the rest: s2robot convert" in capsys.readouterr().err


def test_what_is_left_is_viewed_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = half(tmp_path / "a.hdf5")
    lost = DemoDataset(path).lost
    assert cli.main(["view", str(path), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().out
    assert [f"damaged   demo_{k}" in told for k in range(6)] == [k in lost for k in range(6)]
    assert (tmp_path / "out/sheet.png").is_file()
    (row,) = (row for row in find_datasets(tmp_path) if row.name == path.name)
    assert (row.layout, row.episodes, row.note) == ("s2robot", 6, f"cut short, {len(lost)} episodes lost")


def test_states_are_drawn_from_what_is_left(tmp_path: Path) -> None:
    dataset = StateDataset(half(tmp_path / "a.hdf5"))
    for k, seed in enumerate(SEEDS):
        assert dataset.attribute(k, "seed") == seed
        if k in dataset.lost:
            with pytest.raises(CorruptFile, match=f"episode demo_{k} .*s2robot render"):
                _ = dataset.episode(k).states
        else:
            assert np.array_equal(dataset.episode(k).states, make_episode(seed).states)  # type: ignore[arg-type]


def test_it_is_pickled_forked_and_closed_like_any_other(tmp_path: Path) -> None:
    dataset = DemoDataset(half(tmp_path / "a.hdf5"))
    expected = make_episode(SEEDS[0]).frames
    assert np.array_equal(dataset.frames(0), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(dataset)).frames(0), expected)
    if (child := os.fork()) == 0:
        os._exit(0 if np.array_equal(dataset.frames(0), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(dataset.frames(0), expected)
    dataset.close()
    assert np.array_equal(dataset.frames(0), expected)


def test_where_the_list_or_every_episode_is_lost_that_is_said(tmp_path: Path) -> None:
    robomimic_file(tmp_path / "a.hdf5")
    write(tmp_path / "b.hdf5", SEEDS)
    for name, size in (("a", 3000), ("b", 400), ("b", 4000)):
        with pytest.raises(CorruptFile, match=rf"the file is .*cut short: {size} of \d+ bytes are left.*Restore it"):
            DemoDataset(cut(tmp_path / f"{name}.hdf5", size))


def test_a_collection_does_not_pass_for_whole(tmp_path: Path) -> None:
    path = half(tmp_path / "a.hdf5")
    with pytest.raises(CorruptFile, match=r"cut short, \d of 6 episodes are lost.* rm "):
        collect(CollectConfig(demos=6), path)


def test_files_without_the_list_are_read_as_before(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.hdf5", SEEDS)
    whole.close()
    with h5py.File(whole.path, "a") as file:
        del file["s2robot_episodes"]
    old = DemoDataset(whole.path)
    old.verify()
    assert old.fingerprint == whole.fingerprint and [episode.seed for episode in old] == SEEDS


def test_seeds_of_what_is_left_stay_in_a_chosen_part(tmp_path: Path) -> None:
    source = open_dataset(half(tmp_path / "a.hdf5"))
    part, damaged = to_s2robot(source, tmp_path / "b.hdf5", episodes=[5, 1, 0])
    assert [episode.seed for episode in part] == [SEEDS[1], SEEDS[0]] and list(damaged) == ["demo_5"]
