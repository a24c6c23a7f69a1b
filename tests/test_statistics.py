"""Published values, symmetries, and coverage by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from s2robot.errors import InvalidInput
from s2robot.statistics import paired_difference, quantiles, student, wilson


def pairs(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * both + [True] * only_a + [False] * only_b + [False] * neither
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return a, b


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_matches_newcombe_1998_table_1(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_matches_the_numbers_quoted_in_the_report() -> None:
    assert wilson(48, 50) == pytest.approx((0.865, 0.989), abs=5e-4)


@pytest.mark.parametrize(
    ("freedom", "confidence", "t"),
    [
        (1, 0.95, 12.7062),
        (2, 0.95, 4.3027),
        (3, 0.95, 3.1824),
        (9, 0.95, 2.2622),
        (2, 0.99, 9.9248),
        (120, 0.95, 1.9799),
    ],
)
def test_students_interval_is_that_of_the_tables(freedom: int, confidence: float, t: float) -> None:
    values = np.arange(freedom + 1.0)
    low, high = student(values, confidence)
    reach = t * values.std(ddof=1) / (freedom + 1) ** 0.5
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), rel=2e-4)


def test_students_interval_of_equal_numbers_is_that_number_and_of_one_none() -> None:
    assert student([0.5, 0.5, 0.5]) == (0.5, 0.5)
    for wrong in ([0.5], [[0.5, 0.6]], []):
        with pytest.raises(InvalidInput, match="two numbers or more"):
            student(wrong)


def test_wilson_is_symmetric_and_stays_within_zero_and_one() -> None:
    for n in (1, 5, 50):
        assert wilson(0, n)[0] == 0.0
        assert wilson(n, n)[1] == 1.0
        for k in range(n + 1):
            low, high = wilson(k, n)
            assert 0.0 <= low <= k / n <= high <= 1.0
            assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low))


def test_wilson_widens_with_confidence() -> None:
    narrow, wide = wilson(40, 50, 0.9), wilson(40, 50, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_wilson_covers_the_true_rate_about_95_percent_of_the_time() -> None:
    # Averaged over true rates, as single rates oscillate with n; 0.95 +- 0.01 tells 95 % from 90 % and 99 %.
    rng = np.random.default_rng(0)
    intervals = np.array([wilson(k, 50) for k in range(51)])
    rates = rng.uniform(0.02, 0.98, 20_000)
    low, high = intervals[rng.binomial(50, rates)].T
    assert np.mean((low <= rates) & (rates <= high)) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(InvalidInput, match=f"{successes} successes in {n}"):
        wilson(successes, n)


def test_paired_difference_matches_fagerland_2014_airway_example() -> None:
    # Fagerland, Lydersen, Laake, Statistics in Medicine 33:2850-2875 (2014): 1, 1, 7, 12 of 21 children.
    result = paired_difference(*pairs(1, 1, 7, 12))
    assert result.difference == pytest.approx(-6 / 21)
    assert (result.low, result.high) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert result.p_value == pytest.approx(0.0703, abs=5e-5)
    assert not result.resolved  # the exact test does not agree with the interval: stay modest


def test_paired_interval_matches_r_propcis_scoreci_mp() -> None:
    # PropCIs::scoreci.mp(25, 28, 618, 0.90); its estimand is (second - first) / n.
    result = paired_difference(*pairs(500, 28, 25, 65), confidence=0.90)
    assert (result.low, result.high) == pytest.approx((-0.0148, 0.0247), abs=5e-5)


def test_exact_mcnemar_matches_binomial_tails_by_hand() -> None:
    assert paired_difference(*pairs(0, 6, 0, 4)).p_value == pytest.approx(2 / 64)
    assert paired_difference(*pairs(0, 1, 5, 4)).p_value == pytest.approx(2 * 7 / 64)
    assert paired_difference(*pairs(3, 4, 4, 0)).p_value == 1.0
    assert paired_difference(*pairs(9, 0, 0, 1)).p_value == 1.0


def test_paired_difference_without_any_differing_seed_has_a_symmetric_interval() -> None:
    result = paired_difference(*pairs(48, 0, 0, 2))
    z2 = 1.959964**2
    assert (result.low, result.high) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-6)
    assert not result.resolved


def test_swapping_the_sides_flips_the_sign() -> None:
    a, b = pairs(20, 12, 3, 15)
    forward, backward = paired_difference(a, b), paired_difference(b, a)
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))
    assert forward.p_value == backward.p_value
    assert (forward.only_a, forward.only_b, forward.n) == (12, 3, 50)


def test_a_resolved_difference_never_has_an_interval_that_touches_zero() -> None:
    resolved = 0
    for only_a, only_b in itertools.product(range(13), range(13)):
        for rest in (0, 10, 40):
            if only_a + only_b + rest == 0:
                continue
            result = paired_difference(*pairs(rest, only_a, only_b, 0))
            assert -1.0 <= result.low <= result.difference <= result.high <= 1.0
            if result.p_value < 0.05:
                resolved += 1
                assert result.resolved
                assert result.low > 0 or result.high < 0
            else:
                assert not result.resolved
    assert resolved > 20


def test_paired_interval_covers_the_true_difference_and_false_alarms_are_rare() -> None:
    rng = np.random.default_rng(1)
    probabilities = np.array([0.6, 0.2, 0.1, 0.1])  # both, only A, only B, neither: true difference 0.1
    covered = [
        result.low <= 0.1 <= result.high
        for counts in rng.multinomial(50, probabilities, 2000)
        for result in [paired_difference(*pairs(*counts))]
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)
    alarms = [paired_difference(*pairs(*c)).resolved for c in rng.multinomial(50, [0.6, 0.15, 0.15, 0.1], 2000)]
    assert 0.0 < np.mean(alarms) <= 0.05


@pytest.mark.parametrize(("a", "b"), [([True], [True, False]), ([], []), ([0.5], [1.0]), ([[True]], [[True]])])
def test_paired_difference_refuses_what_is_not_paired_outcomes(a: list, b: list) -> None:
    with pytest.raises(InvalidInput):
        paired_difference(a, b)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_confidence_outside_zero_and_one_is_refused(confidence: float) -> None:
    with pytest.raises(InvalidInput, match="Confidence"):
        wilson(1, 2, confidence)


def test_quantiles_are_the_median_and_the_99th_percentile() -> None:
    result = quantiles(list(range(101)))
    assert result == {"p50": 50.0, "p99": 99.0, "mean": 50.0, "n": 101}
    assert isinstance(result["n"], int)


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")]])
def test_quantiles_refuse_nothing_and_nan(bad: list[float]) -> None:
    with pytest.raises(InvalidInput):
        quantiles(bad)
