"""The verb `probe reconstruct`: how much of a larger model's features a smaller one holds, as a table and JSON."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from s2robot import command, files, progress
from s2robot import config as configuration
from s2robot.parser import json_option
from s2robot.reconstruct import ReconstructConfig, reconstruct


def do_reconstruct(argv: Sequence[str]) -> int:
    parser = command.parser(
        "probe reconstruct",
        "How much of a larger model's features a smaller one holds, with one scale and with several.\n"
        "Encoders are named as for `s2robot probe`, but for the ConvNet from outside; a bound is a still larger one,\n"
        "which ratios are taken against.\n"
        "Frames are of a folder of images, videos and demonstrations, of one of these, or a run's frames.npy.",
        "s2robot probe reconstruct --small vit-small --large vit-base --bound vit-large --source recordings/",
        "--frames 2000",
    )
    parser.add_argument("--out", default="runs/reconstruct", help="results, and the frames (default %(default)s)")
    json_option(parser)
    command.shorthands(parser, **{key: key for key in ("small", "large", "bound", "source", "scales", "frames")})
    options, rest = command.parse(parser, argv)
    config = configuration.load(ReconstructConfig, None, command.overrides(options, rest))
    console, out = command.console(json=options.json), Path(options.out)
    with progress.bar("reconstruct", console) as report:
        result = reconstruct(config, out, report)
    files.write_json(
        out / "reconstruct.json", {**result, "command": shlex.join(["s2robot", "probe", "reconstruct", *argv])}
    )
    if options.json:
        command.tell_json(result)
        return 0
    console.print(_table(result))
    return 0


def _table(result: dict[str, Any]) -> Table:
    target, n = result["target"], result["frames"]
    title = f"\n{target['name']} from smaller ones, {n['train']} frames to fit and {n['test']} others to score"
    heads = ("channels", "loss, fit", "loss", "information, fit", "information", "ratio, fit", "ratio")
    table = command.table("features of", *heads, title=title)
    for row in result["rows"]:
        fit, test = row["train"], row["test"]
        cells = [row["model"], str(row["channels"]), f"{fit['loss']:.4g}", f"{test['loss']:.4g}"]
        cells += [f"{fit['information']:.3f}", rf"{test['information']:.3f} \[{test['low']:.3f}, {test['high']:.3f}]"]
        if "ratio" in test:
            span = rf"\[{100 * test['ratio_low']:.1f}, {100 * test['ratio_high']:.1f}]"
            cells += [f"{100 * fit['ratio']:.1f} %", f"{100 * test['ratio']:.1f} % {span}"]
        table.add_row(*cells)
    return table
