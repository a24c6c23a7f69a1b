"""One process at a time where something is written: the second is told who the first is, or waits for it.

The lock is the system's own (flock) on a small file that says who holds it, so that of a process which is gone, killed
or with its machine, nothing is left but the file, and that stops nobody.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from s2robot import files
from s2robot.errors import Occupied, S2RobotError
from s2robot.remote import shown


@contextlib.contextmanager
def alone(lock: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock; the file goes when it is given back.

    Args:
        what: is written under it, for the message: a folder or file.
        wait: until it is free, for work that whoever comes first does for all.

    Raises:
        Occupied: another process holds it; names the process, its machine and command.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = _open(lock)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise Occupied(f"{_told(lock, what)}. Wait until it ends, or write elsewhere (--out)") from None
                logging.getLogger(__name__).warning("%s: waiting for it", _told(lock, what))
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:  # a network file system without locks
                break
            if _same(descriptor, lock):
                break
            gone, descriptor = descriptor, _open(lock)  # the holder before gave it back just now, and its file with it
            os.close(gone)
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.truncate(descriptor, 0)
            os.write(descriptor, _holder().encode())
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # moved away with its folder
                lock.unlink()
    finally:
        os.close(descriptor)


def _open(lock: Path) -> int:
    try:
        with files.explain_full_disk(lock):
            lock.parent.mkdir(parents=True, exist_ok=True)
            return os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise S2RobotError(f"{lock.parent} cannot be written: {error.strerror or error}. Write elsewhere") from error


def _same(descriptor: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def _holder() -> str:
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    said = {"process": os.getpid(), "host": socket.gethostname(), "since": since, "command": list(map(shown, sys.argv))}
    return json.dumps(said) + "\n"


def _told(lock: Path, what: str) -> str:
    try:
        said = json.loads(lock.read_text(encoding="utf-8"))
        command = shlex.join([Path(said["command"][0]).name, *said["command"][1:]])[:200]
        who = f"process {said['process']} on {said['host']}, since {said['since']}: {command}"
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # it is only now writing its name
        who = "another process"
    return f"{what} is in use by {who}"
