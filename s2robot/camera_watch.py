"""Is a camera still seeing? Blank and frozen frames, found as they come, and what is then to be done.

    blank      every pixel within `blank_range` of every other: black, or the one colour of a dead sensor
    frozen     the very same pixels for `frozen_after` seconds: a driver that repeats its last picture

    ignore     nothing
    report     said (log, diagnostics, metrics, answers); the policy goes on
    hold       no action while it lasts
    stop       no action until somebody resets, also when the camera has come back

Frames that do not come at all, come late, or are no uint8 RGB (NaN among them) are the caller's to see: the ROS 2 node
falls silent (`stale_after`), the server and the encoder refuse.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2robot.errors import InvalidInput, UnknownName

ACTIONS = ("ignore", "report", "hold", "stop")  # each stricter than the one before
FEWEST = 3  # looks at the same pixels that make a camera frozen: two may be one frame asked for twice


@dataclass(frozen=True)
class WatchConfig:
    """What is done about which fault.

    blank, frozen: ignore, report, hold or stop. A simulated camera over a scene in which nothing moves gives the same
        pixels, and one may look at a wall
    blank_range: brightest less darkest value [0 to 255] of a blank frame
    frozen_after: seconds of the very same pixels
    """

    blank: str = "report"
    frozen: str = "report"
    blank_range: int = 6
    frozen_after: float = 2.0

    def __post_init__(self) -> None:
        for name in ("blank", "frozen"):
            if getattr(self, name) not in ACTIONS:
                raise UnknownName(f"action for {name} frames", str(getattr(self, name)), ACTIONS)
        if not 0 <= self.blank_range <= 255 or not 0 < self.frozen_after < float("inf"):
            raise InvalidInput(
                f"blank_range is {self.blank_range}, frozen_after {self.frozen_after}; expected 0 to 255, and seconds"
                " above 0"
            )


class CameraWatch:
    """Watches one camera: `saw` every frame, then ask `problem` whether one may act."""

    def __init__(self, name: str, config: WatchConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.config, self._clock = name, config, clock
        self.fault = ""  # what is wrong with the last frame, in words
        self.found = {"blank": 0, "frozen": 0}  # frames, since it was made
        self._action, self._stopped = "ignore", ""
        self._last: tuple[int, tuple[int, ...]] | None = None
        self._since, self._same = 0.0, 0

    def reset(self) -> None:
        """A new episode, at somebody's word: what made it stop is over."""
        self._stopped = ""

    def saw(self, frame: NDArray[np.uint8]) -> None:
        """The next frame, (H, W, 3)."""
        faults = self._judge(frame)
        for kind in faults:
            self.found[kind] += 1
        worst = max(faults, key=lambda kind: ACTIONS.index(getattr(self.config, kind)), default="")
        self._action, self.fault = (getattr(self.config, worst), faults[worst]) if worst else ("ignore", "")
        if self._action == "stop":
            self._stopped = self._stopped or self.fault
        if self._action == "ignore":
            self.fault = ""

    @property
    def problem(self) -> str:
        """Why one may not act now; "" if one may."""
        if self._stopped:
            return f"stopped until reset: {self._stopped}"
        return self.fault if self._action in ("hold", "stop") else ""  # a reset does not make the last frame good

    def _judge(self, frame: NDArray[np.uint8]) -> dict[str, str]:
        """What is wrong, in words; a camera may be blank and frozen."""
        now, seen = self._clock(), (zlib.crc32(np.ascontiguousarray(frame).data), frame.shape)
        if seen != self._last:
            self._last, self._since, self._same = seen, now, 0
        self._same += 1
        faults: dict[str, str] = {}
        low, high = int(frame.min(initial=255)), int(frame.max(initial=0))
        if high - low <= self.config.blank_range:
            faults["blank"] = f"the frames of {self.name} are blank (all pixels from {low} to {high})"
        if self._same >= FEWEST and now - self._since >= self.config.frozen_after:
            faults["frozen"] = f"the frames of {self.name} have been the very same for {now - self._since:.1f} s"
        return faults
