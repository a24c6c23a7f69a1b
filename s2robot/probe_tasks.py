"""What frozen features are asked: where the cubes are, which is leftmost, what is what, how far, does it touch.

A probe sees `Evidence`: features of all scenes, and the truth of the training scenes alone. It gives answers for the
test scenes; `s2robot.probe_scores` holds them against the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from s2robot.probe_data import CAMERAS, COLOURS, LABELS, SHAPES, SIDE, Truth
from s2robot.probe_features import SPLITS, ReadOut, batches
from s2robot.probe_heads import (
    DenseHead,
    PrincipalAxes,
    Schedule,
    SpatialHead,
    drawn_from,
    fit_logistic,
    fit_ridge,
    train_by_steps,
)
from s2robot.probe_scores import has_depth

AGENT, WRIST = range(len(CAMERAS))
KEPT, KEPT_FLAT = 64, 16  # principal axes of a map: for the spatial softmax, and flattened
AXES_SCENES = 250  # training scenes whose tokens show the axes
SPATIAL = Schedule(steps=4000, batch=128, lr=5e-3, every=50)
RECOGNISE = Schedule(steps=300, batch=128, lr=3e-3, every=25)  # classes of small things: learned by heart soon
DENSE = Schedule(steps=400, batch=16, lr=1e-1, every=50)

VERSION = 4  # raise it with any change of heads, schedules or scores: finished numbers are then of the old kind


class Fitted(NamedTuple):
    """Answers for every test scene, and what the validation scenes chose (strengths, steps)."""

    answers: dict[str, NDArray[Any]]
    chosen: dict[str, float]


class Evidence:
    """All that a probe may look at; whatever several probes need is computed once.

    truth: of the training scenes.
    odd: where the odd object appears in agentview, (n, 2), by split: it is pointed at, not looked for.
    """

    def __init__(
        self, readout: ReadOut, truth: Truth, odd: Mapping[str, NDArray[np.float32]], device: torch.device
    ) -> None:
        self.readout, self.truth, self.odd, self.device = readout, truth, odd, device
        self._axes: dict[tuple[int | None, int | None], PrincipalAxes] = {}
        self._found: dict[tuple[str, str, int | None], Tensor] = {}

    def axes(self, view: int | None, most: int | None) -> PrincipalAxes:
        """Principal axes of the training scenes' tokens, of one view or of all."""
        if (view, most) not in self._axes:
            rows = np.sort(np.random.default_rng(0).permutation(len(self.truth))[:AXES_SCENES])
            tokens = [
                self.readout.maps("train", part, view).movedim(2, -1).flatten(0, -2) for part in np.array_split(rows, 8)
            ]
            found = PrincipalAxes.of(torch.cat(tokens), most)
            self._axes[view, most] = PrincipalAxes(found.mean.to(self.device), found.axes.to(self.device))
        return self._axes[view, most]

    def maps(self, split: str, view: int) -> Tensor:
        """One view's maps along their KEPT strongest axes: (n, k, h, w)."""
        axes = self.axes(view, KEPT)
        parts = batches(self.readout.counts[split])
        return self._once(
            ("map", split, view),
            lambda: torch.cat([axes(self.readout.maps(split, rows, view)[:, 0].to(self.device)) for rows in parts]),
        )

    def columns(self, kind: str, view: int) -> tuple[Tensor, Tensor]:
        """Training and test scenes as rows of "map", "mean", "cls" or "place", the map where the odd object is."""
        train, test = (self._rows(kind, split, view) for split in SPLITS)
        return train, test

    def _rows(self, kind: str, split: str, view: int) -> Tensor:
        if kind == "map":  # the KEPT_FLAT strongest axes, every cell a column
            return self.maps(split, view)[:, :KEPT_FLAT].flatten(1)
        if kind == "place":
            return self._once((kind, split, view), lambda: self._at(split, view))
        make = {"mean": self.readout.means, "cls": self.readout.summaries}[kind]
        return self._once((kind, split, None), lambda: make(split).to(self.device))[:, view]

    def _at(self, split: str, view: int) -> Tensor:
        """The map, on all its axes, between the tokens around the odd object: (n, C)."""
        found = []
        for rows in batches(self.readout.counts[split]):
            places = (torch.from_numpy(self.odd[split][rows]) * torch.tensor([1.0, -1.0]))[:, None, None]  # y down
            maps = self.readout.maps(split, rows, view)[:, 0].float()
            found.append(F.grid_sample(maps, places, align_corners=False, padding_mode="border").flatten(1))
        return torch.cat(found).to(self.device)

    def _once(self, key: tuple[str, str, int | None], make: Callable[[], Tensor]) -> Tensor:
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]


