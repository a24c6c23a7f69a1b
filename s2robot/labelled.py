"""A folder of images by class, and which of them are to be answered.

    FOLDER/CLASS/a.png                            a share of every class is for the test, drawn by the seed
    FOLDER/train/CLASS/a.png, FOLDER/test/...     as they are divided there; test, val and valid are one

A class is a folder, with all the images in it and its folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s2robot.clips import IMAGES, hidden
from s2robot.errors import InvalidInput

TRAIN, TEST = "train", ("test", "val", "valid")


@dataclass(frozen=True)
class Labelled:
    """Images with the class of each, those to train on first."""

    root: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]  # under `root`
    labels: NDArray[np.int64]  # (n,)
    train: int  # so many of the first

    @cached_property
    def digest(self) -> str:
        """Of names, sizes and times: another image under an old name is another listing."""
        found = hashlib.sha256()
        for path in self.paths:
            about = (self.root / path).stat()
            found.update(f"{path.as_posix()} {about.st_size} {about.st_mtime_ns}\n".encode())
        return found.hexdigest()


def find_labelled(root: Path, share: float, seed: int) -> Labelled:
    """All images of a folder by class.

    Args:
        share: of every class, for the test, where the folder does not divide them itself.

    Raises:
        InvalidInput: there is no such folder, no two classes, or a class in the test that is not in the training.
    """
    if not root.is_dir():
        raise InvalidInput(f"No folder {str(root)!r} for --source. {_expected()}")
    divides = (root / TRAIN).is_dir()
    test = [name for name in TEST if (root / name).is_dir() and (divides or _folders(root / name))]  # or a class's name
    if len(test) > 1:
        raise InvalidInput(f"{root} has {len(test)} parts to test on ({', '.join(test)}): move all but one away")
    if divides != bool(test):
        raise InvalidInput(f"{root} has {', '.join(sorted(each.name for each in _folders(root)))}. {_expected()}")
    parts = _divided(root, test[0]) if test else _drawn(root, share, seed)
    classes = sorted({name for name, _ in parts[0]})
    strange = sorted({name for name, _ in parts[1]} - set(classes))
    if strange:
        raise InvalidInput(f"{root / test[0]} has classes that {TRAIN} has not: {', '.join(strange[:8])}")
    if len(classes) < 2 or not parts[1]:
        found = f"{len(classes)} of {len(parts[0])} and {len(parts[1])} images"
        raise InvalidInput(f"{root} has classes to train and to test on: {found}; expected two or more. {_expected()}")
    each = [*parts[0], *parts[1]]
    labels = np.array([classes.index(name) for name, _ in each], np.int64)
    return Labelled(root, tuple(classes), tuple(path for _, path in each), labels, len(parts[0]))


def _divided(root: Path, test: str) -> tuple[list[tuple[str, Path]], list[tuple[str, Path]]]:
    """(class, path) of the images to train on and of those to test on."""
    train, held_out = (
        [(folder.name, path) for folder in _folders(root / part) for path in _images(root, folder)]
        for part in (TRAIN, test)
    )
    return train, held_out


def _drawn(root: Path, share: float, seed: int) -> tuple[list[tuple[str, Path]], list[tuple[str, Path]]]:
    """At least one image of a class is for the test, and one to train on."""
    train: list[tuple[str, Path]] = []
    held_out: list[tuple[str, Path]] = []
    for folder in _folders(root):
        paths = list(_images(root, folder))
        if len(paths) == 1:
            raise InvalidInput(f"{folder} has one image; expected two or more of a class: one to train on, one to test")
        few = min(max(1, round(share * len(paths))), len(paths) - 1) if paths else 0
        chosen = set(np.random.default_rng((seed, len(paths))).permutation(len(paths))[:few].tolist())
        for k, path in enumerate(paths):
            (held_out if k in chosen else train).append((folder.name, path))
    return train, held_out


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(root: Path, folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGES and not hidden(path, folder) and path.is_file():
            yield path.relative_to(root)


def _expected() -> str:
    return "Give a folder with a folder of images for each class, or with train/ and test/ of such folders"
