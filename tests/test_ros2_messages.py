"""ROS 2 messages to arrays and back, on real messages; what needs none is tested everywhere."""

from __future__ import annotations

import importlib.util
import io
import zlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture
from small_encoders import random_frames, small_encoder

from s2robot.adapters.ros2_act import ActConfig
from s2robot.adapters.ros2_contract import contract_of
from s2robot.adapters.ros2_encode import EncodeConfig
from s2robot.adapters.ros2_inputs import SAY_EVERY, Complaints, Tally
from s2robot.adapters.ros2_messages import (
    ENCODINGS,
    array_message,
    feature_array,
    frame_of,
    image_message,
    messages,
    numbers_of,
    read_array,
    stamp_of,
)
from s2robot.adapters.ros2_observing import Clock, stacked
from s2robot.adapters.ros2_parameters import descriptions, split_ros
from s2robot.adapters.ros2_state import JointField, joint_values, parse_joints
from s2robot.config import keys, load
from s2robot.errors import InvalidInput, UnknownName
from s2robot.files import write_json

here = pytest.mark.skipif(importlib.util.find_spec("rclpy") is None, reason="rclpy is not installed")
FIELDS = ("gripper_x", "left_finger", "right_finger", "left_finger_speed")


def image(frame: np.ndarray, encoding: str, pad: int = 0, **changes: Any) -> Any:
    """A sensor_msgs/Image of a frame (H, W, 3) RGB; pad: bytes after each row."""
    channels, _ = ENCODINGS[encoding]
    alpha = np.full((*frame.shape[:2], 1), 7, np.uint8)
    pixels = {"rgb": frame, "bgr": frame[..., ::-1], "mono": frame[..., :1]}[encoding.strip("8").replace("a", "")]
    pixels = np.concatenate([pixels, alpha], axis=2) if channels == 4 else pixels
    rows = np.pad(pixels.reshape(len(frame), -1), ((0, 0), (0, pad)), constant_values=99)
    settings = {"height": len(frame), "width": frame.shape[1], "step": rows.shape[1], "encoding": encoding, **changes}
    return messages("sensor_msgs").Image(data=array("B", rows.tobytes()), **settings)


def compressed(frame: np.ndarray, kind: str) -> Any:
    """A sensor_msgs/CompressedImage, "jpeg" or "png"."""
    file = io.BytesIO()
    Picture.fromarray(frame).save(file, kind)
    return messages("sensor_msgs").CompressedImage(format=f"rgb8; {kind} compressed bgr8", data=file.getvalue())


def as_seen(frame: np.ndarray, encoding: str) -> np.ndarray:
    """What an encoding leaves of a frame."""
    if encoding == "jpeg":
        return np.array(Picture.open(io.BytesIO(bytes(compressed(frame, "jpeg").data))))
    return frame[..., :1].repeat(3, axis=2) if encoding == "mono8" else frame


@here
@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_and_step_gives_the_frame(encoding: str, pad: int) -> None:
    frame = random_frames(5, 7, 3)
    got = frame_of(image(frame, encoding, pad))
    assert np.array_equal(got, as_seen(frame, encoding)) and got.flags.c_contiguous


@here
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_compressed_pictures_of_eight_bits_give_the_frame(mode: str) -> None:
    file = io.BytesIO()
    picture = Picture.fromarray(random_frames(16, 24, 3)).convert(mode)
    picture.save(file, "png")
    message = messages("sensor_msgs").CompressedImage(format="png", data=file.getvalue())
    assert np.array_equal(frame_of(message), np.array(picture.convert("RGB")))
    jpeg = frame_of(compressed(np.full((16, 24, 3), (200, 60, 20), np.uint8), "jpeg"))
    assert np.abs(jpeg.astype(int) - (200, 60, 20)).max() < 6  # red stays red


@here
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoding": "bayer_rggb8"}, "image_proc converts"),
        ({"step": 5}, "step of at least 21"),
        ({"height": 6}, "6 rows"),
        ({"width": 0, "height": 0}, "0 rows"),
        ({"width": 2**31, "step": 2**32 - 1}, "105 bytes"),
    ],
)
def test_an_image_that_is_not_what_it_says_is_refused(changes: dict[str, Any], said: str) -> None:
    message = image(random_frames(5, 7, 3), "rgb8")
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(InvalidInput, match=said):
        frame_of(message)


@here
@pytest.mark.parametrize("encode", [lambda frame: image(frame, "bgr8"), lambda frame: compressed(frame, "png")])
def test_a_sliver_would_take_minutes_and_is_refused(encode: Any) -> None:
    assert frame_of(encode(random_frames(3, 24, 3))).shape == (3, 24, 3)
    for shape in ((3, 25, 3), (25, 3, 3)):
        with pytest.raises(InvalidInput, match="8 times"):
            frame_of(encode(random_frames(*shape)))


