"""The verb `ros2`: nodes for a robot that runs ROS 2; and `s2robot bench ros2`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from s2robot import command, progress
from s2robot import config as configuration
from s2robot.adapters.ros2_parameters import descriptions, split_ros
from s2robot.errors import require
from s2robot.parser import json_option

EXTRA = "\n--ros-args and what follows are ROS's own: -r image:=/front/image_raw, -p name:=value (every option above)"


def do_ros2(argv: Sequence[str]) -> int:
    nodes = {"encode": _encode, "act": _act}
    if argv and argv[0] in nodes:
        return nodes[argv[0]](argv[1:])
    parser = command.parser("ros2", "ROS 2 nodes around an encoder or a policy.", "s2robot ros2 encode --help", "")
    parser.add_argument("node", choices=sorted(nodes), help="images to features, or images and state to action chunks")
    parser.parse_known_args(list(argv))
    return 2


def _encode(argv: Sequence[str]) -> int:
    from s2robot.adapters.ros2_encode import EncodeConfig, encode

    return _run(
        "encode", "Publish the features of every image topic's newest frame.",
        "s2robot ros2 encode --images /front/image_raw,/wrist/image_raw/compressed --publish map,cls",
        EncodeConfig, encode, argv,
    )  # fmt: skip


def _act(argv: Sequence[str]) -> int:
    from s2robot.adapters.ros2_act import ActConfig, act

    if argv and not argv[0].startswith("-"):
        argv = command.first_word("run", argv[0], argv[1:])
    return _run(
        "act RUN", "Publish a trained policy's action chunks; silent while an input is stale.",
        "s2robot ros2 act runs/lift-bc --images /front/image_raw,/wrist/image_raw",
        ActConfig, act, argv,
    )  # fmt: skip


def _run(
    verb: str,
    purpose: str,
    example: str,
    schema: type[Any],
    node: Callable[[Sequence[str], Sequence[str]], None],
    argv: Sequence[str],
) -> int:
    words, ros = split_ros(argv)
    parser = command.parser(f"ros2 {verb}", purpose, example, "")
    parser.epilog = f"{parser.epilog}{EXTRA}"
    for key, meaning in descriptions(schema).items():
        name = key.rpartition(".")[2].upper()
        parser.add_argument(f"--{key}", dest=f"={key}", metavar=name, nargs="?", const="true", help=_escape(meaning))
    options, rest = command.parse(parser, words)
    require("rclpy", extra="ros2", purpose=f"s2robot ros2 {verb.partition(' ')[0]}")
    node(command.overrides(options, rest), ros)
    return 0


def bench_ros2(argv: Sequence[str]) -> int:
    from s2robot.bench_ros2 import Ros2BenchConfig, bench_ros2

    parser = command.parser(
        "bench ros2",
        "Play a camera to the node `s2robot ros2 encode` on this machine: latency and memory over time, what is lost.",
        "s2robot bench ros2 --seconds 300 --hz 30 --size 480x640 --json",
        "--encoder.scales 1,2,3",
    )
    json_option(parser)
    command.shorthands(parser, seconds="seconds", hz="hz", size="size")
    options, rest = command.parse(parser, argv)
    config = configuration.load(Ros2BenchConfig, None, command.overrides(options, rest))
    console = Console(stderr=options.json)
    with progress.bar("bench", console) as told:
        result = bench_ros2(config, told)
    if options.json:
        command.tell_json(result)
        return 0
    first, last, memory = result["first_ms"], result["last_ms"], result["memory_mb"]
    for line in (
        f"sent {result['sent']}, heard {result['heard']}; {result['lost_on_the_way']} were lost on the way,"
        f" {result['dropped']} dropped for newer ones, {result['refused']} refused",
        f"from stamp to features heard: {_spread(result['stamp_to_heard_ms'])}; an encode alone"
        f" {_spread(result['direct_encode_ms'])}; the node itself adds {result['node_overhead_ms_p50']:.1f} ms at the"
        " median",
        f"first {result['window_s']:.0f} s: {_spread(first)}, {memory['first']:.0f} MB; last: {_spread(last)},"
        f" {memory['last']:.0f} MB",
    ):
        console.print(line, highlight=False)
    return 0


def _spread(ms: dict[str, float] | None) -> str:
    return f"{ms['p50']:.1f} ms (p99 {ms['p99']:.1f})" if ms else "nothing heard"


def _escape(text: str) -> str:
    return text.replace("%", "%%")
