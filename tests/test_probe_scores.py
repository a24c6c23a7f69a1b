"""Scores against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from s2robot import probe_scores as scores
from s2robot.probe_data import LABELS, Truth
from s2robot.probe_scores import MEASURES


def truth(**given: Any) -> Truth:
    """Two scenes of 1 x 4 pixels seen by one camera."""
    fields = {
        "labels": np.array([[[[0, 0, 1, 1]]], [[[1, 1, 4, 4]]]], np.uint8),
        "depth": np.array([[[[1.0, 2.0, 4.0, 0.0]]], [[[1.0, 1.0, 1.0, np.inf]]]], np.float32),
        "cubes": np.zeros((2, 4, 2), np.float32),
        "leftmost": np.array([0, 3]), "shape": np.array([2, 1]), "contact": np.array([True, False]),
    }  # fmt: skip
    return Truth(**fields | given)


def score(name: str, answers: Any, about: Truth) -> float:
    measure = MEASURES[name]
    return float(measure.score(measure.count(np.asarray(answers), about).sum(axis=0)))


def test_position_is_the_mean_distance_in_centimetres() -> None:
    answers = np.zeros((2, 4, 2))
    answers[0, 0] = (0.03, 0.04)  # 5 cm
    answers[1, 2] = (0.0, -0.03)  # 3 cm
    assert score("position/softmax", answers, truth()) == pytest.approx((5 + 3) / 8)
    counts = scores.centimetres_off(answers, truth())
    np.testing.assert_allclose(counts, [[5 / 4, 1], [3 / 4, 1]])


def test_accuracies() -> None:
    assert score("leftmost/map", [0, 2], truth()) == 0.5
    assert score("shape/mean", [2, 1], truth()) == 1.0


def test_balanced_accuracy_is_not_fooled_by_the_common_answer() -> None:
    about = truth(contact=np.array([True] * 9 + [False]))
    assert score("contact/map", [True] * 10, about) == 0.5
    assert score("contact/map", [1] * 8 + [0, 0], about) == pytest.approx((8 / 9 + 1) / 2)
    assert score("contact/map", [1] * 8 + [0] * 2, truth(contact=np.array([True] * 10))) == pytest.approx(0.8)


def test_miou_is_over_the_labels_that_occur() -> None:
    answers = np.array([[[[0, 1, 1, 1]]], [[[1, 1, 4, 8]]]])
    #     label 0: 1 of 2; label 1: 4 of 5; label 4: 1 of 2; label 8 is answered once and does not occur
    assert score("segmentation/miou", answers, truth()) == pytest.approx((1 / 2 + 4 / 5 + 1 / 2) / 3)
    assert score("segmentation/miou", truth().labels, truth()) == 1.0
    each = scores.iou_by_label(scores.pixels_by_label(answers, truth()))
    assert list(each) == list(LABELS)
    assert each["background"] == 0.5 and each["table"] == pytest.approx(0.8) and each["other"] is None


def test_depth_counts_only_pixels_that_have_one() -> None:
    answers = np.array([[[[1.0, 2.6, 3.0, 7.0]]], [[[1.2, 1.0, 0.9, 7.0]]]])
    squared = 0.6**2 + 1.0 + 0.2**2 + 0.1**2
    assert score("depth/rmse", answers, truth()) == pytest.approx((squared / 6) ** 0.5)
    assert score("depth/delta1", answers, truth()) == pytest.approx(4 / 6)  # 2.6 / 2 and 4 / 3 are beyond 1.25


def test_counts_of_scenes_add_up() -> None:
    """What the bootstrap rests on: the score of a choice of scenes is that of their summed counts."""
    rng = np.random.default_rng(0)
    about = truth()
    for measure in MEASURES.values():
        shape = {"labels": (2, 1, 1, 4), "depth": (2, 1, 1, 4)}.get(measure.answer, (2,))
        answers = rng.integers(0, 2, (2, 4, 2) if measure.probe == "position" else shape)
        counts = measure.count(answers, about)
        assert counts.shape[0] == 2 and counts.dtype == np.float64 and np.isfinite(counts).all()
        stacked = measure.score(np.stack([counts.sum(axis=0), counts[0] * 2]))
        assert stacked[0] == pytest.approx(measure.score(counts.sum(axis=0)))
        assert stacked[1] == pytest.approx(measure.score(counts[0]))


def test_every_probe_has_measures_and_a_headline_named_in_the_table() -> None:
    from s2robot.probe_tasks import PROBES

    assert {measure.probe for measure in MEASURES.values()} == PROBES.keys()
    assert all(name == measure.name for name, measure in MEASURES.items())
