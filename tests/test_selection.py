"""Keeping the best: what is said of it is of it. Judging by rollouts is in test_rollouts.py."""

from __future__ import annotations

from pathlib import Path

from s2robot import files
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
