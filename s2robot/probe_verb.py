"""The verb `probe`: what is asked, and the answers as tables, JSON and a picture."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from s2robot import charts, command, files, progress
from s2robot import config as configuration
from s2robot.probe import ProbeConfig, measures_of, probe
from s2robot.probe_scores import MEASURES, Measure

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
    if argv and argv[0] == "reconstruct":
        return do_reconstruct(argv[1:])
    parser = command.parser(
        "probe",
        "What frozen features know, on held-out scenes: heads fitted on training scenes, with the simulator's truth.\n"
        "`s2robot probe reconstruct --help`: how much of a larger model's features a smaller one holds.",
        "s2robot probe --encoders s2robot-tiny,random,mine=runs/mine/s2robot-tiny.safetensors --quick",
        "--scenes.seed 1",
    )
    parser.add_argument("--quick", action="store_true", help="position and segmentation on 300 + 100 scenes")
    parser.add_argument("--data", default="runs/probe-data", help="rendered scenes and features (default %(default)s)")
    parser.add_argument("--out", default="runs/probe", help="results (default %(default)s)")
    parser.add_argument("--workers", type=int, default=None, help="processes that render (default: one a core)")
    parser.add_argument("--json", action="store_true", help="for programs")
    command.shorthands(
        parser, encoders="encoders", probes="probes", readouts="readouts", seeds="seeds", scales="scales",
        sizes="sizes", train="scenes.train", test="scenes.test",
    )  # fmt: skip
    options, rest = parser.parse_known_args(list(argv))
    words = [*(QUICK if options.quick else []), *command.overrides(options, rest)]
    config = configuration.load(ProbeConfig, None, words)
    console, out = Console(stderr=options.json), Path(options.out)
    with _Bars(console) as told:
        result = probe(config, Path(options.data), out, told, options.workers, shlex.join(["s2robot", "probe", *argv]))
    picture = _picture(result["rows"])
    (out / "probe.svg").unlink(missing_ok=True)  # of other probes, perhaps
    if picture:
        with files.atomic(out / "probe.svg") as temporary:
            temporary.write_text(picture, encoding="utf-8")
    if options.json:
        Console(soft_wrap=True).out(json.dumps(files.plain(result), indent=2), highlight=False)
        return 0
    _tell(result, console, out)
    return 0


def do_reconstruct(argv: Sequence[str]) -> int:
    from s2robot.reconstruct import ReconstructConfig, reconstruct

    parser = command.parser(
        "probe reconstruct",
        "How much of a larger model's features a smaller one holds, with one scale and with several.\n"
        "Encoders are named as for `s2robot probe`; a bound is a still larger one, which ratios are taken against.\n"
        "Frames are of a folder of images, videos and demonstrations, of one of these, or a run's frames.npy.",
        "s2robot probe reconstruct --small vit-small --large vit-base --bound vit-large --source recordings/",
        "--frames 2000",
    )
    parser.add_argument("--out", default="runs/reconstruct", help="results, and the frames (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="for programs")
    command.shorthands(parser, **{key: key for key in ("small", "large", "bound", "source", "scales", "frames")})
    options, rest = parser.parse_known_args(list(argv))
    config = configuration.load(ReconstructConfig, None, command.overrides(options, rest))
    console, out = Console(stderr=options.json), Path(options.out)
    with progress.bar("reconstruct", console) as report:
        result = reconstruct(config, out, report)
    files.write_json(
        out / "reconstruct.json", {**result, "command": shlex.join(["s2robot", "probe", "reconstruct", *argv])}
    )
    if options.json:
        Console(soft_wrap=True).out(json.dumps(files.plain(result), indent=2), highlight=False)
        return 0
    console.width = console.width if console.is_terminal else 140
    console.print(_explained(result))
    return 0


def _explained(result: dict[str, Any]) -> Table:
    target, n = result["target"], result["frames"]
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left", title_style="bold")
    table.title = f"\n{target['name']} from smaller ones, {n['train']} frames to fit and {n['test']} others to score"
    for head in (
        "features of",
        "channels",
        "loss, fit",
        "loss",
        "information, fit",
        "information",
        "ratio, fit",
        "ratio",
    ):
        table.add_column(head, justify="left" if head == "features of" else "right")
    for row in result["rows"]:
        fit, test = row["train"], row["test"]
        cells = [row["model"], str(row["channels"]), f"{fit['loss']:.4g}", f"{test['loss']:.4g}"]
        cells += [f"{fit['information']:.3f}", rf"{test['information']:.3f} \[{test['low']:.3f}, {test['high']:.3f}]"]
        if "ratio" in test:
            span = rf"\[{100 * test['ratio_low']:.1f}, {100 * test['ratio_high']:.1f}]"
            cells += [f"{100 * fit['ratio']:.1f} %", f"{100 * test['ratio']:.1f} % {span}"]
        table.add_row(*cells)
    return table


class _Bars:
    """One progress bar a stage, each closed when the next one opens."""

    def __init__(self, console: Console) -> None:
        self._console, self._open = console, ExitStack()

    def __enter__(self) -> Callable[[str], progress.Report]:
        return self._next

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _next(self, label: str) -> progress.Report:
        self._open.close()
        return self._open.enter_context(progress.bar(label, self._console))


def _tell(result: dict[str, Any], console: Console, out: Path) -> None:
    console.width = console.width if console.is_terminal else 170  # a file or a pipe has no right edge
    for name in result["config"]["probes"]:
        console.print(_table(name, result))
        for line in _across(measures_of(name)[0], result):
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
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left", title_style="bold")
    table.title = f"\n{ABOUT[probe_name]} ({better} is better)"
    first = _called(result["config"]["encoders"][0], result)
    for head in ("encoder", "read-out"):
        table.add_column(head)
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
            _called(row["encoder"], result),
            row["readout"],
            *[_interval(score, k == 0) for k, score in enumerate(scores)],
        ]
        cells.append(f"{scores[0]['seed_sd']:.3f}")
        table.add_row(*cells, *([_against(row, measures[0], result["differences"])] if versus else []))
    table.add_row("(without an image)", "", *[f"{result['blind'][measure.name]:.3f}" for measure in measures])
    return table


def _interval(score: dict[str, Any], headline: bool) -> str:
    if not headline:
        return f"{score['value']:.3f}"
    return rf"{score['value']:.3f} \[{score['low']:.3f}, {score['high']:.3f}]"


def _against(row: dict[str, Any], measure: Measure, differences: Sequence[dict[str, Any]]) -> str:
    for found in differences:
        asked = (found["a"], found["b"][1], found["measure"])
        if asked == ([row["encoder"], row["readout"]], row["readout"], measure.name):
            return f"{found['difference']:+.3f} {'resolved' if found['resolved'] else 'not resolved'}"
    return ""


def _called(encoder: str, result: dict[str, Any]) -> str:
    """NAME of a NAME=FILE, where it names no other."""
    names = [each.partition("=")[0] for each in result["config"]["encoders"]]
    name = encoder.partition("=")[0]
    return name if names.count(name) == 1 else encoder


def _across(measure: Measure, result: dict[str, Any]) -> Iterator[str]:
    """The first encoder's later read-outs against the others' first: more scales, or another net?"""
    first = result["config"]["encoders"][0]
    for found in result["differences"]:
        (a, with_), (b, of) = found["a"], found["b"]
        if found["measure"] == measure.name and a == first != b and with_ != of:
            resolved = "resolved" if found["resolved"] else "not resolved"
            interval = rf"\[{found['low']:.3f}, {found['high']:.3f}]"
            what = f"{_called(a, result)} with {with_} less {_called(b, result)} with {of}"
            yield f"{what}: {found['difference']:+.3f} {interval}, {resolved}"


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
