"""ROS 2 nodes as processes of their own: what comes in, what goes out, what they say of themselves."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_python import run_there
from test_datasets import make_episode
from test_ros2_messages import as_seen, compressed, image

from s2robot import cli, load_policy
from s2robot.adapters.ros2_messages import messages, read_array, stamp_of
from s2robot.datasets import write_dataset
from s2robot.encoder import EncoderConfig

here = pytest.mark.skipif(importlib.util.find_spec("rclpy") is None, reason="rclpy is not installed")
if importlib.util.find_spec("rclpy"):
    from ros2_side import Side, ends_cleanly, listen_to_diagnostics

RAW = ("rgb8", "bgr8", "mono8", "rgba8", "bgra8")
TOPICS = {encoding: f"/{encoding}/image_raw" for encoding in RAW}
TOPICS |= {kind: f"/{kind}/image_raw/compressed" for kind in ("jpeg", "png")}
ENCODER = EncoderConfig(engine="torch")
ENGINE = ["--encoder.engine", "torch"]


def test_all_of_this_in_an_environment_that_has_rclpy() -> None:
    words = ["tests/test_ros2_messages.py", "tests/test_ros2_running.py", "-m", "not slow"]
    assert "passed" in run_there("ros2", "test_ros2.py", *words, timeout=600)


@pytest.mark.slow
def test_the_slow_ones_too() -> None:
    assert "passed" in run_there("ros2", "test_ros2.py", "-m", "slow")


@pytest.mark.skipif(importlib.util.find_spec("rclpy") is not None, reason="rclpy is installed")
@pytest.mark.parametrize("words", [["encode"], ["act", "runs/lift"], ["act", "--ros-args", "-p", "run:=runs/lift"]])
def test_without_rclpy_its_pip_line_is_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ros2", *words]) == 1
    assert "pip install 's2robot[ros2]'" in capsys.readouterr().err


@pytest.mark.parametrize("node", ["encode", "act"])
def test_help_needs_no_rclpy_and_shows_an_example(node: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["ros2", node, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and f"example: s2robot ros2 {node}" in said and "--ros-args" in said
    assert cli.main(["ros2"]) == 2
    assert "required: node. See: s2robot ros2 --help" in capsys.readouterr().err


@pytest.fixture(scope="module")
def frames(lift_env: Any) -> list[np.ndarray]:
    """Rendered frames, none square, each (48, 64, 3)."""
    seen = []
    for seed in range(4):
        observation, _ = lift_env.reset(seed=seed)
        seen += [np.ascontiguousarray(view[:48]) for view in observation["frames"]]
    return seen


@pytest.fixture(scope="module")
def side() -> Iterator[Any]:
    made = Side()
    listen_to_diagnostics(made)
    yield made
    made.close()


@pytest.fixture(scope="module")
def started(side: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """`encode` on a topic of every encoding, on its way; its log."""
    log = tmp_path_factory.mktemp("eyes") / "log"
    return side.start("ros2", "encode", "--images", ",".join(TOPICS.values()), *ENGINE, log=log), log


@pytest.fixture(scope="module")
def eyes(side: Any, started: tuple[Any, Path], frames: list[np.ndarray]) -> Any:
    """The same when it has answered on every topic; frames are rendered meanwhile."""
    heard = [side.listen(messages("std_msgs").Float32MultiArray, map_of(topic)) for topic in TOPICS.values()]

    def knock() -> None:
        for kind, topic in TOPICS.items():
            if not side.heard[map_of(topic)]:
                side.say(topic, message_of(frames[0], kind))

    side.until(lambda: all(heard), "No features come", knock)
    names = [f"s2robot_encode: {topic}" for topic in TOPICS.values()]
    side.until(lambda: all(at_rest(side, name) for name in names), "It is still at work")
    return started[0]


def at_rest(side: Any, name: str) -> bool:
    """Whether a topic's node has dealt with all that came."""
    done = sum(side.count(name, what) for what in ("used", "dropped", "refused"))
    return done == side.count(name, "received") > 0


def map_of(topic: str) -> str:
    return f"{topic.removesuffix('/compressed')}/s2/map"


def message_of(frame: np.ndarray, kind: str) -> Any:
    return image(frame, kind, pad=8) if kind in RAW else compressed(frame, kind)


