"""A stand-in for the probe's scenes: squares of four colours, drawn in a moment; and encoders that see them."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from s2robot.probe_data import CAMERAS, SIDE
from s2robot.probe_features import Subject
from s2robot.types import Features

PALETTE = ((220, 20, 20), (20, 200, 20), (20, 20, 220), (220, 220, 20))
SQUARE = 12  # pixels of SIDE


class SquareScenes:
    """Draws `SIDE`-pixel scenes; the k-th depends on (seed, k) alone. Counts what it drew."""

    cameras = CAMERAS
    drawn: ClassVar[list[int]] = []  # by all instances, in order

    def __init__(self, frame_size: int = SIDE, seed: int = 0) -> None:
        self.scale, self.seed = frame_size // SIDE, seed

    def scene(self, index: int) -> Any:
        SquareScenes.drawn.append(index)
        return self.draw(index)

    def draw(self, index: int) -> Any:
        rng = np.random.default_rng((self.seed, index))
        corners = rng.permutation(16)[:4]
        places = np.stack([corners % 4, corners // 4], axis=1) * 16 + rng.integers(0, 4, (4, 2))  # x, y of corners
        picture = np.full((SIDE, SIDE, 3), 120, np.uint8)
        labels = np.ones((SIDE, SIDE), np.uint8)
        depth = np.full((SIDE, SIDE), 2.0, np.float32)
        for k, (x, y) in enumerate(places):
            area = slice(y, y + SQUARE), slice(x, x + SQUARE)
            picture[area], labels[area], depth[area] = PALETTE[k], 4 + k, 1.0
        contact = bool(rng.integers(2))
        wrist = np.full_like(picture, 200 if contact else 90)
        frames = np.stack([picture, wrist]).repeat(self.scale, axis=1).repeat(self.scale, axis=2)
        return SimpleNamespace(
            frames=frames, labels=np.stack([labels, np.zeros_like(labels)]), depth=np.stack([depth, depth]),
            cubes=(places / 100).astype(np.float32), leftmost=int(places[:, 0].argmin()),
            shape=int(rng.integers(3)), contact=contact, odd=np.array([1, -1], np.float32) * (places[0] / 32 - 1),
        )  # fmt: skip

    def close(self) -> None:
        """Nothing to close."""


class Averager:
    """A 'looker': mean colours on a grid, and of the whole; or, blind, of squares that are elsewhere."""

    def __init__(self, cells: int = 8, blind: bool = False, version: str = "1") -> None:
        self.cells, self.blind, self.version = cells, blind, version
        self.frames_seen = 0

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.cells} {self.blind} {self.version}".encode()).hexdigest()

    def __call__(self, frames: NDArray[np.uint8]) -> Features:
        self.frames_seen += len(frames)
        if self.blind:
            first = int(np.random.default_rng(int(frames.sum(dtype=np.int64))).integers(10**6))
            frames = np.stack([SquareScenes(SIDE, seed=9).draw(first + k).frames for k in range(len(frames))])
        pixels = torch.from_numpy(frames).float().permute(0, 1, 4, 2, 3) / 255  # (B, V, 3, H, W)
        maps = F.adaptive_avg_pool2d(pixels.flatten(0, 1), self.cells).unflatten(0, pixels.shape[:2])
        maps = torch.cat([maps, maps.square(), maps[:, :, :1] * maps[:, :, 1:2]], dim=2)  # colours apart from sums
        return Features(map=maps, tokens=maps.flatten(3).transpose(2, 3), cls=maps.mean(dim=(3, 4)))


def subject(label: str, *lookers: Averager) -> Subject:
    return Subject(label, lookers, tuple(8 * each.cells for each in lookers), 0, "none")


def quiet(done: int, total: int, note: str = "") -> None:
    """A progress report nobody reads."""
