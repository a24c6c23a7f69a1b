"""The wire: what openpi's own packer writes is read to the bit, the other way round too, and nothing else is."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_policies import flat, observations

from s2robot.adapters import wire
from s2robot.adapters.wire import BadMessage
from s2robot.malformed import broken_message, flipped

msgpack = pytest.importorskip("msgpack")

DTYPES = ("uint8", "int8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64", "bool", ">f4", ">i8")
SHAPES = ((), (1,), (7,), (0,), (3, 0, 2), (2, 5, 4, 3))


def arrays() -> list[Any]:
    rng = np.random.default_rng(0)
    return [np.asarray(rng.uniform(0, 100, shape)).astype(dtype) for dtype in DTYPES for shape in SHAPES]


@pytest.mark.parametrize("value", arrays(), ids=lambda value: f"{value.dtype.str}{value.shape}")
def test_arrays_pass_between_us_and_openpi_to_the_bit(value: np.ndarray) -> None:
    theirs = pytest.importorskip("openpi_client.msgpack_numpy")
    for got in (wire.unpack(theirs.packb(value)), theirs.unpackb(wire.pack(value)), wire.unpack(wire.pack(value))):
        assert got.dtype == value.dtype and got.shape == value.shape
        assert got.tobytes() == value.tobytes()


def test_a_whole_observation_is_the_same_bytes_as_openpis() -> None:
    theirs = pytest.importorskip("openpi_client.msgpack_numpy")
    value = {
        **flat(observations(1)[0]),
        "prompt": "pick the réd cube",
        "n": np.float32(0.5),
        "nested": {"list": [1, 2.5]},
    }
    assert wire.pack(value) == theirs.packb(value)
    got = wire.unpack(theirs.packb(value))
    assert list(got) == list(value) and got["n"] == 0.5 and got["nested"] == value["nested"]
    np.testing.assert_array_equal(got["observation/agentview"], value["observation/agentview"])


@pytest.mark.parametrize("value", [
    np.array([None]), np.array([1j]), np.zeros(2, "i4,f4"), np.array(["a"]), np.datetime64("2020"), Path("a"), {1, 2},
], ids=str)  # fmt: skip
def test_what_is_no_number_is_not_sent(value: Any) -> None:
    with pytest.raises(BadMessage, match="cannot be sent"):
        wire.pack(value)


def array(**changes: Any) -> bytes:
    parts = {b"__ndarray__": True, b"data": bytes(12), b"dtype": "|u1", b"shape": [2, 2, 3]}
    packed: bytes = msgpack.packb({**parts, **{key.encode(): value for key, value in changes.items()}})
    return packed


@pytest.mark.parametrize(
    "dtype", ["|O", "|V12", "<c8", "<U3", "|S12", "i4,i8", "<M8[ns]", "u3", "(2,2)u1", "", 7, None]
)
def test_other_dtypes_than_plain_numbers_are_refused(dtype: Any) -> None:
    with pytest.raises(BadMessage, match="expected plain numbers"):
        wire.unpack(array(dtype=dtype))


@pytest.mark.parametrize("shape", [[2, 2, 4], [2, 2], [1 << 62, 1 << 62], [0, 1 << 62, 12], [-1, -12]], ids=str)
def test_a_shape_accounts_for_the_bytes_that_came(shape: list[int]) -> None:
    with pytest.raises(BadMessage, match=r"came with 12 bytes|expected a list"):
        wire.unpack(array(shape=shape))


@pytest.mark.parametrize(("message", "says"), [
    (b"", "no msgpack"), (b"\xc1", "no msgpack"), (b"\x01\x02", "no msgpack"),
    (b"\x91" * 100_000 + b"\xc0", "no msgpack"),
    (b"\xdd\xff\xff\xff\xff", "max_array_len"), (b"\xdf\xff\xff\xff\xff", "max_map_len"),
    (b"\xda\x13\x88" + b"x" * 5000, "max_str_len"), (b"\xd6\xff\x00\x00\x00\x00", "."), (b"\xa2\xff\xfe", "utf-8"),
    (b"\xdc\x0f\xa0" + b"\x90" * 4000, "more than 1000 lists"), (b"\x81\x01\x01", "not allowed for map key"),
], ids=lambda value: str(value)[:30])  # fmt: skip
def test_damage_and_excess_are_one_line(message: bytes, says: str) -> None:
    with pytest.raises(BadMessage, match=says) as refused:
        wire.unpack(message)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_a_claim_of_gigabytes_allocates_nothing() -> None:
    messages = [array(shape=[1 << 20, 1 << 20, 3]), b"\xdd\x7f\xff\xff\xff", b"\xc6\xff\xff\xff\xff" + bytes(100)]
    tracemalloc.start()
    for message in messages:
        with pytest.raises(BadMessage):
            wire.unpack(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_mutations_of_valid_messages_are_read_or_refused_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    observation = flat(observations(1, frame=8)[0])
    message, refused = wire.pack(observation), 0
    for _ in range(3000):
        try:
            wire.unpack(flipped(message, rng) if rng.random() < 0.7 else broken_message(observation, rng))
        except BadMessage:
            refused += 1
    assert 500 < refused < 3000
