"""The verb `rl`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from s2robot import command, progress, registry
from s2robot import config as configuration
from s2robot.errors import UsageError
from s2robot.rl_config import rl_schema

CONFIGS = "rl-"  # their names begin so, and no task's does


def do_rl(argv: Sequence[str]) -> int:
    """Learn by trying; or go on, where the folder holds a part of the same run."""
    from s2robot.rl import learn
    from s2robot.rl_curves import rl_curves

    if argv and argv[0] == "curves":
        return rl_curves(argv[1:])

    parser = command.parser(
        "rl",
        "Learn a task by reinforcement. Stop it any time: the same command goes on where it was.",
        "s2robot rl Reach --out runs/reach-sac --algorithm sac --steps 50000"
        "\n         s2robot rl rl-lift --demos runs/lift.hdf5 --prior runs/lift-bc --out runs/lift-ibrl",
        key="--learn.lr 1e-4, --world.execute 2, --sight.see privileged",
    )
    parser.add_argument("what", help="a task by name, or a config (s2robot list configs: rl-...) by name or .yaml path")
    parser.add_argument(
        "--algorithm", default=None, help=f"{', '.join(registry.ALGORITHMS)} (default: the config's, else sac)"
    )
    command.shorthands(
        parser, out="out", seed="seed", steps="steps", see="sight.see", reward="world.reward", demos="demos.path",
        prior="demos.prior",
    )  # fmt: skip
    options, rest = command.parse(parser, argv)
    config = _config(options, rest)
    if config.out == ".":
        raise UsageError("Where to? Add --out runs/NAME: the config that a run leaves names no folder")
    console = Console()
    with progress.bar("rl", console) as report:
        out = learn(config, report)
    best = f", or of the best: {Path(out) / 'best'}" if (Path(out) / "best").is_dir() else ""
    console.print(f"{out}: learned. Now: s2robot eval {out}{best}", highlight=False)
    return 0


def _config(options: Any, rest: list[str]) -> Any:
    """From a task's name, or from a config that names it."""
    is_config = options.what.startswith(CONFIGS) or options.what in configuration.names()
    is_config = is_config or options.what.endswith((".yaml", ".yml"))
    written = configuration.said(options.what, "algorithm") if is_config else None
    if written and options.algorithm and written != options.algorithm:
        raise UsageError(f"--algorithm is {options.algorithm}, and {options.what} is of {written}. Leave one out")
    schema = rl_schema(options.algorithm or written or "sac")
    words = command.overrides(options, rest)
    if is_config:
        return configuration.load(schema, options.what, words)
    config = configuration.load(schema, None, command.first_word("world.task", options.what, words))
    task = registry.get_task(options.what, config.world.robot).name
    return dataclasses.replace(config, world=dataclasses.replace(config.world, task=task))
