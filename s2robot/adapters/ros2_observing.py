"""The observation of now, put together from topics: cameras, proprioception, goal, and how old each of them is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.adapters.ros2_inputs import Arrival, Complaints, Latest, Tally, is_overtaken
from s2robot.adapters.ros2_messages import Stamp, frame_of, numbers_of, stamp_of
from s2robot.adapters.ros2_state import JointField, joint_values
from s2robot.camera_watch import CameraWatch, WatchConfig
from s2robot.errors import InvalidInput, S2RobotError

MISSING = "nothing came yet"


@dataclass(frozen=True)
class Clock:
    """How old is too old. Arrival goes by the steady clock, stamps by the node's, which may be simulated.

    allowed: seconds. check_stamps: whether stamps count, or arrival alone.
    """

    allowed: float
    check_stamps: bool
    now: Callable[[], int]  # nanoseconds

    def problem(self, came: float, stamp: Stamp | None) -> str:
        """What is wrong with something that came then and says it was true then; "" if nothing is."""
        age = time.monotonic() - came
        if age > self.allowed:
            return f"nothing good came for {age:.2f} s"
        if not stamp or not self.check_stamps:
            return ""
        age = self.now() * 1e-9 - (stamp[0] + stamp[1] * 1e-9)
        if age > self.allowed:
            return f"its stamp is {age:.2f} s old, though it came just now: slow on its way, or another clock"
        return f"its stamp is {-age:.2f} s in the future: another clock" if age < -self.allowed else ""


class CameraInput:
    """One camera: the newest frame that could be read. allowed: seconds, see `is_overtaken`."""

    def __init__(
        self,
        name: str,
        topic: str,
        wake: threading.Condition,
        watch: WatchConfig | None = None,
        allowed: float = 0.0,
    ) -> None:
        self.name, self.latest, self.allowed = name, Latest(topic, wake, allowed), allowed
        self.watch = CameraWatch(name, watch or WatchConfig())
        self.frame: NDArray[np.uint8] | None = None  # (H, W, 3)
        self.arrival: Arrival | None = None  # of that frame

    def refresh(self, complaints: Complaints) -> None:
        """Read the newest message, if there is one."""
        if arrival := self.latest.take():
            if is_overtaken(arrival.stamp, self.arrival.stamp if self.arrival else None, self.allowed):
                self.latest.tally.count("dropped")
                return
            try:
                self.frame = frame_of(arrival.message)
                self.arrival = arrival
                self.latest.tally.took()
                was = self.watch.fault
                self.watch.saw(self.frame)
                if self.watch.fault and not was:
                    complaints.about(self.latest.topic, self.watch.fault, self.latest.tally)
            except S2RobotError as error:
                self.latest.tally.refuse(str(error))
                complaints.about(self.latest.topic, str(error), self.latest.tally)

    def problem(self, clock: Clock) -> str:
        if self.arrival is None:
            return MISSING
        return clock.problem(self.arrival.came, self.arrival.stamp) or self.watch.problem


@dataclass(frozen=True)
class Value:
    """One number of the state."""

    value: float
    came: float
    stamp: Stamp | None


class StateInput:
    """Proprioception: fields from JointState as mapped, the others, in their order, from one Float32MultiArray.

    Its callbacks take what they need at once: a message is small.
    """

    def __init__(
        self,
        fields: Sequence[str],
        joints: Sequence[JointField],
        complaints: Complaints,
        topics: tuple[str, str],
        allowed: float = 0.0,
    ) -> None:
        self.fields, self.joints, self._complaints, self.allowed = tuple(fields), tuple(joints), complaints, allowed
        mapped = {joint.field for joint in joints}
        self.others = tuple(field for field in fields if field not in mapped)
        self.joint_topic, self.array_topic = topics
        self.tallies = {topic: Tally() for topic in topics}
        self._lock = threading.Lock()
        self._values: dict[str, Value] = {}

    def on_joints(self, message: Any) -> None:
        """A callback: JointState."""
        self._take(self.joint_topic, lambda: joint_values(message, self.joints), stamp_of(message))

    def on_array(self, message: Any) -> None:
        """A callback: Float32MultiArray."""

        def read() -> dict[str, float]:
            numbers = numbers_of(message, len(self.others), f"Proprioception ({', '.join(self.others)})")
            return dict(zip(self.others, map(float, numbers), strict=True))

        self._take(self.array_topic, read, None)

    def _take(self, topic: str, read: Callable[[], dict[str, float]], stamp: Stamp | None) -> None:
        tally, came = self.tallies[topic], time.monotonic()
        tally.count("received")
        try:
            found = {field: Value(value, came, stamp) for field, value in read().items()}
        except InvalidInput as error:
            tally.refuse(str(error))
            self._complaints.about(topic, str(error), tally)
            return
        with self._lock:
            held = {field: self._values[field].stamp if field in self._values else None for field in found}
            newer = {field: it for field, it in found.items() if not is_overtaken(stamp, held[field], self.allowed)}
            self._values |= newer
        if newer or not found:
            tally.took()
        else:
            tally.count("dropped")

    def values(self) -> dict[str, Value]:
        """All that is known now."""
        with self._lock:
            return dict(self._values)

    def problems(self, values: dict[str, Value], clock: Clock) -> dict[str, str]:
        """{field: what is wrong with it} of fields that are missing or too old."""
        said = {field: clock.problem(value.came, value.stamp) for field, value in values.items()}
        return {field: said.get(field, MISSING) for field in self.fields if said.get(field, MISSING)}


def stacked(frames: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Frames of all cameras as one array (V, H, W, 3).

    Raises:
        InvalidInput: they differ in size.
    """
    each = list(frames)
    if len({frame.shape for frame in each}) > 1:
        sizes = ", ".join(f"{frame.shape[0]}x{frame.shape[1]}" for frame in each)
        raise InvalidInput(f"Cameras give frames of {sizes}; expected one size. Crop and resize them: image_proc")
    return np.stack(each)
