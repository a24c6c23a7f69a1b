"""A node's life: made, spun, ended by SIGINT, SIGTERM or its own work failing, and nothing left behind.

executor (main thread)   callbacks: keep the newest message; timers: ticks, diagnostics
worker (one thread)      all that takes time
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from s2robot.adapters.ros2_parameters import declare
from s2robot.errors import InvalidInput, S2RobotError, require

Config = TypeVar("Config")
PATIENCE = 10.0  # seconds that a worker gets to finish what it is at


class Work(Protocol):
    """What a node does besides receiving."""

    def step(self) -> None:
        """Wait for something to do, no longer than a moment; do it."""
        ...


def run(
    name: str, schema: type[Config], make: Callable[[Any, Config], Work], words: Sequence[str], ros: Sequence[str]
) -> None:
    """Run a node until it is told to stop.

    Args:
        make: subscribes and publishes on the rclpy node it is given.
        words, ros: the command line's options, and ROS's own arguments.

    Raises:
        InvalidInput: ROS refuses a name or an argument.
        S2RobotError: its parameters are wrong, its work failed, or ROS does not start.
        MissingExtra: rclpy is not installed.
    """
    rclpy = require("rclpy", extra="ros2", purpose="A ROS 2 node")
    failure: Exception | None = None
    with _interrupt() as interrupt, _refusals_in_words():
        _start(rclpy, ros)
        try:
            node = rclpy.create_node(name)
            try:
                with interrupt.raised():  # making may take a minute: who stops it waits for no model to be loaded
                    work = make(node, declare(node, schema, words))
                failure = _spin(rclpy, node, work)
            except KeyboardInterrupt:
                pass
            except Exception:
                if node.context.ok() and not interrupt.came:  # else it was told to stop, at whatever it was
                    raise
            finally:
                node.destroy_node()
        finally:
            rclpy.try_shutdown()
    if failure:
        raise failure


def _start(rclpy: Any, ros: Sequence[str]) -> None:
    try:
        rclpy.init(args=["s2robot", *(["--ros-args", *ros] if ros else [])])
    except Exception as error:  # RCLError, which has no public name, and some for kinds of arguments
        words = str(error).partition(", at /")[0]  # without where in its sources
        if not ros:
            raise S2RobotError(f"ROS 2 does not start: {words}") from error
        raise InvalidInput(f"ROS 2 does not start with --ros-args {' '.join(ros)}: {words}") from error


@contextmanager
def _refusals_in_words() -> Iterator[None]:
    """What ROS says of a name of a node, topic or service that is none, as an error of ours."""
    names = require("rclpy.exceptions", extra="ros2", purpose="A ROS 2 node")
    try:
        yield
    except names.NameValidationException as error:
        raise InvalidInput(f"ROS 2 refuses a name: {' '.join(str(error).rstrip(' ^').split())}") from error


class _Interrupt:
    """What SIGINT does besides shutting the node's context down, which rclpy does: nothing, or KeyboardInterrupt.

    Raised within rclpy's bindings it comes out as any other error, or leaves half a node: so it is not, where they
    are at work.
    """

    def __init__(self) -> None:
        self.came, self._raises = False, False

    def __call__(self, number: int, frame: Any) -> None:
        self.came = True
        if self._raises:
            raise KeyboardInterrupt

    @contextmanager
    def raised(self) -> Iterator[None]:
        self._raises = True
        try:
            yield
        finally:
            self._raises = False


@contextmanager
def _interrupt() -> Iterator[_Interrupt]:
    """Put in place before rclpy's own handler, which calls it; what was there comes back."""
    interrupt = _Interrupt()
    if threading.current_thread() is not threading.main_thread():  # no handler can be set there, none is called
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def _spin(rclpy: Any, node: Any, work: Work) -> Exception | None:
    """Receive until the node is told to stop, or its work fails: how, is returned."""
    executors = require("rclpy.executors", extra="ros2", purpose="A ROS 2 node")
    # Made before the worker runs: with a context that a failing worker has shut down, it could not be.
    executor, worker = executors.SingleThreadedExecutor(), Worker(work, node.context)
    worker.start()
    try:
        rclpy.spin(node, executor)
    except executors.ExternalShutdownException:
        pass
    finally:
        worker.finish()
        executor.shutdown()
    return worker.failure


class Worker(threading.Thread):
    """Does a node's work over and over; if that fails, the node ends and says why."""

    def __init__(self, work: Work, context: Any) -> None:
        super().__init__(name="work", daemon=True)  # a forward pass that hangs does not keep the process
        self._work, self._context = work, context
        self._ending = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            while not self._ending.is_set() and self._context.ok():
                self._work.step()
        except Exception as error:  # noqa: BLE001 - carried over to the main thread, which raises it
            if self._context.ok():  # publishing fails once the context is gone: that is the end, not an error
                self.failure = error
                self._context.try_shutdown()

    def finish(self) -> None:
        self._ending.set()
        self.join(PATIENCE)


def newest(depth: int = 1, *, reliable: bool = False) -> Any:
    """Sensor data: the newest alone, nothing for those who come late; best effort, which every publisher offers."""
    qos = require("rclpy.qos", extra="ros2", purpose="A ROS 2 node")
    asked = qos.ReliabilityPolicy.RELIABLE if reliable else qos.ReliabilityPolicy.BEST_EFFORT
    return qos.QoSProfile(reliability=asked, history=qos.HistoryPolicy.KEEP_LAST, depth=depth)


def offered() -> Any:
    """What is published: reliable, so that subscribers of either kind match; the newest alone, so that none waits."""
    qos = require("rclpy.qos", extra="ros2", purpose="A ROS 2 node")
    return qos.QoSProfile(reliability=qos.ReliabilityPolicy.RELIABLE, history=qos.HistoryPolicy.KEEP_LAST, depth=1)


def latched() -> Any:
    """Said once, heard by those who come later."""
    qos = require("rclpy.qos", extra="ros2", purpose="A ROS 2 node")
    return qos.QoSProfile(depth=1, durability=qos.DurabilityPolicy.TRANSIENT_LOCAL)
