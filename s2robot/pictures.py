"""Pictures of what the encoder sees: each scale's tokens, coloured by their three main directions.

Pure and deterministic: the same frames and features give the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from s2robot.errors import InvalidInput

CELL = 224  # pixels a frame is wide in the picture
GAP, CAPTION, TEXT = 8, 26, 15
CANVAS, INK = (20, 22, 26), (232, 234, 237)  # a dark sheet: reads the same on a light page and a dark one
CLIP = (2, 98)  # percentiles that become 0 and 255: one odd token must not grey out all others

ScaleMap = tuple[str, NDArray[Any]]
"""What to call a scale, and its tokens, (F, D, h, w)."""


def split_scales(features_map: NDArray[Any], names: Sequence[str]) -> list[ScaleMap]:
    """Cut `Features.map`, (F, D*S, h, w), back into one map a scale, (F, D, h, w), under their names."""
    features_map = np.asarray(features_map)
    if features_map.ndim != 4 or not names or features_map.shape[1] % len(names):
        raise InvalidInput(f"Features {features_map.shape} do not divide into {', '.join(names)} on axis 1")
    return list(zip(names, np.split(features_map, len(names), axis=1), strict=True))


def feature_picture(frames: NDArray[np.uint8], scales: Sequence[ScaleMap], cell: int = CELL) -> Image.Image:
    """One row a frame: the frame, then each scale's tokens as colours.

    frames: (F, H, W, 3) RGB. scales: [(label, (F, D, h, w)), ...], numpy or CPU tensors.

    Within a scale, tokens of equal colour have similar features, across all F frames; colours of different scales
    have nothing to do with each other.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0:
        raise InvalidInput(f"Frames are {frames.dtype} {frames.shape}; expected RGB uint8 (F, H, W, 3)")
    size = (cell, max(1, round(cell * frames.shape[1] / frames.shape[2])))
    columns = [("camera", [Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS) for frame in frames])]
    for label, scale_map in scales:
        tokens = np.asarray(scale_map)
        if tokens.ndim != 4 or len(tokens) != len(frames):
            raise InvalidInput(f"Features of {label!r} are {tokens.shape}; expected ({len(frames)}, D, h, w)")
        colours = [Image.fromarray(c).resize(size, Image.Resampling.NEAREST) for c in principal_colours(tokens)]
        columns.append((label, colours))
    return _sheet(columns, size)


def principal_colours(tokens: NDArray[Any]) -> NDArray[np.uint8]:
    """(F, D, h, w) -> (F, h, w, 3) RGB: the three directions in which tokens vary most are red, green and blue.

    Fitted to all F frames at once, so that colours can be compared between them. A direction in which nothing varies
    is mid-grey.
    """
    f, d, h, w = tokens.shape
    flat = np.asarray(tokens, dtype=np.float64).transpose(0, 2, 3, 1).reshape(-1, d)  # (F h w, D)
    if flat.size == 0 or not np.isfinite(flat).all():
        raise InvalidInput(f"Features {tokens.shape} hold NaN, infinity or nothing: there is nothing to draw")
    flat = flat - flat.mean(axis=0)
    _, directions = np.linalg.eigh(flat.T @ flat)  # ascending
    scores = flat @ directions[:, ::-1][:, :3]  # (F h w, 3)
    # A direction's sign is arbitrary; the rarer, farther tokens (objects, not table) are the bright ones.
    scores *= np.where((scores**3).sum(axis=0) < 0, -1.0, 1.0)
    low, high = np.percentile(scores, CLIP, axis=0)
    varies = high - low > 1e-9 * max(1.0, float(np.abs(flat).max()))
    unit = np.where(varies, np.clip((scores - low) / np.where(varies, high - low, 1.0), 0, 1), 0.5)
    colours = np.full((len(flat), 3), 0.5)  # D < 3 leaves channels grey
    colours[:, : unit.shape[1]] = unit
    return (colours * 255).round().astype(np.uint8).reshape(f, h, w, 3)


def _sheet(columns: list[tuple[str, list[Image.Image]]], size: tuple[int, int]) -> Image.Image:
    """Lay columns of equal cells side by side under their captions."""
    width, height = size
    rows = len(columns[0][1])
    sheet = Image.new("RGB", (GAP + len(columns) * (width + GAP), CAPTION + rows * (height + GAP)), CANVAS)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for column, (caption, cells) in enumerate(columns):
        x = GAP + column * (width + GAP)
        draw.text((x, CAPTION // 2), caption, fill=INK, font=font, anchor="lm")
        for row, picture in enumerate(cells):
            sheet.paste(picture, (x, CAPTION + row * (height + GAP)))
    return sheet
