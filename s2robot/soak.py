"""Many clients at one server, each its own episode, malformed messages in between; and a stranger among them.

Every answer is held against the in-process one of the same episode; every malformed message must be answered in words
and leave the episode as it was; what the stranger does to its own connections must be nobody else's loss.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot import machine, statistics
from s2robot.adapters import wire
from s2robot.errors import InvalidInput
from s2robot.malformed import broken_message, flipped
from s2robot.progress import Told

Step = tuple[dict[str, Any], NDArray[np.float32]]  # an observation, and the answer
PATIENCE = 120.0  # for an answer [s]
STRANGERS_HZ = 5.0  # what the stranger does a second
TOLERANCE = {False: 1e-5, True: 1e-4}  # of answers: one by one, or encoded as a batch


@dataclass(frozen=True)
class ServeBenchConfig:
    """What to serve, and how to press it."""

    run: str = ""
    clients: int = 8
    seconds: float = 120.0
    malformed: int = 1000  # messages, spread over clients and time
    calls: int = 100  # of a single client, in turn with as many in process
    batch: int = 0  # as `s2robot serve --batch`
    engine: str = "auto"
    precision: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clients < 1 or self.calls < 2 or self.malformed < 0 or not 0 < self.seconds < float("inf"):
            raise InvalidInput("clients must be 1 or more, calls 2 or more, malformed 0 or more, seconds above 0")


@dataclass
class _Tally:
    """What one client has seen."""

    ms: list[float] = field(default_factory=list)
    worst: float = 0.0  # largest difference to the in-process answer
    wrong: int = 0
    malformed: int = 0
    unrefused: int = 0  # malformed, and yet not answered in words
    faults: list[str] = field(default_factory=list)


@contextlib.contextmanager
def connect(url: str) -> Iterator[Any]:
    """A connection whose metadata are read."""
    from websockets.sync import client

    with client.connect(url, compression=None, max_size=None, close_timeout=5) as connection:
        connection.recv(PATIENCE)
        yield connection


def ask(connection: Any, message: bytes) -> Any:
    """What a message is answered with: a map, or a text."""
    connection.send(message)
    answer = connection.recv(PATIENCE)
    return answer if isinstance(answer, str) else wire.unpack(answer)


def press(
    url: str, process: subprocess.Popen[str], episodes: list[list[Step]], config: ServeBenchConfig, progress: Told
) -> dict[str, Any]:
    """Let clients and stranger loose on a server, for `seconds`; returns what was found, in plain numbers.

    episodes: what the clients play, each observation with the answer it must get.
    """
    began = time.monotonic()
    tallies = [_Tally() for _ in range(config.clients)]
    quota = [len(range(k, config.malformed, config.clients)) for k in range(config.clients)]
    works: list[Callable[[], None]] = [
        lambda k=k, tally=tally: _play(url, episodes, config, k, quota[k], began, tally)  # type: ignore[misc]
        for k, tally in enumerate(tallies)
    ]
    stranger: dict[str, int] = {}
    works.append(lambda: _trouble(url, episodes, config, began, stranger))
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    memory: list[tuple[float, float]] = []  # [s], [MB]
    total = max(1, round(config.seconds))
    while any(thread.is_alive() for thread in threads):
        now = time.monotonic() - began
        resident = machine.resident_mb(process.pid) if process.poll() is None else None
        if resident is not None:
            memory.append((now, resident))
        answered = sum(len(tally.ms) for tally in tallies)
        progress(min(int(now), total - 1), total, f"{answered} answers")
        if now > config.seconds + 2 * PATIENCE:
            tallies[0].faults.append("a client did not come to an end")
            break
        time.sleep(min(1.0, config.seconds / 10))
    progress(total, total, "")
    return _summary(tallies, stranger, memory, time.monotonic() - began, process.poll())


def _play(
    url: str, episodes: list[list[Step]], config: ServeBenchConfig, k: int, quota: int, began: float, tally: _Tally
) -> None:
    """One client: episode after episode, and its share of malformed messages on the same connection."""
    rng = np.random.default_rng((config.seed, k))
    limit = TOLERANCE[config.batch > 1]
    try:
        with connect(url) as connection:
            while (passed := time.monotonic() - began) < config.seconds or tally.malformed < quota:
                episode = episodes[int(rng.integers(len(episodes)))]
                for step, (observation, expected) in enumerate(episode):
                    while tally.malformed < min(quota, 1 + quota * passed / config.seconds):
                        answer = ask(connection, broken_message(observation, rng))
                        tally.malformed += 1
                        tally.unrefused += not isinstance(answer, str)
                    asked = time.perf_counter()
                    answer = ask(connection, wire.pack({**observation, "reset": step == 0}))
                    tally.ms.append(1e3 * (time.perf_counter() - asked))
                    _compare(answer, expected, limit, tally)
                    passed = time.monotonic() - began
                    if passed > config.seconds:  # and the rest of the malformed ones before the end
                        break
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what this looks for
        tally.faults.append(f"client {k}: {type(error).__name__}: {error}"[:300])


def _compare(answer: Any, expected: NDArray[np.float32], limit: float, tally: _Tally) -> None:
    if isinstance(answer, str) or np.shape(answer.get("actions")) != expected.shape:
        tally.wrong += 1
        tally.faults.append(f"an observation was answered with: {str(answer)[:200]}")
        return
    difference = float(np.abs(answer["actions"] - expected).max())
    tally.worst = max(tally.worst, difference)
    tally.wrong += not difference <= limit


def _trouble(
    url: str, episodes: list[list[Step]], config: ServeBenchConfig, began: float, counts: dict[str, int]
) -> None:
    """A stranger: everything here may end its own connection, and nobody else's."""
    rng, valid = np.random.default_rng((config.seed, 10**6)), wire.pack(episodes[0][0][0])
    host, _, port = url.removeprefix("ws://").rpartition(":")

    def shatter() -> None:
        with socket.create_connection((host, int(port)), 10) as raw:
            raw.sendall(rng.bytes(int(rng.integers(1, 3000))))

    def leave() -> None:
        with connect(url) as connection:
            connection.send(valid)
            connection.socket.shutdown(socket.SHUT_RDWR)  # without a goodbye, and an answer on its way

    def flood() -> None:
        with connect(url) as connection:
            connection.send(bytes(100_000_000))
            connection.recv(PATIENCE)

    def flip() -> None:
        with connect(url) as connection:
            ask(connection, flipped(valid, rng))

    acts: list[Callable[[], None]] = [shatter, leave, flood, flip, flip, flip]
    while time.monotonic() - began < config.seconds:
        act = acts[int(rng.integers(len(acts)))]
        with contextlib.suppress(Exception):  # what becomes of the stranger is not what is looked at
            act()
        counts[act.__name__] = counts.get(act.__name__, 0) + 1
        time.sleep(1 / STRANGERS_HZ)


