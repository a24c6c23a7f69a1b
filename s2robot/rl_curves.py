"""Learning curves of runs of `s2robot rl`, as one picture: success on validation seeds over control steps.

    s2robot rl curves docs/rl/reach-*.jsonl --title Reach --svg docs/images/rl-reach.svg

Runs whose names differ in a last number alone are seeds of one arm, and a sample of it: its intervals are those of
`s2robot compare`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from s2robot import command, compare, files
from s2robot.charts import Series, as_file, line_chart_svg
from s2robot.errors import InvalidInput

KEPT = ("step", "validation_success", "validation_episodes", "validation_steps", "success", "return", "seconds")


def rl_curves(argv: Sequence[str]) -> int:
    """The verb `rl curves`."""
    parser = command.parser(
        "rl curves", "Draw the learning curves of runs, with 95 % intervals.",
        "s2robot rl curves runs/reach-sac-0 runs/reach-sac-1 --title Reach --svg reach.svg", key="",
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", help="run folders, or their metrics as .jsonl files")
    parser.add_argument("--title", default="Success on validation seeds", help="of the picture")
    parser.add_argument("--svg", required=True, help="the picture to write")
    parser.add_argument("--keep", default=None, metavar="FOLDER", help="also write each run's points there")
    options = parser.parse_args(list(argv))
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in map(Path, options.runs):
        if _name(run) in runs:
            raise InvalidInput(f"Two runs are called {_name(run)}, and a curve has its run's name: rename one of them")
        runs[_name(run)] = points(run)
    if options.keep:
        for name, rows in runs.items():
            path = Path(options.keep) / f"{name}.jsonl"  # which may be where they were read
            with files.atomic(path) as temporary, files.JsonLines(temporary) as lines:
                for row in rows:
                    lines.write(row)
    with files.atomic(options.svg) as temporary:
        temporary.write_text(as_file(curves_svg(runs, options.title)), encoding="utf-8")
    return 0


def points(run: Path) -> list[dict[str, Any]]:
    """The points of a run's curve, oldest first.

    Raises:
        InvalidInput: no such run, or it has not come to its first point.
    """
    path = run / "metrics.jsonl" if run.is_dir() else run
    if not path.is_file():
        raise InvalidInput(f"No metrics in {run}: give run folders of s2robot rl, or their metrics.jsonl")
    rows = [row for row in files.read_jsonl(path) if row.get("validation_episodes")]
    if not rows:
        raise InvalidInput(f"{run} has no point of its curve yet: one comes every --validate_every control steps")
    return [{key: row[key] for key in KEPT if row.get(key) is not None} for row in rows]


def curves_svg(runs: dict[str, list[dict[str, Any]]], title: str) -> str:
    """One line an arm."""
    named: dict[str, list[list[dict[str, Any]]]] = {}
    for name, rows in runs.items():
        named.setdefault(re.sub(r"-\d+$", "", name), []).append(rows)
    series = [_series(name, seeds) for name, seeds in named.items()]
    return line_chart_svg(series, title, "control steps", "success [%]")


def _series(name: str, seeds: list[list[dict[str, Any]]]) -> Series:
    """Of all seeds together, at the steps that all have come to."""
    at = sorted(set.intersection(*({row["step"] for row in rows} for rows in seeds)))
    if not at:
        raise InvalidInput(f"Seeds of {name} have no point in common; expected one --validate_every for all")
    rates, lows, highs = [], [], []
    for step in at:
        found = [row for rows in seeds for row in rows if row["step"] == step]
        counts = {row["validation_episodes"] for row in found}
        if len(counts) > 1:
            raise InvalidInput(
                f"Seeds of {name} have {sorted(counts)} rollouts a point; expected one --validate for all"
            )
        wins = np.array([round(row["validation_success"] * row["validation_episodes"]) for row in found])
        # Which starts failed is not kept: taken as the same for all seeds, which makes intervals no narrower.
        rate = compare.rate(compare.Arm(name, np.arange(counts.pop()) < wins[:, None]))
        rates.append(100 * rate.rate)
        lows.append(100 * rate.low)
        highs.append(100 * rate.high)
    label = name if len(seeds) == 1 else f"{name} ({len(seeds)} seeds)"
    return Series(label, at, rates, lows, highs)


def _name(run: Path) -> str:
    return run.stem if run.suffix == ".jsonl" else run.name
