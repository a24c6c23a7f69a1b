"""Datasets to look at: the list of them, a table, a contact sheet, videos; damage is named and passed by."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from test_datasets import CAMERAS, make_episode, robomimic_file, write

from s2robot import cli, dataset_view, video
from s2robot.datasets import DemoDataset, write_dataset
from s2robot.errors import CorruptFile, InvalidInput, MissingExtra
from s2robot.shelf import find_datasets
from s2robot.sources import StateDataset, goal_words, open_dataset, version_differences


def damage_frames(path: Path, demo: str = "demo_1") -> None:
    """Flip a bit in the first frame of one episode."""
    with h5py.File(path) as file:
        chunk = file[f"data/{demo}/obs/agentview_image"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + 9] ^= 1
    path.write_bytes(data)


def lerobot_folder(path: Path) -> None:
    """What `list` reads of one."""
    (path / "meta").mkdir(parents=True)
    features = {
        "observation.images.top": {"dtype": "video", "shape": [3, 48, 64], "names": ["channels", "height", "width"]},
        "action": {"dtype": "float32", "shape": [2]},
    }
    info = {"codebase_version": "v3.0", "fps": 10, "total_episodes": 4, "total_frames": 90, "robot_type": "so100"}
    (path / "meta/info.json").write_text(json.dumps({**info, "features": features}))


def test_every_dataset_below_a_folder_is_listed_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "runs/a.hdf5", [1, 2]).close()
    robomimic_file(tmp_path / "b.hdf5")
    robomimic_file(tmp_path / "c.h5", image_key="object")
    lerobot_folder(tmp_path / "so100")
    (tmp_path / "cut.hdf5").write_bytes((tmp_path / "b.hdf5").read_bytes()[:3000])
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["weights"] = np.zeros(3)
    write(tmp_path / ".hidden/a.hdf5", [1]).close()
    found = {row.name: row for row in find_datasets(tmp_path)}
    assert sorted(found) == ["b.hdf5", "c.h5", "cut.hdf5", "runs/a.hdf5", "so100"]
    ours = found["runs/a.hdf5"]
    assert (ours.layout, ours.task, ours.episodes, ours.steps) == ("s2robot", "Lift", 2, 9)
    assert ours.cameras == "agentview, robot0_eye_in_hand 8x8"
    assert (found["b.hdf5"].layout, found["b.hdf5"].cameras) == ("robomimic", "agentview 8x8")
    assert "s2robot render" in found["c.h5"].note and not found["c.h5"].cameras
    assert found["cut.hdf5"].note.startswith("damaged: ")
    lerobot = found["so100"]
    assert (lerobot.task, lerobot.episodes, lerobot.steps, lerobot.cameras) == ("so100", 4, 90, "top 48x64")


def test_list_datasets_says_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "datasets", str(tmp_path)]) == 0
    assert "no datasets below" in capsys.readouterr().out
    write(tmp_path / "a.hdf5", [1]).close()
    assert cli.main(["list", "datasets", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["datasets"][0]["episodes"] == 1
    assert cli.main(["list", "datasets", str(tmp_path / "nowhere")]) == 2


def test_view_writes_a_sheet_and_videos_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.hdf5", [1, 2, 3]).close()
    words = ["view", str(tmp_path / "a.hdf5"), "--episodes", "0,2", "--moments", "3", "--cell", "16", "--video"]
    assert cli.main([*words, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["episodes"], summary["steps"], summary["successes"]) == (3, 4 + 5 + 6, 2)
    assert (summary["cameras"], summary["frame_size"], summary["damaged"]) == (CAMERAS, [8, 8], {})
    assert len(summary["actions"]) == 7 and all(-1 <= low < high <= 1 for low, high in summary["actions"].values())
    names = [Path(picture).name for picture in summary["pictures"]]
    assert names == ["sheet.png", "episode-0000.mp4", "episode-0002.mp4"]
    assert sorted(path.name for path in (tmp_path / "a-view").iterdir()) == sorted(names)
    with Image.open(tmp_path / "a-view/sheet.png") as sheet:
        assert sheet.size == (4 + 3 * 20, 2 * (24 + 2 * 20) + 4)
    assert video.read_video(tmp_path / "a-view/episode-0002.mp4").shape == (6, 8, 16, 3)  # cameras side by side
    assert cli.main(words) == 0
    assert "3, of which 2 succeeded" in capsys.readouterr().out


def test_the_sheet_shows_the_frames_in_their_places(tmp_path: Path) -> None:
    colours = np.arange(6, dtype=np.uint8).reshape(3, 2, 1, 1, 1) * 40 + np.zeros((3, 2, 8, 8, 3), np.uint8)
    floats = {name: np.zeros((3, 2), np.float32) for name in ("proprioception", "actions", "executed_actions")}
    episode = make_episode(0, frames=colours, rewards=np.zeros(3, np.float32), states=None, goal=None, **floats)
    dataset = write_dataset(tmp_path / "a.hdf5", [episode], {}, CAMERAS)
    sheet, damaged = dataset_view.contact_sheet(dataset, [0], moments=3, cell=8)
    pixels = np.asarray(sheet)
    middles = pixels[24 + 4 :: 12, 4 + 4 :: 12][:2, :3, 0]
    assert np.array_equal(middles, colours[:, :, 0, 0, 0].T) and not damaged


def test_a_damaged_episode_is_named_and_the_rest_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.hdf5", [1, 2, 3]).close()
    damage_frames(tmp_path / "a.hdf5")
    assert cli.main(["view", str(tmp_path / "a.hdf5"), "--video", "--out", str(tmp_path / "out")]) == 1
    assert "demo_1" in (said := capsys.readouterr().out) and "demo_2" not in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "episode-0000.mp4", "episode-0002.mp4", "sheet.png",
    ]  # fmt: skip


def test_a_file_without_images_is_summarized_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    robomimic_file(tmp_path / "a.hdf5", image_key="object")
    assert isinstance(open_dataset(tmp_path / "a.hdf5"), StateDataset)
    assert cli.main(["view", str(tmp_path / "a.hdf5"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "s2robot render" in said and "2, of which 1 succeeded" in said
    assert not (tmp_path / "out").exists()


def test_actions_of_any_range_are_told_and_are_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    robomimic_file(tmp_path / "a.hdf5", image_key="object")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        list(file["data"].values())[1]["actions"][0] = 90.0
    words = ["view", str(tmp_path / "a.hdf5")]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "2, of which 1 succeeded" in said and ", 90]" in said and "damaged" not in said
    assert "actions of 1 episodes leave [-1, 1]" in said
    with pytest.raises(CorruptFile, match="leaves"):  # where they are learned from it is
        _ = open_dataset(tmp_path / "a.hdf5").episode(0).actions


def test_the_folder_one_stands_in_may_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "here" / "a.hdf5", [1]).close()
    monkeypatch.chdir(tmp_path / "here")
    dataset = DemoDataset(tmp_path / "here" / "a.hdf5")
    monkeypatch.setattr("s2robot.dataset_verbs.open_dataset", lambda _: dataset)  # only LeRobot's are folders
    assert cli.main(["view", "."]) == 0
    assert (tmp_path / "here-view" / "sheet.png").exists()


def test_foreign_files_with_images_are_viewed(tmp_path: Path) -> None:
    robomimic_file(tmp_path / "a.hdf5")
    dataset = open_dataset(tmp_path / "a.hdf5")
    assert type(dataset) is DemoDataset
    sheet, _ = dataset_view.contact_sheet(dataset, [1], moments=2, cell=8)
    assert sheet.size[0] == 4 + 2 * 12
    with pytest.raises(InvalidInput, match="s2robot list datasets"):
        open_dataset(tmp_path)


def test_robosuites_own_recordings_have_lengths(tmp_path: Path) -> None:
    robomimic_file(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        for demo in file["data"].values():
            del demo.attrs["num_samples"]
    assert DemoDataset(tmp_path / "a.hdf5").lengths == (4, 4)


def test_an_episode_that_a_killed_recording_left_empty_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    robomimic_file(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["data"].create_group("demo_11")
    assert cli.main(["view", str(tmp_path / "a.hdf5"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "demo_11" in said and "3, of which 1 succeeded" in said
    assert (tmp_path / "out/sheet.png").exists()


@pytest.mark.parametrize(("text", "expected"), [("0", [0]), ("3,1", [3, 1]), ("1-3,2", [1, 2, 3])])
def test_episodes_are_chosen_by_number_and_range(text: str, expected: list[int]) -> None:
    assert dataset_view.choose(text, 4) == expected


@pytest.mark.parametrize("text", ["", "x", "1-", "-1", "4", "0,9-12"])
def test_episodes_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="--episodes"):
        dataset_view.choose(text, 4)


def test_without_an_encoder_videos_are_gifs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise MissingExtra("av", "video", "Writing videos")

    monkeypatch.setattr(dataset_view, "require", missing)
    frames = np.random.default_rng(0).integers(0, 255, (5, 8, 16, 3), dtype=np.uint8)
    path = dataset_view.write_clip(tmp_path / "episode-0000", frames, 20)
    with Image.open(path) as gif:
        assert (path.suffix, gif.n_frames, gif.size) == (".gif", 5, (16, 8))


def test_other_versions_and_goals_are_put_in_words() -> None:
    (said,) = version_differences({"env_version": "1.4.1"})
    assert "robosuite 1.4.1" in said
    assert version_differences({}) == []
    assert goal_words({"task": "PickColor"}, np.eye(4, dtype=np.float32)[1]) == "green"
    assert goal_words({"env_name": "Kitchen"}, np.array([0.5, 2], np.float32)) == "0.5 2"


def test_damaged_frames_are_still_refused_where_they_are_needed(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5", [1, 2]).close()
    damage_frames(tmp_path / "a.hdf5")
    with pytest.raises(CorruptFile, match="demo_1"):
        DemoDataset(tmp_path / "a.hdf5").frames(1)
