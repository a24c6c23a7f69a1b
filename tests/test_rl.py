"""`s2robot rl`: what was learned is what acts, a run that was killed ends as one that was not, bad input is refused."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_policies import small_policy
from small_rl import WORDS, small_run

import s2robot
from s2robot import cli, config, files, locks
from s2robot.datasets import DemoDataset, Episode, write_dataset
from s2robot.errors import CheckpointMismatch, CorruptFile, InvalidInput, S2RobotError
from s2robot.rl_config import RLConfig

pytest.importorskip("stable_baselines3")
from s2robot import rl
from s2robot.collect import CollectConfig, collect
from s2robot.rollouts import make_env_for

pytestmark = [pytest.mark.sim, pytest.mark.filterwarnings("ignore:You have specified a mini-batch")]
ROOT = Path(__file__).resolve().parents[1]
LONG = [pytest.param(*arm, marks=pytest.mark.slow) for arm in (("sac", "pixels"), ("rlpd", "privileged"))]
ARMS = [("ibrl", "features"), *LONG]

MVP = ["--sight.kind", "cls", "--sight.components", "0", "--learn.activation", "selu"]


class Killed(BaseException):
    """What nobody catches."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What algorithms begin from: two demonstrations, a policy that was never trained."""
    folder = tmp_path_factory.mktemp("shown")
    demos = collect(CollectConfig("Lift", demos=2, frame_size=64, workers=1), folder / "demos.hdf5")
    given = ["--demos.path", str(demos.path)]
    return {"rlpd": given, "ibrl": [*given, "--demos.prior", str(small_policy(folder / "prior"))]}


def metrics(out: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key != "seconds"}
        for row in files.read_jsonl(out / "metrics.jsonl")
    ]


@pytest.mark.parametrize(("algorithm", "see"), ARMS)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    algorithm: str, see: str, shown: dict[str, list[str]], tmp_path: Path
) -> None:
    """To the bit: weights, log, and the best policy; stopped amid an episode, once at a moment that is drawn."""
    moment = int(np.random.default_rng().integers(44, 156))

    def stop(done: int, total: int, note: str) -> None:
        if done >= moment:
            raise Killed

    runs = [small_run(tmp_path / name, algorithm, see, "Lift", *shown.get(algorithm, [])) for name in ("one", "two")]
    rl.learn(runs[0])
    with pytest.raises(Killed):
        rl.learn(runs[1], stop)
    assert not (tmp_path / "two" / "policy").exists()
    rl.learn(runs[1])
    one, two = (tmp_path / name for name in ("one", "two"))
    assert metrics(one) == metrics(two), moment
    for part in ("policy", "best/policy"):
        assert (one / part / "policy.safetensors").read_bytes() == (two / part / "policy.safetensors").read_bytes(), (
            moment
        )
    assert not (two / "checkpoints").exists()
    rl.learn(runs[1], stop)  # it is done, and does nothing


