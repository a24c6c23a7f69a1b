"""ROS 2 messages to the arrays of `s2robot.types` and back. No node, no clock, no state.

    in    sensor_msgs/Image, CompressedImage     --> one frame, uint8 (H, W, 3) RGB
          std_msgs/Float32MultiArray             --> proprioception, goal: float32 (n,)
    out   features, action chunks                --> std_msgs/Float32MultiArray, or an Image of floats

No message of std_msgs has both numbers and a time, and two topics cannot be matched where messages may be lost. So an
array says itself what it was made of: its first axis, of size 1, is the look, and the label of that axis says when.

    layout.dim[0]   label "look 1732574400.000000007 camera_frame", size 1     stamp [s], then frame_id
    layout.dim[1:]  label "row", "column", "channel"; "token"; "step"; or names of fields: "dx,dy,dz,gripper"
    data            row-major, no padding: whoever ignores the layout reads the right numbers
"""

from __future__ import annotations

import io
import math
import sys
import warnings
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from s2robot.errors import InvalidInput, require
from s2robot.types import Features

ENCODINGS: dict[str, tuple[int, slice]] = {
    "rgb8": (3, slice(None)),
    "bgr8": (3, slice(None, None, -1)),
    "rgba8": (4, slice(3)),
    "bgra8": (4, slice(2, None, -1)),
    "mono8": (1, slice(None)),
}
"""Encoding -> bytes a pixel, and which of them are red, green, blue."""

MODES = ("RGB", "L", "RGBA", "P", "LA", "1")  # of a compressed picture, in Pillow's words: 8 bits a channel
LARGEST = 64_000_000  # pixels of a compressed picture: a few bytes can ask for gigabytes
SLENDEREST = 8  # sides' ratio: one row of 3000 pixels would be thousands of tiles, and minutes
COMPRESSED = "/compressed"  # how topics of CompressedImage are called
KINDS = ("map", "tokens", "cls")  # of features
Stamp = tuple[int, int]  # seconds, nanoseconds


def messages(package: str) -> Any:
    """A package's message classes, e.g. `messages("sensor_msgs").Image`."""
    return require(f"{package}.msg", extra="ros2", purpose="ROS 2 messages")


def frame_of(message: Any) -> NDArray[np.uint8]:
    """The picture of an Image or a CompressedImage, (H, W, 3) RGB; of an unpadded rgb8 image without a copy.

    Raises:
        InvalidInput: it is not what it says, or of an encoding that is not known here.
    """
    frame = _raw(message) if hasattr(message, "encoding") else _compressed(message)
    height, width = frame.shape[:2]
    if max(height, width) > SLENDEREST * min(height, width):
        raise InvalidInput(
            f"Image of {height} rows, {width} columns; one side may be {SLENDEREST} times the other. Crop it"
        )
    return frame


def _raw(message: Any) -> NDArray[np.uint8]:
    height, width, step, size = message.height, message.width, message.step, len(message.data)
    if message.encoding not in ENCODINGS:
        known = ", ".join(ENCODINGS)
        raise InvalidInput(f"Image of encoding {message.encoding!r}. Known: {known}; image_proc converts to rgb8")
    channels, colours = ENCODINGS[message.encoding]
    if not (height and width and step >= width * channels and size >= step * height):
        raise InvalidInput(
            f"Image of {height} rows, {width} columns, step {step}, {size} bytes; {message.encoding} takes a step of at"
            f" least {width * channels} and step x rows bytes"
        )
    rows = np.frombuffer(message.data, np.uint8, step * height).reshape(height, step)[:, : width * channels]
    pixels = rows.reshape(height, width, channels)[..., colours]
    return np.repeat(pixels, 3, axis=2) if channels == 1 else np.ascontiguousarray(pixels)


def _compressed(message: Any) -> NDArray[np.uint8]:
    came = f"CompressedImage of format {message.format!r}, {len(message.data)} bytes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # LARGEST is stricter
            picture = Image.open(io.BytesIO(message.data), formats=("JPEG", "PNG"))
        with picture:
            if picture.mode not in MODES or picture.width * picture.height > LARGEST:
                raise InvalidInput(
                    f"{came}: {picture.width} x {picture.height} pixels of mode {picture.mode}; expected 8-bit colour"
                    f" or grey, up to {LARGEST} pixels"
                )
            return np.array(picture.convert("RGB"))
    except InvalidInput:
        raise
    except UnidentifiedImageError as error:
        raise InvalidInput(f"{came}: neither JPEG nor PNG") from error
    except Exception as error:  # Pillow's readers raise whatever damage makes them stumble over
        raise InvalidInput(f"{came}: {error}") from error


