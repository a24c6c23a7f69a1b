"""The verbs `train` and `eval`: a folder holds one run, or one a seed, and never another's results."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from s2robot import cli, files, locks, policy_verbs
from s2robot import config as configuration
from s2robot.collect import CollectConfig, collect
from s2robot.datasets import DemoDataset, Episode, write_dataset
from s2robot.demo import run_schema
from s2robot.encoder import EncoderConfig
from s2robot.errors import InvalidInput
from s2robot.frames import Frames
from s2robot.policies.cnn import CNNConfig
from s2robot.rollouts import EvalConfig, evaluate, make_env_for
from s2robot.runs import seed_folders
from s2robot.settings import SETTINGS
from s2robot.training import TrainConfig, train

SMALL = ["--kind", "cnn", "--policy.widths", "16", "--policy.size", "32", "--policy.components", "4"]
SMALL += ["--train.steps", "2", "--train.batch", "8"]


def demos(path: Path, first: int, count: int = 2, task: str = "Lift") -> DemoDataset:
    def episode(seed: int) -> Episode:
        rng = np.random.default_rng(seed)
        actions = rng.uniform(-1, 1, (5, 4)).astype(np.float32)
        frames, state = rng.integers(0, 255, (5, 2, 32, 32, 3), np.uint8), rng.normal(size=(5, 3)).astype(np.float32)
        return Episode(seed, True, frames, state, actions, actions.copy(), np.zeros(5, np.float32), None)

    env_args = {"task": task, "robot": "Panda"}
    return write_dataset(path, [episode(first + k) for k in range(count)], env_args, ["a", "b"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demos(tmp_path_factory.mktemp("verbs") / "demos.hdf5", 0).path


def train_in(out: Path, dataset: Path, *words: str) -> int:
    return cli.main(["train", str(dataset), "--out", str(out), *SMALL, *words])


def test_a_finished_run_is_not_given_for_another(dataset: Path, tmp_path: Path, capsys: Any) -> None:
    run, other = tmp_path / "run", demos(tmp_path / "other.hdf5", 10).path
    assert train_in(run, dataset) == 0
    weights = (run / "policy" / "policy.safetensors").read_bytes()
    assert train_in(run, dataset) == 0
    assert train_in(run, dataset, "--train.lr", "0.1") == 2
    assert "train.lr: 0.0015 -> 0.1" in capsys.readouterr().err
    assert train_in(run, other) == 2  # the same settings
    said = " ".join(capsys.readouterr().err.split())
    assert "learned with other settings (dataset: " in said and f"rm -r {run}" in said
    (run / "config.yaml").unlink()
    assert train_in(run, dataset, "--train.lr", "0.1") == 2
    (run / "policy" / SETTINGS).unlink()  # as older versions left it
    assert train_in(run, dataset, "--policy.dropout", "0.3") == 2
    assert "policy.dropout: 0.1 -> 0.3" in capsys.readouterr().err
    assert not (run / "config.yaml").exists()
    assert train_in(run, dataset) == 0
    assert (run / "policy" / "policy.safetensors").read_bytes() == weights


def test_an_option_that_came_later_had_its_default(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_in(run, dataset) == 0
    config = run / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if "token_dropout" not in line and "demos: 0" not in line))
    settings = files.read_json(run / "policy" / SETTINGS)
    del settings["policy"]["token_dropout"], settings["train"]["demos"]
    files.write_json(run / "policy" / SETTINGS, settings)
    assert train_in(run, dataset) == 0
    assert train_in(run, dataset, "--policy.token_dropout", "0.5") == 2
    config.unlink()
    assert train_in(run, dataset, "--policy.token_dropout", "0.5") == 2


def test_an_interrupted_run_does_not_go_on_with_other_demonstrations(dataset: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, total: int, note: str) -> None:
        if done == 3:
            raise Killed

    policy, config = CNNConfig(size=32, widths=(16,), components=4), TrainConfig(steps=4, batch=8, checkpoint_every=1)
    ours, others = DemoDataset(dataset), demos(tmp_path / "other.hdf5", 10)
    for data, error in ((ours, Killed), (others, InvalidInput)):
        with pytest.raises(error):
            train(data, Frames(data), EncoderConfig(), policy, config, tmp_path / "run", progress=kill, device="cpu")
    assert (tmp_path / "run" / "state.pt").exists()


def test_what_another_finished_just_before_is_not_done_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came to its end between our look and our lock."""
    policy, data = CNNConfig(size=32, widths=(16,), components=4), DemoDataset(dataset)
    config = TrainConfig(steps=2, batch=8)
    done = train(data, Frames(data), EncoderConfig(), policy, config, tmp_path / "done", device="cpu")

    @contextlib.contextmanager
    def just_done(lock: Path, *_: Any) -> Iterator[None]:
        shutil.copytree(done, lock.parent, dirs_exist_ok=True)
        yield

    def never(*_: Any) -> None:
        raise AssertionError("it is trained again")

    monkeypatch.setattr(locks, "alone", just_done)
    arguments = (data, Frames(data), EncoderConfig(), policy)
    assert (train(*arguments, config, tmp_path / "a", device="cpu", progress=never) / "done").exists()
    with pytest.raises(InvalidInput, match="learned with other settings"):
        train(*arguments, TrainConfig(steps=3, batch=8), tmp_path / "b", device="cpu", progress=never)