def _summary(
    tallies: list[_Tally], stranger: dict[str, int], memory: list[tuple[float, float]], seconds: float, code: int | None
) -> dict[str, Any]:
    ms = [each for tally in tallies for each in tally.ms]
    half = [mb for when, mb in memory if when > seconds / 2]
    tenths = [max(1, len(tally.ms) // 10) for tally in tallies]
    first = [each for tally, n in zip(tallies, tenths, strict=True) for each in tally.ms[:n]]
    last = [each for tally, n in zip(tallies, tenths, strict=True) for each in tally.ms[-n:]]
    every = max(1, len(memory) // 60)
    return {
        "crashed": code is not None,
        "answers": len(ms),
        "answers_hz": len(ms) / seconds,
        "answers_by_client": [len(tally.ms) for tally in tallies],
        "wrong": sum(tally.wrong for tally in tallies),
        "worst_difference": max(tally.worst for tally in tallies),
        "malformed": sum(tally.malformed for tally in tallies),
        "unrefused": sum(tally.unrefused for tally in tallies),
        "stranger": stranger,
        "faults": [fault for tally in tallies for fault in tally.faults],
        "latency_ms": statistics.quantiles(ms) if ms else None,
        "first_ms": statistics.quantiles(first) if first else None,  # of each client's first and last tenth
        "last_ms": statistics.quantiles(last) if last else None,
        "rss_mb": {
            "first": memory[0][1] if memory else None,
            "last": memory[-1][1] if memory else None,
            "largest": max((mb for _, mb in memory), default=None),
            "growth_in_second_half": half[-1] - half[0] if half else None,
            "over_time": [[round(when, 1), round(mb, 1)] for when, mb in memory[::every]],
        },
    }
