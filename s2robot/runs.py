"""What a run folder holds, and how it is read back.

    summary.json         what was done and how well (`SUMMARY`)
    metrics.jsonl        one line a logged training step (`METRIC`)
    episodes.jsonl       one line an evaluation episode (`EPISODE`)
    config.yaml          the resolved configuration
    videos/*.mp4         success, failure
    pictures/*.png       features (what each scale sees), strip (stills of one episode)
    report.html          all of the above on one page (`s2robot.report`)

Only `summary.json` must be there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2robot.errors import CorruptFile, InvalidInput
from s2robot.files import read_json, read_jsonl

SEED_FOLDER = "seed-{}"  # in one folder, runs that differ by their training seed alone

NUMBER, TEXT, FLAG = (int, float), str, bool
ANY_KEY = "*"

_QUANTILES = {"p50": NUMBER, "p99": NUMBER, "mean": NUMBER, "n": NUMBER}
_BASELINE = {
    "name": TEXT,
    "scale_names": [TEXT],  # in summaries of before: scales, numbers
    "scales": [NUMBER],
    "successes": NUMBER,
    "episodes": NUMBER,
    "interval": [NUMBER],
    # this run minus the baseline, on the same seeds: s2robot.statistics.paired_difference(this, baseline)
    "paired": {"difference": NUMBER, "low": NUMBER, "high": NUMBER, "p_value": NUMBER, "resolved": FLAG},
}

# Keys may be missing or null; keys not named here are let through.
SUMMARY: dict[str, Any] = {
    "title": TEXT,
    "task": TEXT,
    "successes": NUMBER,
    "episodes": NUMBER,
    "success_rate": NUMBER,
    "interval": [NUMBER],  # low and high of the 95 % interval
    "seed": NUMBER,
    "evaluation_seeds": [NUMBER],  # first and last
    "demos": NUMBER,
    "dataset": {"name": TEXT, "fingerprint": TEXT},  # of the demonstrations it learned from
    "encoder": {"name": TEXT, "scales": [NUMBER], "parameters": NUMBER, "fingerprint": TEXT},
    "policy": {"kind": TEXT, "parameters": NUMBER, "execute": NUMBER},  # execute: actions played a look
    "stages": [{"name": TEXT, "seconds": NUMBER, "detail": TEXT}],
    "latency_ms": {ANY_KEY: _QUANTILES},  # render, encode, act, step
    "steps_to_success": {"p50": NUMBER},
    "scales": {"all": NUMBER, "without": {ANY_KEY: NUMBER}},  # loss on held-out episodes: `s2robot.contribution`
    "log": TEXT,  # of the episodes, where it is not episodes.jsonl
    "baselines": [_BASELINE],
    "fidelity": {ANY_KEY: TEXT},  # physics of "collect" and of "evaluate"
    "command": TEXT,
    "machine": {},
    "versions": {},
    "git": TEXT,
}
METRIC: dict[str, Any] = {"step": NUMBER, "loss": NUMBER, "valid_loss": NUMBER, "lr": NUMBER, "seconds": NUMBER}
EPISODE: dict[str, Any] = {"seed": NUMBER, "success": FLAG, "steps": NUMBER}

REMEDY = "Run the command that made this folder again."


@dataclass(frozen=True)
class Run:
    """A run folder, read and held against the tables above."""

    folder: Path
    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    episodes: Sequence[Mapping[str, Any]]
    config: str

    def file(self, name: str) -> Path | None:
        """A file of the folder that is there and not empty."""
        path = self.folder / name
        return path if path.is_file() and path.stat().st_size else None


def read_run(folder: str | Path) -> Run:
    """Read a run folder.

    Raises:
        InvalidInput: the folder holds no summary.json.
        CorruptFile: a file cannot be read, or holds something else than `SUMMARY`, `METRIC` or `EPISODE` say.
    """
    folder = Path(folder)
    if not (folder / "summary.json").is_file():
        if not folder.is_dir():
            raise InvalidInput(f"No folder {folder}")
        raise InvalidInput(f"{folder} is not a finished run: it holds no summary.json. {_next_step(folder)}")
    summary = _read(folder / "summary.json", read_json, SUMMARY)
    for result in (summary, *summary.get("baselines", [])):
        successes, episodes = result.get("successes"), result.get("episodes")
        counted = successes is not None and episodes is not None
        if counted and (episodes < 1 or not 0 <= successes <= episodes):
            raise CorruptFile(folder / "summary.json", f"{successes} successes in {episodes} episodes", REMEDY)
    config = folder / "config.yaml"
    return Run(
        folder=folder,
        summary=summary,
        metrics=_read_lines(folder / "metrics.jsonl", METRIC),
        episodes=_read_lines(folder / summary.get("log", "episodes.jsonl"), EPISODE),
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
    )


def _next_step(folder: Path) -> str:
    if (folder / "study.yaml").exists():
        return f"It is a study: the command that made it writes its page, {folder / 'report.html'}"
    if seeds := seed_folders(folder):
        return f"It holds the runs of --seeds. A page of one: s2robot eval {seeds[0]} --report"
    return "To make one: " + (f"s2robot eval {folder} --report" if (folder / "policy").is_dir() else "s2robot demo")


def _read_lines(path: Path, shape: dict[str, Any]) -> list[Mapping[str, Any]]:
    lines: list[Mapping[str, Any]] = _read(path, read_jsonl, [shape]) if path.is_file() else []
    return lines


def _read(path: Path, read: Callable[[Path], Any], shape: Any) -> Any:
    try:
        return _held_against(read(path), shape, "the content")
    except TypeError as error:
        raise CorruptFile(path, str(error), REMEDY) from None


def _held_against(value: Any, shape: Any, where: str) -> Any:
    """The value without its nulls and NaNs, or a TypeError that names the place that does not fit."""
    if isinstance(shape, dict):
        _expect(isinstance(value, dict), value, "an object", where)
        kept = {key: inner for key, inner in value.items() if not _says_nothing(inner)}
        return {
            key: _held_against(inner, shape.get(key, shape.get(ANY_KEY)), f"{where}.{key}")
            for key, inner in kept.items()
        }
    if isinstance(shape, list):
        _expect(isinstance(value, list), value, "a list", where)
        return [_held_against(inner, shape[0], f"{where}[{place}]") for place, inner in enumerate(value)]
    if shape is not None:
        is_flag = isinstance(value, bool)  # which Python also counts as a number
        words = {NUMBER: "a number", TEXT: "text", FLAG: "true or false"}[shape]
        _expect(isinstance(value, shape) and is_flag == (shape is FLAG), value, words, where)
    return value


def _says_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _expect(fits: bool, value: Any, wanted: str, where: str) -> None:
    if not fits:
        raise TypeError(f"{where} is {str(value)[:60]!r}, expected {wanted}")


def find_policy(run: str | Path) -> Path:
    """The folder of a policy: a run's `policy/`, or this folder itself.

    Raises:
        InvalidInput: it holds none.
    """
    for folder in (Path(run) / "policy", Path(run)):
        if (folder / "policy.json").exists():
            return folder
    raise InvalidInput(f"No policy in {run}: it has no policy.json. Train one: s2robot train --help")


def seed_folders(folder: Path) -> list[Path]:
    """The runs of `train --seeds` in a folder, by seed; none where it is one run itself."""
    if (folder / "policy").is_dir():
        return []
    found = {path.name.removeprefix(SEED_FOLDER.format("")): path for path in folder.glob(SEED_FOLDER.format("*"))}
    return [found[seed] for seed in sorted(filter(str.isdecimal, found), key=int) if found[seed].is_dir()]
