"""Other looks of whole episodes: as a camera that stands a little elsewhere, under other light, would have seen them.

    frames of an episode --> a piece of each, resized --> moved --> other light --> frames of the same shape

What is drawn depends on seed, version, episode and view alone, and holds for the whole episode: what stood still
still does, so nothing flickers and `s2robot.memory` still finds tiles that it knows. For the same reason colours
change pixel by pixel, around a fixed grey and not around the mean of a frame.

Pure, and made of single float32 operations, so that the bits are the same on every machine. Moving with the edge
repeated is DrQ's random shift (Kostrikov et al. 2020, "Image Augmentation Is All You Need"); brightness, contrast and
saturation are torchvision's `ColorJitter`, without its hue, which would turn a red cube into a green one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from s2robot.errors import InvalidInput

RECIPE = 1  # is part of a store's name: another number wherever the same draw gives other pixels
GREY = 127.5  # where contrast leaves a pixel as it is
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: how bright red, green and blue look


@dataclass(frozen=True)
class Augmentation:
    """How far a version may go from the frames as they are; each is drawn evenly from the range."""

    shift: float = 0.04  # of a side, either way on both axes, in whole pixels
    crop: float = 0.05  # of both sides, cut off at most; what is left is resized to the whole
    brightness: float = 0.15  # every pixel times 1 - this to 1 + this
    contrast: float = 0.15  # the same, of its distance from mid-grey
    saturation: float = 0.2  # the same, of its distance from a grey as bright as itself
    gain: float = 0.05  # the same, of each of red, green and blue: the colour of the light
    seed: int = 0

    def __post_init__(self) -> None:
        for name, limit in (("shift", 0.5), ("crop", 0.5), *((name, 1) for name in _LIGHT)):
            if not 0 <= getattr(self, name) < limit:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected a share from 0 to below {limit}")
        if self.seed < 0:
            raise InvalidInput(f"The seed of the augmentation is {self.seed}; expected 0 or more")

    def identity(self, version: int) -> dict[str, Any]:
        """All that decides a version's pixels, but the frames."""
        return {"recipe": RECIPE, "version": version, **dataclasses.asdict(self)}


_LIGHT = ("brightness", "contrast", "saturation", "gain")


class Draw(NamedTuple):
    """What happens to one view in a whole episode."""

    kept: float  # of both sides
    corner: tuple[float, float]  # where that piece lies: 0 at the top and at the left, 1 at the bottom and at the right
    shift: tuple[float, float]  # of a side, down and to the right
    brightness: float
    contrast: float
    saturation: float
    gain: tuple[float, float, float]


def draw(strengths: Augmentation, version: int, episode: int, view: int) -> Draw:
    """Another strength of one thing leaves all others as they were."""
    crop, top, left, down, right, brightness, contrast, saturation, *gain = (
        np.random.default_rng([strengths.seed, version, episode, view]).uniform(-1, 1, 11).tolist()
    )
    return Draw(
        kept=1 - strengths.crop * (1 + crop) / 2,
        corner=((1 + top) / 2, (1 + left) / 2),
        shift=(strengths.shift * down, strengths.shift * right),
        brightness=1 + strengths.brightness * brightness,
        contrast=1 + strengths.contrast * contrast,
        saturation=1 + strengths.saturation * saturation,
        gain=(1 + strengths.gain * gain[0], 1 + strengths.gain * gain[1], 1 + strengths.gain * gain[2]),
    )


def augment(frames: NDArray[np.uint8], strengths: Augmentation, version: int, episode: int) -> NDArray[np.uint8]:
    """These frames of an episode as a version of it shows them; version 0 shows them as they are.

    Args:
        frames: (n, V, H, W, 3) uint8 RGB; each comes out the same whichever others are given with it.
        episode: its place in the dataset.

    Returns:
        (n, V, H, W, 3) uint8.

    Raises:
        InvalidInput: frames are of another dtype or shape, or the version is negative.
    """
    if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
        raise InvalidInput(f"Frames are {frames.dtype} {frames.shape}; expected RGB uint8 (n, V, H, W, 3)")
    if version < 0:
        raise InvalidInput(f"The version is {version}; expected 0, the frames as they are, or more")
    if version == 0:
        return frames
    changed = np.empty_like(frames)
    for view in range(frames.shape[1]):
        drawn = draw(strengths, version, episode, view)
        for k, frame in enumerate(frames[:, view]):  # one by one: it stays in the processor's cache
            changed[k, view] = _changed(frame, drawn)
    return changed


def _changed(frame: NDArray[np.uint8], drawn: Draw) -> NDArray[np.uint8]:
    """(H, W, 3)"""
    pixels = frame.astype(np.float32)
    for axis in (0, 1):
        pixels = _sampled(pixels, axis, drawn.kept, drawn.corner[axis], drawn.shift[axis])
    return np.rint(_lit(pixels, drawn)).clip(0, 255).astype(np.uint8)


def _sampled(pixels: NDArray[np.float32], axis: int, kept: float, corner: float, shift: float) -> NDArray[np.float32]:
    """One axis cropped, resized bilinearly and moved; beyond the frame its edge goes on."""
    side = pixels.shape[axis]
    first = corner * (1 - kept) * side - round(shift * side) * kept  # moved by pixels of what is shown
    at = (first + (np.arange(side) + 0.5) * kept - 0.5).clip(0, side - 1)
    low = at.astype(np.int64)
    share = (at - low).astype(np.float32).reshape(-1, *[1] * (2 - axis))
    near, far = pixels.take(low, axis), pixels.take((low + 1).clip(max=side - 1), axis)
    sampled: NDArray[np.float32] = near + (far - near) * share
    return sampled


def _lit(pixels: NDArray[np.float32], drawn: Draw) -> NDArray[np.float32]:
    """(H, W, 3) under other light."""
    pixels = pixels * (np.array(drawn.gain, np.float32) * np.float32(drawn.brightness))
    pixels = GREY + (pixels - GREY) * drawn.contrast
    grey = sum(weight * pixels[..., k : k + 1] for k, weight in enumerate(LUMA))
    lit: NDArray[np.float32] = grey + (pixels - grey) * drawn.saturation
    return lit
