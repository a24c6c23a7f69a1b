"""Messages that a policy server must refuse: what broken clients and strangers send.

Each is made of an observation that it would answer, drawn by a seeded generator. Used by the tests and by
`s2robot bench serve`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from s2robot.adapters import wire

Observation = Mapping[str, Any]
"""By the keys "observation/<camera>", "observation/state" and, where there is one, "goal"."""


def broken_message(observation: Observation, rng: np.random.Generator) -> bytes:
    """One that is no msgpack, over a limit, or holds what is no observation."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    return kind(observation, rng)


def flipped(message: bytes, rng: np.random.Generator) -> bytes:
    """A valid message in which up to eight bytes are others: it may be valid still."""
    data = np.frombuffer(message, np.uint8).copy()
    where = rng.integers(min(len(data), 200) if rng.random() < 0.7 else len(data), size=int(rng.integers(1, 9)))
    data[where] = rng.integers(256, size=len(where))
    return data.tobytes()


def _truncated(observation: Observation, rng: np.random.Generator) -> bytes:
    message = wire.pack(observation)
    return message[: int(rng.integers(len(message)))]


def _followed(observation: Observation, rng: np.random.Generator) -> bytes:
    return wire.pack(observation) + rng.bytes(int(rng.integers(1, 9)))


def _noise(observation: Observation, rng: np.random.Generator) -> bytes:
    return rng.bytes(int(rng.integers(1, 4096)))


def _json(observation: Observation, rng: np.random.Generator) -> bytes:
    return b'{"observation/state": [0, 0, 0], "prompt": "lift"}'


def _deep(observation: Observation, rng: np.random.Generator) -> bytes:
    depth = int(rng.choice([10, 600, 5000, 100_000]))
    return (b"\x91" if rng.random() < 0.5 else b"\x81\xa1x") * depth + b"\xc0"


def _many(observation: Observation, rng: np.random.Generator) -> bytes:
    """Lists of empty lists and maps, or a list that only claims to be long."""
    long = b"\xdc" + struct.pack(">H", 4000)
    choice = int(rng.integers(4))
    return (
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        long + b"\x90" * 4000,
        b"\xdd" + struct.pack(">I", 200_000) + b"\x80" * 200_000,
    )[choice]


def _strange_array(observation: Observation, rng: np.random.Generator) -> bytes:
    """An array of what is no number, or whose shape is a lie."""
    image = {b"__ndarray__": True, b"data": bytes(12), b"dtype": "|u1", b"shape": [2, 2, 3]}
    lies: list[dict[bytes, Any]] = [
        {b"dtype": name}
        for name in ("|O", "|V12", "<c8", "<U3", "|S12", "<i4,<i8", "<M8[ns]", "u3", "(2,2)u1", "", "ä")
    ]
    shapes: list[Any] = [[2, 2, 4], [1 << 62, 4, 3], [-1, 2, 3], [2.0, 2, 3], [True, 4, 3], "223", [1] * 40, {}, None]
    lies += [{b"shape": shape} for shape in shapes]
    lies += [{b"data": value} for value in ("text", None, 12, [0] * 12, {b"__ndarray__": True})]
    image |= lies[int(rng.integers(len(lies)))]
    return wire.pack({**observation, _image(observation, rng): image})


def _wrong_value(observation: Observation, rng: np.random.Generator) -> bytes:
    """A value that is no camera's frame, no state, no switch."""
    key = _image(observation, rng)
    image, state = observation[key], np.array(observation["observation/state"])
    holed, huge = state.copy(), state.astype(np.float64)
    holed[int(rng.integers(len(state)))] = rng.choice([np.nan, np.inf])
    huge[0] = 1e300
    changes: list[dict[str, Any]] = [
        {key: np.moveaxis(image, -1, 0)}, {key: image.astype(np.float32) / 255}, {key: image[..., :1]}, {key: image[0]},
        {key: image[:0]}, {key: image[: len(image) // 2]}, {key: "a picture"}, {key: None}, {key: [1, 2]},
        {key: np.zeros((1, 4000, 3), np.uint8)}, {"observation/state": holed}, {"observation/state": huge},
        {"observation/state": state + np.float32(1e30)},
        {"observation/state": np.append(state, 0.0)}, {"observation/state": state[None]}, {"observation/state": "zero"},
        {"observation/state": [[1.0], [2.0, 3.0]]}, {"observation/state": {}}, {"observation/state": [10**18] * 99},
        {"frames": np.zeros((9, 8, 8, 3), np.uint8)}, {"proprioception": state}, {"reset": "yes"}, {"reset": 1},
        {"execute": 1}, {"reset": True, "execute": 0}, {"reset": True, "execute": 10**6}, {"prompt": 7},
        {"observation": {}}, {"x" * 3000: 1}, {"observation/nowhere": image},
    ]  # fmt: skip
    return wire.pack({**observation, **changes[int(rng.integers(len(changes)))]})


def _incomplete(observation: Observation, rng: np.random.Generator) -> bytes:
    gone = list(observation)[int(rng.integers(len(observation)))]
    return wire.pack({key: value for key, value in observation.items() if key != gone})


def _other(observation: Observation, rng: np.random.Generator) -> bytes:
    """Whole messages that are no map, and types of msgpack that no observation has."""
    others: list[bytes] = [
        wire.pack(value) for value in (None, 7, "hello", [], {}, {"reset": False}, [dict(observation)])
    ]
    others += [
        b"\xd6\xff" + bytes(4),
        b"\xc7\x04\x05" + bytes(4),
        b"\xc1",
        b"",
        b"\x81\xc0\xc0",
        b"\x81\x90\x01",
        b"\xa2\xff\xfe",
    ]
    return others[int(rng.integers(len(others)))]


def _image(observation: Observation, rng: np.random.Generator) -> str:
    keys = sorted(key for key in observation if key.startswith("observation/") and key != "observation/state")
    return keys[int(rng.integers(len(keys)))]


KINDS: tuple[Callable[[Observation, np.random.Generator], bytes], ...] = (
    _truncated, _followed, _noise, _json, _deep, _many, _strange_array, _wrong_value, _incomplete, _other,
)  # fmt: skip
