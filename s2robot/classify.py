"""What is in an image: linear classifiers on frozen features of any folder of images by class.

    images -> squares -> one vector a scale: the mean token, or CLS -> scales side by side -> logistic regression

The paper's classification (Shi et al. 2024, Table 5) on images of one's own. Averaged over all places, the coarse and
the finest grid are the same vector, so there are two read-outs: `base`, the coarsest scale, and `s2`, all of them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from s2robot import bootstrap, files, machine
from s2robot.bootstrap import Counts, ratio
from s2robot.encoder import EncoderConfig
from s2robot.errors import InvalidInput
from s2robot.image_vectors import HEADS, Vectors, encode_images
from s2robot.labelled import Labelled, find_labelled
from s2robot.probe import differences
from s2robot.probe_features import Subject
from s2robot.probe_heads import fit_logistic
from s2robot.probe_subjects import find_subject
from s2robot.probe_tasks import divide
from s2robot.progress import Report

READOUTS = ("base", "s2")
MISTAKEN = 5  # pairs of classes that a row names

Answers = NDArray[np.int64]
"""Of every probe seed, for every test image: (K, n)."""


@dataclass(frozen=True)
class ClassifyConfig:
    """Whose features, of which images.

    source: a folder with a folder of images for each class, or with train/ and test/ of such folders.
    frame_size: pixels of the square taken from an image; 0: the largest scale of all encoders.
    test: share of each class that is tested on, where the folder does not say.
    seeds: of which tenth of the training images validates.
    seed: of what is tested on.
    """

    source: str = ""
    encoders: tuple[str, ...] = ("s2robot-tiny", "random")
    scales: tuple[float, ...] = (1.0, 2.0)
    sizes: tuple[int, ...] = ()  # in pixels, instead of scales
    frame_size: int = 0
    test: float = 0.2
    seeds: int = 3
    seed: int = 0
    engine: str = "auto"

    def __post_init__(self) -> None:
        if not self.source:
            raise InvalidInput("Give --source FOLDER, with a folder of images for each class")
        if not self.encoders or len(set(self.encoders)) < len(self.encoders):
            raise InvalidInput(f"encoders are {self.encoders}; expected one or more, each once")
        if self.seeds < 1 or not 0 < self.test < 1 or self.frame_size < 0 or self.seed < 0:
            given = f"seeds is {self.seeds}, test {self.test}, frame_size {self.frame_size}, seed {self.seed}"
            raise InvalidInput(f"{given}; expected 1 or more, a share between 0 and 1, pixels or 0, and 0 or more")
        self.encoder  # scales or sizes that cannot be are said here  # noqa: B018

    @property
    def encoder(self) -> EncoderConfig:
        return EncoderConfig(scales=self.scales, sizes=self.sizes, engine=self.engine)


class Exam:
    """Which images can be read, and what is right."""

    def __init__(self, images: Labelled, readable: NDArray[np.bool_]) -> None:
        rows, self.unreadable = np.flatnonzero(readable), np.flatnonzero(~readable)
        self.train, self.test = rows[rows < images.train], rows[rows >= images.train]
        self.images, self.labels = images, torch.from_numpy(images.labels)
        missing = np.setdiff1d(np.arange(len(images.classes)), images.labels[self.train])
        if len(missing) or not len(self.test):
            of = ", ".join(images.classes[k] for k in missing[:8]) or "the test"
            raise InvalidInput(f"No image of {of} can be read, of {len(images.paths)} in {images.root}")

    def answer(self, columns: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
        """Classes of the test images, by a head that never saw them."""
        x, y = torch.from_numpy(columns), self.labels
        fit, valid = (torch.from_numpy(self.train)[rows] for rows in divide(len(self.train), seed))
        head = fit_logistic((x[fit], y[fit]), (x[valid], y[valid]), len(self.images.classes), balanced=False)
        answers: NDArray[np.int64] = head(x[torch.from_numpy(self.test)]).argmax(dim=1).numpy()
        return answers

    def counts(self, answers: Answers) -> Counts:
        """Right, and a one: (K, n, 2)."""
        right = answers == self.images.labels[self.test]
        counts: Counts = np.stack([right, np.ones_like(right)], axis=-1).astype(np.float64)
        return counts

    def mistaken(self, answers: Answers) -> list[dict[str, Any]]:
        """The pairs of classes most often taken for one another, of all seeds together."""
        true, names = np.broadcast_to(self.images.labels[self.test], answers.shape), self.images.classes
        wrong = answers != true
        pairs = Counter(zip(true[wrong].tolist(), answers[wrong].tolist(), strict=True))
        return [{"true": names[a], "answered": names[b], "times": n} for (a, b), n in pairs.most_common(MISTAKEN)]

    def commonest(self) -> float:
        """What the commonest training class scores: an answer without an image."""
        label = np.bincount(self.images.labels[self.train]).argmax()
        return float((self.images.labels[self.test] == label).mean())


def classify(config: ClassifyConfig, out: Path, told: Callable[[str], Report], command: str = "") -> dict[str, Any]:
    """Run or resume; returns what `out/classify.json` holds. Features lie in `out/features`.

    Args:
        told: makes the progress report of a stage.
        command: what was typed, for the record.

    Raises:
        InvalidInput: the folder is not divided into classes, or no image of one of them can be read.
    """
    images = find_labelled(Path(config.source).expanduser(), config.test, config.seed)
    subjects = [find_subject(name, config.encoder) for name in config.encoders]
    size = config.frame_size or max(max(subject.sizes) for subject in subjects)
    seen = {each.label: _encoded(each, images, size, out / "features", told) for each in subjects}
    readouts = READOUTS[: len(subjects[0].lookers)]
    exam = Exam(images, np.logical_and.reduce([scale.readable for scales in seen.values() for scale in scales]))
    counts: dict[tuple[str, str, str], Counts] = {}
    rows = []
    for subject in subjects:
        report = told(f"classify {subject.label}")
        for readout in readouts:
            parts = seen[subject.label][: 1 if readout == "base" else None]
            answers = _examined(exam, parts, config.seeds, report)
            counts |= {(subject.label, readout, head): exam.counts(given) for head, given in answers.items()}
            rows.append(_row(subject, readout, parts, exam, answers))
    result = {
        "command": command, "config": dataclasses.asdict(config), "frame_size": size, "classes": list(images.classes),
        "n": {"train": len(exam.train), "test": len(exam.test)},
        "skipped": [str(images.paths[k]) for k in exam.unreadable],
        "rows": rows, "commonest": exam.commonest(),
        "differences": differences(counts, config.encoders, readouts, lambda _: ratio),
        **machine.provenance(),
    }  # fmt: skip
    files.write_json(out / "classify.json", result)
    return result


def _encoded(subject: Subject, images: Labelled, size: int, out: Path, told: Callable[[str], Report]) -> list[Vectors]:
    """Coarse scale first."""
    report = told(f"encode {subject.label}")
    return [encode_images(each, images, size, out, report) for each in subject.lookers]


def _examined(exam: Exam, parts: list[Vectors], seeds: int, told: Report) -> dict[str, Answers]:
    """Answers by head."""
    found = {}
    for k, head in enumerate(HEADS):
        columns = np.concatenate([part.by_head[head] for part in parts], axis=1)
        answers = []
        for seed in range(seeds):
            answers.append(exam.answer(columns, seed))
            told(k * seeds + seed + 1, len(HEADS) * seeds, f"{head}, {len(parts)} scales")
        found[head] = np.stack(answers)
    return found


def _row(
    subject: Subject, readout: str, parts: list[Vectors], exam: Exam, answers: dict[str, Answers]
) -> dict[str, Any]:
    return {
        "encoder": subject.label, "readout": readout, "weights": subject.weights, "parameters": subject.parameters,
        "sizes": list(subject.sizes[: len(parts)]),
        "channels": {head: sum(part.by_head[head].shape[1] for part in parts) for head in HEADS},
        "scores": {
            head: dataclasses.asdict(bootstrap.proportion(exam.counts(each), ratio)) for head, each in answers.items()
        },
        "mistaken": exam.mistaken(answers[HEADS[0]]),
    }  # fmt: skip
