"""Several processes, started by torchrun as a user would, come to what one process comes to."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import TINY, folder_with_frames
from test_policy_verbs import demos

from s2robot import cli, files, pretrain, training
from s2robot import config as configuration
from s2robot.datasets import DemoDataset
from s2robot.demo import run_schema
from s2robot.errors import InvalidInput
from s2robot.frames import Frames
from s2robot.ranks import Ranks, find
from s2robot.recipe import PretrainConfig
from s2robot.training import train
from s2robot.workers import ONE_THREAD

CONFIG = replace(TINY, accumulate=2, batch=8, objective="merged", ema=0.9)


def torchrun(config: PretrainConfig, out: Path, processes: int = 2) -> None:
    """`torchrun --nproc-per-node 2 -m s2robot.cli pretrain`"""
    path = out.with_suffix(".yaml")
    path.write_text(configuration.dump(config))
    words = ["--standalone", "--nproc-per-node", str(processes), "-m", "s2robot.cli", "pretrain"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, "--config", str(path), "--out", str(out)],
        env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("use it with") == 1  # one process speaks


def check_alike(one: Path, other: Path) -> None:
    """Losses and weights of two runs, to what summing in another order may change."""
    rows = [files.read_jsonl(folder / "metrics.jsonl") for folder in (one, other)]
    losses = [{row["step"]: [v for k, v in row.items() if k.startswith("valid")] for row in some} for some in rows]
    assert losses[0].keys() == losses[1].keys() == {5, 10, 12}
    for step, values in losses[0].items():
        assert losses[1][step] == pytest.approx(values, abs=1e-5)
    states = [torch.load(folder / "state.pt", weights_only=True) for folder in (one, other)]
    for part in ("model", "average"):
        for key, value in states[0][part].items():
            torch.testing.assert_close(states[1][part][key], value, rtol=0, atol=1e-5)


def test_two_processes_come_to_what_one_does(tmp_path: Path) -> None:
    pretrain.pretrain(CONFIG, folder_with_frames(tmp_path / "one"))
    torchrun(CONFIG, folder_with_frames(tmp_path / "two"))
    check_alike(tmp_path / "one", tmp_path / "two")
    assert files.read_jsonl(tmp_path / "two" / "starts.jsonl")[0]["processes"] == 2


def test_two_processes_go_on_where_one_was_killed(tmp_path: Path) -> None:
    def kill(done: int, total: int, note: str) -> None:
        if done == 8:
            raise KeyboardInterrupt

    pretrain.pretrain(CONFIG, folder_with_frames(tmp_path / "one"))
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(CONFIG, folder_with_frames(tmp_path / "two"), kill)
    torchrun(CONFIG, tmp_path / "two")
    check_alike(tmp_path / "one", tmp_path / "two")
    assert [start["processes"] for start in files.read_jsonl(tmp_path / "two" / "starts.jsonl")] == [1, 2]


CNN = ["--kind", "cnn", "--policy.size", "16", "--policy.widths", "[16, 16]", "--policy.blocks", "0"]
CNN += ["--steps", "6", "--train.batch", "8", "--train.lr", "1e-4", "--train.checkpoint_every", "3"]
STILL = ["--policy.dropout", "0", "--policy.shift", "0", "--policy.proprioception_noise", "0"]  # each draws its own


def train_words(data: Path, out: Path, *more: str) -> list[str]:
    return ["train", str(data), "--out", str(out), *CNN, *more]


def train_on(processes: int, words: list[str]) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node 2 -m s2robot.cli train`"""
    how = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "s2robot.cli"]
    return subprocess.run(
        [sys.executable, *how, *words], env=os.environ | ONE_THREAD | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def check_same_policy(one: Path, other: Path) -> None:
    """To what summing in another order may change."""
    theirs = [load_file(folder / "policy" / "policy.safetensors") for folder in (one, other)]
    assert theirs[0].keys() == theirs[1].keys()
    for name, value in theirs[0].items():
        torch.testing.assert_close(theirs[1][name], value, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_policy_from_pixels_is_the_same_by_two_processes_begun_or_gone_on_with(tmp_path: Path) -> None:
    data = demos(tmp_path / "demos.hdf5", 0).path
    assert cli.main(train_words(data, tmp_path / "one", *STILL)) == 0
    done = train_on(2, train_words(data, tmp_path / "two", *STILL))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Now: s2robot eval") == 1  # one process speaks
    check_same_policy(tmp_path / "one", tmp_path / "two")
    rows = [files.read_jsonl(tmp_path / run / "policy" / "metrics.jsonl") for run in ("one", "two")]
    assert [row["step"] for row in rows[1]] == [6]
    assert rows[1][0]["loss"] == pytest.approx(rows[0][0]["loss"], abs=1e-5)

    config = configuration.load(run_schema("cnn"), "demo", [*_keys(CNN), *STILL])

    def kill(done: int, total: int, note: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    dataset, run = DemoDataset(data), tmp_path / "three"
    with pytest.raises(KeyboardInterrupt):
        train(dataset, Frames(dataset, config.encode.stride), config.encoder, config.policy, config.train,
              run / "policy", progress=kill, device="cpu")  # fmt: skip
    assert (run / "policy" / "state.pt").exists()
    done = train_on(2, train_words(data, run, *STILL))
    assert done.returncode == 0, done.stderr[-3000:]
    check_same_policy(tmp_path / "one", run)


def _keys(words: list[str]) -> list[str]:
    """The same without what the verb alone knows."""
    rest = [*words[2:]]
    rest[rest.index("--steps")] = "--train.steps"
    return rest


def test_torchrun_is_refused_for_a_policy_on_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    dataset = demos(tmp_path / "demos.hdf5", 0)
    with pytest.raises(InvalidInput, match="bc-mlp learns from features"):
        training.check_processes("bc-mlp")
    training.check_processes("finetune")
    assert cli.main(["train", str(dataset.path), "--out", str(tmp_path / "run"), "--steps", "2"]) == 2
    assert not list(tmp_path.glob("features/*/done"))  # nothing was encoded for it


def test_shares_are_all_of_the_batch_and_apart() -> None:
    rows = [row for rank in range(4) for row in range(12)[Ranks(rank, 4).share(12)]]
    assert rows == list(range(12))


def test_a_batch_that_does_not_divide_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain.ranks, "joined", _three)
    with pytest.raises(InvalidInput, match="--batch 4 does not divide among 3 processes"):
        pretrain.pretrain(TINY, tmp_path)


class _three:  # noqa: N801 - stands in for a function
    def __init__(self, device: torch.device) -> None:
        pass

    def __enter__(self) -> Ranks:
        return Ranks(0, 3)

    def __exit__(self, *_: object) -> None:
        pass


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")  # a batch system's, not torchrun's
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert find() == Ranks()
