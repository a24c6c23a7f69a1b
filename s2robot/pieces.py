"""Pieces of work on their way to workers that may be lost: drawn when wanted, and answered again where need be."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from s2robot.errors import S2RobotError

TRIES = 3  # workers that may be lost over one piece: it may be the piece that kills them
_END: Any = object()
_log = logging.getLogger(__name__)


@dataclass
class Piece:
    """One item, and what became of it so far."""

    item: Any
    lost: int = 0  # workers over it
    fed: Any = None  # what became of the item on its way, where that is done elsewhere


class Pieces:
    """Those still to be answered."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._source: Iterator[Any] = iter(items)
        self.waiting: deque[Piece] = deque()

    def draw(self, count: int) -> int:
        """Draw until `count` are waiting, or there are no more; how many are."""
        while len(self.waiting) < count and (item := next(self._source, _END)) is not _END:
            self.waiting.append(Piece(item))
        return len(self.waiting)

    def again(self, piece: Piece, why: str) -> None:
        """One whose worker was lost goes first.

        Raises:
            S2RobotError: it was not the first.
        """
        piece.lost += 1
        if piece.lost == TRIES:
            raise S2RobotError(
                f"{TRIES} workers were lost over one piece, {piece.item}. The last: {why}. Finished work is kept: run"
                " the same command again; if memory is short there, with fewer --workers"
            )
        _log.warning("A worker was lost, and %s is done again. %s", piece.item, why)
        self.waiting.appendleft(piece)


class Outcome(NamedTuple):
    """An answer, or what was raised instead: so it arrives as it is, not in a transport's wrapping."""

    result: Any
    error: Exception | None = None

    @classmethod
    def of(cls, function: Callable[..., Any], *arguments: Any) -> Outcome:
        """What this call comes to."""
        try:
            return cls(function(*arguments))
        except Exception as error:  # noqa: BLE001 - it is the answer
            return cls(None, error)

    def value(self) -> Any:
        if self.error:
            raise self.error
        return self.result
