"""Images in, features out: a ROS 2 node around an encoder (`s2robot ros2 encode`).

    in    <images>                each by itself: sensor_msgs/Image, or CompressedImage where it ends in /compressed
    out   <image>/s2/<kind>       features of each frame, with the frame's own stamp and frame_id
          ~/encoder               std_msgs/String, latched: JSON of whose features these are
          /diagnostics            of every image topic: rate, latencies, received, used, dropped, refused

Cameras take turns, and each turn takes its newest frame.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from s2robot.adapters.ros2_diagnostics import Diagnostics, Watched
from s2robot.adapters.ros2_inputs import Arrival, Complaints, Latest, different, picture_type
from s2robot.adapters.ros2_messages import (
    COMPRESSED,
    KINDS,
    array_message,
    feature_array,
    frame_of,
    image_message,
    messages,
)
from s2robot.adapters.ros2_running import latched, newest, offered, run
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.errors import InvalidInput, S2RobotError, UnknownName
from s2robot.types import Features

NAME = "s2robot_encode"
MOMENT = 0.2  # seconds between two looks at whether the node is to end
LAYOUTS = ("array", "image")


@dataclass(frozen=True)
class EncodeConfig:
    """What is encoded, and what of it is published.

    images: topics, each encoded by itself; sensor_msgs/CompressedImage where the name ends in /compressed, else Image
    publish: kinds of features, a topic each: map, tokens, cls
    layout: array (std_msgs/Float32MultiArray, stamp in its first label) or image (sensor_msgs/Image of floats, header)
    reuse: tiles that did not change are not encoded again; for cameras that stand still
    tolerance: with reuse, the mean pixel difference [0 to 255] that counts as no change; 0 is exact
    stale_after: seconds without a frame until diagnostics call a topic stale
    reliable: lost parts of images are asked for again; a camera that does not publish reliably is then not heard
    device: cuda or cpu; by itself CUDA where there is one
    """

    images: tuple[str, ...] = ("image",)
    publish: tuple[str, ...] = ("map",)
    layout: str = "array"
    reuse: bool = False
    tolerance: float = 0.0
    stale_after: float = 2.0
    reliable: bool = False
    device: str | None = None
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        different(self.images, "images")
        different(tuple(topic.removesuffix(COMPRESSED) for topic in self.images), "images (raw and compressed)")
        different(self.publish, "publish")
        for kind in self.publish:
            if kind not in KINDS:
                raise UnknownName("kind of features", kind, KINDS)
        if self.layout not in LAYOUTS:
            raise UnknownName("layout", self.layout, LAYOUTS)
        if self.tolerance and not self.reuse:
            raise InvalidInput(f"tolerance is {self.tolerance} without reuse. Add --reuse, or leave it out")


class Eye:
    """One image topic: its newest frame, its encoder, its publishers."""

    def __init__(
        self, node: Any, topic: str, encoder: Encoder, config: EncodeConfig, wake: threading.Condition
    ) -> None:
        self.latest = Latest(topic, wake)
        self.watched = Watched(topic, self.latest.tally)
        stream = encoder.stream(topic, config.tolerance) if config.reuse else None
        self.encode: Callable[..., Features] = stream or encoder
        self.stream = stream
        message = messages("std_msgs").Float32MultiArray if config.layout == "array" else messages("sensor_msgs").Image
        base = topic.removesuffix(COMPRESSED)
        self.outputs = {kind: node.create_publisher(message, f"{base}/s2/{kind}", offered()) for kind in config.publish}
        self.subscription = node.create_subscription(
            picture_type(topic), topic, self.latest.put, newest(reliable=config.reliable)
        )

    def status(self, stale_after: float) -> Any:
        """Of this topic, for diagnostics."""
        more = {}
        if self.stream:
            found = self.stream.statistics()
            more = {"tiles reused [%]": f"{100 * found.reused:.1f}"}
            more |= {} if found.worst_error is None else {"worst error of reuse": f"{found.worst_error:.2g}"}
        return self.watched.status(self.latest.silence(stale_after), more)


class EncodeNode:
    """See this file's head; `step` is one frame."""

    def __init__(self, node: Any, config: EncodeConfig) -> None:
        self.node, self.config = node, config
        self.encoder = config.encoder.build(config.device)
        self._wake = threading.Condition()
        self._free = 0.0  # when the last frame was done with
        self._complaints = Complaints(node.get_logger().warning)
        self.eyes = deque(Eye(node, topic, self.encoder, config, self._wake) for topic in config.images)
        self._order = tuple(self.eyes)  # as asked for
        self._said = node.create_publisher(messages("std_msgs").String, "~/encoder", latched())
        self._said.publish(messages("std_msgs").String(data=json.dumps(self.describe())))
        self._diagnostics = Diagnostics(node, config.encoder.name, self.statuses)
        topics = ", ".join(config.images)
        node.get_logger().info(f"{config.encoder.name}, {self.encoder.engine}: encodes {topics}")

    def describe(self) -> dict[str, Any]:
        """Whose features these are."""
        encoder = self.encoder
        sizes = {"channels": encoder.channels, "sizes": encoder.sizes, "fingerprint": encoder.fingerprint}
        return {**asdict(encoder.config), **sizes, "engine": str(encoder.engine), "layout": self.config.layout}

    def statuses(self) -> list[Any]:
        return [eye.status(self.config.stale_after) for eye in self._order]

    def step(self) -> None:
        """Encode one camera's newest frame: of those that have one, the camera that waited longest for its turn."""
        with self._wake:
            self._wake.wait_for(lambda: any(eye.latest.waits for eye in self.eyes), MOMENT)
        for eye in list(self.eyes):
            if arrival := eye.latest.take():
                self.eyes.remove(eye)
                self.eyes.append(eye)
                self._encode(eye, arrival)
                self._free = time.monotonic()
                return

    def _encode(self, eye: Eye, arrival: Arrival) -> None:
        start = time.monotonic()
        try:
            frame = frame_of(arrival.message)
            seen = time.monotonic()
            features = eye.encode(frame)
            arrays = {kind: feature_array(features, kind) for kind in eye.outputs}  # waits for a GPU
        except S2RobotError as error:
            eye.latest.tally.refuse(str(error))
            self._complaints.about(eye.latest.topic, str(error), eye.latest.tally)
            return
        encoded = time.monotonic()
        stamp, frame_id = arrival.stamp or (0, 0), arrival.message.header.frame_id
        for kind, publisher in eye.outputs.items():
            values, labels = arrays[kind]
            as_array = self.config.layout == "array"
            publisher.publish(
                array_message(values, labels, stamp, frame_id) if as_array else image_message(values, stamp, frame_id)
            )
        now = time.monotonic()
        stages = {"waited": start - arrival.came, "decoded": seen - start, "encoded": encoded - seen}
        # A frame that waits for the one before it waits for the encoder; all else is what the node adds to it.
        stages |= {
            "from arrival": now - arrival.came,
            "overhead": now - max(arrival.came, self._free) - (encoded - seen),
        }
        if arrival.stamp:
            stages["from stamp"] = self.node.get_clock().now().nanoseconds * 1e-9 - (stamp[0] + stamp[1] * 1e-9)
        eye.latest.tally.took(**{name: 1000 * seconds for name, seconds in stages.items()})


def encode(words: Sequence[str], ros: Sequence[str] = ()) -> None:
    """Run the node until SIGINT or SIGTERM; see `ros2_running.run`."""
    run(NAME, EncodeConfig, EncodeNode, words, ros)


def main() -> int:
    """For `ros2 run` and launch files: `python -m s2robot.adapters.ros2_encode --ros-args ...`."""
    from s2robot.cli import main as command_line

    return command_line(["ros2", "encode", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
