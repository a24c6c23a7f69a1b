"""Scenes to probe features on: frames, and what the simulator knows of them for free; rendered once, kept on disk.

    runs/probe-data/v3-256px-seed0/train-00003.npy      ten scenes, one record each (`scene_record`), memory-mapped
                                   test-00000.npy
                                   features/            what encoders see in them (`s2robot.probe_features`)

A scene is a function of (seed, index) alone. Test scenes have indices that no number of training scenes reaches, so
the two never meet, and more of either can be rendered later. A piece is written whole or not at all: a killed run
goes on with the next.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot import files, registry, seals, workers
from s2robot.errors import CorruptFile, InvalidInput
from s2robot.progress import Report

VERSION = 3  # raise it with any change of the scenes: what was rendered and encoded before is of other ones
PIECE = 10  # scenes in a file
FIRST = {"train": 0, "test": 1_000_000}  # index of the first scene

# As in s2robot.envs.probe_scenes, which this side may not import.
CAMERAS = ("agentview", "robot0_eye_in_hand")
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("box", "ball", "cylinder")
LABELS = ("background", "table", "arm", "gripper", *COLOURS, "other")
SIDE = 64  # of the pictures of labels and depth [pixels]


@dataclass(frozen=True)
class ProbeDataConfig:
    """Which scenes."""

    train: int = 1400
    test: int = 400
    frame_size: int = 256  # [pixels]; the largest scale an encoder looks at
    seed: int = 0

    def __post_init__(self) -> None:
        if self.train < 10 or self.test < 2 or self.train > FIRST["test"]:
            raise InvalidInput(
                f"{self.train} training and {self.test} test scenes; expected 10 or more to train on (a tenth of them "
                f"validates) and 2 or more to test on"
            )
        if self.seed < 0:
            raise InvalidInput(f"seed is {self.seed}; expected a whole number from 0 on")
        if self.frame_size < SIDE or self.frame_size % SIDE:
            raise InvalidInput(f"frame_size is {self.frame_size}; expected a multiple of {SIDE} px, e.g. 256")

    @property
    def folder(self) -> str:
        return f"v{VERSION}-{self.frame_size}px-seed{self.seed}"


def scene_record(frame_size: int) -> np.dtype[Any]:
    """One scene; fields as those of `s2robot.envs.probe_scenes.ProbeScene`, V = 2 views."""
    views = len(CAMERAS)
    return np.dtype([
        ("frames", np.uint8, (views, frame_size, frame_size, 3)),
        ("labels", np.uint8, (views, SIDE, SIDE)),  # indices into LABELS
        ("depth", np.float32, (views, SIDE, SIDE)),  # [m]
        ("cubes", np.float32, (len(COLOURS), 2)),  # x and y on the table [m]
        ("leftmost", np.int64),  # index into COLOURS
        ("shape", np.int64),  # index into SHAPES
        ("odd", np.float32, (2,)),  # where the odd one is in agentview: x and y from -1 to 1, right and up
        ("contact", np.bool_),
    ])  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """What is known of n scenes."""

    labels: NDArray[np.uint8]  # (n, V, SIDE, SIDE)
    depth: NDArray[np.float32]  # (n, V, SIDE, SIDE) [m]
    cubes: NDArray[np.float32]  # (n, 4, 2) [m]
    leftmost: NDArray[np.int64]  # (n,)
    shape: NDArray[np.int64]  # (n,)
    contact: NDArray[np.bool_]  # (n,)

    def __len__(self) -> int:
        return len(self.contact)


@dataclass(frozen=True)
class Split:
    """Scenes of one kind, piece by piece.

    pieces: records (PIECE,) on disk; the last may hold more scenes than `count` needs.
    digests: sha256 of each piece: what is made of it is kept under this name.
    """

    name: str
    count: int
    pieces: tuple[NDArray[Any], ...]
    digests: tuple[str, ...]

    @functools.cached_property
    def truth(self) -> Truth:
        names = [field for field in self.pieces[0].dtype.names or () if field not in ("frames", "odd")]
        return Truth(**{name: self._all(name) for name in names})

    @functools.cached_property
    def odd(self) -> NDArray[np.float32]:
        """Where the odd object appears in agentview, (n, 2): part of the question, not of the truth."""
        return self._all("odd")

    def _all(self, name: str) -> NDArray[Any]:
        found: NDArray[Any] = np.concatenate([part[name] for part in self.pieces])[: self.count]
        return found


@dataclass(frozen=True)
class ProbeData:
    """All scenes, training and test."""

    folder: Path
    config: ProbeDataConfig
    train: Split
    test: Split

    @property
    def odd(self) -> dict[str, NDArray[np.float32]]:
        """Where the odd object appears in agentview, by split."""
        return {split.name: split.odd for split in (self.train, self.test)}

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over every pixel and every truth."""
        words = [self.train.count, *self.train.digests, self.test.count, *self.test.digests]
        return hashlib.sha256(" ".join(map(str, words)).encode()).hexdigest()


