"""The verb `probe classify`: linear classifiers on a folder of images by class, as a table and JSON."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from s2robot import command
from s2robot import config as configuration
from s2robot.classify import ClassifyConfig, classify
from s2robot.image_vectors import HEADS
from s2robot.parser import json_option
from s2robot.probe_tables import Bars, across, against, called, interval

TITLES = {"mean": "mean token", "cls": "CLS"}


def do_classify(argv: Sequence[str]) -> int:
    parser = command.parser(
        "probe classify",
        "What is in an image: linear classifiers on frozen features, of a folder with a folder of images for each\n"
        "class, or with train/ and test/ of such folders. Encoders are named as for `s2robot probe`.",
        "s2robot probe classify --source photos/ --encoders s2robot-tiny,random,vit-small",
        ", ".join(f"--{name}" for name in configuration.keys(ClassifyConfig)),
    )
    parser.add_argument("--out", default="runs/classify", help="results and features (default %(default)s)")
    json_option(parser)
    command.shorthands(parser, **{key: key for key in ("source", "encoders", "scales", "sizes", "test", "seeds")})
    options, rest = command.parse(parser, argv)
    config = configuration.load(ClassifyConfig, None, command.overrides(options, rest))
    console, out = command.console(json=options.json), Path(options.out)
    with Bars(console) as told:
        result = classify(config, out, told, shlex.join(["s2robot", "probe", "classify", *argv]))
    if options.json:
        command.tell_json(result)
        return 0
    _tell(result, console, out)
    return 0


def _tell(result: dict[str, Any], console: Console, out: Path) -> None:
    console.print(_table(result))
    for line in across(HEADS[0], result):
        console.print(line, highlight=False, soft_wrap=True)
    n, first = result["n"], result["rows"][0]
    wrong = ", ".join(f"{each['true']} for {each['answered']} ({each['times']})" for each in first["mistaken"])
    console.print(
        f"Most often wrong with {called(first['encoder'], result)}, {first['readout']}, all seeds: took {wrong}.\n"
        * bool(wrong)
        + f"{n['train']} images to fit on (a tenth of them to choose by), scored on {n['test']} others; "
        f"{result['config']['seeds']} seeds. In brackets: 95 % interval over images and seeds. {out}/classify.json",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if skipped := result["skipped"]:
        console.print(f"{len(skipped)} images could not be read, the first: {skipped[0]}", soft_wrap=True)


def _table(result: dict[str, Any]) -> Table:
    title = f"\n{len(result['classes'])} classes, accuracy (higher is better)"
    table = command.table("encoder", "read-out", words=2, title=title)
    first = called(result["config"]["encoders"][0], result)
    for head in HEADS:
        table.add_column(f"linear on the {TITLES[head]}", justify="right", min_width=21)
    table.add_column("sd", justify="right")
    versus = len(result["config"]["encoders"]) > 1
    if versus:
        table.add_column(f"against {first}", justify="right", min_width=20)
    for row in result["rows"]:
        cells = [called(row["encoder"], result), row["readout"]]
        cells += [interval(row["scores"][head], True) for head in HEADS]
        cells.append(f"{row['scores'][HEADS[0]]['seed_sd']:.3f}")
        table.add_row(*cells, *([against(row, HEADS[0], result["differences"])] if versus else []))
    table.add_row("(the commonest class)", "", f"{result['commonest']:.3f}", "")
    return table
