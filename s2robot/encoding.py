"""Encode episodes: the work behind `s2robot.store.encode_dataset`.

A piece is a whole episode, encoded by one thread in batches of a fixed size, so that its bits do not depend on who
encoded it. Its frames go to the worker as compressed as they are, its features come back, and this process writes
them, waits for the disk, and only then reports the episode done.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from s2robot import workers
from s2robot.augment import Augmentation, augment
from s2robot.datasets import DemoDataset
from s2robot.errors import CorruptFile, S2RobotError
from s2robot.files import explain_full_disk
from s2robot.launchers import HERE, LOCAL, Launcher
from s2robot.packed import PackedFrames
from s2robot.parts import reading
from s2robot.shards import shards

if TYPE_CHECKING:
    from s2robot.encoder import Encoder, EncoderConfig

BATCH = 8  # steps in one forward pass; part of what decides the last bits, so not a setting
STEPS_WORTH_A_WORKER = 200  # one takes some 5 s to import torch and timm


@dataclass(frozen=True)
class Task:
    """A store to be filled."""

    folder: Path
    dataset: Path
    config: EncoderConfig
    index: dict[str, Any]
    encoder: Encoder | None  # the one this process built; workers build their own
    version: int = 0  # of the frames, see `s2robot.augment`
    augmentation: Augmentation = field(default_factory=Augmentation)


class Piece(NamedTuple):
    """An episode to be encoded."""

    episode: int
    steps: list[int]
    frames: bytes  # as `DemoDataset.packed` gives them
    augmentation: Augmentation
    version: int
    about: tuple[Path, str, str]  # `DemoDataset.about`: a worker need not see the file to name it

    def __str__(self) -> str:
        return f"episode {self.episode}"

    def shown(self, rows: slice) -> NDArray[np.uint8]:
        """What an encoder is shown of these steps, (n, V, H, W, 3)."""
        with reading(*self.about):
            frames = PackedFrames(self.frames).frames(self.steps[rows])
        return augment(frames, self.augmentation, self.version, self.episode)


class Shown(NamedTuple):
    """The same, unpacked by someone else. An episode that nobody unpacks beforehand is never whole in memory."""

    episode: int
    steps: list[int]
    frames: NDArray[np.uint8]

    @classmethod
    def of(cls, piece: Piece) -> Shown:
        return cls(piece.episode, piece.steps, piece.shown(slice(None)))

    def shown(self, rows: slice) -> NDArray[np.uint8]:
        return self.frames[rows]


class Encoded(NamedTuple):
    """Its features."""

    map: NDArray[np.float16]  # (n, V, D*S, h, w)
    cls: NDArray[np.float16]  # (n, V, D*S)


def half_bytes(shape: Sequence[int]) -> int:
    """Bytes of a float16 array."""
    return 2 * math.prod(shape)


def encode_episodes(
    task: Task, episodes: Sequence[int], workers: int | Launcher | None = None
) -> Generator[dict[str, Any], None, None]:
    """Encode `episodes`; yield the journal line of each when it is safely on disk."""
    if not episodes:
        return
    dataset = DemoDataset(task.dataset)
    first_rows = np.searchsorted(task.index["episode"], np.arange(len(dataset) + 1)).tolist()

    def piece(k: int) -> Piece:
        steps = task.index["step"][first_rows[k] : first_rows[k + 1]]
        if not steps:
            path, what, remedy = dataset.about(k)
            raise CorruptFile(path, f"{what} has no steps", remedy)
        return Piece(k, steps, dataset.packed(k), task.augmentation, task.version, dataset.about(k))

    launcher, count = _who(task, episodes, workers)
    make = partial(_Worker, task.config, task.index["encoder_fingerprint"])
    if launcher is HERE:
        make = partial(make, encoder=task.encoder)
    answers = launcher.work(make, _Worker.encode, map(piece, episodes), count, feed=Shown.of)
    with contextlib.closing(answers):  # closing it stops the workers
        for asked, encoded in answers:
            yield _write(task, asked.episode, first_rows[asked.episode], encoded)


def _who(task: Task, episodes: Sequence[int], asked: int | Launcher | None) -> tuple[Launcher, int | None]:
    """On this machine this process alone, where others would not pay."""
    if asked is not None and not isinstance(asked, int):
        return asked, None
    if asked is None:
        rows = Counter(task.index["episode"])
        steps = sum(rows[k] for k in episodes)
        asked = 1 if torch.cuda.is_available() else min(workers.cores(), math.ceil(steps / STEPS_WORTH_A_WORKER))
    count = min(asked, len(episodes))
    return (LOCAL if count > 1 else HERE), count


class _Worker:
    """An encoder."""

    def __init__(self, config: EncoderConfig, fingerprint: str, encoder: Encoder | None = None) -> None:
        self.encoder = encoder or config.build()
        if self.encoder.fingerprint != fingerprint:
            raise S2RobotError(
                f"The encoder {config.name} is another here ({self.encoder.fingerprint[:12]}) than where the work was"
                f" given out ({fingerprint[:12]}). Install the same s2robot and weights on all machines"
            )
        self.memory = self.encoder.memory()

    def encode(self, piece: Piece | Shown) -> Encoded:
        """Encode one episode."""
        parts = []
        self.memory.forget()  # the bits of an episode must not depend on who encoded which before
        for start in range(0, len(piece.steps), BATCH):
            features = self.memory(piece.shown(slice(start, start + BATCH)))
            parts.append([_half(name, getattr(features, name), piece.episode) for name in Encoded._fields])
        return Encoded(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _half(name: str, value: torch.Tensor, episode: int) -> NDArray[np.float16]:
    data = np.ascontiguousarray(value.detach().half().cpu().numpy())
    if not np.isfinite(data).all():
        raise S2RobotError(
            f"The encoder's {name} features of episode {episode} are NaN or beyond half precision (65504):"
            f" largest {value.abs().max().item():.4g}. Check its weights; no known backbone comes near"
        )
    return data


def _write(task: Task, episode: int, row: int, encoded: Encoded) -> dict[str, Any]:
    """Put an episode's features safely on disk; what the journal says of it."""
    line: dict[str, Any] = {"episode": episode}
    for name, data in encoded._asdict().items():
        shard = [shard for shard in shards(task.index, name) if shard.first <= row][-1]
        path, shape = task.folder / shard.file, shard.shape
        if list(data.shape[1:]) != shape[1:]:
            raise S2RobotError(f"The encoder gave {name} {data.shape}; it had announced {tuple(shape)}")
        # Written, not memory-mapped: a map that meets a full disk kills the process, a write says so.
        with explain_full_disk(path), path.open("r+b") as file:
            file.seek(-half_bytes([shard.first + shape[0] - row, *shape[1:]]), os.SEEK_END)
            file.write(data.data)
            file.flush()
            os.fsync(file.fileno())
        line[name] = hashlib.sha256(data.data).hexdigest()
    return line


def refuse_to_start_in_a_starting_process() -> None:
    """A script without `if __name__ == "__main__"` is run again by each of its workers: say so, before it hangs."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise S2RobotError(
            "This script starts encoding when it is merely imported, which every worker process does."
            " Put the call under `if __name__ == '__main__':`, or pass workers=1"
        )