def load_data(config: ProbeDataConfig, root: Path, told: Report, processes: int | None = None) -> ProbeData:
    """Render what is missing, then open everything.

    Raises:
        CorruptFile: a piece that is not what its name says; names it.
    """
    folder = root / config.folder
    counts = {"train": config.train, "test": config.test}
    wanted = [(name, k) for name, count in counts.items() for k in range(math.ceil(count / PIECE))]
    missing = [piece for piece in wanted if not _path(folder, *piece).exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        files.sweep(folder)
        _render(config, folder, missing, len(wanted), told, processes)
    splits = {}
    for name, count in counts.items():
        paths = [_path(folder, name, k) for k in range(math.ceil(count / PIECE))]
        pieces = tuple(_open(path, config.frame_size) for path in paths)
        splits[name] = Split(name, count, pieces, tuple(hashlib.sha256(piece.data).hexdigest() for piece in pieces))
    return ProbeData(folder, config, **splits)


def _path(folder: Path, split: str, piece: int) -> Path:
    return folder / f"{split}-{piece:05d}.npy"


def _render(
    config: ProbeDataConfig,
    folder: Path,
    missing: Sequence[tuple[str, int]],
    total: int,
    told: Report,
    processes: int | None,
) -> None:
    """Fill the gaps, on every core; a lone process renders here."""
    make = functools.partial(registry.probe_scenes, config.frame_size, config.seed)
    write = functools.partial(_write_piece, folder=folder, frame_size=config.frame_size)
    done = total - len(missing)
    told(PIECE * done, PIECE * total, "scenes")
    if min(processes or workers.cores(), len(missing)) == 1:
        scenes = make()
        try:
            for piece in missing:
                write(scenes, piece)
                done += 1
                told(PIECE * done, PIECE * total, "scenes")
        finally:
            scenes.close()
        return
    for _ in workers.work(make, write, missing, processes):
        done += 1
        told(PIECE * done, PIECE * total, "scenes")


def _write_piece(scenes: Any, piece: tuple[str, int], folder: Path, frame_size: int) -> None:
    split, k = piece
    records = np.zeros(PIECE, scene_record(frame_size))
    for place in range(PIECE):
        scene = scenes.scene(FIRST[split] + k * PIECE + place)
        for name in records.dtype.names or ():
            value, field = np.asarray(getattr(scene, name)), records[name][place]
            if value.shape != field.shape:
                raise InvalidInput(f"A scene's {name} are {value.shape}; expected {field.shape}")
            records[name][place] = value
    if records["labels"].max() >= len(LABELS) or not np.isfinite(records["cubes"]).all():
        raise InvalidInput(f"Scenes of piece {k} hold labels beyond {len(LABELS) - 1}, or cubes that are nowhere")
    save_records(_path(folder, split, k), records)


def save_records(path: Path, records: NDArray[Any]) -> None:
    """Write what `open_records` opens."""
    with files.atomic(path) as temporary:
        with temporary.open("wb") as file:
            np.save(file, records)
        files.write_sum(path, temporary)


def _open(path: Path, frame_size: int) -> NDArray[Any]:
    return open_records(path, scene_record(frame_size), PIECE)


def open_records(path: Path, record: np.dtype[Any] | None, count: int) -> NDArray[Any]:
    """Memory-map a file of `count` records; of any kind where `record` is None.

    Raises:
        CorruptFile: it is cut short, or holds something else.
    """
    remedy = f"Delete it (rm {path}) and run the same command again: it is made anew."
    seals.check_sum(path, remedy)
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise CorruptFile(path, f"it is damaged ({' '.join(str(error).split())[:100]})", remedy) from error
    if found.dtype.names is None or found.dtype != (record or found.dtype) or found.shape != (count,):
        raise CorruptFile(path, f"it holds {found.shape} {found.dtype.str}, not the {count} records expected", remedy)
    return found
