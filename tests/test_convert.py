"""Any layout into ours: what goes on after a kill, what is left out, whose seeds are kept."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_dataset_view import damage_frames
from test_datasets import CAMERAS, make_episode, robomimic_file, write

from s2robot import cli, convert, locks
from s2robot.convert import to_s2robot
from s2robot.datasets import DemoDataset, EpisodeParts, write_dataset
from s2robot.errors import InvalidInput, OutOfSpace, S2RobotError
from s2robot.files import atomic_folder
from s2robot.sources import open_dataset


def test_robomimics_images_become_ours(tmp_path: Path) -> None:
    made = robomimic_file(tmp_path / "a.hdf5")
    words = ["convert", str(tmp_path / "a.hdf5"), "--to", "s2robot", "--out", str(tmp_path / "b.hdf5")]
    assert cli.main(words) == 0
    dataset = DemoDataset(tmp_path / "b.hdf5")
    dataset.verify()
    assert [episode.seed for episode in dataset] == [0, 1] and "says no seeds" in dataset.env_args["seeds"]
    assert np.array_equal(dataset.frames(1), made.frames[:, :1])
    assert dataset.env_args["env_name"] == "Lift"


def test_a_seed_that_says_there_is_none_is_none_for_one_episode_too(tmp_path: Path) -> None:
    robomimic_file(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        for demo in file["data"].values():
            demo.attrs["seed"] = -1
    part, _ = to_s2robot(open_dataset(tmp_path / "a.hdf5"), tmp_path / "b.hdf5", episodes=[1])
    assert part.episode(0).seed == 1 and "says no seeds" in part.env_args["seeds"]


def test_some_of_ours_keep_their_seeds_and_content(tmp_path: Path) -> None:
    source = write(tmp_path / "a.hdf5", [5, 2, 9])
    part, damaged = to_s2robot(source, tmp_path / "b.hdf5", episodes=[2, 0])
    assert [episode.seed for episode in part] == [9, 5] and not damaged
    assert part.episode(0).load().digest() == make_episode(9).digest()
    whole, _ = to_s2robot(source, tmp_path / "c.hdf5")
    assert whole.fingerprint == source.fingerprint
    with pytest.raises(InvalidInput, match="rm "):
        to_s2robot(source, tmp_path / "c.hdf5")
    with locks.alone(tmp_path / ".d.hdf5.lock", "d.hdf5"), pytest.raises(locks.Occupied, match="in use by process"):
        to_s2robot(source, tmp_path / "d.hdf5")


def test_a_stopped_conversion_goes_on_and_another_is_not_mixed_in(tmp_path: Path) -> None:
    source = write(tmp_path / "a.hdf5", [5, 2, 9])

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_s2robot(source, tmp_path / "b.hdf5", report=stop)
    assert EpisodeParts(tmp_path / "b.hdf5.parts").seeds_done() == [2, 5]
    other = write(tmp_path / "other.hdf5", [1])
    with pytest.raises(InvalidInput, match="unfinished collection with other settings"):
        to_s2robot(other, tmp_path / "b.hdf5")
    again, _ = to_s2robot(source, tmp_path / "b.hdf5")
    assert again.fingerprint == source.fingerprint

    with pytest.raises(KeyboardInterrupt):
        to_s2robot(source, tmp_path / "c.hdf5", report=stop)
    source.path.unlink()
    changed = write(source.path, [5, 2, 10])
    with pytest.raises(InvalidInput, match=r"other settings \(content"):
        to_s2robot(changed, tmp_path / "c.hdf5")


def test_a_linked_folder_that_changed_is_one_too(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "videos").symlink_to(tmp_path / "big")
    (tmp_path / "big" / "a.mp4").write_bytes(b"one")
    before = convert._listing(tmp_path / "here", tmp_path / "b.hdf5")
    (tmp_path / "big" / "a.mp4").write_bytes(b"other")
    assert convert._listing(tmp_path / "here", tmp_path / "b.hdf5") != before
    for name in ("back", "again"):  # a ring of links is walked once
        (tmp_path / "big" / name).symlink_to(tmp_path / "here")
    assert len(list(convert._walked(tmp_path / "here"))) == 1


def test_a_folder_that_changed_is_another_source(tmp_path: Path) -> None:
    (tmp_path / "data/.cache").mkdir(parents=True)
    (tmp_path / "data/a.parquet").write_bytes(b"one")
    before = convert._listing(tmp_path, tmp_path / "b.hdf5")
    (tmp_path / "data/.cache/x").write_bytes(b"any")
    (tmp_path / "b.hdf5.parts").mkdir()
    (tmp_path / "b.hdf5.parts/0.hdf5").write_bytes(b"any")
    assert convert._listing(tmp_path, tmp_path / "b.hdf5") == before
    (tmp_path / "data/a.parquet").write_bytes(b"two")
    os.utime(tmp_path / "data/a.parquet", ns=(1, 1))
    assert convert._listing(tmp_path, tmp_path / "b.hdf5") != before


def test_parts_named_by_seed_are_not_taken_for_parts_named_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all episodes two share a seed, so they are numbered; of the first two none do, so seeds name them."""
    write_dataset(tmp_path / "a.hdf5", [make_episode(1), make_episode(2), make_episode(3)], {}, CAMERAS)
    source = open_dataset(tmp_path / "a.hdf5")
    monkeypatch.setattr(source, "attribute", lambda k, name: (1, 2, 2)[k] if name == "seed" else None)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_s2robot(source, tmp_path / "b.hdf5", report=stop)
    with pytest.raises(InvalidInput, match="by: 'numbers' there, 'seeds' now"):
        to_s2robot(source, tmp_path / "b.hdf5", episodes=[0, 1])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cameras", "agentview"], "Leave --cameras out"),
        (["--features", "s2robot-tiny"], "for LeRobot's layout"),
        (["--instruction", "lift it"], "for LeRobot's layout"),
    ],
)
def test_what_would_not_be_done_is_refused(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.hdf5", [5])
    asked = ["convert", str(tmp_path / "a.hdf5"), "--to", "s2robot", "--out", str(tmp_path / "b.hdf5"), *words]
    assert cli.main(asked) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "b.hdf5").exists()


