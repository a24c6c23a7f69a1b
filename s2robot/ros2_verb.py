"""The verb `ros2`: nodes for a robot that runs ROS 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from s2robot import command
from s2robot.adapters.ros2_parameters import descriptions, split_ros
from s2robot.errors import require

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
        argv = ["--run", *argv]
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
    options, rest = parser.parse_known_args(words)
    require("rclpy", extra="ros2", purpose=f"s2robot ros2 {verb.partition(' ')[0]}")
    node(command.overrides(options, rest), ros)
    return 0


def _escape(text: str) -> str:
    return text.replace("%", "%%")
