"""How the ROS 2 node holds up over minutes: `s2robot bench ros2 --seconds 300 --hz 30 --size 480x640`.

A camera is played from this process, the node runs in another, on this machine alone; every frame's way is timed from
its stamp until its features are heard here. Does latency grow, does memory, what is lost, what does the node cost
beside the encoder itself?
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot import machine
from s2robot.adapters.ros2_messages import messages, read_array
from s2robot.adapters.ros2_running import newest, offered
from s2robot.encoder import EncoderConfig
from s2robot.errors import InvalidInput, S2RobotError, require
from s2robot.progress import Told, silent
from s2robot.statistics import quantiles

TOPIC = "/s2robot_bench/image_raw"
START = 600.0  # seconds until the first features must have come, on a busy machine too
DIRECT = 100  # frames encoded without ROS
PICTURES = 8  # different frames, shown in turn

# Fast DDS hands over half a megabyte of shared memory at most; of a larger frame, best effort loses parts.
PROFILE = """<?xml version="1.0" encoding="UTF-8"?>
<profiles xmlns="http://www.eprosima.com">
  <transport_descriptors>
    <transport_descriptor>
      <transport_id>shared</transport_id><type>SHM</type><segment_size>33554432</segment_size>
    </transport_descriptor>
    <transport_descriptor><transport_id>udp</transport_id><type>UDPv4</type></transport_descriptor>
  </transport_descriptors>
  <participant profile_name="large_frames" is_default_profile="true">
    <rtps>
      <userTransports><transport_id>shared</transport_id><transport_id>udp</transport_id></userTransports>
      <useBuiltinTransports>false</useBuiltinTransports>
    </rtps>
  </participant>
