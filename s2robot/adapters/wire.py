"""msgpack with numpy arrays as openpi's client writes them, read with limits.

    array    {b"__ndarray__": True, b"data": bytes, b"dtype": "|u1", b"shape": [256, 256, 3]}
    scalar   {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"}

What comes from a network is held against limits before it costs anything: plain numbers only (no objects, records,
strings or complex numbers), an array's shape must account for exactly the bytes that came with it, and lists, maps and
texts are short. Arrays that were read are views of the message, read-only.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.errors import InvalidInput, in_words, require

ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"
NUMBERS = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")  # numpy's own spelling of plain numbers
AXES = 6  # of an array, at most
LIMITS = {"max_str_len": 4096, "max_array_len": 4096, "max_map_len": 256, "max_ext_len": 0}
CONTAINERS = 1000  # lists and maps in one message


class BadMessage(InvalidInput):
    """A message that is not msgpack, or holds what no message may hold."""


def _msgpack() -> Any:
    return require("msgpack", extra="serve", purpose="Serving policies")


def pack(value: Any) -> bytes:
    """Numbers, texts, lists, maps and arrays as one message.

    Raises:
        BadMessage: an array of something else than plain numbers.
    """
    packed: bytes = _msgpack().packb(value, default=_packed)
    return packed


def unpack(message: bytes) -> Any:
    """What a message holds.

    Raises:
        BadMessage: it is damaged, over a limit, or holds something else than numbers, texts, lists, maps and arrays.
    """
    msgpack, reader = _msgpack(), _Reader()
    try:
        return msgpack.unpackb(message, object_hook=reader.map, list_hook=reader.list, ext_hook=_no_extension, **LIMITS)
    except BadMessage:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        why = in_words(error) or type(error).__name__
        raise BadMessage(
            f"The message of {len(message)} bytes is no msgpack that is read here: {why[:200]}. Expected one map,"
            " packed as openpi_client.msgpack_numpy does"
        ) from error


def _packed(value: Any) -> Any:
    """What msgpack itself does not know."""
    if isinstance(value, np.ndarray | np.generic):
        if not NUMBERS.fullmatch(value.dtype.str):
            raise BadMessage(f"An array of {value.dtype} cannot be sent; expected numbers, such as float32 or uint8")
        if isinstance(value, np.ndarray):
            return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return {SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise BadMessage(f"A {type(value).__name__} cannot be sent; expected numbers, texts, lists, maps or arrays")


class _Reader:
    """msgpack's hooks for one message; they count, as a short message may hold a million empty lists."""

    def __init__(self) -> None:
        self._left = CONTAINERS

    def list(self, value: list[Any]) -> list[Any]:
        self._count()
        return value

    def map(self, value: dict[Any, Any]) -> Any:
        self._count()
        if ARRAY in value:
            return _array(value)
        if SCALAR in value:
            return _scalar(value)
        return value

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise BadMessage(f"The message holds more than {CONTAINERS} lists and maps. Send numbers as arrays")


def _array(parts: dict[Any, Any]) -> NDArray[Any]:
    data, shape = parts.get(b"data"), parts.get(b"shape")
    dtype = _dtype(parts.get(b"dtype"))
    if not isinstance(data, bytes):
        raise BadMessage(f"An array's data is a {type(data).__name__}; expected bytes")
    if not isinstance(shape, list) or len(shape) > AXES or not all(type(size) is int and size >= 0 for size in shape):
        raise BadMessage(f"An array's shape is {str(shape)[:60]}; expected a list of at most {AXES} whole numbers")
    if math.prod(shape) * dtype.itemsize != len(data):  # Python's integers: this product cannot overflow
        raise BadMessage(f"An array of {dtype} {tuple(shape)} came with {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(parts: dict[Any, Any]) -> bool | int | float:
    value = parts.get(b"data")
    _dtype(parts.get(b"dtype"))
    if not isinstance(value, bool | int | float):
        raise BadMessage(f"A scalar's data is a {type(value).__name__}; expected a number")
    return value


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or not NUMBERS.fullmatch(name):  # before numpy reads it: it also reads records
        raise BadMessage(f"dtype {str(name)[:40]!r} is not taken; expected plain numbers, such as '<f4' or '|u1'")
    return np.dtype(name)


def _no_extension(code: int, data: bytes) -> Any:
    raise BadMessage(f"The message holds an extension of type {code}; expected numbers, texts, lists, maps and arrays")
