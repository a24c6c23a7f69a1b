"""The encoder and what it does not take: every mistake is named, with what to do instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from s2robot.encoder import check_frames, load_encoder
from s2robot.errors import InvalidInput

Frames = NDArray[np.uint8]


def random_frames(*shape: int) -> Frames:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([[0]], "a list; expected a uint8 array. Try numpy.asarray"),
        (np.zeros((32, 32), np.uint8), r"uint8 \(32, 32\); expected \(B, V, H, W, 3\)"),
        (np.zeros((1,) * 5 + (3,), np.uint8), r"expected \(B, V, H, W, 3\)"),
        (np.zeros((32, 32, 3), np.float32), r"float32 \(32, 32, 3\).*\(frames \* 255\)"),
        (torch.zeros(32, 32, 3), r"float32 \(32, 32, 3\).*\(frames \* 255\)"),
        (np.zeros((32, 32, 3), np.int64), "int64.*frames.astype"),
        (np.zeros((3, 32, 32), np.uint8), r"The colours seem to come first.*moveaxis\(frames, -3, -1\)"),
        (np.zeros((2, 3, 32, 32), np.uint8), "The colours seem to come first"),
        (np.zeros((2, 32, 32, 4), np.uint8), r"alpha: drop it with frames\[..., :3\]"),
        (np.zeros((2, 32, 32, 1), np.uint8), "grey: repeat it"),
        (np.zeros((2, 32, 32), np.uint8), "without a colour axis"),
        (np.zeros((0, 32, 32, 3), np.uint8), "an empty batch"),
        (np.zeros((2, 0, 32, 32, 3), np.uint8), "an empty batch"),
        (np.zeros((48, 64, 3), np.uint8), r"48 rows by 64 columns.*frames\[..., :, 8:56, :\]"),
        (np.zeros((2, 64, 48, 3), np.uint8), r"64 rows by 48 columns.*frames\[..., 8:56, :, :\]"),
    ],
)
def test_wrong_frames_are_named(frames: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_encoder(random_weights=True, device="cpu")(frames)


def test_the_crop_it_proposes_is_taken() -> None:
    assert check_frames(random_frames(2, 48, 64, 3)[..., :, 8:56, :]).shape == (2, 1, 48, 48, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": ()}, "whole multiples"),
        ({"scales": (0.5, 1)}, "whole multiples"),
        ({"scales": (1, 1.5)}, "whole multiples"),
        ({"scales": (2, 1)}, r"coarse first: \[1.0, 2.0\]"),
        ({"scales": (1, 1)}, "each once"),
        ({"grid": "fine"}, "Known: base, finest"),
        ({"device": "gpu"}, "Unknown device 'gpu'"),
        ({"device": "cuda:99"}, "'cuda:99' is not here"),
        ({"checkpoint": "x.pth", "random_weights": True}, "leave one out"),
    ],
)
def test_wrong_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_encoder(**arguments)
