"""Blank and frozen frames: found, said, and acted on as configured, in the stream, the server and the ROS 2 node."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_encoders import random_frames, small_encoder
from small_policies import flat, observations, small_policy
from small_servers import get, plain_client, server_thread

from s2robot.adapters import ros2_inputs, ros2_observing
from s2robot.adapters.ros2_observing import MISSING, CameraInput
from s2robot.camera_watch import ACTIONS, CameraWatch, WatchConfig
from s2robot.errors import InvalidInput, S2RobotError, UnknownName
from s2robot.stream import Stream
from s2robot.types import FRAMES

BLACK = np.zeros((32, 32, 3), np.uint8)


class Clock:
    """A clock that a test moves [s]."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("action", ACTIONS)
def test_what_is_done_about_blank_frames(action: str) -> None:
    watch = CameraWatch("top", WatchConfig(blank=action))
    watch.saw(random_frames(32, 32, 3))
    assert not watch.fault and not watch.problem
    watch.saw(BLACK + 130)  # one colour, not black
    assert ("blank" in watch.fault) == (action != "ignore")
    assert bool(watch.problem) == (action in ("hold", "stop")) and watch.found["blank"] == 1
    watch.saw(random_frames(32, 32, 3))
    assert not watch.fault
    assert bool(watch.problem) == (action == "stop") and ("until reset" in watch.problem) == (action == "stop")
    watch.reset()
    assert not watch.problem


def test_the_same_pixels_are_frozen_after_a_while_and_not_before() -> None:
    clock, frame = Clock(), random_frames(32, 32, 3)
    watch = CameraWatch("top", WatchConfig(frozen="hold", frozen_after=1.0), clock)
    for now in (0.0, 0.5, 0.9):
        clock.now = now
        watch.saw(frame)
        assert not watch.problem
    clock.now = 1.0
    watch.saw(frame.copy())
    assert "the very same for 1.0 s" in watch.problem
    other = frame.copy()
    other[3, 4, 1] ^= 1  # a real camera's noise
    watch.saw(other)
    assert not watch.problem and watch.found == {"blank": 0, "frozen": 1}


def test_a_frame_asked_for_twice_is_not_frozen() -> None:
    clock, frame = Clock(), random_frames(32, 32, 3)
    watch = CameraWatch("top", WatchConfig(frozen="stop", frozen_after=1.0), clock)
    watch.saw(frame)
    clock.now = 60.0
    watch.saw(frame)
    assert not watch.fault and not watch.problem


@pytest.mark.parametrize(("blank", "frozen"), [("report", "stop"), ("ignore", "hold"), ("stop", "report")])
def test_of_a_camera_that_is_blank_and_frozen_the_stricter_action_is_taken(blank: str, frozen: str) -> None:
    clock = Clock()
    watch = CameraWatch("top", WatchConfig(blank=blank, frozen=frozen, frozen_after=1.0), clock)
    for now in (0.0, 0.5, 1.0):
        clock.now = now
        watch.saw(BLACK)
    assert ("very same" in watch.problem) == (frozen != "report") and ("blank" in watch.problem) == (blank == "stop")
    assert watch.found == {"blank": 3, "frozen": 1}


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"blank": "halt"}, UnknownName),
        ({"frozen": ""}, UnknownName),
        ({"blank_range": -1}, InvalidInput),
        ({"frozen_after": 0.0}, InvalidInput),
        ({"frozen_after": float("nan")}, InvalidInput),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        WatchConfig(**settings)


def test_a_stream_holds_and_goes_on_to_the_same_features() -> None:
    encoder, frames = small_encoder(), random_frames(2, 32, 32, 3)
    stream, plain = Stream(encoder, "top", watch=WatchConfig(blank="hold")), Stream(encoder, "top")
    stream(frames[0])
    with pytest.raises(S2RobotError, match=r"Not encoded: the frames of top are blank"):
        stream(BLACK)
    plain(frames[0])
    assert (stream(frames[1]).map == plain(frames[1]).map).all()
    assert stream.statistics().frames == 2


def test_frames_of_numbers_that_may_be_nan_are_refused_everywhere(tmp_path: Path) -> None:
    frame = np.full((32, 32, 3), np.nan, np.float32)
    with pytest.raises(InvalidInput, match="uint8"):
        Stream(small_encoder(), "top", watch=WatchConfig())(frame)  # type: ignore[arg-type]


