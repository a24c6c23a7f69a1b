"""Frames as a policy trains on them: every n-th step of a dataset, small, as uint8.

A dataset keeps its frames packed (gzip), and one random frame costs milliseconds; training shows every frame many
times. So they are read once. The rows are those of a feature store of the same stride.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from s2robot.datasets import DemoDataset
from s2robot.errors import InvalidInput

Rows = NDArray[np.int64]


class Frames:
    """Every `stride`-th frame of a dataset, read when asked for."""

    versions: tuple[Frames, ...] = ()  # as a feature store has them; what reads frames changes them as it learns

    def __init__(self, dataset: DemoDataset, stride: int = 1) -> None:
        if stride < 1:
            raise InvalidInput(f"stride is {stride}; expected a whole number from 1 on")
        self.dataset, self.stride = dataset, stride
        self._steps = [np.arange(0, length, stride) for length in dataset.lengths]
        self._firsts = np.cumsum([0, *map(len, self._steps)])  # row each episode begins with

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def rows(self, episode: int) -> tuple[Rows, Rows]:
        """Rows of an episode, and the step of each.  (n,), (n,)"""
        steps = self._steps[episode]
        return self._firsts[episode] + np.arange(len(steps)), steps

    def read(self, rows: Rows, size: int) -> Tensor:
        """The frames of these rows, which ascend, reduced to `size` (see `shrink`): (n, V, h, w, 3) uint8."""
        found = []
        of = np.searchsorted(self._firsts, rows, side="right") - 1
        for episode in np.unique(of):
            steps = self._steps[episode][rows[of == episode] - self._firsts[episode]]
            found.append(shrink(torch.from_numpy(self.dataset.frames(int(episode), steps)), size))
        return torch.cat(found)


def shrink(frames: Tensor, size: int) -> Tensor:
    """Frames (n, V, H, W, 3) uint8 whose shorter side is `size` pixels at most; 0: as they are.

    Antialiased, and the same numbers in training and acting: both do it on the CPU.
    """
    height, width = small_size((frames.shape[2], frames.shape[3]), size)
    if (height, width) == frames.shape[2:4]:
        return frames
    planes = frames.flatten(0, 1).permute(0, 3, 1, 2).float()  # (n*V, 3, H, W)
    small: Tensor = F.interpolate(planes, (height, width), mode="bilinear", antialias=True).round().to(torch.uint8)
    return small.permute(0, 2, 3, 1).contiguous().reshape(*frames.shape[:2], height, width, 3)


def small_size(frame: tuple[int, int], size: int) -> tuple[int, int]:
    """What `shrink` makes of frames of (H, W)."""
    factor = min(1.0, size / min(frame)) if size else 1.0
    return round(frame[0] * factor), round(frame[1] * factor)
