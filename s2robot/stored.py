"""What every dataset on disk offers, whoever's format it is, and one episode of it, read piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from s2robot.episodes import Episode, Floats
from s2robot.parts import PLACES


class Demonstrations(Protocol):
    """A dataset on disk. Reading what is damaged raises `CorruptFile`, which names the episode."""

    path: Path
    lengths: tuple[int, ...]  # steps of each episode
    cameras: tuple[str, ...]
    frame_shape: tuple[int, ...]  # V H W 3
    env_args: dict[str, Any]  # how to make the environment again

    def __len__(self) -> int: ...

    @property
    def total(self) -> int:
        """Steps in all episodes together."""
        ...

    def name(self, k: int) -> str:
        """What the dataset calls episode `k`."""
        ...

    def episode(self, k: int) -> StoredEpisode:
        """Episode `k`; its arrays are read when asked for."""
        ...

    def frames(self, k: int, steps: int | slice | Sequence[int] | NDArray[Any] | None = None) -> NDArray[np.uint8]:
        """Frames of some steps of episode `k` (default: all).  (n, V, H, W, 3)"""
        ...

    def field(self, k: int, name: str, *, any_range: bool = False) -> NDArray[Any]:
        """Any field of episode `k` but its frames; actions must be in [-1, 1], unless of `any_range`."""
        ...

    def has(self, k: int, name: str) -> bool:
        """Is field `name` of episode `k` there?"""
        ...

    def attribute(self, k: int, name: str) -> Any:
        """One of seed, success, s2robot_digest of episode `k`; None where it is not said."""
        ...


class StoredEpisode:
    """An `Episode` still on disk: the same fields, each read when first asked for."""

    def __init__(self, dataset: Demonstrations, index: int) -> None:
        self._dataset = dataset
        self.index = index

    def __len__(self) -> int:
        return self._dataset.lengths[self.index]

    @cached_property
    def seed(self) -> int:
        """Seed of the environment; -1 where a foreign file does not say."""
        seed = self._dataset.attribute(self.index, "seed")
        return -1 if seed is None else int(seed)

    @cached_property
    def success(self) -> bool:
        """Did it succeed? A foreign file says so by a reward of 1."""
        success = self._dataset.attribute(self.index, "success")
        return bool(self.rewards.max(initial=0) >= 1 if success is None else success)

    @cached_property
    def frames(self) -> NDArray[np.uint8]:
        """(L, V, H, W, 3); for some steps only, ask `DemoDataset.frames`."""
        return self._dataset.frames(self.index)

    @cached_property
    def proprioception(self) -> Floats:
        """(L, Q)"""
        return self._dataset.field(self.index, "proprioception")

    @cached_property
    def actions(self) -> Floats:
        """(L, M), the labels."""
        return self._dataset.field(self.index, "actions")

    @cached_property
    def executed_actions(self) -> Floats:
        """(L, M), as sent."""
        return self._dataset.field(self.index, "executed_actions")

    @cached_property
    def rewards(self) -> Floats:
        """(L,); zeros where a foreign file has none."""
        return self._dataset.field(self.index, "rewards")

    @cached_property
    def states(self) -> NDArray[np.float64] | None:
        """(L, X), or None."""
        return self._dataset.field(self.index, "states") if self._dataset.has(self.index, "states") else None

    @cached_property
    def goal(self) -> Floats | None:
        """(L, G), or None."""
        return self._dataset.field(self.index, "goal") if self._dataset.has(self.index, "goal") else None

    def load(self) -> Episode:
        """Read it all."""
        return Episode(self.seed, self.success, self.frames, *(getattr(self, name) for name in PLACES))
