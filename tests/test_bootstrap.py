"""Intervals over scenes and seeds: right in size, paired where they say so, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from s2robot import bootstrap
from s2robot.bootstrap import estimate, paired_difference, ratio, resample
from s2robot.errors import InvalidInput

Counts = np.ndarray


def counts_of(values: np.ndarray) -> Counts:
    """(K, n) values as counts whose ratio is their mean."""
    return np.stack([values, np.ones_like(values)], axis=-1)


def test_interval_of_a_mean_is_the_one_of_the_textbook() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, (1, 400))
    found = estimate(counts_of(values), ratio, draws=4000)
    reach = 1.96 * values.std() / 400**0.5
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * reach, rel=0.06)
    assert (found.n, found.seeds, found.seed_sd) == (400, 1, 0.0)


def test_interval_grows_with_the_spread_between_seeds() -> None:
    scenes = np.random.default_rng(2).normal(0.0, 0.01, (1, 300))
    seeds = np.array([-1.0, 0.0, 1.0])[:, None]
    found = estimate(counts_of(scenes + seeds), ratio, draws=8000)
    drawn = resample(counts_of(scenes + seeds), ratio, 8000)
    assert found.seed_sd == pytest.approx(1.0)
    assert drawn.std() == pytest.approx(1.0 / 3**0.5, rel=0.05)  # the standard error of a mean of three


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        values = rng.exponential(1.0, (1, 80)) + rng.normal(0, 0.05, (6, 1))
        found = estimate(counts_of(values), ratio, draws=400)
        hits += found.low <= 1.0 <= found.high
    assert 175 <= hits <= 199


@pytest.mark.parametrize("seeds", [2, 3])
def test_few_seeds_that_differ_cover_the_truth_too(seeds: int) -> None:
    """A bootstrap alone covers it 82 times in 100 with three seeds, 64 times with two."""
    rng, hits, wrong = np.random.default_rng(6), 0, 0
    for _ in range(300):
        a, b = (rng.normal(1.0, 0.5, (1, 60)) + rng.normal(0, 1.0, (seeds, 1)) for _ in range(2))
        found = estimate(counts_of(a), ratio, draws=200)
        hits += found.low <= 1.0 <= found.high
        wrong += paired_difference(counts_of(a), counts_of(b), ratio, draws=200).resolved
    assert 276 <= hits <= 298 and wrong <= 26  # 95 % of 300 is 285, 5 % is 15; three standard errors are 11


def test_pairing_sees_what_two_intervals_hide() -> None:
    rng = np.random.default_rng(4)
    hard = rng.normal(10.0, 5.0, (1, 200))  # scenes differ far more than encoders
    a, b = (counts_of(hard + shift + rng.normal(0, 0.1, (3, 200))) for shift in (0.0, 0.2))
    apart = paired_difference(a, b, ratio)
    assert estimate(a, ratio).high > estimate(b, ratio).low
    assert apart.difference == pytest.approx(-0.2, abs=0.05)
    assert apart.resolved and apart.low < apart.difference < apart.high < 0
    same = paired_difference(a, a + 0 * b, ratio)
    assert (same.low, same.difference, same.high) == (0.0, 0.0, 0.0)
    assert not same.resolved


def test_same_counts_give_the_same_numbers() -> None:
    counts = counts_of(np.random.default_rng(5).normal(size=(3, 50)))
    assert estimate(counts, ratio) == estimate(counts.copy(), ratio)


def test_draws_are_the_same_however_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.random.default_rng(1).normal(size=(3, 40, 2))
    whole = resample(counts, lambda sums: sums[..., 0])
    monkeypatch.setattr(bootstrap, "WEIGHTS", 130)
    np.testing.assert_allclose(resample(counts, lambda sums: sums[..., 0]), whole, atol=1e-12)


def test_what_cannot_be_resampled_is_refused() -> None:
    good = counts_of(np.ones((2, 5)))
    with pytest.raises(InvalidInput, match="the same seeds and scenes"):
        paired_difference(good, good[:, :4], ratio)
    for bad in (good[:, :0], good * np.nan, good[0]):
        with pytest.raises(InvalidInput, match="expected finite numbers"):
            estimate(bad, ratio)
