"""Frames to pre-train on: the same from any number of workers or kills, held out by whole episodes."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import TINY, folder_with_frames, some_frames

from s2robot import files, footage, registry
from s2robot.errors import InvalidInput, OutOfSpace
from s2robot.footage import HELD_OUT, gather, open_footage, whole_episodes

CONFIG = replace(TINY, frames=500, workers=2)


class Striped:
    """Stands in for a renderer: episode k has 3 or 4 frames of colour k."""

    def __init__(self, frame_size: int, seed: int) -> None:
        self.frame_size = frame_size

    def episode(self, index: int) -> np.ndarray:
        return np.full((3 + index % 2, self.frame_size, self.frame_size, 3), index % 256, np.uint8)

    def close(self) -> None:
        pass


@pytest.fixture
def _striped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.SCENES, "lift", "test_footage")
    monkeypatch.setattr(registry, "scene_sampler", Maker())


class Maker:
    """Pickles, as a worker's maker must."""

    def __call__(self, frame_size: int, seed: int, scenes: str) -> Striped:
        return Striped(frame_size, seed)


def quiet(done: int, total: int, note: str) -> None:
    pass


def expected_frames() -> np.ndarray:
    sampler = Striped(64, 0)
    return np.concatenate([sampler.episode(k) for k in range(200)])[:500]


@pytest.mark.usefixtures("_striped")
def test_frames_do_not_depend_on_workers_or_kills(tmp_path: Path) -> None:
    def kill(done: int, total: int, note: str) -> None:
        if done > 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather(CONFIG, tmp_path, kill)
    assert list((tmp_path / "frames.parts").glob("*.raw"))
    assert not (tmp_path / "frames.npy").exists()
    made = gather(CONFIG, tmp_path, quiet)
    np.testing.assert_array_equal(made.frames, expected_frames())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["footage.json", "frames.npy", "frames.npy.sha256"]
    (tmp_path / "frames.parts").mkdir()  # as a kill leaves it that comes once the file is there
    again = gather(replace(CONFIG, workers=1), tmp_path, quiet)
    assert again.held_out == made.held_out
    assert not (tmp_path / "frames.parts").exists()


@pytest.mark.usefixtures("_striped")
def test_what_is_held_out_are_whole_episodes(tmp_path: Path) -> None:
    made = gather(CONFIG, tmp_path, quiet)
    shown = {int(frame[0, 0, 0]) for frame in made.valid}, {int(frame[0, 0, 0]) for frame in made.train}
    assert shown[0] & shown[1] == set()
    assert 1 <= made.held_out <= CONFIG.frames // HELD_OUT
    assert files.read_json(tmp_path / "footage.json")["held_out"] == made.held_out


def test_the_share_held_out_is_rounded_down_to_episodes() -> None:
    assert whole_episodes([12] * 1000, 12_000) == 240
    assert whole_episodes([7] * 100, 700) == 14
    assert whole_episodes([9] * 100, 900) == 18
    assert whole_episodes([9] * 10, 90) == 9  # at least one
    assert whole_episodes([100], 100) == 2  # one alone is split by time
    assert whole_episodes([40, 30, 30], 100) == 2  # so is one that would be most of the data
    assert whole_episodes([0, 12, 12], 1000) == 12  # one that could not be read


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    footage.save_frames(tmp_path / "frames.npy", [some_frames(10)], 10, 64)
    assert len(open_footage(tmp_path / "frames.npy", 64).frames) == 10
    with pytest.raises(InvalidInput, match=r"\(10, 64, 64, 3\); expected uint8 \(n, 128, 128, 3\)"):
        open_footage(tmp_path / "frames.npy", 128)


def test_frames_are_written_as_numpy_reads_them(tmp_path: Path) -> None:
    frames = some_frames(10)
    footage.save_frames(tmp_path / "f.npy", (frames[k : k + 3] for k in range(0, 10, 3)), 8, 64)
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), frames[:8])


def test_the_frames_of_another_run_are_used_where_they_are(tmp_path: Path) -> None:
    source = folder_with_frames(tmp_path / "first") / "frames.npy"
    files.write_json(source.with_name("footage.json"), {"held_out": 7})
    made = gather(replace(TINY, source=str(source)), tmp_path / "second", quiet)
    np.testing.assert_array_equal(made.frames, some_frames())
    assert made.held_out == 7
    assert [path.name for path in (tmp_path / "second").iterdir()] == ["source.txt"]  # which says of what they are


def test_of_the_frames_of_another_run_so_many_are_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = folder_with_frames(tmp_path / "first") / "frames.npy"
    files.write_json(source.with_name("footage.json"), {"held_out": 7})
    made = gather(replace(TINY, source=str(source), frames=3), tmp_path / "second", quiet)
    np.testing.assert_array_equal(made.train, some_frames()[7:10])
    np.testing.assert_array_equal(made.valid, some_frames()[:7])
    assert "the first 3 of its" in caplog.text


def test_frames_that_were_replaced_are_not_gone_on_with(tmp_path: Path) -> None:
    source = tmp_path / "frames.npy"
    footage.save_frames(source, [some_frames(10)], 10, 64)
    config = replace(TINY, source=str(source))
    for _ in range(2):
        assert len(gather(config, tmp_path / "run", quiet).frames) == 10
    footage.save_frames(source, [some_frames(12)], 12, 64)
    with pytest.raises(InvalidInput, match="has changed since"):
        gather(config, tmp_path / "run", quiet)


def test_a_damaged_or_missing_file_of_frames_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No frames at"):
        gather(replace(TINY, source=str(tmp_path / "frames.npy")), tmp_path, quiet)
    (tmp_path / "frames.npy").write_bytes(b"not frames")
    with pytest.raises(InvalidInput, match="made again"):
        gather(TINY, tmp_path, quiet)


def test_a_full_disk_while_reading_leaves_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(OutOfSpace):
        footage.save_frames(tmp_path / "frames.npy", [some_frames(10)], 10, 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sim
def test_scenes_are_functions_of_their_seed() -> None:
    sampler = registry.scene_sampler(64, seed=3)
    first = [sampler.episode(k) for k in range(3)]
    again = sampler.episode(1)
    sampler.close()
    np.testing.assert_array_equal(first[1], again)
    assert first[0].shape[1:] == (64, 64, 3)
    assert (first[0] != first[1][: len(first[0])]).any()
