"""What encoders see in the probe's scenes: encoded once a scale, kept as float16 beside the scenes.

A scale is encoded alone (`Looker`), and read-outs are put together from scales, as the encoder itself does:

    base      the coarsest scale: what the backbone gives without S2
    s2        every scale, averaged into the coarsest grid (grid="base", as in the paper)
    finest    every scale on the finest grid; coarse tokens are repeated (grid="finest")

A file's name holds the looker's fingerprint and its scenes' digest: nothing stale can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot import files
from s2robot.errors import S2RobotError
from s2robot.multiscale import pool_to_grid
from s2robot.probe_data import PIECE, ProbeData, Split, open_records, save_records
from s2robot.progress import Report
from s2robot.types import Features

READOUTS = ("base", "s2", "finest")
SPLITS = ("train", "test")


class Looker(Protocol):
    """One scale of an encoder: square frames in, a map and a summary out."""

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, frames: NDArray[np.uint8]) -> Features: ...


@dataclass(frozen=True)
class Subject:
    """What is probed: an encoder, scale by scale, coarse first."""

    label: str
    lookers: tuple[Looker, ...]
    sizes: tuple[int, ...]  # of the images of each scale [pixels]
    parameters: int
    weights: str  # where they come from


@dataclass(frozen=True)
class Part:
    """Features of one scale: records of "map" (V, D, h, w) and "cls" (V, D), by split."""

    fingerprint: str
    pieces: dict[str, tuple[NDArray[Any], ...]]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, h, w)."""
        channels, height, width = self.pieces["train"][0].dtype["map"].shape[1:]
        return channels, height, width

    def take(self, split: str, field: str, rows: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """(b, V, D, ...) float32."""
        pieces = self.pieces[split]
        return torch.from_numpy(np.stack([pieces[row // PIECE][field][row % PIECE] for row in rows])).float()


def encode_part(looker: Looker, data: ProbeData, told: Report) -> Part:
    """Encode the pieces that are not there yet, then open all."""
    folder = data.folder / "features" / looker.fingerprint[:20]
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    record: Any = None
    total, done = len(data.train.pieces) + len(data.test.pieces), 0
    opened: dict[str, tuple[NDArray[Any], ...]] = {}
    for split in (data.train, data.test):
        found = []
        for k, path in enumerate(_paths(folder, split)):
            if not path.exists():
                save_records(path, _encode(looker, split.pieces[k]["frames"]))
            found.append(open_records(path, record, PIECE))
            record = found[0].dtype  # what the first file holds, the others must
            done += 1
            told(PIECE * done, PIECE * total, "scenes")
        opened[split.name] = tuple(found)
    return Part(looker.fingerprint, opened)


def _paths(folder: Path, split: Split) -> list[Path]:
    return [folder / f"{split.name}-{k:05d}-{digest[:12]}.npy" for k, digest in enumerate(split.digests)]


def _encode(looker: Looker, frames: NDArray[np.uint8]) -> NDArray[Any]:
    """frames (PIECE, V, H, W, 3)."""
    features = looker(np.ascontiguousarray(frames))
    values = {"map": features.map, "cls": features.cls}
    record = np.dtype([(name, np.float16, tuple(value.shape[1:])) for name, value in values.items()])
    records = np.zeros(len(frames), record)
    for name, value in values.items():
        records[name] = value.detach().half().cpu().numpy()
        if not np.isfinite(records[name]).all():
            raise S2RobotError(
                f"Features are NaN or beyond half precision (65504): largest {float(value.abs().max()):.4g}. Check the "
                f"encoder's weights; no known backbone comes near"
            )
    return records


class ReadOut:
    """One way to put an encoder's scales together: maps (n, V, C, h, w) and summaries (n, V, C) of scenes.

    Args:
        name: one of READOUTS.
        parts: the scales, coarse first; "base" reads the first alone.
        counts: scenes of each split.
    """

    def __init__(self, name: str, parts: Sequence[Part], counts: dict[str, int]) -> None:
        self.name = name
        self.parts = tuple(parts[:1] if name == "base" else parts)
        self.counts = counts
        self.grid = self.parts[-1 if name == "finest" else 0].shape[1:]
        self.channels = sum(part.shape[0] for part in self.parts)
        self.fingerprint = " ".join([name, *(part.fingerprint for part in self.parts)])

    def maps(self, split: str, rows: Sequence[int] | NDArray[np.int64], view: int | None = None) -> Tensor:
        """(b, V, C, h, w) float32; of one view alone, (b, 1, C, h, w)."""
        views = slice(None) if view is None else slice(view, view + 1)
        found = []
        for part in self.parts:
            maps = part.take(split, "map", rows)[:, views]
            found.append(_to_grid(maps.flatten(0, 1), self.grid).unflatten(0, maps.shape[:2]))
        return torch.cat(found, dim=2)

    def summaries(self, split: str) -> Tensor:
        """(n, V, C) float32."""
        rows = range(self.counts[split])
        return torch.cat([part.take(split, "cls", rows) for part in self.parts], dim=2)

    def means(self, split: str) -> Tensor:
        """The mean token, (n, V, C) float32."""
        return torch.cat([self.maps(split, rows).mean(dim=(3, 4)) for rows in batches(self.counts[split])])


def _to_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """As `pool_to_grid`; upwards by a whole factor that only repeats, and repeating is ten times faster."""
    rows, columns = grid[0] / maps.shape[-2], grid[1] / maps.shape[-1]
    if rows >= 1 and columns >= 1 and rows.is_integer() and columns.is_integer():
        return maps.repeat_interleave(int(rows), dim=-2).repeat_interleave(int(columns), dim=-1)
    return pool_to_grid(maps, grid)


def batches(count: int, size: int = 64) -> list[range]:
    """0 to count - 1 in runs of `size`."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
