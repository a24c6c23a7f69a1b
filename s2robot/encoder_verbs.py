"""The verbs about the encoder: `s2robot bench`, `s2robot export`.

`bench stream` and `bench env` need a simulator, `bench ros2` needs rclpy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from s2robot import bench_rl, command, env_verbs, progress, registry, ros2_verb, serve_verb
from s2robot import config as configuration
from s2robot.errors import InvalidInput, UsageError
from s2robot.parser import json_option

_SHORT = {"scales": "encoder.scales", "sizes": "encoder.sizes", "engine": "encoder.engine"}
_SHORT |= {"precision": "encoder.precision", "grid": "encoder.grid", "checkpoint": "encoder.checkpoint"}


def do_bench(argv: Sequence[str]) -> int:
    kinds = {
        "encoder": _bench_encoder,
        "cost": _bench_cost,
        "stream": _bench_stream,
        "env": env_verbs.bench_env,
        "serve": serve_verb.bench_serve,
        "ros2": ros2_verb.bench_ros2,
        "rl": bench_rl.bench_rl,
        "soak": serve_verb.bench_soak,
    }
    if argv and argv[0] in kinds:
        return kinds[argv[0]](argv[1:])
    parser = command.parser(
        "bench",
        "Time an encoder (encoder), or count what it costs without its weights (cost); time what reuse of unchanged"
        " tiles saves on a task's frames (stream), a task (env), a policy server (serve), a ROS 2 node (ros2), both and"
        " rollouts together for long (soak), or reinforcement learning (rl).",
        "s2robot bench encoder --help",
        "--encoder.grid finest",
    )
    parser.add_argument("what", choices=sorted(kinds), help="what to time")
    parser.parse_known_args(list(argv))
    return 2


def _bench_encoder(argv: Sequence[str]) -> int:
    from s2robot.bench import BenchConfig, bench_encoders

    parser = command.parser(
        "bench encoder",
        "Latency, rate, cost and share of the machine's peak, end to end. Keep the machine quiet meanwhile.",
        "s2robot bench encoder --encoder s2robot-tiny,vit-small --scales 1,2 --baseline",
        "--encoder.grid finest",
    )
    parser.add_argument("--encoder", default=None, help="one name or several, a,b (default: s2robot-tiny)")
    parser.add_argument("--baseline", action="store_true", help="also the plain definition, and how many times faster")
    json_option(parser)
    command.shorthands(parser, **_SHORT, views="views", runs="runs", batches="batches", engines="engines")
    options, rest = command.parse(parser, argv)
    words = command.overrides(options, rest)
    words += ["--encoders", options.encoder] if options.encoder else []
    config = configuration.load(BenchConfig, None, [*words, *(["--baseline", "true"] if options.baseline else [])])
    console = command.console(json=options.json)
    with progress.bar("bench", console) as told:
        result = bench_encoders(_with_random_weights(config), told)
    if options.json:
        command.tell_json(result)
        return 0
    for table in (_speed_table(result["rows"]), _cost_table(result["rows"])):
        console.print(table)
    peak = max(row["peak_gflops"] for row in result["rows"])
    where, on_gpu = result["machine"], any("cuda" in row["engine"] for row in result["rows"])
    what = where["gpu"] if on_gpu else f"{where['cpu']}, {where['cores']} cores"
    console.print(
        f"{what}; its matrix products in {config.encoder.precision} reach {peak:.0f} GFLOP/s", highlight=False
    )
    return 0


def _bench_cost(argv: Sequence[str]) -> int:
    from s2robot.bench_cost import CostConfig, against_paper, cost

    parser = command.parser(
        "bench cost",
        "Parameters, tokens, channels and multiply-adds of one square frame. Nothing is downloaded, nothing runs.",
        "s2robot bench cost --encoder vit-base,dinov2-vit-large --sizes 224,448",
        "--encoder.tile 256",
    )
    parser.add_argument("--encoder", default=None, help="one name or several, a,b (default: s2robot-tiny)")
    parser.add_argument("--paper", action="store_true", help="the rows of the S2 paper, its figures beside ours")
    json_option(parser)
    command.shorthands(parser, scales="encoder.scales", sizes="encoder.sizes", grid="encoder.grid")
    options, rest = command.parse(parser, argv)
    words = command.overrides(options, rest)
    config = configuration.load(CostConfig, None, words).encoder
    names = (options.encoder or config.name).split(",")
    if options.paper and (options.encoder or words):
        raise UsageError("--paper counts the paper's own encoders and sizes: leave out everything else")
    rows = against_paper() if options.paper else [cost(dataclasses.replace(config, name=name)) for name in names]
    if options.json:
        command.tell_json(rows)
        return 0
    heads = ["encoder", "sizes", "million parameters", "tiles", "grid", "channels", "GFLOPs"]
    table = command.table(*heads, *(["paper", "off", "table"] if options.paper else []), words=2)
    for row in rows:
        sizes, grid = ",".join(map(str, row["sizes"])), "x".join(map(str, row["grid"]))
        cells = [row["encoder"], sizes, f"{row['parameters'] / 1e6:.1f}", str(row["tiles"]), grid, str(row["channels"])]
        cells.append(f"{row['gflops']:.1f}")
        cells += [f"{row['paper']:g}", f"{100 * row['off']:+.1f} %", row["table"]] if options.paper else []
        table.add_row(*cells)
    console = command.console()
    console.print(table)
    return 0


def _bench_stream(argv: Sequence[str]) -> int:
    from s2robot.bench_stream import StreamBenchConfig, bench_stream

    parser = command.parser(
        "bench stream",
        "Film a task's expert; encode the frames with and without reuse of unchanged tiles, camera by camera.",
        "s2robot bench stream Lift --scales 1,2,3",
        "--encoder.grid finest",
    )
    parser.add_argument("task", nargs="?", default="Lift", help="a task; see: s2robot list tasks (default Lift)")
    json_option(parser)
    command.shorthands(parser, **_SHORT, episodes="episodes", tolerance="tolerance", noise="noise")
    options, rest = command.parse(parser, argv)
    words = command.first_word("task", options.task, command.overrides(options, rest))
    config = configuration.load(StreamBenchConfig, None, words)
    registry.get_task(config.task)
    console = command.console(json=options.json)
    with progress.bar("bench", console) as told:
        result = bench_stream(config, told)
    if options.json:
        command.tell_json(result)
        return 0
    heads = ("camera", "frames", "live: reused", "Hz", "times plain", "recorded: reused", "Hz", "times plain")
    table = command.table(*heads, words=2)
    for row in result["rows"]:
        cells = [row["camera"], str(row["frames"])]
        for kind in ("live", "recorded"):
            shares = (f"{100 * row[f'{kind}_reused']:.0f} %", f"{row[f'{kind}_hz']:.1f}", f"{row[f'{kind}_ratio']:.2f}")
            cells += shares
        table.add_row(*cells)
    console.print(table)
    worst = max(row["difference"] for row in result["rows"])
    console.print(f"{result['engine']}; live features differ by at most {worst:.1e}", highlight=False)
    return 0


def _with_random_weights(config: Any) -> Any:
    """Speed does not depend on what the weights are: an encoder without a file is timed all the same."""
    names = config.encoders or (config.encoder.name,)
    if all(name == "s2robot-tiny" for name in names) or config.encoder.checkpoint:
        return config
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, random_weights=True))


def _speed_table(rows: list[dict[str, Any]]) -> Table:
    ratio = "ratio" in rows[0]
    upload = "upload_ms" in rows[0]
    heads = ["encoder", "engine", "frames", "p50 ms", "p90", "p99", "Hz", "% of peak"]
    table = command.table(*heads, *["upload ms"] * upload, *["times plain"] * ratio, words=2)
    for row in rows:
        frames = f"{row['batch']}x{row['views']} {row['frame'][0]}x{row['frame'][1]}"
        cells = [_what(row), row["engine"].split(" on ")[0], frames]
        cells += [f"{row[key]:.1f}" for key in ("p50_ms", "p90_ms", "p99_ms", "hz")]
        cells += [f"{row['percent_of_peak']:.0f}"] + ([f"{row['upload_ms']:.2f}"] if upload else [])
        table.add_row(*cells, *([f"{row['ratio']:.2f}"] if ratio else []))
    return table


def _cost_table(rows: list[dict[str, Any]]) -> Table:
    table = command.table("encoder", "frames", "GFLOPs", "million parameters", "peak memory MB", words=2)
    for what in dict.fromkeys((_what(row), row["batch"], row["views"]) for row in rows):
        row = next(row for row in rows if (_what(row), row["batch"], row["views"]) == what)
        numbers = (row["gflops"], row["parameters"] / 1e6, row["memory_mb"])
        table.add_row(_what(row), f"{row['batch']}x{row['views']}", *[f"{number:.1f}" for number in numbers])
    return table


def _what(row: dict[str, Any]) -> str:
    return f"{row['encoder']} {','.join(map(str, row['sizes']))}"


def do_export(argv: Sequence[str]) -> int:
    from s2robot.encoder import EncoderConfig
    from s2robot.export import SUFFIX, export

    parser = command.parser(
        "export",
        "The whole encoder as one file: uint8 frames in, features out. Checked against the encoder before it is kept.",
        "s2robot export s2robot-tiny --to onnx --frame 256x256 --views 2 --out s2robot-tiny.onnx",
        "--scales 1,2,3",
    )
    parser.add_argument("encoder", help="an encoder; see: s2robot list encoders")
    parser.add_argument("--to", required=True, choices=sorted(SUFFIX), help="the format")
    parser.add_argument("--out", default=None, help="the file to write (default: the encoder's name)")
    parser.add_argument("--frame", default=None, help="HxW of the frames [pixels] (default: the largest scale, square)")
    parser.add_argument("--views", type=int, default=1, help="cameras (default 1)")
    json_option(parser)
    options, rest = command.parse(parser, argv)
    config = configuration.load(EncoderConfig, None, command.first_word("name", options.encoder, rest))
    if config.engine != "auto":
        raise UsageError(f"--engine is {config.engine}: what is exported is torch's network. Leave --engine out")
    encoder = dataclasses.replace(config, engine="torch").build("cpu")
    frame = _frame(options.frame) if options.frame else (max(encoder.sizes),) * 2
    path = Path(options.out or f"{options.encoder.replace(':', '-')}{SUFFIX[options.to]}")
    console = command.console(json=options.json)
    with console.status(f"Exporting {options.encoder} for {frame[0]}x{frame[1]} frames"):
        result = export(encoder, options.to, path, frame, options.views)
    if options.json:
        command.tell_json(result)
    else:
        console.print(
            f"{result['path']}: {result['bytes'] / 1e6:.1f} MB, features within {result['difference']:.1e} of the"
            f" encoder's; takes uint8 (batch, {options.views}, {frame[0]}, {frame[1]}, 3)",
            highlight=False,
        )
    return 0


def _frame(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    if not (x and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise InvalidInput(f"--frame is {text!r}; expected rows x columns, e.g. 480x640")
    return int(height), int(width)
