"""One dataclass is a node's configuration: its fields are options of the command line and parameters of ROS 2 alike.

    s2robot ros2 encode --images /front/image_raw --encoder.scales 1,2
    s2robot ros2 encode --ros-args -p images:=/front/image_raw -p encoder.scales:=[1.0,2.0] -r __node:=eyes

What ROS says wins. A parameter's description is the dataclass's own, read from its docstring.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from s2robot import config as configuration
from s2robot.errors import UnknownName, require

Config = TypeVar("Config")


def split_ros(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our words, and those between `--ros-args` and `--` or the end: launch files put them anywhere."""
    ours: list[str] = []
    theirs: list[str] = []
    inside = False
    for word in argv:
        if word == "--ros-args":
            inside = True
        elif inside and word == "--":
            inside = False
        else:
            (theirs if inside else ours).append(word)
    return ours, theirs


def descriptions(schema: type[Any], prefix: str = "", defaults: Any = None) -> dict[str, str]:
    """What every dotted key means: `name: text` lines of the docstrings, which may go on, indented; and its default."""
    defaults = schema() if defaults is None else defaults
    found: dict[str, str] = {}
    text = inspect.getdoc(schema) or ""
    said: dict[str, str] = {}
    for names, words in re.findall(r"^(\w+(?:, \w+)*): ((?:.+\n?)(?:^ +.+\n?)*)", text, re.MULTILINE):
        said |= dict.fromkeys(names.split(", "), " ".join(words.split()))
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key, hint, value = f"{prefix}{field.name}", hints[field.name], getattr(defaults, field.name)
        if dataclasses.is_dataclass(hint):
            found |= descriptions(typing.cast(type, hint), f"{key}.", value)
        else:
            meaning = said.get(field.name, f"{schema.__name__}'s {field.name.replace('_', ' ')}")
            found[key] = meaning if value in (None, "", ()) else f"{meaning} (default: {_text(value, hint)})"
    return found


def declare(node: Any, schema: type[Config], words: Sequence[str]) -> Config:
    """Declare every key as a read-only parameter with the command line's values; what ROS says of any wins.

    Raises:
        UnknownName, InvalidInput: as `config.load` does, in its words.
    """
    rcl = require("rcl_interfaces.msg", extra="ros2", purpose="A ROS 2 node")
    config, overrides, meanings = configuration.load(schema, None, words), list(words), descriptions(schema)
    for key, hint in configuration.keys(schema).items():
        default = _plain(_reach(config, key))
        # Types are held to the schema below: ROS itself takes no 5 where 5.0 is meant, nor one text for a list of one.
        descriptor = rcl.ParameterDescriptor(description=meanings[key], read_only=True, dynamic_typing=True)
        value = node.declare_parameter(key, default, descriptor).value
        if value != default:
            overrides += [f"--{key}={_text(value, hint)}"]
    for name in node._parameter_overrides:  # a misspelt one would be nobody's, and what it was to watch unwatched
        if not node.has_parameter(name) and not name.startswith("qos_overrides."):
            raise UnknownName("ROS parameter", name, configuration.keys(schema))
    return configuration.load(schema, None, overrides)


def _reach(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _plain(value: Any) -> Any:
    """As ROS has it: no None, no tuple, no empty list (which has no type)."""
    if isinstance(value, tuple):
        value = list(value)
    return "" if value is None or value == [] else value


def _text(value: Any, hint: Any) -> str:
    """As the command line would have it."""
    text = str(value) if isinstance(value, str | bool | int | float) else ",".join(map(str, value))
    return text if text or typing.get_origin(hint) is tuple else "none"
