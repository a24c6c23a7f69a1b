"""A node's life: how it ends, whatever it is at when it is told to, or when its work fails."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from typing import Any

import pytest

if importlib.util.find_spec("rclpy") is None:
    pytest.skip("rclpy is not installed", allow_module_level=True)

from s2robot.adapters.ros2_encode import EncodeConfig
from s2robot.adapters.ros2_messages import messages
from s2robot.adapters.ros2_running import run
from s2robot.errors import InvalidInput


class Resting:
    """Work with nothing to do."""

    def step(self) -> None:
        time.sleep(0.01)


def interrupt() -> None:
    """As a Ctrl-C does, and time for it to be taken."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)


def test_a_node_whose_work_fails_ends_and_says_why() -> None:
    class Failing:
        def step(self) -> None:
            raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        run("failing", EncodeConfig, lambda node, config: Failing(), [], [])


@pytest.mark.parametrize(
    ("ros", "said"),
    [
        (["-r", "__node:=a-b"], r"does not start with --ros-args -r __node:=a-b: .*Couldn't parse remap rule"),
        (["--params-file", "/none.yaml"], "Error opening YAML file$"),
        (["-r"], "trailing -r flag"),
    ],
)
def test_arguments_that_ros_refuses_are_no_bug(ros: list[str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        run("eyes", EncodeConfig, lambda node, config: Resting(), [], ros)


def test_a_name_that_ros_refuses_is_no_bug() -> None:
    def make(node: Any, config: EncodeConfig) -> Resting:
        node.create_publisher(messages("std_msgs").String, "/a-b", 1)
        return Resting()

    with pytest.raises(InvalidInput, match=r"refuses a name: Invalid topic name: .*'/a-b'$"):
        run("eyes", EncodeConfig, make, [], [])


def test_an_interrupt_waits_until_a_callback_is_done() -> None:
    """Raised within rclpy's bindings KeyboardInterrupt comes out as a RuntimeError: a bug, to who reads the log."""
    done: list[bool] = []

    def make(node: Any, config: EncodeConfig) -> Resting:
        node.create_timer(0.01, lambda: done.append(False) or interrupt() or done.append(True))
        return Resting()

    before = signal.getsignal(signal.SIGINT)
    run("interrupted", EncodeConfig, make, [], [])
    assert done and done == [False, True] * (len(done) // 2)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("turned", [False, True])
def test_an_interrupt_ends_a_node_that_is_being_made(turned: bool) -> None:
    """A model that takes a minute to load is not waited for, nor is it an error that something broke by being ended."""
    reached: list[str] = []

    def make(node: Any, config: EncodeConfig) -> Resting:
        try:
            interrupt()
        except KeyboardInterrupt:
            if turned:
                raise RuntimeError("what a binding makes of it") from None
            raise
        reached.append("the end")
        return Resting()

    run("begun", EncodeConfig, make, [], [])
    assert not reached
