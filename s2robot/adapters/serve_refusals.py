"""What a client is told when it gets no answer: one line, and no path or code of the server's.

kind           the episode    whose fault
malformed      stays          the client's: no message at all
observation    stays          the client's: a message that the policy cannot act on
timeout        is lost        too many clients, or a stuck machine: whether the policy saw it, nobody knows
failed         is lost        ours
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import NamedTuple

from s2robot.adapters.wire import BadMessage
from s2robot.errors import S2RobotError, UsageError

LONGEST_LINE = 600  # characters

_log = logging.getLogger(__name__)


class Refusal(NamedTuple):
    """lost: whether the episode is; line: what is sent."""

    kind: str
    lost: bool
    line: str


def refusal(error: Exception, patience: float) -> Refusal:
    """What an error means to the client that asked; patience: how long it was waited for an answer [s]."""
    if isinstance(error, BadMessage):
        told = Refusal("malformed", False, str(error))
    elif isinstance(error, UsageError):
        told = Refusal("observation", False, str(error))
    elif isinstance(error, asyncio.TimeoutError):
        told = Refusal("timeout", True, f"No answer within {patience:g} s: too many clients, or a stuck machine")
    elif isinstance(error, S2RobotError):
        told = Refusal("failed", True, str(error))
    else:
        told = Refusal("failed", True, f"{type(error).__name__} while acting; the server's log says more")
    if told.kind == "failed":
        _log.error("A request failed: %s", error, exc_info=error)
    line = " ".join(told.line.split())[:LONGEST_LINE]
    if _log.isEnabledFor(logging.DEBUG):
        line += "\n" + "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return told._replace(line=line)
