"""LeRobot datasets: ours there and back to the digest, read by LeRobot's own class, and anybody's to us."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_python import run_there
from test_datasets import CAMERAS, make_episode, write

from s2robot import cli
from s2robot.adapters.lerobot import COLUMNS, LeRobotFolder, export
from s2robot.convert import to_s2robot
from s2robot.datasets import DemoDataset, Episode, write_dataset
from s2robot.errors import CorruptFile, InvalidInput, MissingExtra, S2RobotError, UnknownName
from s2robot.files import read_json
from s2robot.sources import open_dataset

os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
except ImportError:
    LeRobotDataset = None
here = pytest.mark.skipif(LeRobotDataset is None, reason="lerobot is not installed")


@pytest.mark.slow
def test_all_of_this_in_an_environment_that_has_lerobot() -> None:
    assert "passed" in run_there("lerobot", "test_lerobot.py")


@pytest.mark.skipif(LeRobotDataset is not None, reason="lerobot is installed")
def test_without_lerobot_its_pip_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"pip install 's2robot\[lerobot\]'"):
        export(write(tmp_path / "a.hdf5", [1]), tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]


def ours(path: Path) -> DemoDataset:
    """Three episodes of a task with a goal, named fields and another rate than the usual one."""
    env_args = {
        "env_name": "PickColor",
        "task": "PickColor",
        "robot": "Panda",
        "control_hz": 10,
        "action_names": ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"],
    }
    return write_dataset(path, [make_episode(seed) for seed in (5, 2, 9)], env_args, CAMERAS)


@here
def test_lerobots_own_class_reads_what_we_wrote_to_the_bit(tmp_path: Path) -> None:
    source = ours(tmp_path / "a.hdf5")
    assert export(source, tmp_path / "b") == {}
    theirs = LeRobotDataset("local/x", root=tmp_path / "b")
    assert (theirs.fps, theirs.num_episodes, theirs.num_frames) == (10, 3, source.total)
    assert theirs.meta.robot_type == "Panda"
    assert theirs.meta.camera_keys == [f"observation.images.{camera}" for camera in CAMERAS]
    assert theirs.meta.names["action"] == ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
    rows = [(k, seed, step) for k, seed in enumerate((5, 2, 9)) for step in range(len(make_episode(seed)))]
    for item, (k, seed, step) in zip(theirs, rows, strict=True):
        _hold_against(item, make_episode(seed), step)
        assert (int(item["seed"]), int(item["episode_index"])) == (seed, k)
        assert item["timestamp"].item() == pytest.approx(step / 10)
        assert item["task"] == "PickColor " + ["red", "green", "blue", "yellow"][seed % 4]


def _hold_against(item: dict[str, Any], episode: Episode, step: int) -> None:
    """One row as LeRobot hands it out: images as floats (3, H, W) in [0, 1], every number as float32."""
    for view, camera in enumerate(CAMERAS):
        pixels = (item[f"observation.images.{camera}"].numpy() * 255).round().astype(np.uint8)
        assert np.array_equal(pixels, episode.frames[step, view].transpose(2, 0, 1))
    for name, key in COLUMNS.items():
        expected = np.float32(getattr(episode, name)[step])
        assert np.array_equal(item[key].numpy(), expected), name
    last = step == len(episode) - 1
    assert (bool(item["next.done"]), bool(item["next.success"])) == (last, last and episode.success)


@here
def test_policies_of_lerobot_are_given_the_goal_and_not_the_simulators_state(tmp_path: Path) -> None:
    from lerobot.datasets.utils import dataset_to_policy_features

    export(ours(tmp_path / "a.hdf5"), tmp_path / "b", cameras=["agentview"])
    features = dataset_to_policy_features(LeRobotDataset("local/x", root=tmp_path / "b").features)
    kinds = {key: feature.type.name for key, feature in features.items()}
    assert kinds == {
        "observation.images.agentview": "VISUAL",
        "observation.state": "STATE",
        "observation.environment_state": "ENV",
        "action": "ACTION",
    }


@here
def test_there_and_back_is_the_same_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ours(tmp_path / "a.hdf5")
    there, back = str(tmp_path / "b"), tmp_path / "c.hdf5"
    assert cli.main(["convert", str(source.path), "--to", "lerobot", "--out", there]) == 0
    assert cli.main(["convert", there, "--to", "s2robot", "--out", str(back)]) == 0
    again = DemoDataset(back)
    again.verify()
    assert again.fingerprint == source.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.hdf5", "b", "c.hdf5"]
    assert cli.main(["view", there, "--episodes", "1", "--out", str(tmp_path / "d")]) == 0
    assert "3, of which 2 succeeded" in capsys.readouterr().out
    assert cli.main(["convert", str(source.path), "--to", "lerobot", "--out", there]) == 2  # it is there


@here
def test_some_episodes_some_cameras_an_instruction_and_features(tmp_path: Path) -> None:
    source = ours(tmp_path / "a.hdf5")
    rows = {k: np.full((source.lengths[k], 6), k, np.float32) for k in range(3)}
    export(
        source, tmp_path / "b", cameras=[CAMERAS[1]], episodes=[2, 0], instruction="pick the {goal} cube",
        features=rows.__getitem__,
    )  # fmt: skip
    theirs = LeRobotDataset("local/x", root=tmp_path / "b")
    assert sorted(theirs.meta.tasks.index) == ["pick the green cube"]
    assert theirs[0]["observation.s2_features"].numpy().tolist() == [2.0] * 6
    folder = LeRobotFolder(tmp_path / "b")
    assert folder.cameras == (CAMERAS[1],) and [episode.seed for episode in folder] == [9, 5]
    assert np.array_equal(folder.frames(1, [2]), make_episode(5).frames[[2], 1:])
    with pytest.raises(UnknownName, match="agentview"):
        export(source, tmp_path / "c", cameras=["agentveiw"])
    with pytest.raises(InvalidInput, match="it has 0 to 1"):
        folder.episode(2)


@here
def test_damage_is_named_and_the_rest_converted(tmp_path: Path) -> None:
    from test_dataset_view import damage_frames

    source = ours(tmp_path / "a.hdf5")
    source.close()
    damage_frames(source.path)
    assert list(export(DemoDataset(source.path), tmp_path / "b")) == ["demo_1"]
    assert [episode.seed for episode in LeRobotFolder(tmp_path / "b")] == [5, 9]
    own = read_json(tmp_path / "b/meta/s2robot.json")
    own["episodes"][0]["digest"] = "0" * 64  # as if its content had changed
    (tmp_path / "b/meta/s2robot.json").write_text(json.dumps(own))
    again, damaged = to_s2robot(open_dataset(tmp_path / "b"), tmp_path / "c.hdf5")
    assert list(damaged) == ["episode 0"] and "not what was written" in damaged["episode 0"]
    assert [episode.seed for episode in again] == [9]
    (tmp_path / "b/data/chunk-000/file-000.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptFile, match="Restore it from a copy"):
        LeRobotFolder(tmp_path / "b").episode(0).load()


@here
def test_a_run_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(ours(tmp_path / "a.hdf5"), tmp_path / "b", report=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]


def somebodys(path: Path, **extra: Any) -> np.ndarray:
    """A dataset of LeRobot's own kind: degrees for actions, no seeds, no rewards."""
    features = {
        "observation.images.top": {"dtype": "image", "shape": (12, 16, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["pan", "lift"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["pan", "lift"]},
        **extra,
    }
    theirs = LeRobotDataset.create("local/x", 30, features, root=path, robot_type="so100", use_videos=False)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 5, 12, 16, 3), dtype=np.uint8)
    for images in frames:
        for step, image in enumerate(images):
            vector = np.array([-90 + 45 * step, 10], np.float32)
            row = {"observation.images.top": image, "observation.state": vector, "action": vector, "task": "wave"}
            theirs.add_frame(
                {key: rng.integers(0, 256, spec["shape"], dtype=np.uint8) for key, spec in extra.items()} | row
            )
        theirs.save_episode()
    theirs.finalize()
    return frames