def test_parts_that_a_kill_left_beside_the_finished_file_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, process = demos(tmp_path / "lift.hdf5", 0).path, subprocess.Popen(["true"])
    process.wait()
    for name in ("lift.hdf5.parts", f"lift.hdf5.parts.tmp-{files._HERE}-{process.pid}"):
        (tmp_path / name).mkdir()
        assert len(collect(CollectConfig("Lift", frame_size=32), path)) == 2
        assert list(tmp_path.iterdir()) == [path]

    made = demos(tmp_path / "made.hdf5", 0).path

    @contextlib.contextmanager
    def just_made(lock: Path, *_: Any, wait: bool) -> Iterator[None]:
        made.rename(tmp_path / "other.hdf5")
        yield

    monkeypatch.setattr(locks, "alone", just_made)
    assert len(collect(CollectConfig("Lift", frame_size=32), tmp_path / "other.hdf5")) == 2


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"task": "PickColor"}, "task Lift, not PickColor"),
        ({"robot": "Sawyer"}, "robot Panda, not Sawyer"),
        ({"frame_size": 64}, "frame_size 32, not 64"),
    ],
)
def test_a_file_of_other_demonstrations_is_no_answer(asked: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = demos(tmp_path / "lift.hdf5", 0).path
    with pytest.raises(InvalidInput, match=rf"holds other demonstrations \({words}"):
        collect(CollectConfig(**{"frame_size": 32, **asked}), path)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"noise": -1.0}, {"shoves": 2.0}, {"frame_size": 0}, {"demos": 0}])
def test_what_cannot_be_collected_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        CollectConfig(**wrong)


