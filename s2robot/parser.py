"""argparse, as the command line has it: it needs nothing that may be missing, for `s2robot doctor` needs it too."""

from __future__ import annotations

import argparse
from typing import NoReturn

from s2robot.errors import UsageError


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are ours: one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}. See: {self.prog} --help")


def json_option(parser: argparse.ArgumentParser, said: str = "for programs") -> None:
    parser.add_argument("--json", action="store_true", help=said)
