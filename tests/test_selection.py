"""Keeping the best: what is said of it is of it. Judging by rollouts is in test_rollouts.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from s2robot import files, selection
from s2robot.selection import ValidationConfig, select


def test_what_was_measured_of_a_former_best_goes_with_it(tmp_path: Path) -> None:
    def judged(folder: Path, weights: bytes, outcomes: list[bool]) -> None:
        files.write_json(folder / "policy.json", {})
        (folder / "policy.safetensors").write_bytes(weights)
        with files.JsonLines(folder / "validation.jsonl") as log:
            for k, success in enumerate(outcomes):
                log.write({"seed": 500_000 + k, "success": success, "steps": 1, "reward": 0.0, "ms": {}})

    judged(tmp_path / "policy" / "snapshots" / "000010", b"first", [True, False, False])
    judged(tmp_path / "policy", b"last", [False, True, True])
    log = select(tmp_path, ValidationConfig(episodes=1)) / "episodes-exact.jsonl"
    log.touch()
    select(tmp_path, ValidationConfig(episodes=1))
    assert log.exists()
    select(tmp_path, ValidationConfig(episodes=3))
    assert (tmp_path / "best" / "policy" / "policy.safetensors").read_bytes() == b"last" and not log.exists()


def test_outcomes_of_one_physics_are_not_taken_for_those_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs: list[str] = []

    def judged(folder: Path, settings: Any, log: Path, *_: Any) -> list[Any]:
        logs.append(log.name)
        return []

    monkeypatch.setattr(selection, "evaluate", judged)
    files.write_json(tmp_path / "policy" / "policy.json", {})
    (tmp_path / "policy" / "policy.safetensors").touch()
    for fidelity in ("fast", "exact"):
        select(tmp_path, ValidationConfig(episodes=1, fidelity=fidelity))
    assert logs == ["validation.jsonl", "validation-exact.jsonl"]
