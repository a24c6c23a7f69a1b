"""Policies that were never trained, as run folders: small enough to serve and ask in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from s2robot import files, registry
from s2robot.compression import Shapes
from s2robot.encoder import EncoderConfig
from s2robot.types import FRAMES, GOAL, PROPRIOCEPTION

CAMERAS = ("agentview", "robot0_eye_in_hand")
FRAME = 64
FIELDS = {"Lift": (7, 0), "PickColor": (7, 4)}  # proprioception and goal
EYE = EncoderConfig("timm:test_vit", random_weights=True, sizes=(32, 64), engine="torch")


def small_policy(folder: Path, kind: str = "bc-mlp", task: str = "Lift", **settings: Any) -> Path:
    """A run folder with a policy of random weights that look at two cameras of 64 px."""
    module, encoder = registry.policy_module(kind), EYE.build("cpu")
    config = module.CONFIG(**settings)
    proprioception, goal = FIELDS[task]
    shapes = Shapes(
        len(CAMERAS), EYE.groups, encoder.contract.width, encoder.grid_of((FRAME, FRAME)), proprioception, 4, goal
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = module.NETWORK(config, shapes)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)  # else every answer is near zero, and all are alike
    out = folder / "policy"
    out.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, out / "policy.safetensors")
    description = {
        "kind": kind, **registry.acting().describe(network), "encoder": vars(EYE),
        "encoder_fingerprint": encoder.fingerprint, "task": task, "robot": "Panda", "cameras": list(CAMERAS),
        "frame_size": FRAME, "frame": [FRAME, FRAME],
    }  # fmt: skip
    files.write_json(out / "policy.json", description)
    return folder


def observations(count: int, task: str = "Lift", seed: int = 0, frame: int = FRAME) -> list[dict[str, Any]]:
    """Observations by our own table's keys, each its own."""
    rng = np.random.default_rng(seed)
    proprioception, goal = FIELDS[task]
    rows = []
    for _ in range(count):
        row = {FRAMES: rng.integers(0, 256, (len(CAMERAS), frame, frame, 3), dtype=np.uint8)}
        row |= {PROPRIOCEPTION: rng.normal(size=proprioception).astype(np.float32)}
        rows.append(row | ({GOAL: np.eye(goal, dtype=np.float32)[rng.integers(goal)]} if goal else {}))
    return rows


def flat(observation: dict[str, Any]) -> dict[str, Any]:
    """The same as openpi's clients say it."""
    images = {f"observation/{camera}": image for camera, image in zip(CAMERAS, observation[FRAMES], strict=True)}
    return {**images, "observation/state": observation[PROPRIOCEPTION].astype(np.float64)}