def test_a_killed_process_goes_on_by_the_same_command(tmp_path: Path) -> None:
    """SIGKILL, as the system sends it where memory is short; PPO, amid a rollout."""
    words = [
        "rl",
        "Reach",
        "--out",
        str(tmp_path / "run"),
        "--algorithm",
        "ppo",
        "--see",
        "privileged",
        "--steps",
        "160",
    ]
    words += ["--checkpoint_every", "40", "--validate_every", "80", "--validate", "1", *WORDS["ppo"]]
    killed = (
        "import os, signal, sys\nfrom s2robot.adapters import sb3_course\nfrom s2robot import cli\n"
        "told = sb3_course.Course._on_step\n"
        "def step(self):\n    if self.step >= 100:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return told(self)\n"
        "sb3_course.Course._on_step = step\nsys.exit(cli.main(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", killed, *words], env=environment, check=False, timeout=900)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["00000024"]
    assert cli.main(words) == 0
    words[words.index(str(tmp_path / "run"))] = str(tmp_path / "whole")
    assert cli.main(words) == 0
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    weights = [(tmp_path / name / "policy" / "policy.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]
    env = make_env_for(files.read_json(tmp_path / "run" / "policy" / "policy.json"), "fast")
    (result,) = s2robot.rollout(s2robot.load_policy(tmp_path / "run"), env, 1)
    assert 0 < result.steps <= 60
    env.close()


@pytest.mark.parametrize(
    ("algorithm", "see", "task", "words"),
    [
        (
            "ppo",
            "features",
            "PickColor",
            ["--sight.kind", "cls", "--sight.components", "0", "--learn.activation", "selu"],
        ),
        ("sac", "features", "PickColor", ["--sight.readout", "conv"]),
        ("sac", "pixels", "PickColor", []),
        ("ibrl", "features", "Lift", []),
    ],
)
def test_what_was_learned_is_what_acts(
    algorithm: str, see: str, task: str, words: list[str], shown: dict[str, list[str]], tmp_path: Path
) -> None:
    """The policy that is left decides as the learner does, wherever its inputs stood there."""
    run = rl.Setup(small_run(tmp_path, algorithm, see, task, *words, *shown.get(algorithm, [])), tmp_path)
    model = run.model()
    model.learn(24, log_interval=None)
    run.keep(model, tmp_path / "policy")
    policy, env = s2robot.load_policy(tmp_path), model.get_env()
    env.training = False
    seen, simulation, found = env.reset(), run.worlds.simulations.env, []
    for _ in range(4):
        theirs, _ = model.predict(seen, deterministic=True)
        ours = policy.act(simulation.observe())
        assert ours.shape == (4, len(simulation.task.action_names)) and policy.execute == 4
        np.testing.assert_allclose(ours.ravel(), theirs[0], atol=2e-5)
        found.append(ours)
        seen, *_ = env.step(np.random.default_rng(0).uniform(-1, 1, theirs.shape).astype(np.float32))
    assert np.ptp(found, axis=0).max() > 1e-4  # it looks
    env.close()


def test_a_policy_of_privileged_state_says_what_it_lacks(tmp_path: Path, lift_env: Any) -> None:
    run = rl.Setup(small_run(tmp_path, "sac", "privileged"), tmp_path)
    run.keep(run.model(), tmp_path / "policy")
    run.worlds.close()
    observation, _ = lift_env.reset(seed=0)
    with pytest.raises(InvalidInput, match=r"reads the simulator's state.*extras=\(\"privileged\",\)"):
        s2robot.load_policy(tmp_path).act(observation)


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    settings = small_run(out, "sac", "privileged", "Reach")
    config.keep(dataclasses.replace(settings, out="."), out)
    with pytest.raises(InvalidInput, match=r"other settings \(learn.lr: 0.0003 -> 0.1\)"):
        rl.learn(dataclasses.replace(settings, learn=dataclasses.replace(settings.learn, lr=0.1)))
    assert cli.main(["rl", "Reahc", "--out", str(tmp_path / "other")]) == 2
    assert "Did you mean 'Reach'?" in capsys.readouterr().err and not (tmp_path / "other").exists()
    assert cli.main(["rl", "rl-lift", "--algorithm", "sac"]) == 2
    assert "--algorithm is sac, and rl-lift is of ibrl" in " ".join(capsys.readouterr().err.split())


def test_nobody_else_may_learn_there_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from s2robot.adapters import sb3_course

    def begun(config: Any, worlds: Any, out: Path, *_: Any) -> Any:
        worlds.close()
        with pytest.raises(locks.Occupied, match="in use by process"), locks.alone(out / ".lock", str(out)):
            pass
        raise Killed

    monkeypatch.setattr(sb3_course, "Course", begun)
    with pytest.raises(Killed):
        rl.learn(small_run(tmp_path / "run", "sac", "privileged", "Reach"))
    assert not (tmp_path / "run" / ".lock").exists()


def test_another_encoder_is_refused(shown: dict[str, list[str]], tmp_path: Path) -> None:
    """Under the same name and settings, as when its file of weights was replaced."""
    settings = small_run(tmp_path, "sac", "features")
    rl.Setup(settings, tmp_path).worlds.close()
    changed = dataclasses.replace(settings, encoder=dataclasses.replace(settings.encoder, seed=1))
    config.keep(dataclasses.replace(changed, out="."), tmp_path)
    with pytest.raises(CheckpointMismatch, match="written with another encoder"):
        rl.learn(changed)
    prior = small_run(tmp_path / "prior", "ibrl", "features", "Lift", *shown["ibrl"])
    with pytest.raises(CheckpointMismatch, match="looks through another encoder"):
        rl.learn(dataclasses.replace(prior, encoder=dataclasses.replace(prior.encoder, seed=1)))


def test_a_buffer_larger_than_memory_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    settings = small_run(tmp_path, "sac", "pixels", "Lift", "--learn.buffer", "1000000000", "--steps", "10000000000")
    with pytest.raises(
        InvalidInput, match=r"1000000000 steps of \d+ bytes are \d+\.\d GB, and .* GB of memory are free"
    ):
        rl.learn(settings)
    assert not list(tmp_path.iterdir())  # it binds nobody


def test_demonstrations_that_do_not_fit_are_refused(shown: dict[str, list[str]], tmp_path: Path) -> None:
    def refused(match: str, algorithm: str, *words: str) -> None:
        with pytest.raises(InvalidInput, match=match):
            rl.learn(small_run(tmp_path / "run", algorithm, "features", "Lift", *words))

    numbers = np.zeros((4, 3), np.float32)
    episode = Episode(0, True, np.zeros((4, 2, 64, 64, 3), np.uint8), np.zeros((4, 7), np.float32), numbers, numbers,
                      np.zeros(4, np.float32), None)  # fmt: skip
    other = write_dataset(tmp_path / "other.hdf5", [episode], {"action_names": ["a", "b", "c"]}, ["x", "y"]).path
    refused(r"have 3 numbers \(a, b, c\); Lift takes 4 \(dx, dy, dz, gripper\)", "rlpd", "--demos.path", str(other))
    refused("begins from demonstrations", "rlpd")
    refused("--demos.prior is missing", "ibrl", *shown["rlpd"])
    refused("sac makes no use of --demos.path", "sac", *shown["rlpd"])
    refused("rewards at success alone", "rlpd", *shown["rlpd"], "--world.reward", "dense")
    refused("is shown maps of features", "ibrl", *shown["ibrl"], "--sight.kind", "cls")
    refused("was recorded with Panda, and the robot is Sawyer", "rlpd", *shown["rlpd"], "--world.robot", "Sawyer")
    refused("has 2 demonstrations", "rlpd", *shown["rlpd"], "--demos.count", "9")
    refused("the second must divide the first", "rlpd", *shown["rlpd"], "--demos.stride", "3")
    refused("at 64 px, and the task", "rlpd", *shown["rlpd"], "--world.frame_size", "32")
    task = write_dataset(tmp_path / "reach.hdf5", [episode], {"task": "Reach"}, ["x", "y"]).path
    refused("demonstrates Reach, and the task is Lift", "rlpd", "--demos.path", str(task))


def test_what_is_no_number_stops_with_step_and_seed(tmp_path: Path) -> None:
    """In a reward, in an observation, in what was learned."""

    def spoilt(spoil: Any) -> str:
        run = rl.Setup(small_run(tmp_path, "sac", "privileged"), tmp_path)
        env = run.sight.before(run.worlds)
        env.reset()
        spoil(run.worlds.simulations.env)
        with pytest.raises(S2RobotError) as caught:
            env.step(np.zeros((1, 16), np.float32))
        env.close()
        return str(caught.value)

    reward = spoilt(lambda env: setattr(env._env, "reward", lambda action: float("nan")))
    assert "The reward is [nan] in step 4 of the episode with seed 1000000000 (Lift)" in reward
    seen = spoilt(lambda env: setattr(env, "proprioception", lambda: np.full(7, np.nan, np.float32)))
    assert "The observation 'proprioception' is [nan" in seen and "seed 1000000000" in seen
    diverging = small_run(tmp_path / "lr", "sac", "privileged", "Lift", "--learn.lr", "1e30", "--validate_every", "40")
    with pytest.raises(
        S2RobotError, match=r"(inf|nan|no numbers) after \d+ control steps \(seed 0\). .* --learn.lr \(now 1e\+30\)"
    ):
        rl.learn(diverging)


def test_a_damaged_checkpoint_says_what_to_delete(tmp_path: Path) -> None:
    def stop(done: int, total: int, note: str) -> None:
        if done >= 60:
            raise Killed

    settings: RLConfig = small_run(tmp_path, "sac", "privileged", "Reach")
    with pytest.raises(Killed):
        rl.learn(settings, stop)
    (state,) = (tmp_path / "checkpoints").glob("*/state.pt")
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CorruptFile, match=r"Delete .*checkpoints.* to begin from the start"):
        rl.learn(settings)


def test_data_that_changed_under_its_name_is_refused(shown: dict[str, list[str]], tmp_path: Path) -> None:
    settings = small_run(tmp_path, "rlpd", "privileged", "Lift", *shown["rlpd"])
    rl.Setup(settings, tmp_path).worlds.close()
    files.write_json(tmp_path / rl.INPUTS, {"demonstrations": "0123", "prior": None})
    known = DemoDataset(shown["rlpd"][1]).fingerprint[:16]
    with pytest.raises(InvalidInput, match=rf"demonstrations: 0123 -> {known}"):
        rl.Setup(settings, tmp_path)
