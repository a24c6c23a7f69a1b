"""Frames out of files: folders of images and videos, and demonstrations; squares of one size, what is damaged counted.

A clip is what belongs together in time: a video, one episode of demonstrations (all its cameras), or a run of images
that are neighbours by name in one folder. Whole clips are held out for validation, see `s2robot.footage`.

    resize     so that the shorter side is frame_size [pixels]; smaller images are enlarged, and counted
    square     "random": anywhere along the longer side, drawn for each frame; "centre"
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from s2robot import seals
from s2robot.datasets import DemoDataset
from s2robot.errors import CorruptFile, InvalidInput, S2RobotError, in_words, require
from s2robot.recipe import PretrainConfig

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")
DEMONSTRATIONS = (".hdf5", ".h5")
LONGEST_RUN = 64  # images in a clip: neighbours by name are often neighbours in time
FEWEST_CLIPS = 50  # of images, where there are as many
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, CorruptFile)


@dataclass(frozen=True)
class Clip:
    """What belongs together in time."""

    paths: tuple[Path, ...]  # images in order, or the one file
    episode: int = -1  # of demonstrations

    @property
    def is_video(self) -> bool:
        return self.paths[0].suffix.lower() in VIDEOS


@dataclass
class Reading:
    """What became of a clip besides its frames."""

    skipped: list[str] = field(default_factory=list)  # files that could not be read, and why
    enlarged: int = 0  # frames smaller than what was asked for


def find_clips(source: Path, seed: int) -> list[Clip]:
    """All clips of a file or a folder and its folders, in an order drawn from the seed.

    Raises:
        InvalidInput: there is no such file or folder, or nothing in it that is read here.
    """
    if not source.exists():
        raise InvalidInput(f"No file or folder {source} for --source. {_allowed()}")
    if (source / "frames.npy").is_file() and (source / "footage.json").is_file():  # its pictures are none to learn from
        raise InvalidInput(f"{source} is a folder of pre-training. For its frames: --source {source / 'frames.npy'}")
    files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
    files = sorted((path for path in files if not hidden(path, source)), key=_natural)
    images = [path for path in files if path.suffix.lower() in IMAGES]
    clips = [Clip(run) for run in _runs(images)]
    clips += [Clip((path,)) for path in files if path.suffix.lower() in VIDEOS]
    for path in files:
        if path.suffix.lower() in DEMONSTRATIONS:
            clips += [Clip((path,), episode) for episode in range(_episodes(path))]
    if not clips:
        found = sorted({path.suffix or path.name for path in files})[:8]
        raise InvalidInput(f"{source} holds no frames: {', '.join(found) or 'it is empty'}. {_allowed()}")
    order = np.random.default_rng((seed, len(clips))).permutation(len(clips))
    return [clips[k] for k in order]


def hidden(path: Path, root: Path) -> bool:
    """Nobody means them: .ipynb_checkpoints holds copies of what lies beside it."""
    inside = path.relative_to(root).parts or (path.name,)
    return any(part.startswith(".") for part in inside)


def listing(found: Iterable[Clip]) -> str:
    """sha256 over names, sizes and episodes, in their order: of other files it is another."""
    sha = hashlib.sha256()
    for clip in found:
        for path in clip.paths:
            sha.update(f"{path} {path.stat().st_size} {clip.episode}\n".encode())
    return sha.hexdigest()


def read_clip(clip: Clip, config: PretrainConfig, rng: np.random.Generator, reading: Reading) -> Iterator[Any]:
    """Yield a clip's frames, (H, H, 3); what cannot be read is left out and noted in `reading`."""
    for path, image in _pictures(clip, config.every, reading):
        along = (rng.random(), rng.random()) if config.square == "random" else (0.5, 0.5)
        try:
            square = square_of(image, config.frame_size, along)
        except (OSError, ValueError, SyntaxError) as error:  # of a frame that is no image after all
            reading.skipped.append(f"{path}: {_words(error)}")
            continue
        reading.enlarged += min(image.size) < config.frame_size
        yield square