@here
def test_a_compressed_picture_that_cannot_be_read_is_refused() -> None:
    good = compressed(random_frames(32, 32, 3), "png")
    deep = io.BytesIO()
    Picture.fromarray(np.zeros((4, 4), np.uint16)).save(deep, "png")
    short = b"IHDR" + bytes(5)  # a checked header of too few bytes: Pillow raises a bare ValueError
    headed = b"\x89PNG\r\n\x1a\n" + (5).to_bytes(4, "big") + short + zlib.crc32(short).to_bytes(4, "big")
    for data in (b"", b"no picture", bytes(good.data)[:200], deep.getvalue(), headed):
        with pytest.raises(InvalidInput, match=f"CompressedImage of format '.*', {len(data)} bytes"):
            frame_of(messages("sensor_msgs").CompressedImage(format="png", data=data))
    huge = io.BytesIO()
    Picture.new("1", (9000, 9000)).save(huge, "png")  # some kilobytes that ask for 243 megabytes
    with pytest.raises(InvalidInput, match="9000 x 9000 pixels"):
        frame_of(messages("sensor_msgs").CompressedImage(format="png", data=huge.getvalue()))


@here
def test_whatever_the_damage_a_picture_is_read_or_refused() -> None:
    rng, refused = np.random.default_rng(0), 0
    files = [bytes(compressed(random_frames(16, 16, 3), kind).data) for kind in ("jpeg", "png")]
    for k in range(1000):
        data = bytearray(files[k % 2])
        data[int(rng.integers(8, 60))] = int(rng.integers(256))  # in its head
        data = data[: int(rng.integers(20, len(data)))] if k % 3 else data
        try:
            frame_of(messages("sensor_msgs").CompressedImage(format="x", data=bytes(data)))
        except InvalidInput:
            refused += 1
    assert 500 < refused < 1000


@here
@pytest.mark.parametrize("kind", ["map", "tokens", "cls"])
def test_features_travel_with_stamp_shape_and_every_bit(kind: str) -> None:
    features = small_encoder()(random_frames(32, 48, 3))
    values, labels = feature_array(features, kind)
    expected = {"map": features.map[0, 0].permute(1, 2, 0), "tokens": features.tokens[0, 0], "cls": features.cls[0, 0]}
    assert np.array_equal(values, expected[kind].numpy())
    got = read_array(array_message(values, labels, (12, 7), "camera frame"))
    assert np.array_equal(got.values, values)
    assert (got.labels, got.stamp, got.frame_id) == (labels, (12, 7), "camera frame")
    assert read_array(array_message(values, labels, (-5, 7))).stamp == (-5, 7)  # ROS counts seconds with a sign
    plain = array_message(values, labels)
    assert list(plain.data) == values.ravel().tolist()  # for those who ignore the layout
    assert [axis.stride for axis in plain.layout.dim][:2] == [values.size] * 2 and read_array(plain).stamp == (0, 0)
    picture = image_message(values, (12, 7), "camera frame")
    again = read_array(picture)
    assert picture.step * picture.height == len(picture.data) and picture.encoding == f"32FC{values.shape[-1]}"
    assert np.array_equal(again.values.reshape(values.shape), values) and stamp_of(picture) == again.stamp == (12, 7)


@here
def test_the_map_row_by_row_is_the_tokens() -> None:
    features = small_encoder()(random_frames(32, 48, 3))
    assert np.array_equal(feature_array(features, "map")[0].reshape(-1, 32), feature_array(features, "tokens")[0])