def stamp_of(message: Any) -> Stamp | None:
    """When a message's content was true; None without a header, or where nobody filled it in."""
    if not hasattr(message, "header"):
        return None
    stamp = (int(message.header.stamp.sec), int(message.header.stamp.nanosec))
    return stamp if any(stamp) else None


def numbers_of(message: Any, count: int, what: str) -> NDArray[np.float32]:
    """The data of a Float32MultiArray, (count,), whatever its layout.

    Raises:
        InvalidInput: there are more or fewer, or they are not finite.
    """
    values = np.array(message.data[message.layout.data_offset :], np.float32)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise InvalidInput(f"{what} of {values.size} numbers, {values[:8]}; expected {count} finite ones")
    return values


def feature_array(features: Features, kind: str) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Features of one frame (B = V = 1), and what their axes are called.

    map (row, column, channel), tokens (token, channel), cls (channel,): the map row by row is the tokens.
    """
    if kind == "cls":
        return _numpy(features.cls[0, 0]), ("channel",)
    if kind == "tokens":
        return _numpy(features.tokens[0, 0]), ("token", "channel")
    return _numpy(features.map[0, 0].permute(1, 2, 0)), ("row", "column", "channel")


def _numpy(tensor: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.cpu().numpy(), np.float32)


def array_message(values: NDArray[np.float32], labels: Sequence[str], stamp: Stamp = (0, 0), frame_id: str = "") -> Any:
    """A Float32MultiArray in the layout of this file's head; labels: one an axis of `values`."""
    std = messages("std_msgs")
    message, left = std.Float32MultiArray(), values.size
    look = f"look {stamp[0]}.{stamp[1]:09d} {frame_id}".rstrip()
    for label, size in zip((look, *labels), (1, *values.shape), strict=True):
        message.layout.dim.append(std.MultiArrayDimension(label=label, size=size, stride=left))
        left //= size
    message.data = _bytes(values, "f")
    return message


def image_message(values: NDArray[np.float32], stamp: Stamp = (0, 0), frame_id: str = "") -> Any:
    """An Image of floats, 32FC<channels>: (row, column, channel); (token, channel) and (channel,) in one row."""
    height, width, channels = (1,) * (3 - values.ndim) + values.shape
    message = messages("sensor_msgs").Image(
        height=height, width=width, encoding=f"32FC{channels}", step=4 * channels * width
    )
    message.is_bigendian = int(sys.byteorder == "big")
    message.header.stamp.sec, message.header.stamp.nanosec = stamp
    message.header.frame_id = frame_id
    message.data = _bytes(values, "B")
    return message


def _bytes(values: NDArray[np.float32], code: str) -> Any:
    """As an `array.array`: what rclpy takes without looking at every number."""
    data = array(code)
    data.frombytes(np.asarray(values, np.float32).tobytes())
    return data


@dataclass(frozen=True)
class Stamped:
    """What `array_message` or `image_message` carried."""

    values: NDArray[np.float32]
    labels: tuple[str, ...]  # one an axis
    stamp: Stamp
    frame_id: str


def read_array(message: Any) -> Stamped:
    """A Float32MultiArray or an Image of floats back to its array, for those who subscribe in Python.

    Raises:
        InvalidInput: it is in another layout.
    """
    if hasattr(message, "encoding"):
        channels = message.encoding.removeprefix("32FC")
        shape = (message.height, message.width, int(channels) if channels.isdecimal() else 0)
        if not message.encoding.startswith("32FC") or 4 * math.prod(shape) != len(message.data):
            raise InvalidInput(
                f"An image {message.encoding!r} of {message.height}x{message.width} in {len(message.data)} bytes;"
                " expected 32FC<channels> without padding"
            )
        values = np.frombuffer(message.data, ">f4" if message.is_bigendian else "<f4").reshape(shape)
        stamp = (message.header.stamp.sec, message.header.stamp.nanosec)
        return Stamped(values.astype(np.float32), ("row", "column", "channel"), stamp, message.header.frame_id)
    look, *axes = message.layout.dim or [messages("std_msgs").MultiArrayDimension()]
    word, _, said = look.label.partition(" ")
    seconds, _, frame_id = said.partition(" ")
    sizes = tuple(axis.size for axis in axes)
    whole, point, part = seconds.partition(".")
    is_stamp = point and whole.removeprefix("-").isdigit() and part.isdigit()
    if word != "look" or not is_stamp or np.prod(sizes) != len(message.data):
        raise InvalidInput(f"An array of {len(message.data)} numbers, axes {look.label!r} {sizes}: not of s2robot")
    values = np.array(message.data, np.float32).reshape(sizes)
    return Stamped(values, tuple(axis.label for axis in axes), (int(whole), int(part)), frame_id)
