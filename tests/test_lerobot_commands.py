"""LeRobot's own commands with our policy and our tasks: train, stop, resume, roll out."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_python import ROOT, run_there
from test_datasets import CAMERAS, write

from s2robot import cli
from s2robot.errors import UnknownName, UsageError

os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    import gymnasium
    from safetensors.torch import load_file

    from s2robot.adapters.lerobot_policy import LeRobotEnv, S2RobotEnv
except ImportError:
    S2RobotEnv = None
here = pytest.mark.skipif(S2RobotEnv is None, reason="lerobot is not installed")

FOUND = "--discover_packages_path=s2robot.adapters.lerobot_policy"
SMALL = ["--policy.device=cpu", "--policy.encoder.scales=[1]", "--policy.fit_frames=20", "--num_workers=0"]


@pytest.mark.slow
def test_all_of_this_in_an_environment_that_has_lerobot() -> None:
    assert "passed" in run_there("lerobot", "test_lerobot_commands.py", timeout=1800)


def lerobot(script: str, *words: str, **more: str) -> str:
    """Run one of LeRobot's commands; returns what it said."""
    command = [sys.executable, "-m", f"lerobot.scripts.lerobot_{script}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def losses(said: str) -> list[float]:
    return [float(part.split()[0]) for part in said.split("loss:")[1:]]


@pytest.fixture(scope="module")
def lift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations of Lift, as a LeRobot folder."""
    if S2RobotEnv is None:
        pytest.skip("lerobot is not installed")
    tmp = tmp_path_factory.mktemp("lift")
    words = ["--demos", "2", "--frame_size", "64", "--out", str(tmp / "lift.hdf5")]
    assert cli.main(["collect", "Lift", *words]) == 0
    assert cli.main(["convert", str(tmp / "lift.hdf5"), "--to", "lerobot", "--out", str(tmp / "lift")]) == 0
    return tmp / "lift"


@here
def test_lerobot_trains_saves_resumes_and_rolls_out(lift: Path, tmp_path: Path) -> None:
    out, last = tmp_path / "run", tmp_path / "run/checkpoints/last/pretrained_model"
    words = [FOUND, "--policy.type=s2robot", "--policy.kind=act", f"--dataset.root={lift}", "--dataset.repo_id=local/x"]
    words += [*SMALL, "--policy.scheduler_warmup_steps=2", "--batch_size=8", f"--output_dir={out}"]
    said = lerobot("train", *words, "--steps=12", "--save_freq=6", "--log_freq=3")
    assert len(losses(said)) == 4 and losses(said)[-1] < losses(said)[0]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["000006", "000012", "last"]
    before = load_file(last / "model.safetensors")

    said = lerobot("train", FOUND, f"--config_path={last}/train_config.json", "--resume=true", "--steps=15")
    assert "Checkpoint policy after step 15" in said
    after = load_file(last / "model.safetensors")
    changed = {key for key in after if not after[key].equal(before[key])}
    assert "network.state.weight" in changed
    assert not changed & {"network.compression.basis", "network.compression.mean"}  # fitted once
    assert json.loads((last / "config.json").read_text())["encoder_fingerprint"]

    words = [FOUND, f"--policy.path={last}", "--policy.device=cpu", "--env.type=s2robot", "--env.task=Lift"]
    words += ["--env.frame_size=64", "--env.fidelity=fast", "--eval.n_episodes=2", "--eval.batch_size=2"]
    lerobot("eval", *words, f"--output_dir={tmp_path / 'eval'}")
    result = json.loads((tmp_path / "eval/eval_info.json").read_text())["overall"]
    assert result["n_episodes"] == 2 and 0 <= result["pc_success"] <= 100
    assert all(Path(video).stat().st_size > 1000 for video in result["video_paths"]) and len(result["video_paths"]) == 2


@here
def test_it_is_found_by_the_name_of_its_distribution(lift: Path, tmp_path: Path) -> None:
    """The plug-in installed instead of --discover_packages_path, and rollouts in the middle of training."""
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    source = tmp_path / "source"  # setuptools leaves its build beside the source
    source.mkdir()
    for file in (ROOT / "examples/lerobot_policy_s2robot").glob("*.*"):
        (source / file.name).write_bytes(file.read_bytes())
    subprocess.run([*command, str(site), str(source)], check=True, capture_output=True, timeout=300)
    words = ["--policy.type=s2robot", f"--dataset.root={lift}", "--dataset.repo_id=local/x", *SMALL]
    words += ["--env.type=s2robot", "--env.task=Lift", "--env.frame_size=64", "--env.fidelity=fast"]
    words += ["--eval_freq=2", "--eval.n_episodes=1", "--eval.batch_size=1", "--steps=3", "--batch_size=4"]
    python_path = os.pathsep.join([str(site), os.environ["PYTHONPATH"]])
    said = lerobot("train", *words, "--log_freq=1", f"--output_dir={tmp_path / 'run'}", PYTHONPATH=python_path)
    assert "Eval policy at step 2" in said and len(losses(said)) == 3


@here
def test_the_environment_shows_what_ours_does(tmp_path: Path) -> None:
    from s2robot.envs import make_env as ours

    config = S2RobotEnv(task="PickColor", frame_size=48, fidelity="fast")
    assert config.fps == 20 and config.features["environment_state"].shape == (4,)
    theirs = gymnasium.make(config.gym_id, disable_env_checker=True, **config.gym_kwargs)  # as LeRobot makes it
    assert type(theirs) is LeRobotEnv  # in no wrapper: it reads attributes that wrappers hide
    plain = ours("PickColor", frame_size=48, fidelity="fast")
    try:
        (shown, info), (expected, _) = theirs.reset(seed=3), plain.reset(seed=3)
        _same(shown, expected, theirs)
        colour = int(np.argmax(expected["goal"]))
        assert theirs.task_description == f"PickColor {['red', 'green', 'blue', 'yellow'][colour]}"
        assert info == {"is_success": False}
        for _ in range(3):
            action = theirs.action_space.sample()
            (shown, *told), (expected, *said) = theirs.step(action), plain.step(action)
            _same(shown, expected, theirs)
            assert told[:3] == said[:3] and told[3] == {"is_success": said[3]["success"]}
    finally:
        theirs.close()
        plain.close()


@here
def test_forked_it_says_so_instead_of_hanging() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(UsageError, match="use_async_envs"):
        pool.apply_async(LeRobotEnv, ("Lift",)).get(timeout=60)


def _same(shown: Any, expected: Any, env: Any) -> None:
    assert env.observation_space.contains(shown)
    for view, pixels in enumerate(shown["pixels"].values()):
        assert np.array_equal(pixels, expected["frames"][view])
    assert np.array_equal(env.render(), expected["frames"][0])
    assert np.array_equal(shown["agent_pos"], expected["proprioception"])
    assert np.array_equal(shown["environment_state"], expected["goal"])


@here
def test_a_task_or_a_column_that_is_not_there_is_said(tmp_path: Path) -> None:
    from s2robot.adapters.lerobot import export

    with pytest.raises(UnknownName, match="Did you mean 'Lift'"):
        S2RobotEnv(task="Lfit")
    export(write(tmp_path / "a.hdf5", [5]), tmp_path / "b", cameras=CAMERAS[:1])
    words = [FOUND, "--policy.type=s2robot", f"--dataset.root={tmp_path / 'b'}", "--dataset.repo_id=local/x", *SMALL]
    words += ["--policy.tokens=cls", "--policy.use_s2_features=true", f"--output_dir={tmp_path / 'run'}"]
    with pytest.raises(AssertionError, match=r"has no observation\.s2_features\. Write it: s2robot convert"):
        lerobot("train", *words)
