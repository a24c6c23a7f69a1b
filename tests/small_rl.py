"""Runs of reinforcement learning small enough to take in seconds, on real physics."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from small_policies import EYE

from s2robot import config
from s2robot.rl_config import RLConfig, rl_schema

OFF_POLICY = ["--learn.starts", "6", "--learn.batch", "8", "--learn.buffer", "40", "--learn.widths", "16"]
WORDS = {
    "ppo": ["--learn.rollout", "8", "--learn.batch", "8", "--learn.epochs", "2", "--learn.widths", "16"],
    "sac": OFF_POLICY,
    "rlpd": [*OFF_POLICY, "--learn.critics", "3", "--learn.trunk", "8", "--learn.settle", "7"],
    "ibrl": [*OFF_POLICY, "--learn.critics", "3", "--learn.trunk", "8", "--learn.alone", "9"],
}


def small_run(out: Path, algorithm: str, see: str, task: str = "Lift", *words: str) -> RLConfig:
    """160 control steps in decisions of 4, frames of 64 px, an encoder of random weights."""
    said = [
        "--out", str(out), "--steps", "160", "--checkpoint_every", "40", "--validate_every", "80", "--validate", "1",
        "--world.task", task, "--world.frame_size", "64", "--sight.see", see, "--sight.fit_frames", "4",
        "--sight.components", "4", "--world.reward", "sparse", "--sight.queries", "2", "--sight.size", "48",
    ]  # fmt: skip
    made: Any = config.load(rl_schema(algorithm), None, [*said, *WORDS[algorithm], *words])
    kept: RLConfig = dataclasses.replace(made, encoder=EYE)
    return kept
