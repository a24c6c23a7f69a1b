"""From frames to training views: squares drawn, cut out as they are, brought to size on the device.

What the encoder meets in use is what it learns from. At scales (1, 2) that is whole frames at base size and the four
tiles of the double-size frame, each an exact part of the true frame. Of a batch, in the recipe's proportions:

    whole     the frame, averaged to base size
    tile      one of the s x s tiles of a larger scale, the scale drawn evenly; a whole frame where there is none
    crop      a square as large as a tile of the finest scale, anywhere; so the whole frame where (1,) is all
    resized   a square of any size from the base size up, in steps of 8 pixels, anywhere

All is drawn from the generator passed in; pixels stay uint8 until they are on the device.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot.backbones import ImageContract
from s2robot.catalogue import PlainViT
from s2robot.preprocess import resize_frames, resize_matrices
from s2robot.recipe import PretrainConfig

KINDS = ("mixed", "base", "tile")
SIDE_STEP = 8  # pixels between the sizes of `resized`: views of one size are cut and resized together
Frames = NDArray[np.uint8] | Tensor  # (n, H, H, 3): in memory or on disk, or already on the device


@dataclass(frozen=True)
class Cuts:
    """Which square of which frame each view of a batch is."""

    frame: NDArray[np.int64]  # (B,)
    top: NDArray[np.int64]  # (B,) [pixels]
    left: NDArray[np.int64]  # (B,)
    side: NDArray[np.int64]  # (B,)
    mirrored: NDArray[np.bool_]  # (B,)

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, rows: slice) -> Cuts:
        return Cuts(self.frame[rows], self.top[rows], self.left[rows], self.side[rows], self.mirrored[rows])


@dataclass(frozen=True)
class Squares:
    """Views as they were cut, those of one size together: their places in the batch and pixels (n, side, side, 3)."""

    groups: list[tuple[Tensor, Tensor]]
    mirrored: Tensor  # (B,) bool


def draw_cuts(count: int, config: PretrainConfig, rng: np.random.Generator, kind: str = "mixed") -> Cuts:
    """A batch of views of `count` frames. kind: "mixed", or all "base" (whole frames) or "tile"."""
    frame = rng.integers(count, size=config.batch)
    shares = np.array([config.whole_share, config.tile_share, config.crop_share, config.resized_share])
    bounds = shares.cumsum() / shares.sum()
    squares = np.empty((config.batch, 3), np.int64)
    for row in squares:
        if kind == "mixed" and config.objective == "views":
            which = int(np.searchsorted(bounds, rng.random(), side="right"))
        else:
            which = 1 if kind == "tile" else 0
        row[:] = _square(which, config, rng)
    mirrored = rng.random(config.batch) < 0.5 if config.flip and kind == "mixed" else np.zeros(config.batch, bool)
    top, left, side = squares.T
    return Cuts(frame, top, left, side, mirrored)


def draw_noise(config: PretrainConfig, rng: np.random.Generator) -> Tensor:
    """What decides which patches are hidden, (B, N) in [0, 1)."""
    return torch.from_numpy(rng.random((config.batch, config.grid**2), dtype=np.float32))


def cut_squares(frames: Frames, cuts: Cuts) -> Squares:
    """Copy the pixels of a batch out of the frames."""
    groups = []
    for side in np.unique(cuts.side):
        places = np.flatnonzero(cuts.side == side)
        some = (cuts.frame[places], cuts.top[places], cuts.left[places], int(side))
        pixels = _gather(frames, *some) if isinstance(frames, Tensor) else _copy(frames, *some)
        groups.append((torch.from_numpy(places), pixels))
    return Squares(groups, torch.from_numpy(cuts.mirrored))


def develop(squares: Squares, size: int, device: torch.device) -> Tensor:
    """Bring a batch to (B, 3, size, size) on the device, normalised."""
    contract = PlainViT(size, 4, 1, 1, "area").contract
    batch = len(squares.mirrored)
    images = torch.empty(batch, 3, size, size, device=device)
    for places, pixels in squares.groups:
        planes = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float().contiguous()  # planes resize faster
        images[places.to(device)] = _resize(planes, size, contract)
    if squares.mirrored.any():
        mirrored = squares.mirrored.to(device)
        images[mirrored] = images[mirrored].flip(-1)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (contract.mean, contract.std))
    return images.div_(255).sub_(mean).div_(std)


def _resize(planes: Tensor, size: int, contract: ImageContract) -> Tensor:
    """As `resize_frames`, but by matrix products, which an accelerator does for all images at once."""
    side = planes.shape[-1]
    if side % size == 0:
        return resize_frames(planes, (size, size), contract)
    rows = _resize_matrix(side, size, contract, planes.device)
    return (rows @ planes @ rows.T).clamp(0, 255)


@functools.lru_cache(maxsize=256)
def _resize_matrix(side: int, size: int, contract: ImageContract, device: torch.device) -> Tensor:
    return resize_matrices((side, side), (size, size), contract)[0].to(device)


def _square(which: int, config: PretrainConfig, rng: np.random.Generator) -> tuple[int, int, int]:
    """Top, left and side of one view: of a whole frame, a tile, a crop or a resized square."""
    whole, larger = config.frame_size, config.scales[1:]
    if which == 0 or (which == 1 and not larger):
        return 0, 0, whole
    if which == 1:
        scale = larger[0] if len(larger) == 1 else larger[rng.integers(len(larger))]
        side = whole // scale
        row, column = rng.integers(scale, size=2)
        return int(row) * side, int(column) * side, side
    side = whole // config.scales[-1]
    if which == 3:
        sides = range(config.image_size, whole + 1, SIDE_STEP)
        side = sides[rng.integers(len(sides))]
    top, left = rng.integers(whole - side + 1, size=2)
    return int(top), int(left), side


def _copy(
    frames: NDArray[np.uint8], frame: NDArray[np.int64], top: NDArray[np.int64], left: NDArray[np.int64], side: int
) -> Tensor:
    """(n, side, side, 3): slice by slice, which costs no more than moving the bytes."""
    pixels = np.empty((len(frame), side, side, 3), np.uint8)
    for row, (k, y, x) in enumerate(zip(frame, top, left, strict=True)):
        pixels[row] = frames[k, y : y + side, x : x + side]
    return torch.from_numpy(pixels)


def _gather(
    frames: Tensor, frame: NDArray[np.int64], top: NDArray[np.int64], left: NDArray[np.int64], side: int
) -> Tensor:
    """The same where frames are on an accelerator: one operation for all."""
    k, y, x = (torch.from_numpy(values).to(frames.device)[:, None, None] for values in (frame, top, left))
    inside = torch.arange(side, device=frames.device)
    return frames[k, y + inside[:, None], x + inside]
