"""The other side of a node under test: starts it as a process, speaks to it and hears it, on loopback alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s2robot.adapters.ros2_messages import messages
from s2robot.errors import require

PATIENCE = 90.0  # seconds until something that must come has come

# No traffic leaves this machine, and none of another's comes in.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)


class Side:
    """An rclpy node of the test's own; everything it hears is kept by topic."""

    def __init__(self) -> None:
        rclpy = self._rclpy = require("rclpy", extra="ros2", purpose="A test")
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node("side", context=self._context)
        self._executor = require("rclpy.executors", extra="ros2", purpose="A test").SingleThreadedExecutor(
            context=self._context
        )
        self._executor.add_node(self.node)
        self.heard: dict[str, list[Any]] = {}
        self._publishers: dict[str, Any] = {}
        self.processes: list[subprocess.Popen[bytes]] = []

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self._executor.shutdown()
        self.node.destroy_node()
        self._rclpy.shutdown(context=self._context)

    def start(self, *words: str, module: str = "s2robot.cli", log: Path) -> subprocess.Popen[bytes]:
        """A process of its own; what it says goes to `log`."""
        with log.open("wb") as file:
            process = subprocess.Popen([sys.executable, "-m", module, *words], stdout=file, stderr=subprocess.STDOUT)
        self.processes.append(process)
        return process

    def listen(self, kind: Any, topic: str) -> list[Any]:
        """What is published there from now on."""
        kept = self.heard.setdefault(topic, [])
        self.node.create_subscription(kind, topic, kept.append, 50)
        return kept

    def say(self, topic: str, message: Any) -> None:
        """Publish; the time of now goes into an empty stamp."""
        if hasattr(message, "header") and not message.header.stamp.sec:
            message.header.stamp = self.node.get_clock().now().to_msg()
        if topic not in self._publishers:
            self._publishers[topic] = self.node.create_publisher(type(message), topic, 1)
        self._publishers[topic].publish(message)

    def until(self, true: Callable[[], Any], otherwise: str, again: Callable[[], None] | None = None) -> Any:
        """Receive until something is true, and return it.

        again: done every half second: what is published before both sides know of each other is lost.
        """
        end, due = time.monotonic() + PATIENCE, 0.0
        while not (value := true()):
            dead = [process.args for process in self.processes if process.poll() not in (None, 0)]
            assert time.monotonic() < end and not dead, f"{otherwise} {dead}"
            if again and time.monotonic() > due:
                again()
                due = time.monotonic() + 0.5
            self._executor.spin_once(timeout_sec=0.05)
        return value

    def during(self, seconds: float) -> None:
        """Receive for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.05)

    def every(self, seconds: float, do: Callable[[], None]) -> None:
        """Do something again and again while receiving."""
        self.node.create_timer(seconds, do)

    def status(self, name: str) -> Any:
        """The last diagnostic status of that name: (level, message, values); None if there was none yet."""
        for message in reversed(self.heard.get("/diagnostics", [])):
            for each in message.status:
                if each.name == name:
                    return each.level[0], each.message, {pair.key: pair.value for pair in each.values}
        return None

    def count(self, name: str, what: str) -> int:
        """A number of that status, 0 before there is one."""
        found = self.status(name)
        return int(found[2][what]) if found else 0


def listen_to_diagnostics(side: Side) -> None:
    side.listen(messages("diagnostic_msgs").DiagnosticArray, "/diagnostics")


def ends_cleanly(process: subprocess.Popen[bytes], by: signal.Signals) -> bool:
    """Whether it ends with exit code 0 when told to stop."""
    process.send_signal(by)
    return process.wait(PATIENCE) == 0
