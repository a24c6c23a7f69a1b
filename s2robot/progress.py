"""One progress bar a stage, with rate and time left; plain lines where nobody watches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Report(Protocol):
    """Told how far a stage is; `done` may start anywhere, as a resumed stage does."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


Told = Callable[[int, int, str], None]
"""What long work is given to say how far it is: done, of how many, and a note; a `Report` is one."""


def silent(done: int, total: int, note: str = "") -> None:
    """Nobody is told."""


QUIET_SECONDS = 15  # between lines in a log file


@contextlib.contextmanager
def bar(label: str, console: Console) -> Iterator[Report]:
    """Yield a `Report` that draws."""
    with _lines(label, console) if not console.is_terminal else _bar(label, console) as report:
        yield report


@contextlib.contextmanager
def _bar(label: str, console: Console) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as display:
        task = display.add_task(label, total=None, note="")

        def report(done: int, total: int, note: str = "") -> None:
            display.update(task, completed=done, total=total, note=note)

        yield report


@contextlib.contextmanager
def _lines(label: str, console: Console) -> Iterator[Report]:
    began = last = time.monotonic()

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= QUIET_SECONDS or done == total:
            last = now
            console.print(f"{label}: {done}/{total} {note} ({now - began:.0f} s)", markup=False, highlight=False)

    yield report
