"""Runs on a launcher: those trained here to the bit, nothing but the run travels, and one head at a time."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_policy_verbs import demos, train_in

from s2robot import locks
from s2robot.errors import InvalidInput
from s2robot.launchers import HERE
from s2robot.sweeps import alone_in, do_runs


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demos(tmp_path_factory.mktemp("sweeps") / "demos.hdf5", 0).path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def note(seen: list[set[str]], what: str, folder: Path) -> None:
    """A run: more of the log, another file of the policy, and something that is nobody's."""
    seen.append(set(contents(folder)))
    (folder / "policy").mkdir(exist_ok=True)
    (folder / "policy" / "done").write_text(what)
    (folder / "mine").touch()


def test_only_what_belongs_to_a_run_travels(tmp_path: Path) -> None:
    kept = {"config.yaml", "policy/state.pt", "best/policy/policy.json", "episodes-fast.jsonl", "validation.json"}
    others = {"demos.hdf5", "features/a/map.npy", "seed-1/policy/done", "report.html"}
    for name in kept | others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    seen: list[set[str]] = []
    assert list(do_runs(HERE, partial(note, seen), {".": "x"}, tmp_path, ())) == ["."]
    assert seen == [kept]
    assert set(contents(tmp_path)) == kept | others | {"policy/done"}


def trained_then_not_judged(what: str, folder: Path) -> None:
    note([], what, folder)
    if what == "bad":
        raise InvalidInput(f"{folder}: no rollouts")


def test_a_run_that_is_trained_is_kept_though_its_validation_fails(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"^seed-0: no rollouts"):
        list(do_runs(HERE, trained_then_not_judged, {"seed-0": "bad", "seed-1": "x"}, tmp_path, ()))
    assert (tmp_path / "seed-0" / "policy" / "done").read_text() == "bad"
    assert not (tmp_path / "seed-1" / "policy").exists() and not list(tmp_path.rglob(".lock"))


def test_two_at_one_run_do_not_mix(dataset: Path, tmp_path: Path, capsys: Any) -> None:
    """Neither two that have it done elsewhere, nor one of those and one that trains here."""
    with alone_in(tmp_path / "runs" / "seed-1"):
        with pytest.raises(locks.Occupied, match="seed-1 is in use by process"):
            list(do_runs(HERE, partial(note, []), {"seed-0": "x", "seed-1": "x"}, tmp_path / "runs", ()))
        assert not (tmp_path / "runs" / "seed-0" / "policy").exists()
        assert train_in(tmp_path / "runs" / "seed-1", dataset) == 1
        assert f"in use by process {os.getpid()}" in " ".join(capsys.readouterr().err.split())
    assert len(list(do_runs(HERE, partial(note, []), {"seed-0": "x", "seed-1": "x"}, tmp_path / "runs", ()))) == 2
    assert not list(tmp_path.rglob(".lock"))


@pytest.mark.filterwarnings(  # submitit does not wait for its local processes
    "ignore:Exception ignored in. <function Popen.__del__:pytest.PytestUnraisableExceptionWarning"
)
def test_a_launcher_trains_with_the_threads_of_this_process(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="pip install 's2robot[slurm]'")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    before, here, there = torch.get_num_threads(), tmp_path / "here", tmp_path / "there"
    torch.set_num_threads(2)
    try:
        assert train_in(here, dataset) == 0
        words = f"slurm:cluster=local,workers=1,folder={tmp_path / 'jobs'}"
        assert train_in(there, dataset, "--launcher", words) == 0
    finally:
        torch.set_num_threads(before)
    found = contents(there / "policy")
    assert {"done", "policy.safetensors", "policy.json"} <= found.keys()
    assert found["policy.safetensors"] == (here / "policy" / "policy.safetensors").read_bytes()
