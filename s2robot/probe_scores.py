"""What a probe's answers are worth: counts of every test scene, and scores of their sums. Pure numpy.

Counts are kept apart from scores so that scenes can be drawn anew (`s2robot.bootstrap`): the mIoU of half the
scenes is not the half of a mIoU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.bootstrap import Counts, Score, ratio
from s2robot.probe_data import LABELS, Truth


@dataclass(frozen=True)
class Measure:
    """One number of a probe.

    probe, variant: its name, as "position" by "softmax"; the first variant of a probe is its headline.
    answer: which of the probe's answers it judges.
    """

    probe: str
    variant: str
    title: str
    unit: str
    higher_is_better: bool
    answer: str
    count: Callable[[NDArray[Any], Truth], Counts]  # answers and truth of n scenes to (n, k)
    score: Score

    @property
    def name(self) -> str:
        return f"{self.probe}/{self.variant}"


# -- counts of each scene --------------------------------------------------------------------------------------------


def centimetres_off(cubes: NDArray[Any], truth: Truth) -> Counts:
    """Mean distance of four positions (n, 4, 2) [m] from where the cubes are [cm]; one number and a one."""
    distance = np.linalg.norm(cubes - truth.cubes, axis=-1).mean(axis=-1) * 100
    return _with_ones(distance)


def right_leftmost(answers: NDArray[Any], truth: Truth) -> Counts:
    return _with_ones(answers == truth.leftmost)


def right_shape(answers: NDArray[Any], truth: Truth) -> Counts:
    return _with_ones(answers == truth.shape)


def right_contact(answers: NDArray[Any], truth: Truth) -> Counts:
    """Touching and right, touching, apart and right, apart: (n, 4)."""
    touching, right = truth.contact, answers == truth.contact
    return _columns(touching & right, touching, ~touching & right, ~touching)


def pixels_by_label(labels: NDArray[Any], truth: Truth) -> Counts:
    """Pixels of each label that are right, answered and true: (n, 3 * labels), of both views."""
    each = np.arange(len(LABELS))
    answered = labels.reshape(len(truth), -1, 1) == each  # (n, pixels, labels)
    true = truth.labels.reshape(len(truth), -1, 1) == each
    counts = [(answered & true).sum(axis=1), answered.sum(axis=1), true.sum(axis=1)]
    together: Counts = np.concatenate(counts, axis=1).astype(np.float64)
    return together


def metres_off_squared(depth: NDArray[Any], truth: Truth) -> Counts:
    """Sum of squared depth errors [m^2] and of pixels that have a depth: (n, 2)."""
    known = has_depth(truth.depth)
    squared = np.where(known, (depth - truth.depth) ** 2, 0.0)
    return _sums(squared, known)


def within_a_quarter(depth: NDArray[Any], truth: Truth) -> Counts:
    """Pixels whose depth is right within a factor of 1.25, and pixels that have a depth: (n, 2)."""
    known = has_depth(truth.depth)
    safe = np.where(known, truth.depth, 1.0)
    ratio = np.maximum(depth / safe, safe / np.maximum(depth, 1e-6))
    return _sums((ratio < 1.25) & known, known)


def has_depth(depth: NDArray[Any]) -> NDArray[np.bool_]:
    """Where something was hit."""
    known: NDArray[np.bool_] = np.isfinite(depth) & (depth > 0)
    return known


# -- scores of summed counts -----------------------------------------------------------------------------------------


def root_of_ratio(sums: Counts) -> Counts:
    root: Counts = np.sqrt(ratio(sums))
    return root


def balanced_accuracy(sums: Counts) -> Counts:
    """(..., 4) to the mean of both kinds' accuracies; of one kind's where the other is missing."""
    right, there = sums[..., 0::2], sums[..., 1::2]
    return _mean_where(right / np.maximum(there, 1), there > 0)


def mean_iou(sums: Counts) -> Counts:
    """(..., 3 * labels) to the mean intersection over union of the labels that truly occur."""
    right, answered, true = np.split(sums, 3, axis=-1)
    return _mean_where(right / np.maximum(answered + true - right, 1), true > 0)


def iou_by_label(counts: Counts) -> dict[str, float | None]:
    """Counts (n, 3 * labels) to the intersection over union of each label; None where it does not occur."""
    right, answered, true = np.split(counts.sum(axis=0), 3)
    return {
        label: float(right[k] / (answered[k] + true[k] - right[k])) if true[k] else None
        for k, label in enumerate(LABELS)
    }


def _mean_where(values: Counts, there: NDArray[np.bool_]) -> Counts:
    mean: Counts = np.where(there, values, 0.0).sum(axis=-1) / np.maximum(there.sum(axis=-1), 1)
    return mean


def _with_ones(values: NDArray[Any]) -> Counts:
    return _columns(values, np.ones(len(values)))


def _sums(values: NDArray[Any], known: NDArray[np.bool_]) -> Counts:
    n = len(values)
    return _columns(values.reshape(n, -1).sum(axis=1), known.reshape(n, -1).sum(axis=1))


def _columns(*values: NDArray[Any]) -> Counts:
    together: Counts = np.stack(values, axis=1).astype(np.float64)
    return together


def _of(probe: str, higher: bool, *rows: tuple[str, str, str, str, Any, Score]) -> list[Measure]:
    return [Measure(probe, variant, title, unit, higher, answer, count, score)
            for variant, title, unit, answer, count, score in rows]  # fmt: skip


MEASURES: dict[str, Measure] = {
    each.name: each
    for each in (
        *_of(
            "position", False,
            ("softmax", "spatial softmax", "cm", "softmax", centimetres_off, ratio),
            ("map", "ridge on the map", "cm", "map", centimetres_off, ratio),
            ("mean", "ridge on the mean token", "cm", "mean", centimetres_off, ratio),
            ("cls", "ridge on CLS", "cm", "cls", centimetres_off, ratio),
        ),
        *_of(
            "leftmost", True,
            ("map", "linear on the map", "", "map", right_leftmost, ratio),
            ("mean", "linear on the mean token", "", "mean", right_leftmost, ratio),
            ("softmax", "spatial softmax", "", "softmax", right_leftmost, ratio),
        ),
        *_of(
            "shape", True,
            ("place", "linear on what is at its place", "", "place", right_shape, ratio),
            ("map", "linear on the map", "", "map", right_shape, ratio),
            ("mean", "linear on the mean token", "", "mean", right_shape, ratio),
        ),
        *_of("segmentation", True, ("miou", "mIoU, linear a token", "", "labels", pixels_by_label, mean_iou)),
        *_of("depth", False, ("rmse", "RMSE, linear a token", "m", "depth", metres_off_squared, root_of_ratio)),
        *_of("depth", True, ("delta1", "share within 25 %", "", "depth", within_a_quarter, ratio)),
        *_of(
            "contact", True,
            ("map", "linear on the wrist's map", "", "map", right_contact, balanced_accuracy),
            ("mean", "linear on the wrist's mean token", "", "mean", right_contact, balanced_accuracy),
            ("softmax", "spatial softmax on the wrist", "", "softmax", right_contact, balanced_accuracy),
        ),
    )
}  # fmt: skip
