"""Frames to a video every browser plays, and to a strip of stills.

H.264 in an mp4, 4:2:0, index first: what Chrome, Firefox and Safari all play, also from a data URI.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2robot.errors import CorruptFile, InvalidInput, require
from s2robot.files import atomic

FPS = 20  # robosuite's control rate: one frame a control step plays in real time
QUALITY = 20  # x264's CRF: 18 looks lossless, 28 is blocky
GAP = 4  # pixels between the stills of a contact sheet
INDEX_FIRST = {"movflags": "+faststart"}  # players start before they have read the whole file
BT709, LIMITED_RANGE = 1, 1  # ITU-T H.273's numbers; PyAV has names for all of them only since 15

Frames = NDArray[np.uint8]  # (L, H, W, 3) RGB


def write_video(path: str | Path, frames: Frames | Iterable[NDArray[np.uint8]], fps: int = FPS) -> Path:
    """Write RGB uint8 frames, (L, H, W, 3) or an iterable of (H, W, 3), to an H.264 mp4.

    Frames are taken one by one, so a generator never needs to fit in memory. Odd sizes grow by one repeated row or
    column, as 4:2:0 stores colour for blocks of 2 x 2 pixels. Nothing is left behind when writing fails.
    """
    av = require("av", extra="video", purpose="Writing videos")
    stills = iter(frames)
    first = next(stills, None)
    if first is None:
        raise InvalidInput(f"No frames to write to {path}; expected at least one, RGB uint8 (H, W, 3)")
    _check(first, ("H", "W", 3))
    with atomic(Path(path)) as unfinished, av.open(str(unfinished), "w", format="mp4", options=INDEX_FIRST) as file:
        stream = _h264_stream(file, first.shape, fps)
        for still in chain([first], stills):
            _check(still, first.shape)
            picture = av.VideoFrame.from_ndarray(_even(still), format="rgb24")
            file.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="itu709")))
        file.mux(stream.encode())  # what x264 still holds back
    return Path(path)


def read_video(path: str | Path) -> Frames:
    """All frames of a video, (L, H, W, 3) RGB uint8."""
    av = require("av", extra="video", purpose="Reading videos")
    try:
        with av.open(str(path)) as file:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    except FileNotFoundError:
        raise
    except (av.FFmpegError, IndexError, ValueError) as error:  # not a video; no video stream; not one frame
        raise CorruptFile(path, f"not a readable video ({error})", "Write it again.") from error


def contact_sheet(frames: Frames, columns: int, rows: int = 1) -> Image.Image:
    """Evenly spaced stills of one episode, first and last included, in reading order."""
    _check(frames, ("L", "H", "W", 3))
    if columns < 1 or rows < 1:
        raise InvalidInput(f"A contact sheet of {columns} columns and {rows} rows; expected at least 1 of each")
    chosen = np.linspace(0, len(frames) - 1, min(columns * rows, len(frames))).round().astype(int)
    columns, rows = min(columns, len(chosen)), -(-len(chosen) // columns)
    height, width = frames.shape[1:3]
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "grey")
    for place, index in enumerate(chosen):
        row, column = divmod(place, columns)
        sheet.paste(Image.fromarray(frames[index]), (column * (width + GAP), row * (height + GAP)))
    return sheet


def _check(frames: NDArray[Any], shape: tuple[int | str, ...]) -> None:
    """Hold an array against a shape; a letter stands for any size."""
    fits = frames.ndim == len(shape) and all(
        isinstance(size, str) or size == came for size, came in zip(shape, frames.shape, strict=True)
    )
    if frames.dtype != np.uint8 or not fits or frames.size == 0:
        wanted = ", ".join(map(str, shape))
        raise InvalidInput(f"Frames are {frames.dtype} {frames.shape}; expected RGB uint8 ({wanted}), none of them 0")


def _even(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _h264_stream(file: Any, shape: tuple[int, ...], fps: int) -> Any:
    stream = file.add_stream("libx264", rate=fps, options={"crf": str(QUALITY), "preset": "veryfast"})
    stream.height, stream.width = (size + size % 2 for size in shape[:2])
    stream.pix_fmt = "yuv420p"
    # Say which RGB-to-YUV matrix was used: players guess by size otherwise, and reds turn orange.
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = LIMITED_RANGE
    return stream
