"""How sure a score over test scenes and probe seeds is, and whether two scores differ.

A score is a function of sums over scenes: an error is a mean, a mIoU a ratio of pixel counts. So each probe keeps
counts (K seeds, n scenes, k numbers), and the score of any choice of scenes is that of their summed counts. Scenes
are drawn anew with replacement, and so are the seeds: both are samples of what might have been. Seeds are few, and
draws of two or three are too much alike, so an interval is no narrower than Student's over the seeds. Pure: the same
counts and the same `draws` give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from s2robot import statistics
from s2robot.errors import InvalidInput
from s2robot.statistics import wilson

Counts = NDArray[np.float64]
Score = Callable[[Counts], Counts]
"""Summed counts (..., k) to scores (...)."""

DRAWS = 2000
WEIGHTS = 4_000_000  # of scenes in draws that are held in memory at once


@dataclass(frozen=True)
class Estimate:
    """A score, averaged over seeds, with its interval."""

    value: float
    low: float
    high: float
    seed_sd: float  # between seeds, on the same test scenes; 0 with a single seed
    n: int  # test scenes
    seeds: int


@dataclass(frozen=True)
class Difference:
    """Score of A minus that of B, over the same scenes and seeds."""

    difference: float
    low: float
    high: float

    @property
    def resolved(self) -> bool:
        return not self.low <= 0.0 <= self.high


def estimate(counts: Counts, score: Score, confidence: float = 0.95, draws: int = DRAWS) -> Estimate:
    """The score of counts (K, n, k), with an interval over scenes and seeds."""
    by_seed = _by_seed(counts, score)
    low, high = _interval(resample(counts, score, draws), by_seed, confidence)
    spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else 0.0
    return Estimate(float(by_seed.mean()), low, high, spread, counts.shape[1], counts.shape[0])


def ratio(sums: Counts) -> Counts:
    """(..., 2) to the first over the second: a mean, an accuracy, a share."""
    return sums[..., 0] / sums[..., 1]


def proportion(counts: Counts, score: Score) -> Estimate:
    """The same where each scene is answered rightly or not: no miss among few is no certainty (`statistics.wilson`)."""
    found, scenes = estimate(counts, score), counts.shape[1]
    low, high = wilson(round(found.value * scenes), scenes)
    return replace(found, low=max(0.0, min(low, found.low)), high=min(1.0, max(high, found.high)))


def paired_difference(a: Counts, b: Counts, score: Score, confidence: float = 0.95, draws: int = DRAWS) -> Difference:
    """Compare two encoders on the same scenes: what is hard for both cancels."""
    if a.shape != b.shape:
        raise InvalidInput(f"Counts are {a.shape} and {b.shape}; expected the same seeds and scenes")
    by_seed = _by_seed(a, score) - _by_seed(b, score)
    low, high = _interval(resample(a, score, draws) - resample(b, score, draws), by_seed, confidence)
    return Difference(float(by_seed.mean()), low, high)


def resample(counts: Counts, score: Score, draws: int = DRAWS) -> Counts:
    """Scores (draws,) of scenes and seeds drawn anew; the same draws for any counts of one shape.

    With K seeds a resampled mean varies by (K - 1) / K too little, so deviations are stretched by sqrt(K / (K - 1)).
    """
    seeds, scenes = counts.shape[:2]
    rng = np.random.default_rng(0)
    at_once = max(1, WEIGHTS // scenes)  # the same draws however many are made at once
    summed = [
        rng.multinomial(scenes, np.full(scenes, 1 / scenes), size=min(at_once, draws - start)).astype(np.float64)
        @ counts
        for start in range(0, draws, at_once)
    ]
    scores = score(np.concatenate(summed, axis=1))  # (K, draws)
    middle = scores.mean(axis=0)
    if seeds == 1:
        return np.asarray(middle)
    chosen = rng.integers(seeds, size=(draws, seeds))
    drawn = scores[chosen, np.arange(draws)[:, None]].mean(axis=1)
    stretched: Counts = middle + np.sqrt(seeds / (seeds - 1)) * (drawn - middle)
    return stretched


def _by_seed(counts: Counts, score: Score) -> Counts:
    if counts.ndim != 3 or 0 in counts.shape or not np.isfinite(counts).all():
        raise InvalidInput(f"Counts are {counts.shape}; expected finite numbers (seeds, scenes, numbers)")
    return score(counts.sum(axis=1))


def _interval(drawn: Counts, by_seed: Counts, confidence: float) -> tuple[float, float]:
    """Of what was drawn; where seeds differ more than scenes, Student's over the seeds, which are few."""
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    if len(by_seed) == 1:
        return float(low), float(high)
    lowest, highest = statistics.student(by_seed, confidence)
    return min(float(low), lowest), max(float(high), highest)
