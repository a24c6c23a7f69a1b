"""The learning rate over a training."""

from __future__ import annotations

import math
from typing import Protocol


class Scheduled(Protocol):
    """A training's config: the highest rate, the share of its steps that warms up, and the steps."""

    @property
    def lr(self) -> float: ...

    @property
    def warmup(self) -> float: ...

    @property
    def steps(self) -> int: ...


def learning_rate(config: Scheduled, step: int) -> float:
    """Of steps 0, 1, ...: a linear warm-up, then a cosine to zero."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return config.lr * (step + 1) / warm
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm)))
