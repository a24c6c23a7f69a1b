"""What a node says of itself on /diagnostics, once a second: one status a topic it listens to.

OK     all is well
WARN   messages were refused since the last time, or a camera's frames are blank or frozen; the message says why
STALE  nothing came for too long
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from s2robot.adapters.ros2_inputs import Tally
from s2robot.adapters.ros2_messages import messages
from s2robot.adapters.ros2_running import offered

EVERY = 1.0  # seconds


class Diagnostics:
    """Publishes what `report` gives, on the executor's thread."""

    def __init__(self, node: Any, hardware: str, report: Callable[[], list[Any]]) -> None:
        self._node, self._hardware, self._report = node, hardware, report
        self._array = messages("diagnostic_msgs").DiagnosticArray
        self._publisher = node.create_publisher(self._array, "/diagnostics", offered())
        self._timer = node.create_timer(EVERY, self._publish)

    def _publish(self) -> None:
        message = self._array()
        message.header.stamp = self._node.get_clock().now().to_msg()
        for status in self._report():
            status.name, status.hardware_id = f"{self._node.get_name()}: {status.name}", self._hardware
            message.status.append(status)
        self._publisher.publish(message)


class Watched:
    """A tally as a diagnostic status."""

    def __init__(self, name: str, tally: Tally) -> None:
        self.name, self.tally = name, tally
        self._refused = 0

    def status(self, stale: str = "", more: Mapping[str, str] | None = None, doubt: str = "") -> Any:
        """stale: what is missing, "" if nothing is; more: further values; doubt: what is odd about what came."""
        counts = self.tally.counts()
        refused, self._refused = counts["refused"] - self._refused, counts["refused"]
        values = {"rate [Hz]": f"{self.tally.rate():.2f}"} | {key: str(count) for key, count in counts.items()}
        for key, spread in self.tally.latencies().items():
            values |= {f"{key} {share} [ms]": f"{spread[share]:.2f}" for share in ("p50", "p99")}
        level, text = ("WARN", self.tally.refusal) if refused else ("OK", "ok")
        if doubt:
            level, text = "WARN", doubt
        if stale:
            level, text = "STALE", stale
        return status(self.name, level, text, values | dict(more or {}))


def status(name: str, level: str, text: str, values: Mapping[str, str]) -> Any:
    """A DiagnosticStatus; level: OK, WARN, ERROR or STALE."""
    diagnostic = messages("diagnostic_msgs")
    pairs = [diagnostic.KeyValue(key=key, value=value) for key, value in values.items()]
    return diagnostic.DiagnosticStatus(
        name=name, level=getattr(diagnostic.DiagnosticStatus, level), message=text, values=pairs
    )
