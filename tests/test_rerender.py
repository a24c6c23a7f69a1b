"""Frames drawn again from states: the same bits in our own files, robomimic's in the model that they carry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from s2robot import cli, locks, rerender
from s2robot.datasets import DemoDataset, Episode, EpisodeParts, write_dataset
from s2robot.envs import make_env
from s2robot.envs.bridge import RobosuiteEnv
from s2robot.envs.replay import TaskReplay
from s2robot.errors import InvalidInput, RenderingUnavailable, S2RobotError, UnknownName
from s2robot.rerender import RenderConfig, render

pytestmark = [
    pytest.mark.sim,
    # robosuite's get_xml() leaves a file open, which shows whenever Python collects its garbage.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"),
]
SMALL = RenderConfig(frame_size=48, workers=1)


def recorded(path: Path, task: str, fidelity: str, seeds: range, steps: int = 6) -> DemoDataset:
    """The first steps of some episodes, as `s2robot collect` would have them."""
    env = make_env(task, fidelity=fidelity, frame_size=48)
    try:
        episodes = [_record(env, seed, steps) for seed in seeds]
    finally:
        env.close()
    versions = {name: metadata.version(name) for name in ("robosuite", "mujoco")}
    env_args = {"env_name": env.task.robosuite_name, "task": task, "fidelity": fidelity, "versions": versions}
    return write_dataset(path, episodes, env_args, env.cameras)


def _record(env: RobosuiteEnv, seed: int, steps: int) -> Episode:
    expert, rows = env.task.demonstrator(), []
    observation, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = expert.act(env.privileged())
        rows.append({**observation, "states": env.state(), "actions": action})
        observation, *_ = env.step(action)
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Episode(seed, False, executed_actions=arrays["actions"], rewards=np.zeros(steps, np.float32), **arrays)


def without_frames(source: Path, path: Path) -> Path:
    shutil.copy(source, path)
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            for key in [key for key in demo["obs"] if key.endswith("_image")]:
                del demo["obs"][key]
    return path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is done in this process: starting one takes longer than what it would do."""

    def work(make: Any, answer: Any, items: Any, count: int) -> Iterator[Any]:
        tool = make()
        try:
            for item in items:
                yield item, answer(tool, item)
        finally:
            tool.close()

    monkeypatch.setattr(rerender.workers, "work", work)