def test_the_server_holds_stops_and_reports(tmp_path: Path) -> None:
    run, (good, other) = small_policy(tmp_path / "run"), observations(2)
    dark = {**good, FRAMES: np.zeros_like(good[FRAMES])}
    with server_thread(run, watch=WatchConfig(blank="report")) as server, plain_client(server.url) as client:
        answer = client.ask(flat(dark) | {"reset": True})
        assert len(answer["camera_faults"]) == 2 and "blank" in answer["camera_faults"][0]
        assert "camera_faults" not in client.ask(flat(other))
        assert "s2robot_camera_faults_total 2" in get(server.url, "/metrics")[1]
    with server_thread(run, watch=WatchConfig(blank="hold")) as server, plain_client(server.url) as client:
        first = client.ask(flat(good) | {"reset": True})["actions"]
        assert "No action: the frames of agentview are blank" in client.ask(flat(dark))
        assert np.array_equal(client.ask(flat(good) | {"reset": True})["actions"], first)
    with server_thread(run, watch=WatchConfig(blank="stop")) as server, plain_client(server.url) as client:
        assert "blank" in client.ask(flat(dark))
        assert "stopped until reset" in client.ask(flat(good))
        assert np.array_equal(client.ask(flat(good) | {"reset": True})["actions"], first)


def test_what_was_overtaken_on_its_way_is_not_seen_after_what_is_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames and joints: two paths, or a network, may change their order. A clock that was set back starts anew."""
    camera, complaints = CameraInput("top", "/top", threading.Condition(), allowed=0.5), ros2_inputs.Complaints(print)
    monkeypatch.setattr(ros2_observing, "frame_of", lambda message: np.full((8, 8, 3), message[1], np.uint8))
    for module in (ros2_inputs, ros2_observing):
        monkeypatch.setattr(module, "stamp_of", lambda message: message[0])
    monkeypatch.setattr(ros2_observing, "joint_values", lambda message, joints: message[1])
    state = ros2_observing.StateInput(["x", "y"], [], complaints, ("/joints", "/array"), allowed=0.5)
    for stamp, value, seen in [
        ((10, 0), 1, 1), ((9, 900_000_000), 2, 1), ((10, 100_000_000), 3, 3), ((9, 600_000_001), 4, 3), ((9, 0), 5, 5),
        (None, 6, 6),
    ]:  # fmt: skip
        camera.latest.put((stamp, value))
        camera.refresh(complaints)
        assert camera.frame is not None and camera.frame[0, 0, 0] == seen
        state.on_joints((stamp, {"x": value}))
        assert state.values()["x"].value == seen
    for tally in (camera.latest.tally, state.tallies["/joints"]):
        assert tally.counts() == {"received": 6, "used": 4, "dropped": 2, "refused": 0}
    camera.latest.put(((20, 0), 7))
    camera.latest.put(((19, 900_000_000), 8))  # before anybody took the newer one
    camera.refresh(complaints)
    assert camera.frame is not None and camera.frame[0, 0, 0] == 7
    assert camera.latest.tally.counts() == {"received": 8, "used": 5, "dropped": 3, "refused": 0}
    careless = CameraInput("top", "/top", threading.Condition())  # by arrival alone
    for stamp in ((10, 0), (9, 900_000_000)):
        careless.latest.put((stamp, stamp[0]))
    careless.refresh(complaints)
    assert careless.frame is not None and careless.frame[0, 0, 0] == 9
    state.on_joints(((8, 900_000_000), {"y": 1.0}))  # another publisher's joint: nothing newer is known of it
    assert state.values()["y"].value == 1.0


def test_the_nodes_input_says_why_one_may_not_act(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `s2robot ros2 act` decides by, with its own message; a node is watched in tests/test_ros2.py."""
    camera = CameraInput("top", "/top/image_raw", threading.Condition(), WatchConfig(blank="stop"))
    heard: list[str] = []
    clock = ros2_observing.Clock(60.0, check_stamps=False, now=lambda: 0)
    complaints = ros2_inputs.Complaints(heard.append)

    def shown(frame: np.ndarray) -> str:
        camera.latest.put(frame)
        camera.refresh(complaints)
        return camera.problem(clock)

    assert camera.problem(clock) == MISSING
    monkeypatch.setattr(ros2_observing, "frame_of", lambda message: message)
    monkeypatch.setattr(ros2_inputs, "stamp_of", lambda message: None)
    assert shown(random_frames(32, 32, 3)) == ""
    assert shown(BLACK).startswith("stopped until reset: the frames of top are blank") and len(heard) == 1
    assert shown(random_frames(32, 32, 3)).startswith("stopped until reset")
    camera.watch.reset()
    assert camera.problem(clock) == ""
    assert shown(BLACK).startswith("stopped until reset")
    camera.watch.reset()
    assert camera.problem(clock).startswith("the frames of top are blank")  # nothing else was seen yet
    assert shown(random_frames(32, 32, 3)) == ""