def test_what_could_not_begin_binds_nobody(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_in(run, dataset, "--train.demos", "9") == 2
    assert not (run / "config.yaml").exists()
    assert train_in(run, dataset) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--validate", "-3"], "--validate is -3"),
        (["--snapshots", "-1"], "snapshots is -1"),
        (["--snapshots", "1"], "has room for 0"),
        (["--train.steps", "0"], "steps is 0"),
        (["--train.seed", "-1"], "seed is -1"),
        (["--train.lr", ".nan"], "lr is nan"),
        (["--policy.dropout", "2"], "dropout is 2"),
        (["--policy.queries", "0"], "queries is 0"),
        (["--policy.execute", "9"], "execute 9"),
        (["--seeds", "0,0"], "--seeds is '0,0'"),
        (["--kind", "cnnn"], "Did you mean 'cnn'"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for_is_said_at_once(
    dataset: Path, tmp_path: Path, capsys: Any, words: list[str], message: str
) -> None:
    assert train_in(tmp_path / "run", dataset, *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_the_kind_may_stand_in_the_config(dataset: Path, tmp_path: Path, capsys: Any) -> None:
    assert train_in(tmp_path / "run", dataset) == 0
    config, again = tmp_path / "run" / "config.yaml", ["train", str(dataset), "--out", str(tmp_path / "again")]
    assert cli.main([*again, "--config", str(config)]) == 0
    assert files.read_json(tmp_path / "again" / "policy" / "policy.json")["kind"] == "cnn"
    assert (tmp_path / "again" / "config.yaml").read_text() == config.read_text()
    assert cli.main([*again, "--config", str(config), "--kind", "act"]) == 2
    assert "--kind is act" in capsys.readouterr().err


def test_a_config_s_one_seed_is_the_training_s_unless_another_is_given(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "five.yaml").write_text("seed: 5\n")
    five = ("--config", str(tmp_path / "five.yaml"))

    def seed(name: str, *words: str) -> int:
        assert train_in(tmp_path / name, dataset, *five, *words) == 0
        return int(files.read_json(tmp_path / name / "policy" / SETTINGS)["train"]["seed"])

    assert [seed("a"), seed("b", "--seed", "0"), seed("c", "--train.seed", "3")] == [5, 0, 3]
    assert train_in(tmp_path / "d", dataset, "--seeds", "0,1", "--train.seed", "3") == 2


def test_more_demonstrations_than_there_are_is_said_before_they_are_encoded(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("s2robot.demo.source_of", lambda *_: pytest.fail("encoded"))
    assert train_in(tmp_path / "run", dataset, "--demos", "999") == 2
    assert "--train.demos is 999" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_who_works_and_how_often_it_is_written_may_change(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_in(run, dataset) == 0
    assert train_in(run, dataset, "--encode.workers", "1", "--train.checkpoint_every", "1") == 0
    assert train_in(run, dataset, "--train.batch", "4") == 2


@pytest.mark.parametrize(
    ("words", "has"), [([], True), (["--encode.versions", "1"], False), (["--kind", "cnn"], False)]
)
def test_few_demonstrations_are_told_of_augmented_versions(words: list[str], has: bool, capsys: Any) -> None:
    settings: Any = configuration.load(run_schema("cnn" if words[:1] == ["--kind"] else "bc-mlp"), None, words)
    for count in (200, 201):
        policy_verbs._tell_next(settings, _Counted(count), Console())
        assert ("--encode.versions 4" in capsys.readouterr().out) == (has and count == 200)


class _Counted:
    def __init__(self, count: int) -> None:
        self.count, self.env_args = count, {"task": "Lift", "robot": None}

    def __len__(self) -> int:
        return self.count


def test_a_folder_holds_one_run_or_one_a_seed(dataset: Path, tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    assert train_in(many, dataset, "--seeds", "10,2") == 0
    (many / "seed-old").mkdir()
    assert [path.name for path in seed_folders(many)] == ["seed-2", "seed-10"]
    assert [files.read_json(path / "policy" / SETTINGS)["train"]["seed"] for path in seed_folders(many)] == [2, 10]
    assert train_in(many, dataset) == 2
    assert train_in(one, dataset) == 0
    assert train_in(one, dataset, "--seeds", "0,1") == 2
    (one / "seed-0").mkdir()
    assert seed_folders(one) == []
    (many / "seed-10" / "policy" / "policy.json").unlink()
    assert cli.main(["eval", str(many)]) == 2  # before any of them is rolled out
    assert not list(many.rglob("episodes*"))


def test_a_policy_of_no_task_of_ours_is_not_rolled_out(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(InvalidInput, match="name no task"):
        make_env_for({"task": None}, "fast")
    own = demos(tmp_path / "own.hdf5", 0, task="Pour").path
    assert train_in(tmp_path / "run", own, "--validate", "2", "--train.snapshots", "1", "--train.steps", "9") == 2
    assert "--validate rolls out" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert train_in(tmp_path / "run", own) == 0
    assert "Now: s2robot.rollout(policy, env)" in capsys.readouterr().out


def test_in_this_process_a_run_is_trained_where_it_lies_and_can_be_gone_on_with(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--launcher here` is for debuggers, where Ctrl-C is the usual end: nothing may be lost then."""
    with monkeypatch.context() as patch:
        patch.setattr("s2robot.training.train", interrupted)
        assert train_in(tmp_path / "run", dataset, "--launcher", "here") == 1
    assert (tmp_path / "run" / "policy" / "begun").exists()
    (tmp_path / "run" / "policy" / "begun").unlink()
    assert train_in(tmp_path / "run", dataset, "--launcher", "here") == 0 == train_in(tmp_path / "local", dataset)
    weights = [(tmp_path / run / "policy" / "policy.safetensors").read_bytes() for run in ("run", "local")]
    assert weights[0] == weights[1]


def interrupted(*args: Any, **settings: Any) -> None:
    folder = args[5]
    folder.mkdir(parents=True)
    (folder / "begun").touch()
    raise KeyboardInterrupt


def test_evaluation_seeds_are_not_negative(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--seed is -4"):
        evaluate(tmp_path, EvalConfig(episodes=1, seed=-4), tmp_path / "log.jsonl")


def test_a_config_that_a_run_left_needs_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("out: .\n")
    assert cli.main(["train", "demos.hdf5", "--config", str(tmp_path / "config.yaml")]) == 2
    assert "Add --out" in capsys.readouterr().err