@here
def test_anybodys_dataset_becomes_ours(tmp_path: Path) -> None:
    frames = somebodys(tmp_path / "a")
    _, damaged = to_s2robot_or_nothing(tmp_path / "a", tmp_path / "b.hdf5")
    assert "--scale-actions" in damaged
    words = ["convert", str(tmp_path / "a"), "--to", "s2robot", "--out", str(tmp_path / "c.hdf5"), "--scale-actions"]
    assert cli.main(words) == 0
    made = DemoDataset(tmp_path / "c.hdf5")
    assert (made.cameras, made.frame_shape, made.lengths) == (("top",), (1, 12, 16, 3), (5, 5))
    assert np.array_equal(made.frames(1)[:, 0], frames[1])
    episode = made.episode(1).load()
    assert episode.actions[:, 0] == pytest.approx([-1, -0.5, 0, 0.5, 1])
    assert episode.proprioception[0].tolist() == [-90, 10]
    assert (episode.seed, episode.states, episode.goal) == (1, None, None)
    assert made.env_args["control_hz"] == 30 and made.env_args["tasks"] == ["wave"]
    assert np.allclose(made.env_args["action_range"][0], [-90, 10]) and "says no seeds" in made.env_args["seeds"]


def to_s2robot_or_nothing(path: Path, out: Path) -> tuple[None, str]:
    """Why not one episode can be converted."""
    with pytest.raises(S2RobotError) as refused:
        to_s2robot(open_dataset(path), out)
    return None, str(refused.value)


