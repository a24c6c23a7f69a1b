"""One scale's vectors of many images: the mean token and CLS of each, kept in pieces that survive a kill.

A piece's name holds the looker's fingerprint, the listing's digest, the frame size and how images are read, so that
nothing stale is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2robot import files
from s2robot.clips import UNREADABLE, open_image, square_of
from s2robot.errors import S2RobotError
from s2robot.labelled import Labelled
from s2robot.probe_data import open_records, save_records
from s2robot.probe_features import Looker
from s2robot.progress import Report

PIECE, BATCH = 256, 16  # images in a file, and encoded at once
HEADS = ("mean", "cls")
READING = 2  # raise it with any change of what an image becomes; 2: transparent ones on white


@dataclass(frozen=True)
class Vectors:
    """Of one scale, in the order of the listing; zeros where an image could not be read."""

    readable: NDArray[np.bool_]  # (n,)
    by_head: dict[str, NDArray[np.float32]]  # each (n, D)


def encode_images(looker: Looker, images: Labelled, size: int, out: Path, told: Report) -> Vectors:
    """Encode the pieces that are not there yet; every image as a square of `size` pixels."""
    folder = out / f"{looker.fingerprint[:20]}-{images.digest[:12]}-{size}px-{READING}"
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    record: Any = None
    pieces = []
    for start in range(0, len(images.paths), PIECE):
        paths = [images.root / path for path in images.paths[start : start + PIECE]]
        piece = folder / f"{start:07d}.npy"
        if not piece.exists() or _mended(paths, open_records(piece, record, len(paths))["readable"]):
            save_records(piece, _encode(looker, paths, size))
        pieces.append(open_records(piece, record, len(paths)))
        record = pieces[-1].dtype
        told(start + len(paths), len(images.paths), "images")
    together = np.concatenate(pieces)
    return Vectors(together["readable"], {head: np.ascontiguousarray(together[head]) for head in HEADS})


def _mended(paths: list[Path], readable: NDArray[np.bool_]) -> bool:
    """Can one be read now that could not when its piece was made?"""
    return any(_read(paths[k]) is not None for k in np.flatnonzero(~readable))


def _read(path: Path) -> Image.Image | None:
    try:
        image = open_image(path)
        square_of(image, 1)  # its mode, too
    except UNREADABLE:
        return None
    return image


def _encode(looker: Looker, paths: list[Path], size: int) -> NDArray[Any]:
    squares, good = np.zeros((len(paths), 1, size, size, 3), np.uint8), np.zeros(len(paths), np.bool_)
    for k, path in enumerate(paths):
        if (image := _read(path)) is not None:
            squares[k, 0], good[k] = square_of(image, size), True
    found: dict[str, list[NDArray[np.float32]]] = {head: [] for head in HEADS}
    for start in range(0, len(paths), BATCH):
        features = looker(squares[start : start + BATCH])
        for head, value in (("mean", features.map.flatten(3).mean(dim=-1)), ("cls", features.cls)):
            found[head].append(value[:, 0].detach().float().cpu().numpy())
    values = {head: np.concatenate(parts) for head, parts in found.items()}
    columns: list[Any] = [
        ("readable", np.bool_),
        *((head, np.float32, each.shape[1:]) for head, each in values.items()),
    ]
    records = np.zeros(len(paths), np.dtype(columns))
    records["readable"] = good
    for head, each in values.items():
        if not np.isfinite(each).all():
            raise S2RobotError("Features are NaN or infinite. Check the encoder's weights")
        records[head] = np.where(good[:, None], each, 0)
    return records
