"""`s2robot pretrain`: read options, run, say where the weights are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from s2robot import command, files, progress
from s2robot import config as configuration


def do_pretrain(argv: Sequence[str]) -> int:
    from s2robot import ranks
    from s2robot.pretrain import pretrain as run
    from s2robot.recipe import PretrainConfig

    parser = command.parser(
        "pretrain",
        "Masked autoencoding on randomised robot scenes, or on footage of your own; resumable.",
        "s2robot pretrain --out runs/my-encoder --steps 4000\n"
        "         s2robot pretrain --out runs/ours --source recordings/ --init s2robot-tiny --lr 3e-4",
        key="--objective merged --lr 1e-3",
    )
    parser.add_argument("--config", default=None, help="a config by name or .yaml path")
    parser.add_argument("--out", required=True, help="run folder")
    options, rest = command.parse(parser, argv)
    config = configuration.load(PretrainConfig, options.config, rest)
    console = Console(quiet=not ranks.find().is_first)  # of several processes, one speaks
    with progress.bar("pretrain", console) as told:
        weights = run(config, Path(options.out), told)
    about = Path(options.out) / "footage.json"
    if about.exists() and (skipped := files.read_json(about).get("skipped")):
        console.print(f"{skipped} files could not be read and were skipped; {about} names them", soft_wrap=True)
    console.print(f"{weights}: use it with --encoder.name s2robot --encoder.checkpoint {weights}", soft_wrap=True)
    return 0