def _pictures(clip: Clip, every: int, reading: Reading) -> Iterator[tuple[Path, Image.Image]]:
    if clip.episode >= 0:
        yield from _demonstrated(clip, every, reading)
    elif clip.is_video:
        yield from _filmed(clip.paths[0], every, reading)
    else:
        for path in clip.paths:
            try:
                image = open_image(path)
            except UNREADABLE as error:
                reading.skipped.append(f"{path}: {_words(error)}")
                continue
            yield path, image


def open_image(path: Path) -> Image.Image:
    """An image upright, checked and decoded; raises one of UNREADABLE."""
    seals.check_sum(path, "")
    with Image.open(path) as image:
        image.verify()  # of PNG every checksum, at which decoding does not look
    with Image.open(path) as image:
        upright: Image.Image = ImageOps.exif_transpose(image)
        upright.load()
    return upright


def square_of(image: Image.Image, size: int, along: tuple[float, float] = (0.5, 0.5)) -> NDArray[np.uint8]:
    """(size, size, 3) out of an image of any size and colour mode: the square of its shorter side, on white.

    along: where the square lies from left to right and from top to bottom, 0 to 1.
    """
    shorter = min(image.size)
    left, top = (int((side - shorter) * share) for side, share in zip(image.size, along, strict=True))
    box = (left, top, left + shorter, top + shorter)
    if image.mode.startswith(("I", "F")):  # Pillow would cut off all above 255: a white picture
        raise ValueError(f"it has more than 8 bits a channel (mode {image.mode})")
    if image.has_transparency_data:  # what it hides may have any colour
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    square = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box)
    return np.asarray(square, dtype=np.uint8)


def _filmed(path: Path, every: int, reading: Reading) -> Iterator[tuple[Path, Image.Image]]:
    """Every n-th frame of a video, up to where it is damaged."""
    av = require("av", extra="video", purpose="Reading videos")
    try:
        seals.check_sum(path, "")
        with av.open(str(path)) as file:
            if not file.streams.video:
                raise ValueError("it has no video stream")
            for frame in islice(file.decode(video=0), 0, None, every):
                yield path, frame.to_image().rotate(frame.rotation, expand=True)  # as phones hold it
    except (av.FFmpegError, ValueError, OSError, CorruptFile) as error:
        reading.skipped.append(f"{path}: {_words(error)}")


def _demonstrated(clip: Clip, every: int, reading: Reading) -> Iterator[tuple[Path, Image.Image]]:
    """Every n-th step of an episode, all cameras."""
    path = clip.paths[0]
    try:
        frames = DemoDataset(path).frames(clip.episode, slice(None, None, every))  # (n, V, H, W, 3)
    except S2RobotError as error:
        reading.skipped.append(f"{path}, episode {clip.episode}: {_words(error)}")
        return
    for frame in frames.reshape(-1, *frames.shape[2:]):
        yield path, Image.fromarray(frame)


def _runs(images: list[Path]) -> Iterator[tuple[Path, ...]]:
    longest = min(LONGEST_RUN, max(1, len(images) // FEWEST_CLIPS))
    for _, together in groupby(images, key=lambda path: path.parent):
        names = list(together)
        for start in range(0, len(names), longest):
            yield tuple(names[start : start + longest])


def _episodes(path: Path) -> int:
    """How many episodes a file has; 1 for a damaged one, which is noted when it is read."""
    try:
        return len(DemoDataset(path))
    except S2RobotError:
        return 1


def _natural(path: Path) -> tuple[str, list[tuple[int, str]]]:
    """img2 before img10."""
    parts = re.split(r"(\d+)", path.name)
    return str(path.parent), [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _allowed() -> str:
    kinds = f"images ({' '.join(IMAGES)}), videos ({' '.join(VIDEOS)}) or demonstrations ({' '.join(DEMONSTRATIONS)})"
    return f"Give a folder of {kinds}, or one such file, e.g. --source recordings/"


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {in_words(error, 160)}"