@here
def test_arrays_of_others_are_not_taken_for_ours() -> None:
    std = messages("std_msgs")
    with pytest.raises(InvalidInput, match="not of s2robot"):
        read_array(std.Float32MultiArray(data=[1.0, 2.0]))
    values = np.zeros((2, 3, 4), np.float32)
    for changes in ({"encoding": "rgb8"}, {"encoding": "32FC"}, {"encoding": "32FCx"}, {"width": 4}, {"height": 1}):
        picture = image_message(values)
        for name, value in changes.items():
            setattr(picture, name, value)
        with pytest.raises(InvalidInput, match="expected 32FC<channels> without padding"):
            read_array(picture)
    assert numbers_of(std.Float32MultiArray(data=[1.0, 2.0]), 2, "A goal").tolist() == [1, 2]
    for data in ([], [1.0], [1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(InvalidInput, match="A goal of"):
            numbers_of(std.Float32MultiArray(data=data), 2, "A goal")


WORDS = ["left_finger=f.1.position", "right_finger = -f2.position", "left_finger_speed=f.1.velocity"]


def test_joints_are_mapped_by_name_and_sign() -> None:
    joints = parse_joints(WORDS, FIELDS)
    assert joints[0] == JointField("left_finger", "f.1", "position", 1)
    assert joints[1] == JointField("right_finger", "f2", "position", -1)
    for words, said in (
        (["left_fingr=f1.position"], "Did you mean 'left_finger'"),
        (["left_finger=f1.place"], "Did you mean 'position'|Known: effort"),
        (["left_finger=f1"], r"field=joint\.quantity"),
        (["left_finger"], r"field=joint\.quantity"),
        ([*WORDS, "left_finger=f3.position"], "twice"),
    ):
        with pytest.raises((InvalidInput, UnknownName), match=said):
            parse_joints(words, FIELDS)


@here
def test_joint_states_are_read_or_refused() -> None:
    joints, state = parse_joints(WORDS, FIELDS), messages("sensor_msgs").JointState
    whole = state(name=["a", "f2", "f.1"], position=[9.0, 0.2, 0.1], velocity=[9.0, 8.0, -0.5])
    assert joint_values(whole, joints) == {"left_finger": 0.1, "right_finger": -0.2, "left_finger_speed": -0.5}
    assert joint_values(state(name=["f2"], position=[0.2]), joints) == {
        "right_finger": -0.2
    }  # the rest comes elsewhere
    for message, said in (
        (state(name=["arm"], position=[1.0]), "wanted: f.1, f2"),
        (state(), "no joint"),
        (state(name=["f2", "f.1"], position=[1.0, 2.0]), "0 numbers of velocity"),
        (state(name=["f2", "a"], position=[1.0]), "1 numbers of position"),
        (state(name=["f2"], position=[float("nan")]), "position nan of f2"),
    ):
        with pytest.raises(InvalidInput, match=said):
            joint_values(message, joints)


def test_words_of_ros_stand_anywhere() -> None:
    words = ["--images", "a", "--ros-args", "-r", "x:=y", "--", "--publish", "cls", "--ros-args", "-p", "b:=1"]
    assert split_ros(words) == (["--images", "a", "--publish", "cls"], ["-r", "x:=y", "-p", "b:=1"])


@pytest.mark.parametrize("schema", [EncodeConfig, ActConfig])
def test_every_parameter_is_described(schema: type[Any]) -> None:
    said = descriptions(schema)
    assert list(said) == list(keys(schema))
    assert not [key for key, text in said.items() if "." not in key and schema.__name__ in text]


def test_wrong_configurations_are_refused() -> None:
    for words, said in (
        (["--images", "a,a"], "each once"),
        (["--images", "a,a/compressed"], "each once"),
        (["--images="], "empty"),
        (["--publish", "maps"], "Did you mean 'map'"),
        (["--layout", "cloud"], "Known: array, image"),
        (["--tolerance", "2"], "Add --reuse"),
    ):
        with pytest.raises((InvalidInput, UnknownName), match=said):
            load(EncodeConfig, None, words)
    with pytest.raises(InvalidInput, match="seconds above 0"):
        ActConfig(stale_after=0)


def test_a_policys_contract_is_read_from_its_run(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="s2robot train"):
        contract_of(tmp_path)
    shapes = {"views": 1, "proprioception": 7, "actions": 4, "goal": 0}
    said = {"shapes": shapes, "task": "Lift", "robot": "Panda", "cameras": ["agentview"], "frame_size": 64}
    (tmp_path / "policy").mkdir()
    write_json(tmp_path / "policy" / "policy.json", said)
    contract = contract_of(tmp_path)
    assert (contract.cameras, contract.control_hz, contract.frame) == (("agentview",), 20, (64, 64))
    write_json(tmp_path / "policy" / "policy.json", {**said, "frame_size": 48, "frame": [48, 64]})
    assert contract_of(tmp_path).frame == (48, 64)
    assert contract.fields[:4] == ("gripper_x", "gripper_y", "gripper_z", "left_finger")
    assert contract.actions == ("dx", "dy", "dz", "gripper")
    write_json(tmp_path / "policy.json", {"shapes": {**shapes, "proprioception": 2}, "task": "wave", "robot": None})
    (tmp_path / "policy" / "policy.json").unlink()
    contract = contract_of(tmp_path)
    assert (contract.cameras, contract.control_hz) == (("camera_0",), 0)
    assert contract.fields == ("proprioception_0", "proprioception_1")


def test_what_is_too_old_is_said() -> None:
    import time

    now = time.monotonic()
    clock = Clock(allowed=100, check_stamps=True, now=lambda: 500_000_000_000)
    assert [clock.problem(now, stamp) for stamp in (None, (450, 0), (550, 0))] == ["", "", ""]
    assert "nothing good came" in clock.problem(now - 101, (450, 0))
    assert "300.00 s old" in clock.problem(now, (200, 0))
    assert "200.00 s in the future" in clock.problem(now, (700, 0))
    assert Clock(100, check_stamps=False, now=clock.now).problem(now, (200, 0)) == ""


def test_complaints_are_few_and_counted() -> None:
    heard: list[str] = []
    complaints, tally = Complaints(heard.append), Tally()
    for _ in range(50):
        tally.refuse("bad")
        complaints.about("/a", "bad", tally)
    complaints.about("/b", "bad", tally)
    assert heard == ["/a: bad (refused so far: 1)", "/b: bad (refused so far: 50)"] and SAY_EVERY >= 1


def test_cameras_of_different_sizes_are_refused() -> None:
    assert stacked([random_frames(4, 5, 3)] * 2).shape == (2, 4, 5, 3)
    with pytest.raises(InvalidInput, match="4x5, 4x6"):
        stacked([random_frames(4, 5, 3), random_frames(4, 6, 3)])
