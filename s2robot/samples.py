"""What a policy trains on, in memory: compressed features of every encoded step, and what the expert did next.

demonstrations + feature store -> the tokens the policy reads -> compressed once -> windows of T observations
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot import registry
from s2robot.datasets import DemoDataset
from s2robot.errors import InvalidInput
from s2robot.store import FeatureStore
from s2robot.stored import StoredEpisode

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """F encoded steps; a sample is one of them and the T - 1 looks before it."""

    maps: Tensor  # (F, V, C, h, w) float16, compressed
    proprioception: Tensor  # (F, Q)
    goal: Tensor  # (F, G); G is 0 where a task has only one
    actions: Tensor  # (F, A, M)
    valid: Tensor  # (F, A): 0 beyond the end of the episode
    window: Tensor  # (F, T): rows of the looks that lead to this one, oldest first, itself last

    def take(self, rows: Tensor) -> Any:
        """The `policies.neck.Batch` of these rows (B,)."""
        past = self.window[rows]  # (B, T)
        return registry.neck().Batch(
            self.maps[past].float(), self.proprioception[past], self.goal[past], self.actions[past], self.valid[past]
        )


@torch.no_grad()
def gather(dataset: DemoDataset, store: FeatureStore, network: Any, episodes: range) -> Samples:
    """The samples of these episodes, which are the store's first.

    Raises:
        InvalidInput: the looks of a window would lie between encoded steps.
    """
    config = network.config
    if config.context > 1 and config.execute % store.stride:
        raise InvalidInput(
            f"The policy looks every {config.execute} steps (--policy.execute) and every {store.stride}th is encoded"
            " (--encode.stride): a context needs the first to be a multiple of the second"
        )
    steps = [store.rows(k)[1] for k in episodes]
    count = sum(map(len, steps))
    pieces = np.array_split(np.arange(count), max(1, count // 128))
    maps = [network.compression(tokens(store, rows, config.tokens)).half() for rows in pieces]
    fields = [_fields(dataset.episode(k), steps[k], config.chunk) for k in episodes]
    state, goal, actions, valid = (torch.from_numpy(np.concatenate(part)) for part in zip(*fields, strict=True))
    window = torch.from_numpy(_windows(steps, config, store.stride))
    return Samples(torch.cat(maps), state, goal, actions, valid, window)


def tokens(store: FeatureStore, rows: Rows, which: str) -> Tensor:
    """What the policy reads of these rows, (n, V, D*S, h, w), copied: torch does not take read-only memory."""
    maps, cls = (torch.from_numpy(np.array(array[rows])) for array in (store.map, store.cls))
    chosen: Tensor = registry.neck().chosen_tokens(maps, cls, which)
    return chosen


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
