"""How sure a number is: intervals for success rates, paired comparisons, latency quantiles.

Pure: arrays in, numbers out; no disk, no clock, no random numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.errors import InvalidInput


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate.

        (p + z^2/2n  -+  z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n),   p = successes / n

    Unlike p +- z * stderr it never leaves [0, 1] and does not collapse to a point at 0 or n successes.
    E. B. Wilson, JASA 22:209-212 (1927); method 3 in R. G. Newcombe, Statistics in Medicine 17:857-872 (1998).
    """
    if n < 1 or not 0 <= successes <= n:
        raise InvalidInput(f"{successes} successes in {n} episodes; expected 0 <= successes <= episodes, episodes >= 1")
    z = _z(confidence)
    p = successes / n
    middle = p + z * z / (2 * n)
    reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the limit is exactly 0 or 1; rounding would print 0.9999999999.
    low = 0.0 if successes == 0 else (middle - reach) / scale
    high = 1.0 if successes == n else (middle + reach) / scale
    return low, high


def student(values: Sequence[float] | NDArray[Any], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of a few numbers, such as the rates of runs that differ by training seed.

        mean  -+  t_{K-1} s / sqrt(K),   K of them, s their standard deviation (K - 1 in the divisor)

    A bootstrap of two or three numbers does not know how little it knows: t is 12.7 for two, 4.3 for three, where
    a large sample has 1.96. W. S. Gosset ("Student"), Biometrika 6:1-25 (1908).
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise InvalidInput(f"Student's interval is of two numbers or more in a row; got {array.shape}")
    reach = _t(len(array) - 1, confidence) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return float(array.mean()) - reach, float(array.mean()) + reach


def percent(rate: float, low: float, high: float) -> str:
    """A rate and its interval in words."""
    return f"{100 * rate:.0f} % (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"


@dataclass(frozen=True)
class PairedDifference:
    """Success rate of A minus that of B over the same seeds."""

    difference: float
    low: float
    high: float
    p_value: float
    resolved: bool
    only_a: int  # seeds that only A solved
    only_b: int  # seeds that only B solved
    n: int


def paired_difference(
    successes_a: Sequence[bool] | NDArray[Any],
    successes_b: Sequence[bool] | NDArray[Any],
    confidence: float = 0.95,
) -> PairedDifference:
    """Compare two policies that met the same seeds: entry i of both is the outcome on seed i.

    Only the seeds where they differ say anything, so pairing sees differences that two separate intervals hide.
    The interval is Tango's score interval, the p-value McNemar's exact (binomial) test. The difference is called
    resolved when both agree: p below 1 - confidence and zero outside the interval. The exact test is the stricter one
    (with five or fewer differing seeds it can never be below 0.05), so an interval may lie clear of zero and the
    difference still count as not resolved.
    """
    a, b = _outcomes(successes_a), _outcomes(successes_b)
    if len(a) != len(b) or len(a) == 0:
        raise InvalidInput(f"Paired outcomes have lengths {len(a)} and {len(b)}; expected the same seeds, at least one")
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    low, high = _tango(only_a, only_b, len(a), _z(confidence))
    p_value = _mcnemar(only_a, only_b)
    resolved = p_value < 1 - confidence and not low <= 0.0 <= high
    return PairedDifference((only_a - only_b) / len(a), low, high, p_value, resolved, only_a, only_b, len(a))


def episodes_to_resolve(
    difference: float, differing: float, *, runs: int = 1, confidence: float = 0.95, power: float = 0.8
) -> int:
    """How many paired episodes a run a difference of success rates needs to be found with this power.

        n = (z_a sqrt(q) + z_b sqrt(q - d^2))^2 / d^2,   d = difference, q = share of seeds on which outcomes differ

    That is of one run an arm, by McNemar's test: R. J. Connor, Biometrics 43:207-211 (1987). Of several runs, which do
    not differ but by chance, it is what Student's test of the runs' differences needs (with two or three it does not
    know yet how little they differ) and the bootstrap, which from about five runs on is the wider.
    """
    if not 0 < difference <= differing <= 1 or not 0 < power < 1:
        raise InvalidInput(
            f"difference {difference}, differing {differing}, power {power}; expected 0 < difference <= differing <= 1"
            " and a power between 0 and 1"
        )
    if runs < 1:
        raise InvalidInput(f"runs is {runs}; expected a whole number from 1 on")
    if runs > 1:
        shift = _shift(runs, confidence, power)
        return max(1, math.ceil(shift**2 * (differing - difference**2) / (runs * difference**2)))
    reach = _z(confidence) * math.sqrt(differing)
    reach += NormalDist().inv_cdf(power) * math.sqrt(differing - difference**2)
    return math.ceil((reach / difference) ** 2)


def quantiles(ms: Sequence[float] | NDArray[Any]) -> dict[str, float]:
    """Median, 99th percentile and mean of latencies in milliseconds, and how many there were."""
    values = np.asarray(ms, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise InvalidInput(f"Latencies must be at least one finite number; got {values.size}: {values[:5]}")
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "mean": float(values.mean()), "n": int(values.size)}


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InvalidInput(f"Confidence is {confidence}; expected a number between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _t(freedom: int, confidence: float) -> float:
    """How far Student's t with so many degrees of freedom lies from 0, but for 1 - confidence of the time.

    With t = sqrt(v) tan(x) its density is cos(x)^(v - 1): an integral over a quarter turn, here in 20,000 parts.
    """
    _z(confidence)  # between 0 and 1
    x = np.linspace(0.0, np.pi / 2, 20_001)
    density = np.cos(x) ** (freedom - 1)
    within = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(confidence, within / within[-1], x)))