def divide(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Training scenes to fit on, and the tenth of them to validate on."""
    order = torch.from_numpy(np.random.default_rng((seed, count)).permutation(count))
    tenth = max(1, count // 10)
    return order[tenth:].sort().values, order[:tenth].sort().values


# -- the probes ------------------------------------------------------------------------------------------------------


def position(evidence: Evidence, seed: int) -> Fitted:
    """Where each of the four cubes is, from agentview: a spatial softmax, and ridge on what is left without one."""
    cubes = torch.from_numpy(evidence.truth.cubes).flatten(1).to(evidence.device)  # (n, 8)
    fit, valid = divide(len(cubes), seed)
    answers, chosen = {}, {}
    for kind in ("map", "mean", "cls"):
        train, test = evidence.columns(kind, AGENT)
        head = fit_ridge((train[fit], cubes[fit]), (train[valid], cubes[valid]), _distance)
        answers[kind], chosen[kind] = _numpy(head(test)), head.strength
    answers["softmax"], chosen["softmax"] = _find_cubes(evidence, cubes, seed)
    return Fitted({kind: answer.reshape(-1, len(COLOURS), 2) for kind, answer in answers.items()}, chosen)


def _find_cubes(evidence: Evidence, cubes: Tensor, seed: int) -> tuple[NDArray[Any], float]:
    """Learned with coordinates brought to unit variance."""
    fit, _ = divide(len(cubes), seed)
    mean, spread = cubes[fit].mean(dim=0), cubes[fit].std(dim=0)
    wanted = (cubes - mean) / spread
    answer, step = _spatial_softmax(
        evidence, AGENT, wanted.shape[1],
        lambda found, rows: F.smooth_l1_loss(found, wanted[rows]),
        lambda found, rows: _distance(found, wanted[rows]), SPATIAL, seed,
    )  # fmt: skip
    return _numpy(answer * spread + mean), step


def _spatial_softmax(
    evidence: Evidence,
    view: int,
    outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    error: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    seed: int,
) -> tuple[Tensor, float]:
    """Fit a `SpatialHead` on one view; its outputs (n, outputs) for the test scenes, and the step it stopped at.

    loss, error: of answers for the training scenes in these rows; the one to learn by, the other to stop by.
    """
    maps = evidence.maps("train", view)
    fit, valid = divide(len(maps), seed)
    with drawn_from(seed):
        head = SpatialHead(maps.shape[1], evidence.readout.grid, outputs).to(evidence.device)
    step = train_by_steps(
        head,
        lambda rows: loss(head(maps[fit[rows]]), fit[rows]),
        lambda: float(error(head(maps[valid]), valid)),
        len(fit), schedule, seed,
    )  # fmt: skip
    with torch.no_grad():
        return torch.cat([head(part) for part in evidence.maps("test", view).split(256)]), float(step)


def leftmost(evidence: Evidence, seed: int) -> Fitted:
    """The colour furthest to the left in agentview."""
    return _classify(evidence, evidence.truth.leftmost, len(COLOURS), AGENT, seed, ("map", "mean"))


def shape(evidence: Evidence, seed: int) -> Fitted:
    """What the odd object is, in agentview, for whoever is shown where it is."""
    return _classify(evidence, evidence.truth.shape, len(SHAPES), AGENT, seed, ("place", "map", "mean"))


def contact(evidence: Evidence, seed: int) -> Fitted:
    """Whether a finger touches what is in the hand, from the wrist camera."""
    return _classify(evidence, evidence.truth.contact.astype(np.int64), 2, WRIST, seed, ("map", "mean"))


def _classify(
    evidence: Evidence, labels: NDArray[np.int64], classes: int, view: int, seed: int, kinds: tuple[str, ...]
) -> Fitted:
    wanted = torch.from_numpy(labels).to(evidence.device)
    fit, valid = divide(len(wanted), seed)
    answers, chosen = {}, {}
    for kind in kinds:
        train, test = evidence.columns(kind, view)
        head = fit_logistic((train[fit], wanted[fit]), (train[valid], wanted[valid]), classes)
        answers[kind], chosen[kind] = _numpy(head(test).argmax(dim=1)), head.strength
    if "place" in kinds:
        return Fitted(answers, chosen)

    def loss(found: Tensor, rows: Tensor) -> Tensor:
        return F.cross_entropy(found, wanted[rows])

    answer, chosen["softmax"] = _spatial_softmax(evidence, view, classes, loss, loss, RECOGNISE, seed)
    answers["softmax"] = _numpy(answer.argmax(dim=1))
    return Fitted(answers, chosen)


def segmentation(evidence: Evidence, seed: int) -> Fitted:
    """What each pixel of both views belongs to."""
    truth = torch.from_numpy(evidence.truth.labels).long()  # (n, V, SIDE, SIDE)

    def loss(answer: Tensor, rows: Tensor) -> Tensor:
        return F.cross_entropy(answer, truth[rows].flatten(0, 1).to(answer.device))

    answer, step = _dense(evidence, len(LABELS), loss, lambda found: found.argmax(dim=1).byte(), seed)
    return Fitted({"labels": answer}, {"step": step})


def depth(evidence: Evidence, seed: int) -> Fitted:
    """How far each pixel of both views is, learned as its logarithm."""
    known = has_depth(evidence.truth.depth)
    logs = np.log(np.where(known, evidence.truth.depth, 1.0))
    mean, spread = float(logs[known].mean()), float(logs[known].std()) + 1e-6
    wanted, mask = torch.from_numpy((logs - mean) / spread), torch.from_numpy(known)

    def loss(answer: Tensor, rows: Tensor) -> Tensor:
        there = mask[rows].flatten(0, 1).to(answer.device)
        off = (answer[:, 0] - wanted[rows].flatten(0, 1).to(answer.device)).abs()
        return (off * there).sum() / there.sum().clamp(min=1)

    answer, step = _dense(evidence, 1, loss, lambda found: (found[:, 0] * spread + mean).exp(), seed)
    return Fitted({"depth": answer}, {"step": step})


def _dense(
    evidence: Evidence,
    outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    finish: Callable[[Tensor], Tensor],
    seed: int,
) -> tuple[NDArray[Any], float]:
    """Fit a `DenseHead` on both views; answers (n, V, SIDE, SIDE) for the test scenes."""
    readout, device = evidence.readout, evidence.device
    fit, valid = divide(len(evidence.truth), seed)
    axes = evidence.axes(None, None)
    with drawn_from(seed):
        head = DenseHead(axes, outputs, SIDE).to(device)

    def of(split: str, rows: Any) -> Tensor:
        answer: Tensor = head(readout.maps(split, rows).flatten(0, 1).to(device))
        return answer

    def of_training(rows: Tensor) -> Tensor:
        return loss(of("train", rows.numpy()), rows)

    def valid_error() -> float:
        return sum(float(of_training(rows)) * len(rows) for rows in valid.split(32)) / len(valid)

    step = train_by_steps(head, lambda rows: of_training(fit[rows]), valid_error, len(fit), DENSE, seed)
    with torch.no_grad():
        answers = [_numpy(finish(of("test", rows))) for rows in batches(readout.counts["test"], 32)]
    views = len(CAMERAS)
    return np.concatenate(answers).reshape(-1, views, SIDE, SIDE), float(step)


PROBES: dict[str, Callable[[Evidence, int], Fitted]] = {
    "position": position,
    "segmentation": segmentation,
    "depth": depth,
    "leftmost": leftmost,
    "shape": shape,
    "contact": contact,
}


def blind(truth: Truth, count: int) -> dict[str, dict[str, NDArray[Any]]]:
    """Good answers for `count` scenes of whoever knows the training scenes and sees no image, by probe.

    Of depth the median, as the heads' loss is absolute; by RMSE, its score, the mean would be a little better.
    """

    def same(answer: Any) -> NDArray[Any]:
        return np.broadcast_to(answer, (count, *np.shape(answer)))

    most = {name: same(np.bincount(getattr(truth, name)).argmax()) for name in ("leftmost", "shape", "contact")}
    often = np.stack([(truth.labels == k).sum(axis=0) for k in range(len(LABELS))])
    known = has_depth(truth.depth)
    middle = np.median(np.where(known, truth.depth, np.median(truth.depth[known])), axis=0)
    return {
        "position": dict.fromkeys(("softmax", "map", "mean", "cls"), same(truth.cubes.mean(axis=0))),
        "segmentation": {"labels": same(often.argmax(axis=0))},
        "depth": {"depth": same(middle)},
        **{name: dict.fromkeys(("softmax", "map", "mean", "place"), answer) for name, answer in most.items()},
    }


def _distance(answer: Tensor, wanted: Tensor) -> Tensor:
    """Mean distance between points given as (n, 2 * points)."""
    distances: Tensor = (answer - wanted).unflatten(1, (-1, 2)).norm(dim=-1)
    return distances.mean()


def _numpy(values: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = values.detach().cpu().numpy()
    return found
