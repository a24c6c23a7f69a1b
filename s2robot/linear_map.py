"""The best linear map from one encoder's features to another's, from running sums: no feature is kept.

    loss          l  = mean over tokens and channels of (Y - [X 1] W)^2       W least squares on training tokens
    of nothing    l0 = the same of the best constant vector
    information   I  = -log(l / l0)                                          (Shi et al. 2024, section 4.3)

Pure: sums in float64, so that the order of batches does not matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.errors import InvalidInput

Array = NDArray[np.float64]
RIDGE = 1e-6  # of the mean variance of a channel: keeps what is nearly dependent solvable, and changes nothing else


class TokenSums:
    """Sums over tokens of X (n, p) and Y (n, q) that least squares and its losses need."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.tokens = 0
        self._xx = np.zeros((inputs + 1, inputs + 1))
        self._xy = np.zeros((inputs + 1, outputs))
        self._yy = 0.0

    def add(self, x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> None:
        """Some more tokens.

        Raises:
            InvalidInput: they are not pairs, or hold NaN.
        """
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
            raise InvalidInput(f"Features are {x.shape} and {y.shape}; expected (n, p) and (n, q) of the same tokens")
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise InvalidInput("Features hold NaN or infinity")
        inputs, outputs = _with_one(x.astype(np.float64)), y.astype(np.float64)
        self.tokens += len(x)
        self._xx += inputs.T @ inputs
        self._xy += inputs.T @ outputs
        self._yy += float((outputs**2).sum())

    def solve(self) -> Array:
        """The map W (p + 1, q) with the least loss on these tokens; its last row is the constant."""
        mean = self._xx[-1, :-1] / self.tokens
        variance = np.diag(self._xx)[:-1] / self.tokens - mean**2
        ridge = np.diag([*np.full(len(variance), RIDGE * self.tokens * max(variance.mean(), 1e-12)), 0.0])
        solution: Array = np.linalg.solve(self._xx + ridge, self._xy)
        return solution

    def constant(self) -> Array:
        """The map (p + 1, q) that answers the mean whatever it is given."""
        flat = np.zeros_like(self._xy)
        flat[-1] = self._xy[-1] / self.tokens
        return flat

    def loss(self, weights: Array) -> float:
        """Mean squared error of a map on these tokens."""
        error = self._yy - 2 * float((weights * self._xy).sum()) + float(((self._xx @ weights) * weights).sum())
        return max(0.0, error) / (self.tokens * self._xy.shape[1])


def information(loss: float, nothing: float) -> float:
    """-log(l / l0) [nats]; infinite for a perfect map."""
    return float("inf") if loss == 0 else float(-np.log(loss / nothing))


def errors(weights: Array, x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> Array:
    """Squared error of each token, mean over channels, (n,)."""
    found: Array = ((y - _with_one(x.astype(np.float64)) @ weights) ** 2).mean(axis=1)
    return found


def _with_one(x: Array) -> Array:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)
