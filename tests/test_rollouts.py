"""Collect, learn and evaluate on real physics: reproducible bit for bit, whatever the interruptions."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from s2robot import cli, files
from s2robot.collect import CollectConfig, Disturbance, _first_successes, collect, demonstrate
from s2robot.encoder import EncoderConfig
from s2robot.envs.bridge import RobosuiteEnv
from s2robot.errors import CorruptFile, InvalidInput
from s2robot.launchers import HERE
from s2robot.policies.bc_mlp import BCConfig
from s2robot.rollouts import (
    EvalConfig,
    evaluate,
    make_env_for,
    read_results,
    record_episode,
    rollout,
    run_episode,
)
from s2robot.seeds import DEMONSTRATIONS, EVALUATION, VALIDATION, seed_uses
from s2robot.selection import ValidationConfig, select
from s2robot.store import encode_dataset
from s2robot.trained import load_policy
from s2robot.training import TrainConfig, train
from s2robot.types import FRAMES, PROPRIOCEPTION, Observation

pytestmark = pytest.mark.sim
ENCODER = EncoderConfig(random_weights=True, scales=(1,))


class ExpertPolicy:
    """Privileged, for testing the loop alone: sees the simulator, not the frames."""

    execute = 3

    def __init__(self, env: RobosuiteEnv) -> None:
        self.env, self.expert, self.seconds = env, env.task.demonstrator(), {"encode": 0.0, "act": 0.001}

    def act(self, observation: Observation) -> np.ndarray:
        return np.stack([self.expert.act(self.env.privileged())] * 5)

    def reset(self) -> None:
        self.expert.reset()


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    dataset = collect(CollectConfig(demos=2, frame_size=128), folder / "demos.hdf5", launcher=HERE)
    store = encode_dataset(dataset.path, ENCODER, folder / "features", stride=4, workers=1)
    return train(dataset, store, ENCODER, BCConfig(), TrainConfig(steps=5, batch=8), folder / "policy")


def test_the_loop_counts_successes_steps_and_time(lift_env: RobosuiteEnv) -> None:
    results = rollout(ExpertPolicy(lift_env), lift_env, episodes=3, seed=0)
    assert [r.seed for r in results] == [0, 1, 2]
    assert all(r.success and 10 < r.steps < 100 and r.reward > 0 for r in results)
    cycles = -(-results[0].steps // 3)
    assert {stage: len(ms) for stage, ms in results[0].ms.items()} == dict.fromkeys(
        ("render", "encode", "act", "step"), cycles
    )
    assert np.median(results[0].ms["step"]) > 0.5 and np.median(results[0].ms["act"]) == 1.0


def test_a_policy_that_decides_nothing_is_an_error_and_no_endless_episode(lift_env: RobosuiteEnv) -> None:
    policy = ExpertPolicy(lift_env)
    policy.act = lambda observation: np.zeros((0, 4), np.float32)  # type: ignore[method-assign]
    for play in (run_episode, record_episode):
        with pytest.raises(InvalidInput, match="chunk of 0 actions"):
            play(policy, lift_env, 0)
    with pytest.raises(InvalidInput, match="The policy is a str"):
        rollout("runs/lift", lift_env)  # type: ignore[arg-type]
    policy = ExpertPolicy(lift_env)
    policy.execute = 0
    with pytest.raises(InvalidInput, match="to execute 0 of"):
        run_episode(policy, lift_env, 0)


def test_rollouts_of_one_seed_are_the_same_bits(policy_folder: Path) -> None:
    policy = load_policy(policy_folder)
    env = make_env_for(files.read_json(policy_folder / "policy.json"), "fast")
    first = record_episode(policy, env, 5)[:20]
    record_episode(policy, env, 6)
    again = record_episode(policy, env, 5)[:20]
    result = run_episode(policy, env, 5)
    env.close()
    np.testing.assert_array_equal(first, again)
    assert result.steps == 100 or result.success


def test_evaluation_is_the_same_in_any_number_of_processes_and_resumes(policy_folder: Path, tmp_path: Path) -> None:
    def outcome(results: list) -> list:
        return [(r.seed, r.success, r.steps, r.reward) for r in results]

    config = EvalConfig(episodes=3, fidelity="fast")
    alone = evaluate(policy_folder, config, tmp_path / "alone.jsonl", launcher=HERE)
    torn = (tmp_path / "alone.jsonl").read_bytes()
    (tmp_path / "two.jsonl").write_bytes(torn[: len(torn) // 2])  # as a kill would leave it
    kept = len(read_results(tmp_path / "two.jsonl"))
    two = evaluate(policy_folder, EvalConfig(episodes=3, fidelity="fast", workers=2), tmp_path / "two.jsonl")
    assert kept in (1, 2)
    assert outcome(two) == outcome(alone)
    assert [r.seed for r in alone] == [EVALUATION + k for k in range(3)]


def test_demonstrations_hold_the_clean_action_beside_the_disturbed_one(lift_env: RobosuiteEnv) -> None:
    episode = demonstrate(lift_env, seed=1_000_003, noise=0.3)
    episode.validate()
    assert episode.success and episode.rewards[-1] > 0
    difference = np.abs(episode.actions - episode.executed_actions)
    assert difference[:, :3].mean() > 0.05 and difference[:, 3].max() == 0
    assert set(np.unique(episode.actions[:, 3])) == {-1.0, 1.0}
    again = demonstrate(lift_env, seed=1_000_003, noise=0.3)
    assert again.digest() == episode.digest()


def test_shoves_take_over_arm_and_fingers_for_a_few_steps() -> None:
    action = np.array([0.5, 0.5, 0.5, -1], np.float32)
    never = Disturbance(np.random.default_rng(0), noise=0.0, shoves=0.0, fingers=3)
    assert all((never(action) == action).all() for _ in range(200))
    often = Disturbance(np.random.default_rng(0), noise=0.0, shoves=0.05, fingers=3)
    shoved = np.array([(often(action) != action).any() for _ in range(4000)])
    edges = np.diff(np.pad(shoved.astype(int), 1))
    lengths = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    assert 0.1 < shoved.mean() < 0.25
    assert lengths.min() >= 2 and np.median(lengths) <= 6
    twins = [Disturbance(np.random.default_rng(3), 0.3, 0.1, 3) for _ in range(2)]
    for _ in range(50):
        np.testing.assert_array_equal(twins[0](action), twins[1](action))


def test_replaying_a_demonstration_gives_its_frames(lift_env: RobosuiteEnv) -> None:
    episode = demonstrate(lift_env, seed=1_000_004, noise=0.3)
    observation, _ = lift_env.reset(seed=1_000_004)
    for step, action in enumerate(episode.executed_actions[:10]):
        np.testing.assert_array_equal(observation[FRAMES], episode.frames[step])
        np.testing.assert_array_equal(observation[PROPRIOCEPTION], episode.proprioception[step])
        observation, *_ = lift_env.step(action)


def test_collection_is_the_same_file_for_any_number_of_workers(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, total: int, note: str) -> None:
        if done == 2:
            raise Killed

    one = collect(CollectConfig(demos=3, frame_size=32, workers=1), tmp_path / "one.hdf5")
    with pytest.raises(Killed):
        collect(CollectConfig(demos=3, frame_size=32, workers=1), tmp_path / "two.hdf5", kill)
    assert not (tmp_path / "two.hdf5").exists()
    two = collect(CollectConfig(demos=3, frame_size=32, workers=2), tmp_path / "two.hdf5")
    assert one.fingerprint == two.fingerprint
    assert not list(tmp_path.glob("*.parts"))


def test_demonstration_and_evaluation_seeds_never_meet() -> None:
    assert EVALUATION + 800_000 < DEMONSTRATIONS
    with pytest.raises(InvalidInput, match="demos"):
        collect(CollectConfig(demos=0), Path("nowhere.hdf5"))


def test_seeds_that_a_choice_was_made_on_are_called_so() -> None:
    assert seed_uses(range(100_000, 100_100)) == ["evaluation"]
    assert seed_uses(range(499_999, 500_000)) == ["evaluation"]
    assert seed_uses(range(499_999, 500_001)) == ["evaluation", "validation"]
    assert seed_uses(range(VALIDATION, VALIDATION + 20)) == ["validation"]
    assert seed_uses(range(DEMONSTRATIONS, DEMONSTRATIONS + 1)) == ["demonstrations"]  # of `collect --seed 0`


def test_the_first_successes_in_order_are_kept() -> None:
    outcome = {5: True, 6: False, 7: True, 9: True}
    assert _first_successes(outcome, 5, 2) == [5, 7]
    assert _first_successes(outcome, 5, 3) == [5, 7]  # 8 is not known yet
    assert _first_successes({**outcome, 8: False}, 5, 3) == [5, 7, 9]


def test_other_ways_to_execute_have_their_own_log_and_act_differently(policy_folder: Path, tmp_path: Path) -> None:
    base = EvalConfig(episodes=1, seed=7, fidelity="fast", workers=1)
    found = {}
    for config in (base, replace(base, execute=2), replace(base, ensemble=True)):
        found[config.label] = evaluate(policy_folder, config, tmp_path / config.label, launcher=HERE)[0]
    assert set(found) == {"fast", "fast-execute2", "fast-ensemble"}
    looks = [len(result.ms["act"]) / result.steps for result in found.values()]
    assert looks == pytest.approx([1 / 4, 1 / 2, 1], abs=0.05)
    with pytest.raises(InvalidInput, match="looks at every step"):
        evaluate(policy_folder, replace(base, ensemble=True, execute=2), tmp_path / "x")
    with pytest.raises(InvalidInput, match="execute is 20; this policy's chunks have 8"):
        evaluate(policy_folder, replace(base, execute=20), tmp_path / "x")


def test_looks_that_would_lie_otherwise_than_in_training_are_met_before_workers_start(tmp_path: Path) -> None:
    files.write_json(tmp_path / "policy.json", {"config": {"chunk": 8, "execute": 4, "context": 3}})
    config = EvalConfig(episodes=1, execute=3, fidelity="fast")
    with pytest.raises(InvalidInput, match=r"execute is 3; .* 3 looks 4 steps apart, so it must divide 4"):
        evaluate(tmp_path, config, tmp_path / "log", launcher=_NoWorkers())
    assert not (tmp_path / "log").exists()


def test_a_policy_without_its_weights_is_said(tmp_path: Path) -> None:
    files.write_json(tmp_path / "policy.json", {"config": {"chunk": 8}})
    with pytest.raises(CorruptFile, match=r"policy\.safetensors is missing"):
        evaluate(tmp_path, EvalConfig(episodes=1, fidelity="fast"), tmp_path / "log", launcher=_NoWorkers())


class _NoWorkers:
    def work(self, *arguments: object) -> None:
        raise AssertionError("workers were asked for")


def test_the_best_snapshot_is_kept_beside_the_last(policy_folder: Path, tmp_path: Path) -> None:
    """Judged by rollouts; a selection that was killed goes on, and of equals the latest wins."""
    run = tmp_path / "run"
    shutil.copytree(policy_folder, run / "policy")
    for step in ("000002", "000004"):
        shutil.copytree(policy_folder, run / "policy" / "snapshots" / step)
    config = ValidationConfig(episodes=2, workers=1)
    log = run / "policy" / "snapshots" / "000002" / "validation.jsonl"
    with files.JsonLines(log) as lines:  # as if it had been judged, and had won
        for seed in (config.seed, config.seed + 1):
            lines.write({"seed": seed, "success": True, "steps": 9, "reward": 1.0, "ms": {}})
    (run / "policy" / "snapshots" / "000002" / "policy.safetensors").write_bytes(b"the winner's")
    assert select(run, config, launcher=HERE) == run / "best"
    assert (run / "best" / "policy" / "policy.safetensors").read_bytes() == b"the winner's"
    table = files.read_json(run / "validation.json")
    assert table["best"] == "000002" and [row["snapshot"] for row in table["snapshots"]] == ["000002", "000004", "last"]
    lost = [{**row, "success": False} for row in files.read_jsonl(log)]
    log.unlink()
    with files.JsonLines(log) as lines:
        for row in lost:
            lines.write(row)
    select(run, config, launcher=HERE)
    assert files.read_json(run / "validation.json")["best"] == "last"


def test_a_log_whose_lines_are_of_something_else_is_named(tmp_path: Path) -> None:
    with files.JsonLines(tmp_path / "episodes.jsonl") as lines:
        lines.write({"seed": 1, "success": True, "steps": 9, "reward": 1.0, "ms": {}, "colour": "blue"})
    with pytest.raises(CorruptFile, match=r"a line is no episode.*colour"):
        read_results(tmp_path / "episodes.jsonl")


def test_an_evaluation_can_leave_a_page(policy_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(policy_folder, run / "policy")
    words = ["eval", str(run), "--episodes", "1", "--seed", "7", "--fidelity", "fast", "--workers", "1"]
    assert cli.main([*words, "--shift", "light", "--report"]) == 0
    out = run / "fast-light"
    summary = files.read_json(out / "summary.json")
    assert summary["episodes"] == 1 and summary["evaluation"]["shift"] == "light" and summary["policy"]["execute"] == 4
    page = (out / "report.html").read_text()
    assert "data:video/mp4" in page and "No success in 1 rollout." in page and "data:image/png" in page
    assert read_results(out / summary["log"])[0].seed == 7


def test_a_page_leaves_the_demos_own_and_needs_no_engine_but_the_one_asked_for(
    policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(policy_folder, run / "policy")
    description = files.read_json(run / "policy" / "policy.json")
    description["encoder"]["engine"] = "openvino"
    files.write_json(run / "policy" / "policy.json", description)
    monkeypatch.setitem(sys.modules, "openvino", None)  # as where it is not installed
    files.write_json(run / "summary.json", {"stages": [], "baselines": []})
    words = ["eval", str(run), "--episodes", "1", "--seed", "7", "--launcher", "here", "--engine", "torch", "--report"]
    assert cli.main(words) == 0
    assert files.read_json(run / "summary.json") == {"stages": [], "baselines": []}
    assert files.read_json(run / "exact" / "summary.json")["episodes"] == 1 and (run / "exact" / "report.html").exists()


def test_an_evaluation_on_validation_seeds_says_so(
    policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(policy_folder, tmp_path / "policy")
    words = ["eval", str(tmp_path), "--episodes", "1", "--fidelity", "fast", "--launcher", "here", "--json"]
    for seed, use in ((7, "evaluation"), (VALIDATION, "validation")):
        assert cli.main([*words, "--seed", str(seed)]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["seeds_of"] == [use]
        assert ("seeds of validation" in printed.err) == (use == "validation")


def test_an_evaluation_that_cannot_begin_leaves_nothing(policy_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(policy_folder, run / "policy")
    assert cli.main(["eval", str(run), "--episodes", "1", "--shift", "lihgt", "--workers", "1"]) == 2
    assert [path.name for path in run.iterdir()] == ["policy"]


def test_episodes_of_other_weights_are_not_counted(policy_folder: Path, tmp_path: Path) -> None:
    config, log = EvalConfig(episodes=1, seed=7, fidelity="fast", workers=1), tmp_path / "log.jsonl"
    (found,) = evaluate(policy_folder, config, log, launcher=HERE)
    assert evaluate(policy_folder, config, log) == [found] and found.weights
    again = Path(shutil.copytree(policy_folder, tmp_path / "again"))
    (again / "policy.safetensors").write_bytes((again / "policy.safetensors").read_bytes() + b" ")
    for seed in (7, 8):  # a log is of one policy, on whatever seeds
        with pytest.raises(InvalidInput, match="episodes of other weights"):
            evaluate(again, replace(config, seed=seed), log)
