"""What the tables of `probe` and `probe classify` have in common: scores, and who differs from whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console

from s2robot import progress


class Bars:
    """One progress bar a stage, each closed when the next one opens."""

    def __init__(self, console: Console) -> None:
        self._console, self._open = console, ExitStack()

    def __enter__(self) -> Callable[[str], progress.Report]:
        return self._next

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _next(self, label: str) -> progress.Report:
        self._open.close()
        return self._open.enter_context(progress.bar(label, self._console))


def interval(score: dict[str, Any], headline: bool) -> str:
    if not headline:
        return f"{score['value']:.3f}"
    return rf"{score['value']:.3f} \[{score['low']:.3f}, {score['high']:.3f}]"


def against(row: dict[str, Any], measure: str, differences: Sequence[dict[str, Any]]) -> str:
    for found in differences:
        asked = (found["a"], found["b"][1], found["measure"])
        if asked == ([row["encoder"], row["readout"]], row["readout"], measure):
            return f"{found['difference']:+.3f} {'resolved' if found['resolved'] else 'not resolved'}"
    return ""


def called(encoder: str, result: dict[str, Any]) -> str:
    """NAME of a NAME=FILE, where it names no other."""
    names = [each.partition("=")[0] for each in result["config"]["encoders"]]
    name = encoder.partition("=")[0]
    return name if names.count(name) == 1 else encoder


def across(measure: str, result: dict[str, Any]) -> Iterator[str]:
    """The first encoder's later read-outs against the others' first: more scales, or another net?"""
    first = result["config"]["encoders"][0]
    for found in result["differences"]:
        (a, with_), (b, of) = found["a"], found["b"]
        if found["measure"] == measure and a == first != b and with_ != of:
            resolved = "resolved" if found["resolved"] else "not resolved"
            interval = rf"\[{found['low']:.3f}, {found['high']:.3f}]"
            what = f"{called(a, result)} with {with_} less {called(b, result)} with {of}"
            yield f"{what}: {found['difference']:+.3f} {interval}, {resolved}"
