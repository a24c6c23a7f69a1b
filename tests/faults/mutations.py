"""Damage to a file, drawn by a seeded generator, and what a reader makes of it, each in a process of its own."""

from __future__ import annotations

import os
import resource
import select
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PATIENCE = 60.0  # for one reading [s]
MEMORY = 16 << 30  # address space of one reading [bytes]
Reader = Callable[[], str]
"""Reads, and returns a digest of all that was read."""

RIGHT, CLEAR = "read right", "clear error"
LOST = ("wrong answer", "unclear error", "crash", "hang")


def damaged(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """The name of what was done to it, and the bytes then."""
    kinds = ("cut short", "a bit flipped", "bytes zeroed", "parts swapped")
    for _ in range(100):
        kind = kinds[int(rng.integers(len(kinds)))]
        data = bytearray(content)
        at = _place(len(data), rng)
        length = int(rng.choice([1, 8, 64, 512, 4096]))
        if kind == "cut short":
            del data[at:]
        elif kind == "a bit flipped":
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == "bytes zeroed":
            data[at : at + length] = bytes(len(data[at : at + length]))
        else:
            length = min(length, len(data) // 2)
            a, b = sorted(int(rng.integers(0, len(data) - length + 1)) for _ in range(2))
            if b < a + length:
                continue
            data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]
        if bytes(data) != content:
            return kind, bytes(data)
    raise ValueError("this file cannot be damaged")


def _place(size: int, rng: np.random.Generator) -> int:
    """Anywhere; one time in two within the first or the last kilobyte, where formats keep what matters most."""
    near = min(size, 1024)
    dice = rng.random()
    if dice < 0.25:
        return int(rng.integers(near))
    return int(size - 1 - rng.integers(near) if dice < 0.5 else rng.integers(size))


def judge(path: Path, read: Reader, tries: int, seed: int, pipe: Any) -> None:
    """Damage `path` again and again and have it read; sends ({outcome: number}, [what was lost])."""
    warnings.simplefilter("ignore")
    rng, whole = np.random.default_rng(seed), path.read_bytes()
    right = read()
    outcomes: Counter[str] = Counter()
    lost: list[str] = []
    for number in range(tries):
        kind, content = damaged(whole, rng)
        path.write_bytes(content)
        outcome, words = _tried(read, right)
        outcomes[outcome] += 1
        if outcome in LOST:
            lost.append(f"{path.name}, try {number}, {kind}: {outcome}: {words[-1500:]}")
    path.write_bytes(whole)
    assert read() == right, f"{path} is read otherwise after it was restored"
    pipe.send((dict(outcomes), lost))


def _tried(read: Reader, right: str) -> tuple[str, str]:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        with os.fdopen(theirs, "w") as file:
            file.write("\n".join(_outcome(read, right)))
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as file:
        deadline, said = time.monotonic() + PATIENCE, b""
        while select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if not (part := os.read(file.fileno(), 1 << 16)):
                break
            said += part
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hang", f"no answer within {PATIENCE:g} s"
    _, status = os.waitpid(child, 0)
    if not said:
        return "crash", f"status {status}"
    outcome, _, words = said.decode(errors="replace").partition("\n")
    return outcome, words


def _outcome(read: Reader, right: str) -> tuple[str, str]:
    from s2robot.errors import S2RobotError

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    try:
        found = read()
    except S2RobotError as error:
        return (CLEAR if len(str(error)) > 20 else "unclear error"), str(error)
    except BaseException:  # noqa: BLE001 - whatever it is, it is what this looks for
        return "unclear error", traceback.format_exc()
    return (RIGHT if found == right else "wrong answer"), f"{found[:300]} instead of {right[:300]}"
