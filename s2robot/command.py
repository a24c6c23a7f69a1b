"""What the verbs of the command line have in common: help with an example, short options, any key of a config."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from s2robot import config as configuration
from s2robot import files, registry
from s2robot.errors import UsageError
from s2robot.parser import Parser


def parser(verb: str, purpose: str, example: str, key: str = "--collect.noise 0.2") -> argparse.ArgumentParser:
    return Parser(
        prog=f"s2robot {verb}",
        description=purpose,
        epilog=f"example: {example}" + (f"\nAny key of the configuration is an option: {key}" if key else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The verb's own options and words, and beside them the config's options, in whatever order they stand.

    argparse knows only the verb's own: it takes the 5 of `--train.steps 5 DATASET` for the dataset.
    """
    values, free = _values(parser, argv)
    needed = sum(action.nargs not in ("?", "*") for action in parser._get_positional_actions())
    # A bare `--flag DATASET` stands for true where the verb would be left without its word, which is no number.
    likely = [k for k in reversed(values) if not _is_number(argv[k + 1])][: max(0, needed - free)]
    values = [k for k in values if k not in likely]
    joined = {k: f"{argv[k]}={argv[k + 1]}" for k in values}
    return parser.parse_known_args([joined.get(k, word) for k, word in enumerate(argv) if k - 1 not in joined])


def _values(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[list[int], int]:
    """Where options stand that only the config can know, with a word after them; how many words are no option's."""
    own = parser._option_string_actions
    values: list[int] = []
    free, taken = 0, 0.0  # taken: by the option before
    for k, word in enumerate(argv):
        if word == "--":
            return values, free + len(argv) - k - 1
        if word.startswith("--") or word in own:
            taken = 0 if "=" in word else _takes(own[word]) if word in own else 1
            if taken and word not in own and k + 1 < len(argv) and not argv[k + 1].startswith("--"):
                values.append(k)
        elif taken:
            taken -= 1
        else:
            free += 1
    return values, free


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _takes(option: argparse.Action) -> float:
    """How many words, at most."""
    if option.nargs is None or option.nargs == "?":
        return 1
    return option.nargs if isinstance(option.nargs, int) else float("inf")


def shorthands(parser: argparse.ArgumentParser, **targets: str) -> None:
    """Options that stand for one key of the config."""
    for name, key in targets.items():
        plain = "the folder to write into" if key == "out" else key.replace("_", " ")
        parser.add_argument(
            f"--{name}", dest=f"={key}", metavar=name.upper(), help=f"short for --{key}" if key != name else plain
        )


def launcher(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--launcher",
        default="local",
        metavar="WHO",
        help=f"who does the work, where {what}: local (default), here (this process), ray, ray://HOST:10001, "
        "slurm:workers=64,partition=CPU",
    )


def policy_kind(parser: argparse.ArgumentParser) -> None:
    kinds = ", ".join(registry.KINDS)
    said = f"of policy: {kinds}, or a plug-in's (default: the config's, else bc-mlp)"
    parser.add_argument("--kind", default=None, help=said)


def chosen_kind(options: argparse.Namespace, config: str) -> str:
    """The kind of policy that `--kind` and the config file ask for.

    Raises:
        UsageError: they ask for two.
    """
    asked, written = (registry.RENAMED.get(kind, kind) for kind in (options.kind, configuration.said(config, "kind")))
    if written and asked and written != asked:
        raise UsageError(f"--kind is {asked}, and {config} is of a {written}. Leave one of them out")
    return str(asked or written or "bc-mlp")


def first_word(key: str, value: str, rest: Sequence[str]) -> list[str]:
    """What stands before the options, as the option that it is short for, and the others.

    Raises:
        UsageError: the option itself is there too.
    """
    if any(word == f"--{key}" or word.startswith(f"--{key}=") for word in rest):
        raise UsageError(f"--{key} beside {value}, which is one already: give one of them")
    return [f"--{key}", value, *rest]


def refuse_unread(words: Sequence[str], others: dict[str, str]) -> None:
    """Options that the config knows and this verb does not read.

    Raises:
        UsageError: one is there; `others` says of its section what to do instead.
    """
    for word in words:
        option = word.partition("=")[0]
        if word.startswith("--") and (section := option[2:].partition(".")[0].replace("-", "_")) in others:
            raise UsageError(f"{option} is not read here. {others[section]}")


def console(*, json: bool = False) -> Console:
    """Where to tell of results; with `--json` standard output is for the program that reads it."""
    made = Console(stderr=json)
    if not made.is_terminal:
        made.width = 1000  # a file or a pipe has no right edge: a line a row, for `grep`
    return made


def table(*heads: str, words: int = 1, title: str = "") -> Table:
    """A table without lines, whose first columns are words and the others numbers."""
    made = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    made.title_style = made.header_style = "bold"
    for k, head in enumerate(heads):
        made.add_column(head, justify="left" if k < words else "right")
    return made


def tell_json(result: Any) -> None:
    """To standard output, for programs."""
    sys.stdout.write(json.dumps(files.plain(result), indent=2) + "\n")


def overrides(options: argparse.Namespace, rest: Sequence[str]) -> Any:
    """The options of a config, with those that stand for one written out.

    Raises:
        UsageError: one is there both ways.
    """
    said = {key[1:]: value for key, value in vars(options).items() if key.startswith("=") and value is not None}
    long = {word.partition("=")[0][2:].replace("-", "_") for word in rest if word.startswith("--")}
    if twice := said.keys() & long:
        key = min(twice)
        raise UsageError(f"--{key} is there twice, once by its short name: give it once")
    return [*(word for key, value in said.items() for word in (f"--{key}", value)), *rest]
