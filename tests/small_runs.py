"""Pre-training runs small enough to take in a second, on frames made up here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s2robot.footage import save_frames
from s2robot.recipe import PretrainConfig

TINY = PretrainConfig(
    name="s2robot-tiny", steps=12, batch=4, checkpoint_every=5, threads=1, device="cpu", frame_size=64, image_size=32,
    patch=8, width=24, depth=2, heads=2, decoder_width=16, decoder_depth=1,
)  # fmt: skip


def some_frames(count: int = 100, size: int = 64) -> NDArray[np.uint8]:
    """Frames of smooth colour, (count, size, size, 3)."""
    small = np.random.default_rng(0).integers(0, 255, (count, 4, 4, 3)).astype(np.uint8)
    return small.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


def folder_with_frames(path: Path, size: int = 64) -> Path:
    """A run folder whose frames are there already."""
    path.mkdir(exist_ok=True)
    save_frames(path / "frames.npy", [some_frames(size=size)], 100, size)
    return path
