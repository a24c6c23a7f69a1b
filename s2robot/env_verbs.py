"""The verb about environments alone: `s2robot bench env`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from s2robot import command, progress
from s2robot import config as configuration
from s2robot.parser import json_option


def bench_env(argv: Sequence[str]) -> int:
    from s2robot import bench_env as bench

    parser = command.parser(
        "bench env",
        "A task against robosuite alone, drawn and not, and several at once. Keep the machine quiet meanwhile.",
        "s2robot bench env Lift --vector 1,2",
        "--seed 1",
    )
    parser.add_argument("task", nargs="?", default="Lift", help="a task; see: s2robot list tasks (default Lift)")
    json_option(parser)
    command.shorthands(parser, rounds="rounds", steps="steps", vector="vector", size="frame_size", fidelity="fidelity")
    options, rest = command.parse(parser, argv)
    words = command.first_word("task", options.task, command.overrides(options, rest))
    config = configuration.load(bench.EnvBenchConfig, None, words)
    console = command.console(json=options.json)
    with progress.bar("bench", console) as told:
        result = bench.bench_env(config, told)
    if options.json:
        command.tell_json(result)
        return 0
    console.print(_step_table(result["rows"]))
    if result["vector"]:
        console.print(_vector_table(result["vector"]))
    cpu, cores = result["machine"]["cpu"], result["machine"]["cores"]
    console.print(f"{config.task}, medians of {config.rounds} rounds (range); {cpu}, {cores} cores", highlight=False)
    return 0


def _step_table(rows: list[dict[str, Any]]) -> Table:
    table = command.table("one environment", "ms a step", "times faster than")
    for row in rows:
        against = f"{row['against']}: {_spread(row['ratio'], row['ratio_range'], 2)}" if "against" in row else ""
        table.add_row(row["arm"], _spread(row["ms"], row["ms_range"], 1), against)
    return table


def _vector_table(rows: list[dict[str, Any]]) -> Table:
    table = command.table("at once", "steps a second", f"times those of {rows[0]['n']}", "memory MB")
    for row in rows:
        memory = f"{row['memory_mb']:.0f}" if row["memory_mb"] is not None else "unknown"
        gain = _spread(row["ratio"], row["ratio_range"], 2)
        table.add_row(str(row["n"]), _spread(row["hz"], row["hz_range"], 1), gain, memory)
    return table


def _spread(value: float, around: Sequence[float], digits: int) -> str:
    return f"{value:.{digits}f} ({around[0]:.{digits}f} to {around[1]:.{digits}f})"