@functools.cache  # of few arguments, and asked after every run of a study
def _shift(runs: int, confidence: float, power: float) -> float:
    """How many of its standard errors the mean of K numbers must lie from 0 to be told from it with this power.

    It is told where both Student's interval and the bootstrap's (`s2robot.bootstrap.resample`) leave 0 out. The latter
    draws scenes and then runs, so what is left of neither, which is nearly all that there is of successes, counts
    once for the scenes and twice for the runs: for its own spread, and for the draw's (A. B. Owen, Annals of Applied
    Statistics 1:386-411, 2007). An integral over what is found for the spread of runs, u times what it is, whose
    density is u^(v - 1) exp(-v u^2 / 2), v = K - 1.
    """
    freedom = runs - 1
    u = np.linspace(1e-3, 6.0, 2_000)
    logarithm = (freedom - 1) * np.log(u) - freedom * u**2 / 2
    weight = np.exp(logarithm - logarithm.max())
    bounds = np.maximum(_t(freedom, confidence) * u, _z(confidence) * np.sqrt(1 + 2 * u**2))

    def missed(shift: float) -> float:
        found = [NormalDist().cdf(shift - bound) for bound in bounds]
        return power - float(np.dot(weight, found) / weight.sum())

    return _solve(missed, 0.0, 1000.0)


def _outcomes(values: Sequence[bool] | NDArray[Any]) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.ndim != 1 or not np.isin(array, (0, 1)).all():
        raise InvalidInput(f"Outcomes must be one row of True/False, one a seed; got {array.dtype} {array.shape}")
    return array.astype(np.bool_)


def _mcnemar(only_a: int, only_b: int) -> float:
    """Exact McNemar test: were the differing seeds split as a fair coin would? Two-sided.

    Q. McNemar, Psychometrika 12:153-157 (1947).
    """
    differing = only_a + only_b
    tail = sum(math.comb(differing, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / (1 << differing))  # whole numbers up to the division: no underflow


def _tango(only_a: int, only_b: int, n: int, z: float) -> tuple[float, float]:
    """Score interval of a paired difference: all d that the score test does not reject.

        T(d) = (b - c - n d) / sqrt(n (2 q + d (1 - d))),   b = only_a, c = only_b
        q    = (sqrt(B^2 - 4 A C) - B) / 2A                 likeliest P(only B) given d
        A = 2n,   B = (2n - b + c) d - b - c,   C = -c d (1 - d)

    T. Tango, Statistics in Medicine 17:891-908 (1998). Its limits solve T(d) = +-z.
    """
    b, c = only_a, only_b

    def score(d: float) -> float:
        slope = (2 * n - b + c) * d - b - c  # B above
        q = (math.sqrt(slope * slope + 8 * n * c * d * (1 - d)) - slope) / (4 * n)
        spread = math.sqrt(max(0.0, n * (2 * q + d * (1 - d))))
        distance = b - c - n * d
        if spread == 0.0:  # only where d itself is certain: at -1, at 1, or at 0 with no differing seed
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / spread

    middle = (b - c) / n
    low = -1.0 if middle == -1.0 else _solve(lambda d: score(d) - z, -1.0, middle)
    high = 1.0 if middle == 1.0 else _solve(lambda d: score(d) + z, middle, 1.0)
    return low, high


def _solve(falling: Callable[[float], float], low: float, high: float) -> float:
    """Root of a falling function by bisection; 60 halvings reach float64's last bits."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2
