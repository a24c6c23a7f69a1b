"""What comes in: of every topic the newest message and nothing else, and a tally of what became of them.

A callback only puts a message here; a thread of its own takes it. So the executor is always free to receive, no frame
ever waits behind another, and memory does not grow.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from s2robot.adapters.ros2_messages import COMPRESSED, Stamp, messages, stamp_of
from s2robot.errors import InvalidInput
from s2robot.statistics import quantiles

WINDOW = 1000  # latencies that quantiles are of
SAY_EVERY = 10.0  # seconds between two complaints about one topic


@dataclass(frozen=True)
class Arrival:
    """A message and when it came [s], by the machine's own steady clock."""

    message: Any
    came: float

    @property
    def stamp(self) -> Stamp | None:
        return stamp_of(self.message)


class Tally:
    """What became of a topic's messages: counts since the start, latencies [ms] of the last `WINDOW`.

    received = used + dropped + refused, and at most one that waits or is being worked on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("received", "used", "dropped", "refused"), 0)
        self._ms: dict[str, deque[float]] = {}
        self._last = (time.monotonic(), 0)  # when the rate was asked for, and `used` then
        self.refusal = ""  # the last one

    def count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def refuse(self, why: str) -> None:
        with self._lock:
            self._counts["refused"] += 1
            self.refusal = why

    def took(self, **ms: float) -> None:
        """One more was used; how long what took."""
        with self._lock:
            self._counts["used"] += 1
            for name, value in ms.items():
                self._ms.setdefault(name, deque(maxlen=WINDOW)).append(value)

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def latencies(self) -> dict[str, dict[str, float]]:
        """Median and 99th percentile of each, see `statistics.quantiles`."""
        with self._lock:
            kept = {name: list(values) for name, values in self._ms.items()}
        return {name: quantiles(values) for name, values in kept.items()}

    def rate(self) -> float:
        """Used a second [Hz] since this was last asked."""
        with self._lock:
            (then, before), now, used = self._last, time.monotonic(), self._counts["used"]
            self._last = (now, used)
        return (used - before) / max(now - then, 1e-9)


class Complaints:
    """Says of every topic what is wrong with its messages, at most once in `SAY_EVERY` seconds."""

    def __init__(self, say: Callable[[str], Any]) -> None:
        self._say, self._said = say, dict[str, float]()

    def about(self, topic: str, why: str, tally: Tally) -> None:
        now = time.monotonic()
        if now - self._said.get(topic, -SAY_EVERY) >= SAY_EVERY:
            self._said[topic] = now
            self._say(f"{topic}: {why} (refused so far: {tally.counts()['refused']})")


def is_overtaken(stamp: Stamp | None, before: Stamp | None, allowed: float) -> bool:
    """Whether something that was true then came behind what is newer.

    allowed: seconds. By more than that a clock was set back, or a recording begins anew.
    """
    if stamp is None or before is None:
        return False
    behind = (before[0] - stamp[0]) + (before[1] - stamp[1]) * 1e-9
    return 0 < behind <= allowed


class Latest:
    """The newest message of one topic that nobody took yet; one that is replaced, or was overtaken, counts as dropped.

    allowed: seconds, see `is_overtaken`; 0: whatever comes last is the newest.
    """

    def __init__(self, topic: str, wake: threading.Condition, allowed: float = 0.0) -> None:
        self.topic, self.tally, self.allowed = topic, Tally(), allowed
        self._wake = wake
        self._waiting: Arrival | None = None
        self._came: float | None = None  # when the last one did

    def put(self, message: Any) -> None:
        """A callback: keep it, and wake whoever works."""
        arrival = Arrival(message, time.monotonic())
        with self._wake:
            before, self._came = self._waiting, arrival.came
            self.tally.count("received")
            if before:
                self.tally.count("dropped")
            if not (before and is_overtaken(arrival.stamp, before.stamp, self.allowed)):
                self._waiting = arrival
            self._wake.notify_all()

    @property
    def waits(self) -> bool:
        return self._waiting is not None

    def silence(self, allowed: float) -> str:
        """For how long nothing came, if longer than allowed [s]; "" otherwise."""
        if self._came is None:
            return "nothing came yet"
        age = time.monotonic() - self._came
        return f"nothing came for {age:.1f} s" if age > allowed else ""

    def take(self) -> Arrival | None:
        """The newest, once."""
        with self._wake:
            arrival, self._waiting = self._waiting, None
        return arrival


def picture_type(topic: str) -> Any:
    """The message class of a picture topic: by its name, as image_transport names them."""
    sensor = messages("sensor_msgs")
    return sensor.CompressedImage if topic.endswith(COMPRESSED) else sensor.Image


def different(topics: tuple[str, ...], what: str) -> None:
    """Raise InvalidInput unless there are some, and no two the same."""
    if not topics or "" in topics or len(set(topics)) < len(topics):
        raise InvalidInput(f"{what} is {', '.join(map(repr, topics)) or 'empty'}; expected topics, each once")