@pytest.fixture(scope="module")
def lift(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    return recorded(tmp_path_factory.mktemp("lift") / "a.hdf5", "Lift", "fast", range(3))


@pytest.mark.parametrize(("task", "fidelity"), [("PickColor", "exact"), ("PickPlaceCan", "fast")])
@pytest.mark.usefixtures("here")
def test_frames_drawn_again_are_the_same_bits(task: str, fidelity: str, tmp_path: Path) -> None:
    original = recorded(tmp_path / "a.hdf5", task, fidelity, range(2))
    stripped = without_frames(original.path, tmp_path / "b.hdf5")
    again = render(stripped, tmp_path / "c.hdf5", SMALL)
    assert (again.failed, again.notes) == ({}, [])
    assert np.array_equal(again.dataset.frames(1), original.frames(1))
    assert again.dataset.fingerprint == original.fingerprint  # and so is everything else
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.hdf5", "b.hdf5", "c.hdf5"]


def test_the_verb_draws_larger_and_from_another_camera(
    lift: DemoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stripped = without_frames(lift.path, tmp_path / "b.hdf5")
    words = ["render", str(stripped), "--out", str(tmp_path / "c.hdf5"), "--workers", "1"]
    assert cli.main([*words, "--frame_size", "64", "--cameras", "frontview,agentview", "--quality", "robosuite"]) == 0
    assert "3 episodes, 18 steps, frontview, agentview 64x64" in capsys.readouterr().out
    larger = DemoDataset(tmp_path / "c.hdf5")
    assert larger.frame_shape == (2, 64, 64, 3)
    assert larger.env_args["rendered"]["quality"] == "robosuite"
    assert np.array_equal(larger.episode(0).states, lift.episode(0).states)
    assert larger.frames(0).std() > 10
    larger.verify()
    assert cli.main(words) == 2  # it is there already
    assert "rm " in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_a_run_that_was_stopped_goes_on_where_it_was(lift: DemoDataset, tmp_path: Path) -> None:
    stripped = without_frames(lift.path, tmp_path / "b.hdf5")

    def stop(done: int, total: int, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(stripped, tmp_path / "c.hdf5", SMALL, stop)
    done = EpisodeParts(tmp_path / "c.hdf5.parts").seeds_done()
    assert 1 <= len(done) < 3 and not (tmp_path / "c.hdf5").exists()
    with pytest.raises(InvalidInput, match="frame_size: 48 there, 32 now"):
        render(stripped, tmp_path / "c.hdf5", RenderConfig(frame_size=32, workers=1))
    told: list[tuple[int, int]] = []
    again = render(stripped, tmp_path / "c.hdf5", SMALL, lambda done, total, note: told.append((done, total)))
    assert told[0][0] == len(done) + 1 and told[-1] == (3, 3)
    assert again.dataset.fingerprint == lift.fingerprint


@pytest.mark.usefixtures("here")
def test_what_starts_elsewhere_is_said_whoever_drew_it(
    lift: DemoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stripped = without_frames(lift.path, tmp_path / "b.hdf5")
    draw, told = TaskReplay.draw, []
    monkeypatch.setattr(  # the third, for instance, for its task was another then
        TaskReplay,
        "draw",
        lambda self, states, seed, model: draw(self, states, seed, model)._replace(starts_alike=seed < 2),
    )

    def stop(done: int, total: int, note: str) -> None:
        told.append(done)
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(stripped, tmp_path / "c.hdf5", SMALL, stop)
    assert told == [1, 2, 3]
    again = render(stripped, tmp_path / "c.hdf5", SMALL)  # which has nothing left to draw
    assert any("1 of 3 episodes start elsewhere" in note for note in again.notes)


def test_two_do_not_draw_into_one_file(lift: DemoDataset, tmp_path: Path) -> None:
    with (
        locks.alone(tmp_path / ".c.hdf5.lock", "c.hdf5"),
        pytest.raises(locks.Occupied, match=r"c\.hdf5 is in use by process"),
    ):
        render(lift.path, tmp_path / "c.hdf5", SMALL)


@pytest.mark.usefixtures("here")
def test_what_cannot_be_drawn_is_named_and_left_out(lift: DemoDataset, tmp_path: Path) -> None:
    stripped = without_frames(lift.path, tmp_path / "b.hdf5")
    with h5py.File(stripped, "a") as file:
        file["data/demo_1/states"][3, 2] += 1  # damage: no longer what was written
        file["data"].attrs["s2robot_note"] = 1
    again = render(stripped, tmp_path / "c.hdf5", SMALL)
    assert list(again.failed) == ["demo_1"] and "states" in again.failed["demo_1"]
    assert [episode.seed for episode in again.dataset] == [0, 2]


@pytest.mark.usefixtures("here")
def test_of_a_file_that_was_cut_short_the_rest_is_drawn(lift: DemoDataset, tmp_path: Path) -> None:
    data = lift.path.read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(data[: len(data) * 3 // 5])
    again = render(tmp_path / "cut.hdf5", tmp_path / "b.hdf5", SMALL)
    kept = [k for k in range(3) if f"demo_{k}" not in again.failed]
    assert 0 in kept and 2 not in kept
    assert [episode.seed for episode in again.dataset] == kept
    assert np.array_equal(again.dataset.frames(0), lift.frames(0))


@pytest.mark.usefixtures("here")
def test_a_camera_that_is_not_there_is_refused_with_those_that_are(lift: DemoDataset, tmp_path: Path) -> None:
    config = RenderConfig(frame_size=48, cameras=("agentveiw",), workers=1)
    with pytest.raises(UnknownName, match="Did you mean 'agentview'"):
        render(lift.path, tmp_path / "c.hdf5", config)
    assert list(tmp_path.iterdir()) == []  # nothing in the way of the next try
    with pytest.raises(UnknownName, match="file"):
        RenderConfig(model="fiel")
    with pytest.raises(UnknownName, match="robosuite"):
        RenderConfig(quality="fine")
    with pytest.raises(InvalidInput, match="Frames of 4 pixels"):
        RenderConfig(frame_size=4)


def foreign(path: Path, *, with_model: bool = True, **changes: Any) -> tuple[Path, np.ndarray]:
    """What robosuite and robomimic record: states, actions and the model; paths of another machine. And its frames."""
    env = make_env("Lift", fidelity="exact", frame_size=48)
    try:
        env.reset(seed=3)
        xml = env._env.sim.model.get_xml()
        states = [env.state()]
        for _ in range(3):
            env.advance(np.array([0.5, -0.5, -1, 1], np.float32))
            env._env.sim.forward()
            states.append(env.state())
        frames = env.frames()
        gripper = env.proprioception()[:3]
    finally:
        env.close()
    assert "/site-packages/robosuite/" in xml
    root = xml[: xml.index("/robosuite/models/assets")].rsplit('"', 1)[1]
    xml = xml.replace(root, "/home/somebody/code/robosuite")
    env_args = {"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": {"robots": ["Panda"]}} | changes
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(env_args)
        for k in range(2):
            demo = file["data"].create_group(f"demo_{k}")
            demo.attrs["num_samples"] = len(states)
            if with_model:
                demo.attrs["model_file"] = xml
            demo["states"], demo["actions"] = np.stack(states), np.zeros((len(states), 7))
            demo["rewards"] = np.arange(len(states)) == len(states) - 1
    return path, np.concatenate([frames[-1].ravel(), gripper])


@pytest.mark.usefixtures("here")
def test_robomimic_files_are_drawn_in_the_model_they_carry(tmp_path: Path) -> None:
    source, expected = foreign(tmp_path / "a.hdf5")
    again = render(source, tmp_path / "b.hdf5", SMALL)
    assert again.failed == {} and any("1.4.1" in note for note in again.notes)
    episode = again.dataset.episode(1).load()
    assert np.abs(episode.frames[-1, -1].ravel() - expected[:-3]).mean() < 1  # the XML rounds numbers
    assert episode.proprioception[-1, :3] == pytest.approx(expected[-3:], abs=1e-4)
    assert episode.proprioception.shape == (4, 9) and episode.success
    assert np.linalg.norm(episode.proprioception[:, 3:7], axis=1) == pytest.approx(1, abs=1e-5)
    assert again.dataset.env_args["rendered"]["model"] == "file" and again.dataset.cameras[0] == "agentview"
    with h5py.File(again.dataset.path) as file:
        assert "<mujoco" in file["data/demo_0"].attrs["model_file"].decode()  # so that it can be drawn once more


@pytest.mark.usefixtures("here")
def test_without_a_model_robosuites_own_is_taken_and_said(tmp_path: Path) -> None:
    source, expected = foreign(tmp_path / "a.hdf5", with_model=False)
    again = render(source, tmp_path / "b.hdf5", SMALL)
    assert any("no model_file" in note for note in again.notes)
    difference = again.dataset.frames(0)[-1, -1].ravel() - expected[:-3]
    assert np.abs(difference).mean() < 5  # the cube's size is drawn anew


@pytest.mark.usefixtures("here")
def test_what_this_machine_lacks_is_said(tmp_path: Path) -> None:
    source, _ = foreign(tmp_path / "a.hdf5")
    with h5py.File(source, "a") as file:
        for demo in file["data"].values():
            demo.attrs["model_file"] = (
                demo.attrs["model_file"].replace("obj_meshes", "old_meshes").replace("/meshes/", "/old_meshes/")
            )
    with pytest.raises(S2RobotError, match=r"None of the 2 .*old_meshes.*--model suite"):
        render(source, tmp_path / "b.hdf5", SMALL)
    source, _ = foreign(tmp_path / "c.hdf5", with_model=False, env_name="Kitchen")
    with pytest.raises(S2RobotError, match="no task 'Kitchen'"):
        render(source, tmp_path / "d.hdf5", SMALL)
    source, _ = foreign(tmp_path / "e.hdf5", with_model=False, env_name="Stack")
    with pytest.raises(S2RobotError, match="another robot, task or version"):
        render(source, tmp_path / "f.hdf5", SMALL)


@pytest.mark.usefixtures("here")
def test_a_renderer_that_is_lost_leaves_the_rest_to_the_next_run(
    lift: DemoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no fault of the episodes: none of them is left out."""

    def lost(*_: Any) -> None:
        raise RenderingUnavailable("the GPU is gone")

    with monkeypatch.context() as patch:
        patch.setattr(TaskReplay, "draw", lost)
        with pytest.raises(RenderingUnavailable):
            render(lift.path, tmp_path / "b.hdf5", SMALL)
    assert not (tmp_path / "b.hdf5").exists()
    assert not render(lift.path, tmp_path / "b.hdf5", SMALL).failed


@pytest.mark.usefixtures("here")
def test_files_without_states_say_so(tmp_path: Path) -> None:
    source, _ = foreign(tmp_path / "a.hdf5")
    with h5py.File(source, "a") as file:
        for demo in file["data"].values():
            del demo["states"]
    with pytest.raises(S2RobotError, match="no simulator states"):
        render(source, tmp_path / "b.hdf5", SMALL)
