"""Features made small: a fixed linear map of every token, fitted once, and which tokens there are to read.

maps (B, V, S*D, h, w) -> of each view and scale its first principal components -> (B, V, S*components, h, w)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FIT_ROWS, FIT_BYTES = 400, 1 << 29  # what a compression is fitted to


@dataclass(frozen=True)
class Shapes:
    """What the network must know of its inputs and outputs."""

    views: int
    scales: int
    width: int  # backbone width D
    grid: tuple[int, int]
    proprioception: int  # Q
    actions: int  # M
    goal: int = 0  # G


class Compression(nn.Module):
    """A fixed linear map of every token, per view and scale: (B, V, S*D, h, w) -> (B, V, S*components, h, w).

    Until it is fitted it keeps the first `components` channels as they are.
    """

    mean: Tensor  # (V, S, D)
    basis: Tensor  # (V, S, D, components)

    def __init__(self, shapes: Shapes, components: int) -> None:
        super().__init__()
        self.components = min(components, shapes.width)
        self.register_buffer("mean", torch.zeros(shapes.views, shapes.scales, shapes.width, dtype=torch.float32))
        first = torch.eye(shapes.width, self.components, dtype=torch.float32).repeat(shapes.views, shapes.scales, 1, 1)
        self.register_buffer("basis", first)

    def fit(self, maps: Tensor) -> None:
        """Principal components of these maps' tokens (F, V, S*D, h, w), scaled to unit overall variance."""
        views, scales, width, _ = self.basis.shape
        tokens = maps.float().reshape(len(maps), views, scales, width, -1)
        for view in range(views):
            for scale in range(scales):
                rows = tokens[:, view, scale].transpose(1, 2).reshape(-1, width)  # (F*N, D)
                mean = rows.mean(dim=0)
                values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
                kept = vectors[:, -self.components :].flip(1)
                kept = kept * _signs(kept)
                self.mean[view, scale] = mean
                self.basis[view, scale] = kept / values[-self.components :].mean().clamp_min(1e-8).sqrt()

    def forward(self, maps: Tensor) -> Tensor:
        views, scales, width, _ = self.basis.shape
        split = maps.float().reshape(len(maps), views, scales, width, *maps.shape[3:])  # (B, V, S, D, h, w)
        centred = split - self.mean[..., None, None]
        return torch.einsum("bvsdhw,vsdc->bvschw", centred, self.basis).flatten(2, 3)


def rows_to_fit(shape: Sequence[int], count: int) -> NDArray[np.int64]:
    """Rows of the first `count` to fit a compression to, evenly spread: enough tokens for a covariance, and no more
    than half a gigabyte of them. shape: of the maps (F, V, C, h, w), or of none."""
    most = max(8, FIT_BYTES // (4 * math.prod(shape[1:])))
    return np.linspace(0, count - 1, min(count, FIT_ROWS, most)).astype(np.int64)


def chosen_tokens(maps: Tensor, cls: Tensor, which: str) -> Tensor:
    """Of maps (B, V, D*S, h, w) and cls (B, V, D*S), what `tokens` names, as a map: the last two have one place."""
    if which == "cls":
        return cls[..., None, None]
    return maps.float().mean(dim=(-2, -1), keepdim=True) if which == "mean" else maps


def _signs(vectors: Tensor) -> Tensor:
    """Signs that make each column's largest entry positive, so a fit is the same on every machine."""
    largest = vectors.abs().max(dim=0).indices
    return vectors[largest, torch.arange(vectors.shape[1])].sign()