</profiles>
"""


@dataclass(frozen=True)
class Ros2BenchConfig:
    """What is played, and to which encoder.

    seconds: how long
    hz: frames a second
    size: rows x columns
    reliable: parts of frames that were lost are sent again
    domain: a ROS domain that nobody else uses
    """

    seconds: float = 300.0
    hz: float = 30.0
    size: str = "480x640"
    reliable: bool = False
    domain: int = 86
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        if self.seconds < 3 or not 0 < self.hz <= 1000:
            raise InvalidInput(f"seconds is {self.seconds}, hz {self.hz}; expected 3 or more, and up to 1000")
        _ = self.frame

    @property
    def frame(self) -> tuple[int, int]:
        """Rows and columns."""
        height, x, width = self.size.partition("x")
        if not (x and height.isdigit() and width.isdigit() and int(height) and int(width)):
            raise InvalidInput(f"size is {self.size!r}; expected rows x columns, e.g. 480x640")
        return int(height), int(width)


def bench_ros2(config: Ros2BenchConfig, progress: Told = silent) -> dict[str, Any]:
    """Play, listen, sum up; all times in milliseconds, memory in MB.

    Raises:
        S2RobotError: the node ended, or gave nothing.
        MissingExtra: rclpy is not installed.
    """
    rclpy = require("rclpy", extra="ros2", purpose="s2robot bench ros2")
    frames = _pictures(*config.frame)
    direct = _direct(config.encoder, frames)
    command = [sys.executable, "-m", "s2robot.cli", "ros2", "encode", "--images", TOPIC, *_options(config.encoder)]
    command += ["--reliable"] if config.reliable else []
    with _alone(config.domain):
        context = rclpy.Context()
        rclpy.init(context=context)
        node = subprocess.Popen(command)
        try:
            played = _Played(rclpy, context, node, frames, newest(reliable=config.reliable))
            played.wait()
            played.play(config.seconds, config.hz, progress)
        finally:
            _end(node)
            rclpy.shutdown(context=context)
    return {
        **machine.provenance(),
        "encoder": config.encoder.name,
        "size": config.size,
        "hz": config.hz,
        "reliable": config.reliable,
        **played.result(direct, config.seconds),
        "exit_code": node.returncode,
    }


@contextlib.contextmanager
def _alone(domain: int) -> Iterator[None]:
    """No traffic leaves this machine or comes in, and large frames fit; for child processes too."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile.xml"
        profile.write_text(PROFILE, encoding="utf-8")
        os.environ.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(profile))
        os.environ |= {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_DOMAIN_ID": str(domain)}
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _end(node: subprocess.Popen[bytes]) -> None:
    node.terminate()
    try:
        node.wait(20)
    except subprocess.TimeoutExpired:
        node.kill()
        node.wait()


def _pictures(height: int, width: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(PICTURES)]


def _direct(config: EncoderConfig, frames: list[NDArray[np.uint8]]) -> list[float]:
    """Milliseconds of an encode up to an array on the CPU, without ROS."""
    encoder, took = config.build(), []
    for k in range(DIRECT + 5):
        start = time.perf_counter()
        encoder(frames[k % PICTURES]).map.cpu().numpy()
        took.append(1000 * (time.perf_counter() - start))
    return took[5:]


def _options(encoder: EncoderConfig) -> list[str]:
    """The node's options for this encoder: what is not as usual."""
    words = []
    for name, usual in vars(EncoderConfig()).items():
        value = getattr(encoder, name)
        if value != usual:
            words.append(f"--encoder.{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
    return words


class _Played:
    """A camera and a listener."""

    def __init__(
        self, rclpy: Any, context: Any, process: subprocess.Popen[bytes], frames: list[NDArray[np.uint8]], qos: Any
    ) -> None:
        self._process, height, width = process, *frames[0].shape[:2]
        self._node = rclpy.create_node("s2robot_bench", context=context)
        executors = require("rclpy.executors", extra="ros2", purpose="s2robot bench ros2")
        self._executor = executors.SingleThreadedExecutor(context=context)
        self._executor.add_node(self._node)
        image = messages("sensor_msgs").Image
        self._images = [
            image(height=height, width=width, step=3 * width, encoding="rgb8", data=array("B", frame.tobytes()))
            for frame in frames
        ]
        self._camera = self._node.create_publisher(image, TOPIC, qos)
        floats, diagnostics = messages("std_msgs").Float32MultiArray, messages("diagnostic_msgs").DiagnosticArray
        self._node.create_subscription(floats, f"{TOPIC}/s2/map", self._hear, offered())
        self._node.create_subscription(diagnostics, "/diagnostics", self._note, 10)
        self.sent = 0
        self._heard: list[tuple[float, float]] = []  # when, how long it took [ms]
        self._memory: list[tuple[float, float]] = []  # when, MB
        self._values: dict[str, str] = {}
        self._before: dict[str, str] = {}

    def _send(self) -> None:
        message = self._images[self.sent % PICTURES]
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._camera.publish(message)
        self.sent += 1

    def _hear(self, message: Any) -> None:
        seconds, nanoseconds = read_array(message).stamp
        took = self._node.get_clock().now().nanoseconds - seconds * 10**9 - nanoseconds
        self._heard.append((time.monotonic(), took / 1e6))

    def _note(self, message: Any) -> None:
        self._values = {pair.key: pair.value for each in message.status for pair in each.values}
        if (memory := machine.resident_mb(self._process.pid)) is not None:
            self._memory.append((time.monotonic(), memory))

    def wait(self) -> None:
        """Until the node answers, and has answered all."""
        end, sent = time.monotonic() + START, 0.0
        while not self._heard or time.monotonic() < sent + 3:
            if self._process.poll() is not None or time.monotonic() > end:
                raise S2RobotError(f"The node gave no features in {START:.0f} s, see above. Alone: s2robot ros2 encode")
            if not self._heard and time.monotonic() > sent + 0.5:
                self._send()
                sent = time.monotonic()
            self._executor.spin_once(timeout_sec=0.05)
        self.sent, self._heard, self._memory, self._before = 0, [], [], dict(self._values)

    def play(self, seconds: float, hz: float, progress: Told) -> None:
        """The camera, at its rate."""
        self._start = due = time.monotonic()
        end = self._start + seconds
        while (now := time.monotonic()) < end:
            if self._process.poll() is not None:
                raise S2RobotError(f"The node ended after {now - self._start:.0f} s, see above")
            if now >= due:
                self._send()
                due = max(due + 1 / hz, now)  # a late frame does not bring a burst
                progress(int(now - self._start), int(seconds), f"{len(self._heard)} of {self.sent} frames")
            self._executor.spin_once(timeout_sec=max(0.0, min(due, end) - time.monotonic()))
        until = time.monotonic() + 2.5  # the last frames, and the last diagnostics
        while time.monotonic() < until:
            self._executor.spin_once(timeout_sec=0.05)

    def result(self, direct: list[float], seconds: float) -> dict[str, Any]:
        """All of it in numbers."""
        if not self._heard or not self._memory:
            raise S2RobotError("The node published no features or no diagnostics while the camera was on")
        part = min(60.0, seconds / 3)
        kinds = ("received", "used", "dropped", "refused")
        counts = {kind: int(self._values[kind]) - int(self._before.get(kind, 0)) for kind in kinds}
        whole, alone = quantiles([ms for _, ms in self._heard]), quantiles(direct)
        stages = {key.removesuffix(" [ms]"): float(text) for key, text in self._values.items() if key.endswith("[ms]")}
        return {
            "seconds": seconds,
            "sent": self.sent,
            "lost_on_the_way": self.sent - counts["received"],
            **counts,
            "heard": len(self._heard),
            "direct_encode_ms": alone,
            "stamp_to_heard_ms": whole,
            "more_than_direct_ms_p50": whole["p50"] - alone["p50"],  # with the way there and back, and waiting
            "node_overhead_ms_p50": stages["overhead p50"],  # what the node adds to encoding: all but these
            "node_ms": stages,
            "window_s": part,
            "first_ms": self._window(0, part),
            "last_ms": self._window(seconds - part, seconds),
            "memory_mb": self._growth(seconds, part),
        }

    def _window(self, first: float, last: float) -> dict[str, float] | None:
        times = [ms for when, ms in self._heard if first <= when - self._start <= last]
        return quantiles(times) if times else None

    def _growth(self, seconds: float, part: float) -> dict[str, float]:
        """Resident memory in the first and the last minute (medians), and at most."""
        when, size = (np.array(column) for column in zip(*self._memory, strict=True))
        when = when - self._start
        first, last = size[when <= part], size[when >= seconds - part]
        return {
            "first": float(np.median(first)) if first.size else float(size[0]),
            "last": float(np.median(last)) if last.size else float(size[-1]),
            "most": float(size.max()),
        }
