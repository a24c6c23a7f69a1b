"""Verbs in processes of their own that start warm: forked from a server that has imported everything already.

Each is a session of its own, so that whatever it starts can be found, and killed, by the session's number.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PRELOAD = ["s2robot.cli", "s2robot.verbs", "s2robot.study", "s2robot.training", "s2robot.store", "s2robot.pretrain"]
PRELOAD += ["s2robot.collect", "s2robot.encoder", "s2robot.report", "s2robot.clips", "s2robot.bench", "materials"]
PATIENCE = 300.0  # for a verb that nobody disturbs [s]
GONE = 30.0  # until the processes that a killed one started are gone [s]


def context() -> Any:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    return server


def start(target: Any, *arguments: Any) -> Any:
    """A process that runs `target(*arguments)` as a session of its own, which it is when this returns."""
    process = context().Process(target=_lead, args=(target, *arguments))
    process.start()
    while process.exitcode is None and not _leads(process.pid):
        time.sleep(0.001)
    return process


def _leads(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


@contextlib.contextmanager
def ended(process: Any) -> Iterator[Any]:
    """Whatever happens within, none of its session outlives this: one that is stopped would for ever."""
    try:
        yield process
    finally:
        kill(members(process.pid))
        process.join(GONE)


def start_verb(words: Sequence[str], log: Path) -> Any:
    return start(_verb, list(words), log)


def run_verb(words: Sequence[str], log: Path) -> int:
    """To its end; returns the exit code."""
    with ended(start_verb(words, log)) as process:
        process.join(PATIENCE)
        assert not process.is_alive(), f"{words} hangs: {log.read_text()[-2000:]}"
        return int(process.exitcode)


def _lead(target: Any, *arguments: Any) -> None:
    os.setsid()
    target(*arguments)


def _verb(words: list[str], log: Path) -> None:
    from s2robot import cli

    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.exit(cli.main(words))


def members(session: int) -> list[int]:
    """Processes of a session that live, its leader first."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(entry.name))
    return sorted(found, key=lambda pid: (pid != session, pid))


def workers_of(session: int) -> list[int]:
    """Those of its processes that work; multiprocessing's own, which tracks resources, is none."""
    return [pid for pid in members(session)[1:] if "spawn_main" in _command(pid)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def kill(pids: Sequence[int]) -> int:
    """How many of them were still there to be killed."""
    found = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            found += 1
    return found


def wait_until_gone(session: int) -> list[int]:
    """Wait for every process of a session to end; returns those that do not."""
    deadline = time.monotonic() + GONE
    while (left := members(session)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left
