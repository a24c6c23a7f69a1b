"""From camera frames to the tiles a backbone takes: checked, cropped, resized once, cut, normalised.

Every scale is made from the true frame, never from another scale. Pure: no weights, no files.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from s2robot.backbones import ImageContract
from s2robot.errors import InvalidInput
from s2robot.multiscale import split_tiles
from s2robot.scales import Plan, Size


def check_frames(frames: NDArray[np.uint8] | Tensor) -> Tensor:
    """Hold frames against their contract and give them both axes: (B, V, H, W, 3) uint8."""
    if isinstance(frames, np.ndarray):
        shape, dtype = frames.shape, str(frames.dtype)
    elif isinstance(frames, Tensor):
        shape, dtype = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
    else:
        raise InvalidInput(f"Frames are a {type(frames).__name__}; expected a uint8 array. Try numpy.asarray(frames)")
    came = f"Frames are {dtype} {shape}"
    if len(shape) not in (3, 4, 5):
        raise InvalidInput(f"{came}; expected (B, V, H, W, 3), (B, H, W, 3) or (H, W, 3)")
    if shape[-1] != 3:
        raise InvalidInput(f"{came}; expected RGB in the last axis. {_channel_mistake(shape)}")
    if 0 in shape:
        raise InvalidInput(f"{came}: an empty batch. Give at least one frame")
    if dtype != "uint8":
        raise InvalidInput(f"{came}; expected uint8 in [0, 255]. {_dtype_mistake(dtype)}")
    if isinstance(frames, np.ndarray):  # torch takes neither mirrored views nor, without a warning, read-only ones
        frames = torch.from_numpy(np.require(frames, requirements=["C", "W"]))
    return frames.reshape(*(1,) * (5 - len(shape)), *shape) if len(shape) != 4 else frames[:, None]


def cut_tiles(
    frames: Tensor,
    plan: Plan,
    contract: ImageContract,
    mean: Tensor,
    std: Tensor,
    wanted: Sequence[Sequence[int]] | None = None,
) -> list[Tensor]:
    """(B, V, H, W, 3) uint8 -> for every scale (T*B*V, 3, h, w), normalised fp32.

    mean, std: the contract's, (3, 1, 1), where the frames are.
    wanted: of every scale, the rows to give; all by default.
    """
    pixels = frames.flatten(0, 1).permute(0, 3, 1, 2)  # (B*V, 3, H, W)
    if any(plan.pad):
        pixels = _padded(pixels, plan.pad, 255 * mean)
    (top, left), (height, width) = plan.corner, plan.crop
    # Colours apart from here on: every step below is up to four times faster on planes than on pixels of three.
    images = pixels[:, :, top : top + height, left : left + width].float().contiguous()
    tiles = []
    for k, scale in enumerate(plan.scales):
        if wanted is not None and not wanted[k]:
            tiles.append(images.new_empty(0, 3, *scale.tile))
            continue
        cut = split_tiles(resize_frames(images, scale.image, contract), scale.tile)
        if wanted is not None and len(wanted[k]) < len(cut):
            cut = cut[list(wanted[k])]
        tiles.append((cut / 255).sub_(mean).div_(std))  # in place: fresh memory costs more than the arithmetic
    return tiles


@functools.lru_cache(maxsize=64)
def tile_sources(frame: Size, plan: Plan, contract: ImageContract) -> tuple[tuple[tuple[slice, slice], ...], ...]:
    """Of every tile of every scale, the rows and columns of the frame (H, W) that it is made of.

    As the resize reaches over a tile's edges, so does this: where these pixels are the same, the tile is, bit by bit.
    """
    origin = (plan.corner[0] - plan.pad[0] // 2, plan.corner[1] - plan.pad[1] // 2)  # of the crop, in the frame
    scales = []
    for scale in plan.scales:
        matrices = resize_matrices(plan.crop, scale.image, contract)
        spans = [
            [_reach(part, origin[axis], frame[axis]) for part in matrices[axis].split(scale.tile[axis])]
            for axis in (0, 1)
        ]
        scales.append(tuple((rows, columns) for rows in spans[0] for columns in spans[1]))
    return tuple(scales)


def _reach(part: Tensor, origin: int, length: int) -> slice:
    """Which of a frame's pixels have a weight in these rows (h, crop) of a resize; padding is not the frame's."""
    used = part.any(dim=0).nonzero()
    low, high = origin + int(used[0]), origin + int(used[-1]) + 1
    return slice(min(max(low, 0), length), min(max(high, 0), length))


def resize_frames(images: Tensor, size: Size, contract: ImageContract) -> Tensor:
    """Bring images in [0, 255] to (height, width), from the true frame and never twice.

    The result stays in [0, 255]: bicubic overshoots at edges, and no backbone was trained on such pixels.

    Args:
        images: (B, 3, H, W) float
    """
    now = (images.shape[-2], images.shape[-1])
    if now == size:
        return images
    resized = _interpolate(images, size, contract, smooth=_shrinks(now, size))
    return resized if _is_mean(now, size, contract) else resized.clamp(0, 255)


def resize_matrices(now: Size, size: Size, contract: ImageContract) -> tuple[Tensor, Tensor]:
    """The same resize, before its clamp, as two matrices: rows (h, H) and columns (w, W), rows @ image @ columns.T.

    Matrix products mean the same to every runtime that reads an exported graph; "bicubic, antialiased" does not:
    OpenVINO drops the antialiasing in silence (openvino#35893).
    """
    smooth = _shrinks(now, size)
    if now == size:
        return torch.eye(now[0]), torch.eye(now[1])
    if _is_mean(now, size, contract):
        return (_along_rows(now[0], size[0], contract, smooth), _along_rows(now[1], size[1], contract, smooth))
    other = dataclasses.replace(contract, interpolation="bicubic") if contract.interpolation == "area" else contract
    return (_along_rows(now[0], size[0], other, smooth), _along_rows(now[1], size[1], other, smooth))


def _along_rows(now: int, size: int, contract: ImageContract, smooth: bool) -> Tensor:
    """(size, now): what the resize does to the columns of a unit matrix, one source pixel each."""
    return _interpolate(torch.eye(now)[None, None], (size, now), contract, smooth)[0, 0]


def _interpolate(images: Tensor, size: Size, contract: ImageContract, smooth: bool) -> Tensor:
    now = (images.shape[-2], images.shape[-1])
    if _is_mean(now, size, contract):
        return F.avg_pool2d(images, (now[0] // size[0], now[1] // size[1]))
    mode = "bilinear" if contract.interpolation == "bilinear" else "bicubic"
    return F.interpolate(images, size=size, mode=mode, antialias=contract.antialias and smooth)


def _is_mean(now: Size, size: Size, contract: ImageContract) -> bool:
    """Whether every new pixel is the mean of whole old ones."""
    return contract.interpolation == "area" and now[0] % size[0] == 0 and now[1] % size[1] == 0


def _shrinks(now: Size, size: Size) -> bool:
    return now[0] > size[0] or now[1] > size[1]


def _padded(pixels: Tensor, pad: Size, colour: Tensor) -> Tensor:
    """Frames in the middle of larger ones of one colour, (3, 1, 1) in [0, 255]."""
    count, channels, height, width = pixels.shape
    canvas = colour.round().to(pixels.dtype).expand(count, channels, height + pad[0], width + pad[1]).clone()
    top, left = pad[0] // 2, pad[1] // 2
    canvas[:, :, top : top + height, left : left + width] = pixels
    return canvas


def _channel_mistake(shape: tuple[int, ...]) -> str:
    if shape[-3] == 3:
        return "The colours seem to come first: move them with numpy.moveaxis(frames, -3, -1)"
    if shape[-1] == 4:
        return "The fourth channel seems to be alpha: drop it with frames[..., :3]"
    if shape[-1] == 1:
        return "One channel seems to be grey: repeat it with numpy.repeat(frames, 3, axis=-1)"
    return "If they are grey without a colour axis: numpy.stack([frames] * 3, axis=-1)"


def _dtype_mistake(dtype: str) -> str:
    if "float" in dtype:
        return "If they are in [0, 1]: (frames * 255).round().astype('uint8'); do not normalise, the encoder does"
    return "If the values are in [0, 255]: frames.astype('uint8')"
