"""What frozen features know, measured against the simulator's truth on scenes no head was fitted on: `s2robot probe`.

    scenes (rendered once) -> features (encoded once a scale) -> read-outs -> probes x seeds -> scores, intervals

Every finished (read-out, probe, seed) is a line of `scores.jsonl`, under a key of all that decides it: a killed run
goes on, and an encoder that was probed before costs nothing, whatever it is called this time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from s2robot import bootstrap, files, machine
from s2robot.bootstrap import Counts, Score
from s2robot.encoder import EncoderConfig
from s2robot.engines import find_device
from s2robot.errors import InvalidInput, S2RobotError, UnknownName
from s2robot.probe_data import ProbeData, ProbeDataConfig, load_data
from s2robot.probe_features import READOUTS, ReadOut, Subject, encode_part
from s2robot.probe_scores import MEASURES, Measure, iou_by_label
from s2robot.probe_subjects import find_subject
from s2robot.probe_tasks import PROBES, VERSION, Evidence, Fitted, blind
from s2robot.progress import Report

Scores = dict[tuple[str, str, str], Counts]
"""Counts (K seeds, n scenes, k numbers) by encoder, read-out and measure."""


@dataclass(frozen=True)
class ProbeConfig:
    """What to ask of whom."""

    encoders: tuple[str, ...] = ("s2robot-tiny", "random")
    probes: tuple[str, ...] = tuple(PROBES)
    readouts: tuple[str, ...] = READOUTS
    seeds: int = 3  # of heads, batches and validation scenes
    scales: tuple[float, ...] = (1.0, 2.0)
    sizes: tuple[int, ...] = ()  # in pixels, instead of scales
    engine: str = "auto"
    scenes: ProbeDataConfig = field(default_factory=ProbeDataConfig)

    def __post_init__(self) -> None:
        for kind, given, known in (("probe", self.probes, PROBES), ("read-out", self.readouts, READOUTS)):
            for name in given:
                if name not in known:
                    raise UnknownName(kind, name, known, "s2robot probe --help")
        for name in ("encoders", "probes", "readouts"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise InvalidInput(f"{name} are {given}; expected one or more, each once")
        if self.seeds < 1:
            raise InvalidInput(f"seeds is {self.seeds}; expected 1 or more, 3 to see how much they matter")
        self.encoder  # scales or sizes that cannot be are said here  # noqa: B018

    @property
    def encoder(self) -> EncoderConfig:
        return EncoderConfig(scales=self.scales, sizes=self.sizes, engine=self.engine, grid="finest")


def probe(
    config: ProbeConfig,
    scenes: Path,
    out: Path,
    told: Callable[[str], Report],
    processes: int | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Run or resume; returns what `out/probe.json` holds.

    Args:
        scenes: folder of rendered scenes and their features.
        told: makes the progress report of a stage.
        processes: that render; default: one a core.
        command: what was typed, for the record.
    """
    subjects = [find_subject(name, config.encoder) for name in config.encoders]  # mistakes are said before any work
    data = load_data(config.scenes, scenes, told("render"), processes)
    out.mkdir(parents=True, exist_ok=True)
    counts: Scores = {}
    rows: list[dict[str, Any]] = []
    with Journal(out / "scores.jsonl") as journal:
        for name, subject in zip(config.encoders, subjects, strict=True):
            parts = [encode_part(looker, data, told(f"encode {name}")) for looker in subject.lookers]
            lengths = {"train": data.train.count, "test": data.test.count}
            readouts = [ReadOut(each, parts, lengths) for each in config.readouts]
            steps = _Steps(told(f"probe {name}"), len(readouts) * len(config.probes) * config.seeds)
            for readout in readouts:
                found, chosen = _run(config, readout, data, journal, steps)
                counts |= {(name, readout.name, measure): value for measure, value in found.items()}
                rows.append(_row(subject, readout, found, chosen))
    result = {
        "command": command, "config": dataclasses.asdict(config),
        "n": {"train": data.train.count, "test": data.test.count}, "data_fingerprint": data.fingerprint,
        "rows": rows, "blind": _blind(config, data),
        "differences": differences(counts, config.encoders, config.readouts, lambda name: MEASURES[name].score),
        **machine.provenance(),
    }  # fmt: skip
    files.write_json(out / "probe.json", result)
    return result


