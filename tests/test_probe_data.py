"""Scenes on disk: disjoint, resumable, never half of one, never those of another recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_scenes import SquareScenes, quiet

from s2robot import probe_data, registry
from s2robot.errors import CorruptFile, InvalidInput
from s2robot.probe_data import PIECE, ProbeDataConfig, load_data, scene_record

SMALL = ProbeDataConfig(train=25, test=10, frame_size=64)


@pytest.fixture(autouse=True)
def squares(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Drawn scenes' indices; the simulator stays out."""
    monkeypatch.setattr(registry, "probe_scenes", SquareScenes)
    monkeypatch.setattr(SquareScenes, "drawn", [])
    return SquareScenes.drawn


def pieces(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.npy"))


def test_scenes_are_what_the_simulator_said(tmp_path: Path) -> None:
    data = load_data(SMALL, tmp_path, quiet, 1)
    for split, first in ((data.train, 0), (data.test, probe_data.FIRST["test"])):
        for k in (0, split.count - 1):
            scene = SquareScenes(64, 0).scene(first + k)
            piece = split.pieces[k // PIECE][k % PIECE]
            for name in scene_record(64).names or ():
                np.testing.assert_array_equal(piece[name], getattr(scene, name))
                if name not in ("frames", "odd"):
                    np.testing.assert_array_equal(getattr(split.truth, name)[k], getattr(scene, name))
        assert len(split.truth) == split.count
    assert isinstance(data.train.pieces[0], np.memmap)


def test_training_and_test_scenes_never_meet(tmp_path: Path, squares: list[int]) -> None:
    load_data(SMALL, tmp_path, quiet, 1)
    train, test = {k for k in squares if k < probe_data.FIRST["test"]}, set(squares)
    assert train == set(range(30)) and test - train == {probe_data.FIRST["test"] + k for k in range(10)}
    with pytest.raises(InvalidInput, match="training and"):
        ProbeDataConfig(train=probe_data.FIRST["test"] + 1)


def test_a_killed_run_goes_on_and_more_scenes_add_to_those_there(tmp_path: Path, squares: list[int]) -> None:
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int, note: str = "") -> None:
        told.append((done, total))
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_data(SMALL, tmp_path, stop, 1)
    assert pieces(tmp_path) == ["train-00000.npy", "train-00001.npy"] and told == [(0, 40), (10, 40), (20, 40)]
    data = load_data(SMALL, tmp_path, quiet, 1)
    assert len(squares) == len(set(squares)) == 40
    again = load_data(SMALL, tmp_path, quiet, 1)
    assert len(squares) == 40 and again.fingerprint == data.fingerprint
    more = load_data(ProbeDataConfig(train=35, test=10, frame_size=64), tmp_path, quiet, 1)
    assert len(squares) == 50 and more.fingerprint != data.fingerprint
    assert more.train.digests[:3] == data.train.digests


def test_other_scenes_have_other_folders_and_fingerprints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = load_data(SMALL, tmp_path, quiet, 1)
    other = load_data(ProbeDataConfig(train=25, test=10, frame_size=64, seed=1), tmp_path, quiet, 1)
    monkeypatch.setattr(probe_data, "VERSION", 99)
    newer = load_data(SMALL, tmp_path, quiet, 1)
    assert len({one.folder, other.folder, newer.folder}) == 3
    assert one.fingerprint != other.fingerprint and one.fingerprint == newer.fingerprint


def test_several_processes_render_the_same(tmp_path: Path) -> None:
    """Fresh processes import this stand-in by its name; what they draw is a function of (seed, index)."""
    alone = load_data(SMALL, tmp_path / "alone", quiet, 1)
    together = load_data(SMALL, tmp_path / "together", quiet, 2)
    assert together.fingerprint == alone.fingerprint


@pytest.mark.parametrize("damage", ["cut", "text", "other", "fewer"])
def test_a_damaged_piece_is_named_with_its_remedy(tmp_path: Path, damage: str) -> None:
    load_data(SMALL, tmp_path, quiet, 1)
    path = tmp_path / SMALL.folder / "train-00001.npy"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("not an array")
    else:
        with path.open("wb") as file:
            np.save(file, np.zeros(PIECE) if damage == "other" else np.zeros(PIECE - 1, scene_record(64)))
    with pytest.raises(CorruptFile, match=r"train-00001.npy.*Delete it \(rm "):
        load_data(SMALL, tmp_path, quiet, 1)
    path.unlink()
    load_data(SMALL, tmp_path, quiet, 1)


def test_scenes_that_do_not_fit_the_table_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = SquareScenes.scene

    def with_three_cubes(self: SquareScenes, index: int) -> Any:
        scene = plain(self, index)
        scene.cubes = scene.cubes[:3]
        return scene

    def with_labels_beyond(self: SquareScenes, index: int) -> Any:
        scene = plain(self, index)
        scene.labels[0, 0, 0] = 9
        return scene

    for change, says in ((with_three_cubes, r"cubes are \(3, 2\)"), (with_labels_beyond, "labels beyond 8")):
        monkeypatch.setattr(SquareScenes, "scene", change)
        with pytest.raises(InvalidInput, match=says):
            load_data(SMALL, tmp_path, quiet, 1)
    assert pieces(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"train": 9}, "10 or more"),
        ({"seed": -1}, "seed is -1"),
        ({"test": 1}, "2 or more"),
        ({"frame_size": 100}, "a multiple of 64"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(settings: dict[str, int], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        ProbeDataConfig(**settings)


@pytest.mark.sim
def test_names_are_those_of_the_scenes() -> None:
    pytest.importorskip("mujoco")
    from s2robot.envs import probe_scenes

    assert probe_data.CAMERAS == probe_scenes.CAMERAS
    assert probe_data.LABELS == probe_scenes.LABELS
    assert tuple(probe_scenes.COLOURS) == probe_data.COLOURS
    assert tuple(probe_scenes.SHAPES) == probe_data.SHAPES
    assert probe_data.SIDE == probe_scenes.SIDE
