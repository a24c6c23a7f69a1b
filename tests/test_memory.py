"""The memory of tiles: the encoder's own features, for less work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from s2robot.encoder import Encoder, load_encoder
from s2robot.memory import TileMemory


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(random_weights=True, engine="torch", device="cpu")


def recording(steps: int = 6) -> NDArray[np.uint8]:
    """Two cameras over noise: in the first a square moves along the top left quarter, the second shakes."""
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 256, (1, 2, 256, 256, 3), dtype=np.uint8), steps, axis=0)
    for step in range(steps):
        frames[step, 0, 10:30, 16 * step : 16 * step + 20] = 255
        frames[step, 1] = np.roll(frames[step, 1], step, axis=0)
    return frames


@pytest.mark.parametrize("grid", ["base", "finest"])
def test_features_are_the_encoders(encoder: Encoder, grid: str) -> None:
    other = load_encoder(random_weights=True, engine="torch", device="cpu", grid=grid)
    memory, frames = TileMemory(other), recording()
    for start in (0, 2, 4):
        got, expected = memory(frames[start : start + 2]), other(frames[start : start + 2])
        for name in ("map", "tokens", "cls"):
            torch.testing.assert_close(getattr(got, name), getattr(expected, name), atol=1e-4, rtol=0)


def test_a_tile_is_encoded_once(encoder: Encoder) -> None:
    memory, frames = TileMemory(encoder), recording(4)
    memory(frames[:2, :1])  # in one batch too: three quarters of the second frame are those of the first
    assert (memory.tiles, memory.encoded) == (10, 5 + 2)
    memory(frames[2:, :1])
    assert (memory.tiles, memory.encoded) == (20, 5 + 2 * 3)
    memory(frames[:1, :1])  # back to where it was
    assert (memory.tiles, memory.encoded) == (25, 11)
    memory.forget()
    memory(frames[:1, :1])
    assert memory.encoded == 16


def test_one_changed_pixel_is_another_tile(encoder: Encoder) -> None:
    memory, frame = TileMemory(encoder), recording(1)[:, :1]
    memory(frame)
    frame[0, 0, 200, 200] ^= 1
    memory(frame)
    assert memory.encoded == 5 + 2  # its quarter, and the whole frame


def test_what_it_may_keep_is_bounded_and_never_needed(encoder: Encoder) -> None:
    small, frames = TileMemory(encoder, capacity=1), recording(3)
    torch.testing.assert_close(small(frames).map, encoder(frames).map, atol=1e-4, rtol=0)
    assert len(small._answers) == 1


def test_equal_pixels_of_other_shapes_are_told_apart() -> None:
    encoder = load_encoder(random_weights=True, engine="torch", device="cpu", sizes=(128, 192), tile=128, grid=0)
    black = np.zeros((1, 1, 192, 192, 3), np.uint8)
    torch.testing.assert_close(TileMemory(encoder)(black).map, encoder(black).map, atol=1e-4, rtol=0)


def test_other_weights_and_other_frame_sizes_start_afresh() -> None:
    encoder = load_encoder(random_weights=True, engine="torch", device="cpu")
    memory, frame = TileMemory(encoder), recording(1)[:, :1]
    memory(frame)
    memory(frame[:, :, ::2, ::2])
    encoder.load_state_dict({k: v + 0.01 for k, v in encoder.state_dict().items()})
    for frames in (frame, frame[:, :, ::2, ::2]):
        torch.testing.assert_close(memory(frames).map, encoder(frames).map, atol=1e-4, rtol=0)
