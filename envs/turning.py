"""Rotations, for experts that turn the hand: matrices (3, 3) of axes in columns, vectors (3,) of axis times angle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
UP = np.array([0.0, 0.0, 1.0])


def about(axis: Vector, angle: float) -> Matrix:
    """The rotation about a unit axis (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn: Matrix = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turn


def turn_to(now: Matrix, then: Matrix) -> Vector:
    """The shortest rotation, in the world frame, that brings axes `now` to `then`."""
    turn = then @ now.T
    vector = 0.5 * np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    sine, cosine = float(np.linalg.norm(vector)), 0.5 * (np.trace(turn) - 1)
    angle = float(np.arctan2(sine, cosine))
    if sine > 1e-6:
        return np.asarray(vector * (angle / sine))
    if cosine > 0:
        return vector
    axis = np.sqrt(np.clip((np.diag(turn) + 1) / 2, 0, 1))  # half a turn: either way will do
    return np.asarray(np.pi * axis * np.sign(turn[:, int(axis.argmax())] + 1e-12))
