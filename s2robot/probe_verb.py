"""The verb `probe`: what is asked, and the answers as tables, JSON and a picture."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from s2robot import charts, command, files
from s2robot import config as configuration
from s2robot.errors import UnknownName
from s2robot.parser import json_option
from s2robot.probe import ProbeConfig, measures_of, probe
from s2robot.probe_scores import MEASURES
from s2robot.probe_tables import Bars, across, against, called, interval

OTHERS = ("classify", "reconstruct")  # words of their own after `probe`
QUICK = ["--probes", "position,segmentation", "--scenes.train", "300", "--scenes.test", "100"]
ABOUT = {
    "position": "position of four cubes in agentview, mean error",
    "segmentation": "segmentation of both views",
    "depth": "depth of both views",
    "leftmost": "which cube is leftmost, accuracy",
    "shape": "what the odd object is, accuracy",
    "contact": "does a finger touch what is in the hand, balanced accuracy",
}


def do_probe(argv: Sequence[str]) -> int:
    if argv and not argv[0].startswith("-") and argv[0] not in OTHERS:
        raise UnknownName("word after probe", argv[0], OTHERS, "or options alone; see s2robot probe --help")
    if argv and argv[0] in OTHERS:
        of = importlib.import_module(f"s2robot.{argv[0]}_verb")
        code: int = getattr(of, f"do_{argv[0]}")(argv[1:])
        return code
    parser = command.parser(
        "probe",
        "What frozen features know, on held-out scenes: heads fitted on training scenes, with the simulator's truth.\n"
        "`s2robot probe classify --help`: what is in an image, of any folder of images by class.\n"
        "`s2robot probe reconstruct --help`: how much of a larger model's features a smaller one holds.",
        "s2robot probe --encoders s2robot-tiny,random,mine=runs/my-encoder/encoder.safetensors --quick",
        "--scenes.seed 1",
    )
    parser.add_argument("--quick", action="store_true", help="position and segmentation on 300 + 100 scenes")
    parser.add_argument("--data", default="runs/probe-data", help="rendered scenes and features (default %(default)s)")
    parser.add_argument("--out", default="runs/probe", help="results (default %(default)s)")
    parser.add_argument("--workers", type=int, default=None, help="processes that render (default: one a core)")
    json_option(parser)
    command.shorthands(
        parser, encoders="encoders", probes="probes", readouts="readouts", seeds="seeds", scales="scales",
        sizes="sizes", train="scenes.train", test="scenes.test",
    )  # fmt: skip
    options, rest = command.parse(parser, argv)
    words = [*(QUICK if options.quick else []), *command.overrides(options, rest)]
    config = configuration.load(ProbeConfig, None, words)
    console, out = command.console(json=options.json), Path(options.out)
    with Bars(console) as told:
        result = probe(config, Path(options.data), out, told, options.workers, shlex.join(["s2robot", "probe", *argv]))
    picture = _picture(result["rows"])
    (out / "probe.svg").unlink(missing_ok=True)  # of other probes, perhaps
    if picture:
        with files.atomic(out / "probe.svg") as temporary:
            temporary.write_text(picture, encoding="utf-8")
    if options.json:
        command.tell_json(result)
        return 0
    _tell(result, console, out)
    return 0


def _tell(result: dict[str, Any], console: Console, out: Path) -> None:
    for name in result["config"]["probes"]:
        console.print(_table(name, result))
        for line in across(measures_of(name)[0].name, result):
            console.print(line, highlight=False, soft_wrap=True)
    n, seeds = result["n"], result["config"]["seeds"]
    console.print(
        f"Heads fitted on {n['train']} scenes (a tenth of them to choose by), scored on {n['test']} others; {seeds} "
        f"seeds. In brackets: 95 % interval over scenes and seeds; sd: between seeds, same scenes. {out}/probe.json",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _table(probe_name: str, result: dict[str, Any]) -> Table:
    measures = measures_of(probe_name)
    better = "higher" if measures[0].higher_is_better else "lower"
    table = command.table("encoder", "read-out", words=2, title=f"\n{ABOUT[probe_name]} ({better} is better)")
    first = called(result["config"]["encoders"][0], result)
    for measure in measures:
        unit = f" [{measure.unit}]" if measure.unit else ""
        table.add_column(
            f"{measure.title}{unit}".replace("[", r"\["),
            justify="right",
            min_width=21 if measure is measures[0] else None,
        )
    table.add_column("sd", justify="right")
    versus = len(result["config"]["encoders"]) > 1
    if versus:
        table.add_column(f"against {first}", justify="right", min_width=20)
    for row in result["rows"]:
        scores = [row["scores"][measure.name] for measure in measures]
        cells = [
            called(row["encoder"], result),
            row["readout"],
            *[interval(score, k == 0) for k, score in enumerate(scores)],
        ]
        cells.append(f"{scores[0]['seed_sd']:.3f}")
        table.add_row(*cells, *([against(row, measures[0].name, result["differences"])] if versus else []))
    table.add_row("(without an image)", "", *[f"{result['blind'][measure.name]:.3f}" for measure in measures])
    return table


def _picture(rows: Sequence[dict[str, Any]]) -> str:
    """Position against segmentation, one mark a read-out; nothing where one of them was not asked."""
    return charts.dot_chart_svg(
        list(_dots(rows)), ("trained", "random weights"), "What frozen features know",
        "position error of four cubes [cm]", "segmentation mIoU",
    ) if len(list(_dots(rows))) > 1 else ""  # fmt: skip


def _dots(rows: Sequence[dict[str, Any]]) -> Iterator[charts.Dot]:
    x, y = "position/softmax", "segmentation/miou"
    assert {x, y} <= MEASURES.keys()
    for row in rows:
        scores = row["scores"]
        if x in scores and y in scores:
            label = f"{row['encoder']} {row['readout']}"
            yield charts.Dot(scores[x]["value"], scores[y]["value"], label, crossed=row["weights"] == "random")