@here
def test_every_encoding_gives_the_features_of_a_direct_encode(side: Any, eyes: Any, frames: list[np.ndarray]) -> None:
    sent: dict[str, Any] = {}
    for topic in TOPICS.values():
        side.heard[map_of(topic)].clear()
    for (kind, topic), frame in zip(TOPICS.items(), frames, strict=False):
        sent[kind] = message_of(frame, kind)
        sent[kind].header.frame_id = f"{kind} eye"
        side.say(topic, sent[kind])
    side.until(lambda: all(side.heard[map_of(topic)] for topic in TOPICS.values()), "No features came")
    direct = ENCODER.build()
    for (kind, topic), frame in zip(TOPICS.items(), frames, strict=False):
        got = read_array(side.heard[map_of(topic)][0])
        expected = direct(as_seen(frame, kind)).map[0, 0].permute(1, 2, 0).numpy()
        assert np.abs(got.values - expected).max() <= 1e-4, kind
        assert (got.stamp, got.frame_id) == (stamp_of(sent[kind]), f"{kind} eye")


@here
def test_malformed_messages_are_counted_said_and_survived(side: Any, eyes: Any, frames: list[np.ndarray]) -> None:
    short, strange = image(frames[0], "rgb8"), image(frames[0], "rgb8")
    strange.encoding = "bayer_rggb8"
    short.data = short.data[:-1]
    corrupt = {kind: compressed(frames[0], kind) for kind in ("jpeg", "png")}
    for message in corrupt.values():
        message.data = message.data[: len(message.data) // 2]
    bad = {"rgb8": short, "bgr8": strange, **corrupt}
    for kind, message in bad.items():
        side.say(TOPICS[kind], message)
    names = {kind: f"s2robot_encode: {TOPICS[kind]}" for kind in bad}
    side.until(lambda: all(side.count(name, "refused") == 1 for name in names.values()), "Not counted")
    warnings = {each.message for array in side.heard["/diagnostics"] for each in array.status if each.level == b"\x01"}
    assert any("bayer_rggb8" in text for text in warnings) and any("step x rows" in text for text in warnings)
    for kind in bad:
        side.heard[map_of(TOPICS[kind])].clear()
        side.say(TOPICS[kind], message_of(frames[1], kind))
    side.until(lambda: all(side.heard[map_of(TOPICS[kind])] for kind in bad), "It did not survive")
    assert eyes.poll() is None


@here
def test_old_frames_are_dropped_and_counted_and_the_newest_is_encoded(
    side: Any, eyes: Any, frames: list[np.ndarray]
) -> None:
    topic, name = TOPICS["mono8"], f"s2robot_encode: {TOPICS['mono8']}"
    for pause in (0.004, 0.001, 0.0):  # how soon is too soon for it is the machine's to say
        sent, heard, now = flood(side, topic, name, frames, pause)
        assert now["received"] == now["used"] + now["dropped"] and now["refused"] == 0
        assert heard == sorted(heard)
        if now["dropped"]:
            break
    assert now["dropped"] > 0 and len(heard) < sent
    kept = {"rate [Hz]", "from stamp p50 [ms]", "from stamp p99 [ms]", "from arrival p99 [ms]"}
    assert kept <= set(side.status(name)[2])
    assert ends_cleanly(eyes, signal.SIGTERM)


def flood(
    side: Any, topic: str, name: str, frames: list[np.ndarray], pause: float
) -> tuple[int, list[tuple[int, int]], dict[str, int]]:
    """Frames one after the other until the last is encoded: how many, the stamps encoded, what was counted of them."""
    side.until(lambda: at_rest(side, name), "It is still at work")
    heard = side.heard[map_of(topic)]
    heard.clear()
    before, sent = side.status(name)[2], [message_of(np.tile(frame, (10, 10, 1)), "mono8") for frame in frames * 5]
    for message in sent:  # of 480 x 640: slow to encode
        side.say(topic, message)
        side.during(pause)
    side.until(lambda: heard and read_array(heard[-1]).stamp == stamp_of(sent[-1]), "The newest was not encoded")
    side.until(lambda: side.count(name, "used") - int(before["used"]) == len(heard), "Not counted")
    after, keys = side.status(name)[2], ("received", "used", "dropped", "refused")
    now = {key: int(after[key]) - int(before[key]) for key in keys}
    return len(sent), [read_array(message).stamp for message in heard], now


@here
def test_ros_arguments_set_parameters_names_and_topics(side: Any, frames: list[np.ndarray], tmp_path: Path) -> None:
    words = ["-r", "image:=/front/image_raw", "-r", "image/s2/cls:=/front/features", "-r", "__node:=front_eye"]
    for pair in ("publish:=[cls, map]", "layout:=image", "reuse:=true", "tolerance:=1", "encoder.engine:=torch"):
        words += ["-p", pair]
    node = side.start("--ros-args", *words, module="s2robot.adapters.ros2_encode", log=tmp_path / "log")
    heard = side.listen(messages("sensor_msgs").Image, "/front/features")
    from rclpy.qos import DurabilityPolicy, QoSProfile

    said: list[Any] = []
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    side.node.create_subscription(messages("std_msgs").String, "/front_eye/encoder", said.append, latched)
    sent: list[Any] = []

    def say() -> None:
        sent.append(image(frames[0], "rgb8"))
        side.say("/front/image_raw", sent[-1])

    side.until(lambda: said and heard, "No features came", say)
    direct = ENCODER.build()
    description = json.loads(said[0].data)
    assert (description["fingerprint"], description["channels"]) == (direct.fingerprint, direct.channels)
    assert np.abs(read_array(heard[0]).values.ravel() - direct(frames[0]).cls.numpy().ravel()).max() <= 1e-4
    assert heard[0].header.stamp in [message.header.stamp for message in sent]
    name = "front_eye: image"
    side.until(lambda: side.count(name, "used") > 1 and at_rest(side, name), "Not counted", say)
    values = side.status(name)[2]
    used = int(values["used"])
    assert float(values["tiles reused [%]"]) == pytest.approx(100 * (1 - 1 / used), abs=0.1)  # all but the first's
    assert ends_cleanly(node, signal.SIGINT)


@here
def test_the_bench_plays_a_camera_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--seconds", "3", "--hz", "10", "--size", "48x64", *ENGINE, "--encoder.scales", "1", "--json"]
    assert cli.main(["bench", "ros2", *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["exit_code"] == 0 and 0 < result["heard"] == result["used"] <= result["received"] <= result["sent"]
    assert result["first_ms"]["p50"] > 0 and result["memory_mb"]["most"] > 0 and result["node_overhead_ms_p50"] > 0
    for words, said in ((["--size", "48"], "rows x columns"), (["--seconds", "1"], "3 or more")):
        assert cli.main(["bench", "ros2", *words]) == 2
        assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of Lift's cameras, state and actions, trained for two steps."""
    folder = tmp_path_factory.mktemp("policy")
    rng = np.random.default_rng(0)
    episodes = []
    for seed in range(2):
        episode = make_episode(seed)
        length = len(episode)
        shown = rng.integers(0, 255, (length, 2, 48, 64, 3), np.uint8)
        state, actions = rng.normal(size=(length, 7)), rng.uniform(-1, 1, (length, 4))
        episodes.append(
            type(episode)(
                seed, True, shown, state.astype(np.float32), actions.astype(np.float32), actions.astype(np.float32),
                np.zeros(length, np.float32), None,
            )
        )  # fmt: skip
    data = write_dataset(folder / "a.hdf5", episodes, {"task": "Lift", "robot": "Panda"}, ["front", "wrist"])
    words = ["train", str(data.path), "--out", str(folder / "run"), "--train.steps", "2", "--train.batch", "8"]
    assert cli.main([*words, *ENGINE]) == 0
    return folder / "run"


class Robot:
    """Publishes all that a policy wants, again and again, but for the topics in `without`."""

    def __init__(self, side: Any, frames: list[np.ndarray]) -> None:
        self.side, self.without = side, set[str]()
        self.frames = np.stack(frames[:2])  # (2, 48, 64, 3)
        self.state = np.array([0.1, 0.2, 0.9, 0.04, -0.04, 0.5, -0.5], np.float32)
        self.joints: list[str] = ["f1", "f2"]
        self.finger = 0.04
        side.every(0.05, self.publish)

    def publish(self) -> None:
        sensor, std = messages("sensor_msgs"), messages("std_msgs")
        joint_state = sensor.JointState(name=self.joints, position=[self.finger, 0.04], velocity=[0.5, 0.5])
        say = {
            "/front/image_raw": lambda: image(self.frames[0], "bgr8"),
            "/wrist/image_raw/compressed": lambda: compressed(self.frames[1], "png"),
            "/joint_states": lambda: joint_state,
            "/s2robot_act/proprioception": lambda: std.Float32MultiArray(data=self.state[:3].tolist()),
        }
        for topic, make in say.items():
            if topic not in self.without:
                self.side.say(topic, make())


JOINTS = "left_finger=f1.position,right_finger=-f2.position"
JOINTS += ",left_finger_speed=f1.velocity,right_finger_speed=-f2.velocity"


@here
def test_a_policy_acts_falls_silent_and_goes_on(side: Any, frames: Any, trained: Path, tmp_path: Path) -> None:
    words = ["ros2", "act", str(trained), "--images", "/front/image_raw,/wrist/image_raw/compressed"]
    words += ["--joints", JOINTS, "--stale_after", "1", "--engine", "torch", "--ros-args", "-p", "rate:=10"]
    node = side.start(*words, log=tmp_path / "log")
    chunks = side.listen(messages("std_msgs").Float32MultiArray, "/s2robot_act/chunk")
    robot = Robot(side, frames)
    side.until(lambda: chunks, "No chunk came")
    policy = load_policy(trained, engine="torch")
    expected = policy.act({"frames": robot.frames, "proprioception": robot.state})
    got = read_array(chunks[-1])
    assert got.values.shape == expected.shape == (8, 4) and np.abs(got.values - expected).max() <= 1e-4
    assert got.labels == ("step", "dx,dy,dz,gripper") and got.stamp > (0, 0)

    robot.without |= {"/front/image_raw", "/s2robot_act/proprioception"}
    falls_silent(side, chunks, "front: nothing good came for", "gripper_x: nothing good came for")
    robot.without.clear()
    goes_on(side, chunks)
    robot.finger = float("nan")
    falls_silent(side, chunks, "left_finger: nothing good", "right_finger_speed: nothing good")
    robot.finger, robot.joints = 0.04, ["x", "y"]
    before = side.count("s2robot_act: joint_states", "refused")
    side.until(lambda: side.count("s2robot_act: joint_states", "refused") > before > 0, "Wrong names are not counted")
    assert "wanted: f1, f2" in side.status("s2robot_act: joint_states")[1]
    robot.joints = ["f1", "f2"]
    goes_on(side, chunks)
    seen, robot.frames = robot.frames, np.full_like(robot.frames, 90)  # a dead sensor
    falls_silent(side, chunks, "front: the frames of front are blank", "wrist: the frames of wrist are blank")
    robot.frames = seen
    goes_on(side, chunks)
    log = (tmp_path / "log").read_text()
    said = re.findall("No chunks are published|All inputs are there", log)
    assert len(said) >= 6 and all(now != then for then, now in pairwise(said))  # once each, not ten times a second
    assert "position nan of f1" in log
    assert reset(side) == (True, "a new episode begins")
    assert ends_cleanly(node, signal.SIGINT)


def falls_silent(side: Any, chunks: list[Any], *said: str) -> None:
    """It says why, and publishes nothing any more."""
    side.heard["/diagnostics"].clear()  # what it said before it knew
    side.until(lambda: all(words in silence(side) for words in said), f"It does not say {said}")
    side.during(0.5)  # what was on its way comes
    chunks.clear()
    side.during(0.5)
    assert not chunks  # five otherwise


def goes_on(side: Any, chunks: list[Any]) -> None:
    side.until(lambda: chunks and not silence(side), "It did not go on")


def silence(side: Any) -> str:
    """Why the policy says it is silent; "" when it is not."""
    level, text, _ = side.status("s2robot_act: policy") or (0, "", {})
    return text if level == 2 else ""


def reset(side: Any) -> tuple[bool, str]:
    import std_srvs.srv

    client = side.node.create_client(std_srvs.srv.Trigger, "/s2robot_act/reset")
    side.until(client.service_is_ready, "No service")
    future = client.call_async(std_srvs.srv.Trigger.Request())
    side.until(future.done, "No answer")
    return future.result().success, future.result().message


@here
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "a"], "2 cameras, in this order: front, wrist"),
        (["--joints", "finger=f1.position"], "Known: gripper_x"),
        (["--goal", "1,0"], "takes 0"),
        (["--execute", "9"], "chunks have 8 actions"),
        (["--ros-args", "-p", "stale_afer:=5.0"], "Unknown ROS parameter 'stale_afer'. Did you mean 'stale_after'"),
    ],
)
def test_what_does_not_fit_the_policy_is_said_before_it_starts(
    words: list[str], said: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ros2", "act", str(trained), *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@here
@pytest.mark.sim
@pytest.mark.slow
def test_the_examples_robot_does_what_the_node_says(side: Any, trained: Path, tmp_path: Path) -> None:
    joints = "left_finger=finger1.position,right_finger=-finger2.position"
    joints += ",left_finger_speed=finger1.velocity,right_finger_speed=-finger2.velocity"
    words = ["--images", "/front/image_raw,/wrist/image_raw", "--joints", joints, "--stale_after", "5"]
    side.start("ros2", "act", str(trained), *words, "--engine", "torch", log=tmp_path / "act")
    example = Path(__file__).resolve().parents[1] / "examples/ros2_robot.py"
    done = subprocess.run([sys.executable, example, "1"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "seed 100000: not lifted after 100 steps" in done.stdout, done.stdout + done.stderr
