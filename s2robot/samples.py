"""What a policy trains on, in memory: what it sees at every n-th step, and what the expert did next.

    demonstrations + a source -> what the network keeps of each step -> windows of T observations

The source is a feature store, of which compressed features are kept, or `Frames`, of which small frames are. A store
may have augmented versions; a window can be seen in any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot import machine, registry
from s2robot.datasets import DemoDataset
from s2robot.errors import InvalidInput
from s2robot.frames import Frames, Rows
from s2robot.store import FeatureStore
from s2robot.stored import StoredEpisode

Source = FeatureStore | Frames
PIECE = 128  # rows read at once


@dataclass(frozen=True)
class Samples:
    """F steps; a sample is one of them and the T - 1 looks before it."""

    seen: Tensor  # (versions*F, ...) what the network keeps of each, `policies.neck.Neck.kept`; first the plain one
    proprioception: Tensor  # (F, Q)
    goal: Tensor  # (F, G); G is 0 where a task has only one
    actions: Tensor  # (F, A, M)
    valid: Tensor  # (F, A): 0 beyond the end of the episode
    window: Tensor  # (F, T): rows of the looks that lead to this one, oldest first, itself last

    @property
    def versions(self) -> int:
        """In how many versions each step can be seen, the plain one among them."""
        return len(self.seen) // len(self.window)

    def take(self, rows: Tensor, device: torch.device, versions: Tensor | None = None) -> Any:
        """The `policies.neck.Batch` of these rows (B,), on a device.

        versions: (B,) which one each window is seen in, the whole of it; default: all in the plain one, 0.
        """
        past = self.window[rows]  # (B, T)
        shown = past if versions is None else past + len(self.window) * versions[:, None]
        fields = (self.proprioception, self.goal, self.actions, self.valid)
        return registry.neck().Batch(self.seen[shown].to(device), *(field[past].to(device) for field in fields))


@torch.no_grad()
def gather(dataset: DemoDataset, source: Source, network: Any, episodes: range) -> Samples:
    """The samples of these episodes, which are the source's first.

    Raises:
        InvalidInput: the looks of a window would lie between encoded steps, or memory does not hold the samples.
    """
    config = network.config
    if config.context > 1 and config.execute % source.stride:
        raise InvalidInput(
            f"The policy looks every {config.execute} steps (--policy.execute) and every {source.stride}th is encoded"
            " (--encode.stride): a context needs the first to be a multiple of the second"
        )
    steps = [source.rows(k)[1] for k in episodes]
    seen = _seen(source, network, sum(map(len, steps)))
    fields = [_fields(dataset.episode(k), steps[k], config.chunk) for k in episodes]
    state, goal, actions, valid = (torch.from_numpy(np.concatenate(part)) for part in zip(*fields, strict=True))
    window = torch.from_numpy(_windows(steps, config, source.stride))
    return Samples(seen, state, goal, actions, valid, window)


def _seen(source: Source, network: Any, count: int) -> Tensor:
    """What the network keeps of the first `count` rows, read piece by piece into memory reserved once; then the same
    of every version."""
    one: Tensor = network.kept(source, np.arange(1))
    looks = [source, *source.versions]
    needed, free = len(looks) * count * one.nbytes, machine.free_memory()
    if free is not None and needed > free:
        times = f", {len(looks)} times with its versions," if source.versions else ""
        fewer = "versions (--encode.versions), " if source.versions else ""
        raise InvalidInput(
            f"What the policy sees of {count} steps{times} takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of"
            f" memory are free. Take fewer {fewer}steps (--encode.stride), demonstrations (--train.demos) or, for a"
            " policy that reads frames, pixels (--policy.size)"
        )
    seen = torch.empty(len(looks) * count, *one.shape[1:], dtype=one.dtype)
    for k, look in enumerate(looks):
        for rows in np.array_split(np.arange(count), max(1, count // PIECE)):
            seen[k * count + rows[0] : k * count + rows[-1] + 1] = network.kept(look, rows)
    return seen


def _fields(episode: StoredEpisode, steps: Rows, chunk: int) -> tuple[NDArray[Any], ...]:
    """Proprioception, goal, actions and valid of the encoded steps of an episode."""
    ahead = steps[:, None] + np.arange(chunk)  # (n, A)
    return (
        episode.proprioception[steps],
        np.zeros((len(steps), 0), np.float32) if episode.goal is None else episode.goal[steps],
        episode.actions[ahead.clip(max=len(episode) - 1)],
        (ahead < len(episode)).astype(np.float32),
    )


def _windows(steps: list[Rows], config: Any, stride: int) -> Rows:
    """Of every row the rows of its window, (F, T): `execute` steps apart, the episode's first instead of what lacks."""
    back = np.arange(config.context - 1, -1, -1) * (config.execute // stride)
    firsts = np.cumsum([0, *map(len, steps)])
    return np.concatenate(
        [first + (np.arange(len(part))[:, None] - back).clip(min=0) for first, part in zip(firsts, steps, strict=False)]
    )