class Journal:
    """Finished work, by key."""

    def __init__(self, path: Path) -> None:
        known = files.read_jsonl(path) if path.exists() else []
        self.lines = {line["key"]: line for line in known}
        self._file = files.JsonLines(path)

    def add(self, line: dict[str, Any]) -> None:
        self._file.write(line)
        self.lines[line["key"]] = files.plain(line)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _Steps:
    """Counts finished work for a progress report."""

    def __init__(self, told: Report, total: int) -> None:
        self._told, self._total, self._done = told, total, itertools.count(1)

    def next(self, note: str) -> None:
        self._told(next(self._done), self._total, note)


def _run(
    config: ProbeConfig, readout: ReadOut, data: ProbeData, journal: Journal, steps: _Steps
) -> tuple[dict[str, Counts], dict[str, list[Any]]]:
    """Every probe and seed of one read-out: counts (K, n, k) by measure, and what validation chose by probe."""
    evidence = Evidence(readout, data.train.truth, data.odd, find_device(None))
    found: dict[str, Counts] = {}
    chosen: dict[str, list[Any]] = {}
    for name in config.probes:
        lines = []
        for seed in range(config.seeds):
            words = f"{data.fingerprint} {readout.fingerprint} {name} {seed} {VERSION}"
            key = hashlib.sha256(words.encode()).hexdigest()[:24]
            if key not in journal.lines:
                judged = _judged(PROBES[name](evidence, seed), name, data)
                journal.add({"key": key, "readout": readout.name, "probe": name, "seed": seed, **judged})
            lines.append(journal.lines[key])
            steps.next(f"{readout.name} {name}")
        chosen[name] = [line["chosen"] for line in lines]
        found |= {
            measure.name: np.array([line["counts"][measure.name] for line in lines], np.float64)
            for measure in measures_of(name)
        }
    return found, chosen


def _judged(fitted: Fitted, probe_name: str, data: ProbeData) -> dict[str, Any]:
    """Answers held against the test scenes' truth; only here does that truth come in."""
    counts = {
        measure.name: measure.count(fitted.answers[measure.answer], data.test.truth)
        for measure in measures_of(probe_name)
    }
    if wrong := [name for name, count in counts.items() if not np.isfinite(count).all()]:
        raise S2RobotError(f"The head's answers give no number for {wrong[0]}: its features or its fit are not finite")
    return {"chosen": fitted.chosen, "counts": counts}


def measures_of(probe_name: str) -> list[Measure]:
    """Of one probe, its headline first."""
    return [measure for measure in MEASURES.values() if measure.probe == probe_name]


def _row(subject: Subject, readout: ReadOut, counts: dict[str, Counts], chosen: dict[str, list[Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "encoder": subject.label, "readout": readout.name, "weights": subject.weights,
        "sizes": list(subject.sizes[: len(readout.parts)]), "parameters": subject.parameters,
        "channels": readout.channels, "grid": list(readout.grid),
        "fingerprints": [part.fingerprint for part in readout.parts], "chosen": chosen,
        "scores": {
            name: dataclasses.asdict(bootstrap.estimate(value, MEASURES[name].score)) for name, value in counts.items()
        },
    }  # fmt: skip
    if "segmentation/miou" in counts:
        row["iou"] = iou_by_label(counts["segmentation/miou"].sum(axis=0))
    return row


def _blind(config: ProbeConfig, data: ProbeData) -> dict[str, float]:
    """What the best answers without an image score, by measure."""
    answers = blind(data.train.truth, data.test.count)
    found = {}
    for name in config.probes:
        for measure in measures_of(name):
            counts = measure.count(answers[name][measure.answer], data.test.truth)
            found[measure.name] = float(measure.score(counts.sum(axis=0)))
    return found


def differences(
    counts: Scores, encoders: Sequence[str], readouts: Sequence[str], score_of: Callable[[str], Score]
) -> list[dict[str, Any]]:
    """Paired differences; score_of: a measure's score of summed counts.

    Every encoder against the first, read-out by read-out; every read-out against the first, within an encoder; and
    the first encoder's later read-outs against the others' first: a small net at more scales against a larger one.
    """
    pairs = [((name, each), (encoders[0], each)) for each in readouts for name in encoders[1:]]
    pairs += [((name, each), (name, readouts[0])) for name in encoders for each in readouts[1:]]
    pairs += [((encoders[0], each), (name, readouts[0])) for name in encoders[1:] for each in readouts[1:]]
    names = dict.fromkeys(name for _, _, name in counts)
    found = []
    for (a, b), name in itertools.product(pairs, names):
        each = bootstrap.paired_difference(counts[a[0], a[1], name], counts[b[0], b[1], name], score_of(name))
        found.append(
            {"a": list(a), "b": list(b), "measure": name, **dataclasses.asdict(each), "resolved": each.resolved}
        )
    return found
