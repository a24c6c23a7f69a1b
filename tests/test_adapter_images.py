"""Images of learning libraries come back to the bit, and no frame is encoded twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from s2robot.adapters.images import to_frames
from s2robot.adapters.remembered import Remembered
from s2robot.errors import InvalidInput


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_value_of_every_pixel_comes_back(dtype: torch.dtype) -> None:
    frames = torch.arange(256, dtype=torch.uint8).repeat(3, 1).reshape(1, 16, 16, 3)
    images = frames.movedim(-1, -3).to(dtype) / 255
    assert torch.equal(to_frames(images, "x"), frames)
    assert torch.equal(to_frames(images[None], "x"), frames[None])
    assert torch.equal(to_frames(frames.movedim(-1, -3).to(dtype) * (1 / 255), "x"), frames)  # others' arithmetic
    assert torch.equal(to_frames((images - 0.4 / 255).clamp(min=0), "x"), frames)  # rounded, not cut
    assert torch.equal(to_frames(frames.movedim(-1, -3), "x"), frames)  # uint8 already


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(2, 8, 8, 3), "channels first"),
        (torch.full((2, 3, 8, 8), 255.0), r"lies in \[255, 255\]; expected \[0, 1\]"),
        (torch.full((2, 3, 8, 8), -0.5), "VISUAL to IDENTITY"),
        (torch.full((2, 3, 8, 8), torch.nan), "nan"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16), "bfloat16; expected float32"),
    ],
)
def test_what_is_no_image_is_refused(images: Tensor, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        to_frames(images, "the image")


def numbers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)[:, None].repeat(1, 4)


def halved(frames: Tensor) -> Tensor:
    return frames.float() / 2


def test_what_was_made_is_not_made_again() -> None:
    remembered = Remembered(1000)
    assert torch.equal(remembered(numbers(1, 2, 1, 3), halved), halved(numbers(1, 2, 1, 3)).half())
    assert (remembered.made, remembered.found) == (3, 1)
    assert torch.equal(remembered(numbers(3, 9, 2), halved), halved(numbers(3, 9, 2)).half())
    assert (remembered.made, remembered.found) == (4, 3)
    remembered.forget()
    remembered(numbers(3), halved)
    assert remembered.made == 5


def test_it_keeps_to_its_capacity_and_drops_what_was_not_asked_for_longest() -> None:
    remembered = Remembered(2 * 4 * 2)  # two rows of four halves
    remembered(numbers(1, 2), halved)
    remembered(numbers(1), halved)
    remembered(numbers(3), halved)  # 2 goes
    remembered(numbers(1, 3), halved)
    assert remembered.made == 3
    remembered(numbers(2), halved)
    assert remembered.made == 4
    many = numbers(*range(100))  # more than it holds, in one go
    assert torch.equal(remembered(many, halved), halved(many).half())


def test_without_capacity_everything_is_made() -> None:
    remembered = Remembered(0)
    assert torch.equal(remembered(numbers(*[5] * 70), halved), halved(numbers(*[5] * 70)).half())
    assert remembered.made == 70