@here
def test_cameras_that_are_written_channels_first_become_ours_as_well(tmp_path: Path) -> None:
    leads = {"dtype": "image", "shape": (3, 12, 16), "names": ["channels", "height", "width"]}
    frames = somebodys(tmp_path / "a", **{"observation.images.top": leads})
    folder = LeRobotFolder(tmp_path / "a")
    assert folder.frame_shape == (1, 12, 16, 3)
    assert np.array_equal(folder.frames(1)[:, 0], frames[1])


@here
def test_cameras_of_different_sizes_must_be_chosen_from(tmp_path: Path) -> None:
    small = {"dtype": "image", "shape": (6, 8, 3), "names": ["height", "width", "channels"]}
    somebodys(tmp_path / "a", **{"observation.images.wrist": small})
    with pytest.raises(InvalidInput, match="--cameras"):
        LeRobotFolder(tmp_path / "a")
    assert LeRobotFolder(tmp_path / "a", cameras=["wrist"]).frames(0).shape == (5, 1, 6, 8, 3)
    with pytest.raises(UnknownName, match="Did you mean 'wrist'"):
        LeRobotFolder(tmp_path / "a", cameras=["wirst"])


@here
def test_videos_are_decoded_by_lerobot(tmp_path: Path) -> None:
    features: dict[str, Any] = {
        "observation.images.top": {"dtype": "video", "shape": (64, 64, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (1,), "names": ["x"]},
        "action": {"dtype": "float32", "shape": (1,), "names": ["x"]},
    }
    theirs = LeRobotDataset.create("local/x", 20, features, root=tmp_path / "a", use_videos=True)
    shades = np.full((2, 5, 64, 64, 3), np.arange(10).reshape(2, 5, 1, 1, 1) * 20, np.uint8)
    for frames in shades:
        for frame in frames:
            zero = np.zeros(1, np.float32)
            theirs.add_frame({"observation.images.top": frame, "observation.state": zero, "action": zero, "task": "x"})
        theirs.save_episode()
    theirs.finalize()
    try:
        read = LeRobotFolder(tmp_path / "a").frames(1)[:, 0]
    except S2RobotError as error:
        if "cannot decode the videos" not in str(error):
            raise
        pytest.skip(str(error))
    assert np.abs(read.astype(int) - shades[1]).max() <= 4
