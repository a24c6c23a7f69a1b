"""What a policy trains on, in memory: what it sees at every n-th step, and what the expert did next.

    demonstrations + a source -> what the network keeps of each step -> windows of T observations

The source is a feature store, of which compressed features are kept, or `Frames`, of which small frames are. A store
may have augmented versions; a window can be seen in any of them. What memory does not hold is mapped into it from disk.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot import machine, ranks
from s2robot.datasets import DemoDataset
from s2robot.errors import InvalidInput
from s2robot.frames import Frames, Rows
from s2robot.scratch import OnDisk
from s2robot.store import FeatureStore
from s2robot.stored import StoredEpisode

Source = FeatureStore | Frames
PIECE = 128  # rows read at once
SPARE = 400 << 20  # bytes that reading a store and training take besides
SHARE = 0.8  # of the rest of free memory that samples may take
_log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Windows of T observations of one episode, oldest first, and what the expert did after each of them."""

    seen: Tensor  # (B, T, ...) as `Neck.kept` keeps it: compressed maps (V, C, h, w), or frames
    proprioception: Tensor  # (B, T, Q)
    goal: Tensor  # (B, T, G)
    actions: Tensor  # (B, T, A, M)
    valid: Tensor  # (B, T, A): 0 beyond the end of the episode, and after looks before its beginning


@dataclass(frozen=True)
class Samples:
    """F steps; a sample is one of them and the T - 1 looks before it."""

    seen: Tensor  # (versions*F, ...) what the network keeps of each, `policies.neck.Neck.kept`; first the plain one
    proprioception: Tensor  # (F, Q)
    goal: Tensor  # (F, G); G is 0 where a task has only one
    actions: Tensor  # (F, A, M)
    valid: Tensor  # (F, A): 0 beyond the end of the episode
    window: Tensor  # (F, T): rows of the looks that lead to this one, oldest first, itself last
    real: Tensor  # (F, T): 0 where the episode's first look stands in for one that was not
    disk: OnDisk | None = None  # where `seen` is, if not in memory

    @property
    def versions(self) -> int:
        """In how many versions each step can be seen, the plain one among them."""
        return len(self.seen) // len(self.window)

    def take(self, rows: Tensor, device: torch.device, versions: Tensor | None = None) -> Batch:
        """These rows (B,), on a device.

        versions: (B,) which one each window is seen in, the whole of it; default: all in the plain one, 0.
        """
        past, shown = self._looks(rows, versions)
        valid = self.valid[past] * self.real[rows, :, None]  # where nobody looked there was nothing to decide
        fields = (*(field[past] for field in (self.proprioception, self.goal, self.actions)), valid)
        return Batch(self.seen[shown].to(device), *(field.to(device) for field in fields))

    def expect(self, rows: Tensor, versions: Tensor) -> None:
        """These will be taken next: have them read from disk meanwhile."""
        if self.disk:
            self.disk.expect(self._looks(rows, versions)[1])

    def _looks(self, rows: Tensor, versions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows of the windows' looks, and of these in `seen`.  (B, T), (B, T)"""
        past = self.window[rows]
        return past, past if versions is None else past + len(self.window) * versions[:, None]


def check_stride(policy: Any, stride: int) -> None:
    """Hold a policy's hyper-parameters against how many steps lie between two encoded ones.

    Raises:
        InvalidInput: the looks of a window would lie between encoded steps.
    """
    if stride < 1:
        raise InvalidInput(f"--encode.stride is {stride}; expected a whole number from 1 on")
    if policy.context > 1 and policy.execute % stride:
        raise InvalidInput(
            f"The policy looks every {policy.execute} steps (--policy.execute) and one of {stride} steps is encoded"
            " (--encode.stride): a context needs the first to be a multiple of the second"
        )


@torch.no_grad()
def gather(dataset: DemoDataset, source: Source, network: Any, episodes: range, scratch: Path) -> Samples:
    """The samples of these episodes, which are the source's first.

    Args:
        scratch: a folder for what memory does not hold.

    Raises:
        InvalidInput: the looks of a window would lie between encoded steps.
        OutOfSpace: neither memory nor disk holds the samples.
    """
    config = network.config
    check_stride(config, source.stride)
    steps = [source.rows(k)[1] for k in episodes]
    seen, disk = _seen(source, network, sum(map(len, steps)), scratch)
    fields = [_fields(dataset.episode(k), steps[k], config.chunk) for k in episodes]
    state, goal, actions, valid = (torch.from_numpy(np.concatenate(part)) for part in zip(*fields, strict=True))
    window, real = map(torch.from_numpy, _windows(steps, config, source.stride))
    return Samples(seen, state, goal, actions, valid, window, real, disk)


def _seen(source: Source, network: Any, count: int, scratch: Path) -> tuple[Tensor, OnDisk | None]:
    """What the network keeps of the first `count` rows, read piece by piece into room reserved once; then the same
    of every version."""
    one: Tensor = network.kept(source, np.arange(1))
    looks = [source, *source.versions]
    shape, needed = (len(looks) * count, *one.shape[1:]), len(looks) * count * one.nbytes
    free = machine.free_memory()
    free = free and free // ranks.find().beside  # each of them keeps its own
    disk = None
    if free is not None and needed > SHARE * (free - SPARE):
        _log.warning(
            "What the policy sees of %d steps takes %.1f GB, and %.1f GB of memory are free: it is read from disk, in"
            " %s, which may be slower. Less: --encode.stride, --encode.versions, --train.demos; frames: --policy.size",
            len(looks) * count, needed / 1e9, free / 1e9, scratch,
        )  # fmt: skip
        disk = OnDisk(shape, one.dtype, scratch)
    seen = disk.tensor if disk else torch.empty(shape, dtype=one.dtype)
    for k, look in enumerate(looks):
        for rows in np.array_split(np.arange(count), max(1, count // PIECE)):
            seen[k * count + rows[0] : k * count + rows[-1] + 1] = network.kept(look, rows)
    return seen, disk


def _fields(episode: StoredEpisode, steps: Rows, chunk: int) -> tuple[NDArray[Any], ...]:
    """Proprioception, goal, actions and valid of the encoded steps of an episode."""
    ahead = steps[:, None] + np.arange(chunk)  # (n, A)
    return (
        episode.proprioception[steps],
        np.zeros((len(steps), 0), np.float32) if episode.goal is None else episode.goal[steps],
        episode.actions[ahead.clip(max=len(episode) - 1)],
        (ahead < len(episode)).astype(np.float32),
    )


def _windows(steps: list[Rows], config: Any, stride: int) -> tuple[Rows, NDArray[np.float32]]:
    """Of every row the rows of its window, `execute` steps apart, the episode's first instead of what lacks; and 1
    where none lacks.  (F, T), (F, T)"""
    back = np.arange(config.context - 1, -1, -1) * (config.execute // stride)
    within = [np.arange(len(part))[:, None] - back for part in steps]
    firsts = np.cumsum([0, *map(len, steps)])
    rows = [first + part.clip(min=0) for first, part in zip(firsts, within, strict=False)]
    return np.concatenate(rows), (np.concatenate(within) >= 0).astype(np.float32)