def test_damaged_episodes_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.hdf5", [5, 2, 9]).close()
    damage_frames(tmp_path / "a.hdf5")
    words = ["convert", str(tmp_path / "a.hdf5"), "--to", "s2robot", "--out", str(tmp_path / "b.hdf5")]
    assert cli.main(words) == 1
    assert "demo_1 is left out" in capsys.readouterr().out
    assert [episode.seed for episode in DemoDataset(tmp_path / "b.hdf5")] == [5, 9]
    damage_frames(tmp_path / "a.hdf5", "demo_0")
    damage_frames(tmp_path / "a.hdf5", "demo_2")
    with pytest.raises(S2RobotError, match=r"Not one episode of [^ ]+ can be converted: (?!.*s2robot convert)"):
        to_s2robot(open_dataset(tmp_path / "a.hdf5"), tmp_path / "c.hdf5")


def test_what_only_lerobot_folders_have_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.hdf5", [5]).close()
    words = ["convert", str(tmp_path / "a.hdf5"), "--to", "s2robot", "--out", str(tmp_path / "b.hdf5")]
    assert cli.main([*words, "--scale-actions"]) == 2
    assert "--scale-actions" in capsys.readouterr().err


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def fill(folder: Path, error: BaseException | None) -> None:
        (folder / "inner").mkdir(parents=True)
        (folder / "inner/file").write_text("x")
        if error:
            raise error

    for error, raised in ((ValueError("x"), ValueError), (OSError(28, "No space left on device"), OutOfSpace)):
        with pytest.raises(raised), atomic_folder(tmp_path / "a") as folder:
            fill(folder, error)
        assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "a") as folder:
        fill(folder, None)
    assert (tmp_path / "a/inner/file").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
