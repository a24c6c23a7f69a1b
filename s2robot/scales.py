"""Which sizes a frame is looked at in, and how each is cut into tiles: whole numbers only, no pixels.

    frame (H, W) -> crop (or pad) -> for every scale: image (rows * h, cols * w), tiles (h, w)

A frame need not be square. Its shorter side takes a scale's size; its longer side gets the same number of tiles,
each as much longer than wide as the frame is, to the nearest patch. What that rounding leaves over is cropped from
the frame's edges, so that no pixel is stretched: a 480x640 frame at 224 px becomes tiles of 224x304 (14x19 patches
of 16) out of its central 472 rows. Where scales have tiles of several sizes, (1, 1.5), the crop has the shape of the
first one's; the others come as near to it as whole patches let them, and are stretched by what is left, half a patch
a tile at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from s2robot.errors import InvalidInput

FITS = ("whole", "crop", "pad")

Size = tuple[int, int]
"""Height and width [pixels]."""


@dataclass(frozen=True)
class Scale:
    """One scale: the frame at one size, cut into rows x cols tiles."""

    tile: Size
    rows: int
    cols: int

    @property
    def image(self) -> Size:
        """What the frame is resized to."""
        return self.rows * self.tile[0], self.cols * self.tile[1]

    @property
    def tiles(self) -> int:
        return self.rows * self.cols

    def grid(self, patch: int) -> Size:
        """Tokens of the merged map, (h, w)."""
        return self.image[0] // patch, self.image[1] // patch


@dataclass(frozen=True)
class Plan:
    """How frames of one shape are looked at. Coordinates are (top, left) and (height, width) in the frame.

    pad: rows and columns added around the frame, half on either side, before the crop is taken.
    """

    pad: Size
    corner: Size
    crop: Size
    scales: tuple[Scale, ...]

    @property
    def tiles(self) -> int:
        """T: tiles of all scales."""
        return sum(scale.tiles for scale in self.scales)


def ascending(name: str, values: Iterable[float] | None, kind: type[float]) -> tuple[float, ...]:
    """Hold a setting of several sizes against its contract: positive numbers of a kind, each once, coarse first."""
    try:
        given = tuple(values if values is not None else ())
    except TypeError as error:
        raise InvalidInput(f"{name} is {values}; expected several, or one in a list: [{values}]") from error
    try:
        numbers = tuple(kind(value) for value in given)
    except (TypeError, ValueError, OverflowError):  # a word, nothing, or infinitely many pixels
        numbers = ()
    if numbers != given or not all(0 < number < math.inf for number in numbers):
        raise InvalidInput(f"{name} are {given}; expected {'whole ' if kind is int else ''}positive numbers")
    if list(numbers) != sorted(set(numbers)):
        raise InvalidInput(f"{name} are {given}; expected each once, coarse first: {sorted(set(numbers))}")
    return numbers


def check_tile(tile: Any) -> None:
    """Raises InvalidInput if the setting is neither left out nor whole pixels."""
    if not (tile is None or is_count(tile)):
        raise InvalidInput(f"tile is {tile!r}; expected whole pixels, e.g. 256")


def is_count(value: Any) -> bool:
    """Is this a whole number from 1 on?"""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) > 0


def sizes_of(scales: Sequence[float], base: int) -> tuple[int, ...]:
    """Image sizes of multiples of a base [pixels]; whole, but for what floats make of 9 / 7 * 336."""
    for scale in scales:
        if not math.isclose(scale * base, max(1, round(scale * base)), rel_tol=1e-6):
            raise InvalidInput(
                f"Scale {scale:g} of {base} px is {scale * base:g} px; expected whole pixels. Try sizes=(...) instead"
            )
    return tuple(round(scale * base) for scale in scales)


def make_plan(frame: Size, sizes: Sequence[int], largest_tile: int, patch: int, fit: str = "whole") -> Plan:
    """Lay out every scale of a frame.

    Args:
        frame: (H, W) of the frame.
        sizes: what the frame's shorter side becomes, one a scale [pixels].
        largest_tile: the largest tile along that side [pixels]; each scale takes the fewest equal tiles.
        patch: side of a patch; tiles are multiples of it.
        fit: for frames that are not square. "whole": tiles of the frame's shape, see above. "crop": the central
            square. "pad": the frame in the middle of a square.

    Raises:
        InvalidInput: a size that does not divide into tiles of whole patches; names the nearest that do.
    """
    if fit not in FITS:
        raise InvalidInput(f"Unknown fit {fit!r}. Known: {', '.join(FITS)}")
    if min(frame) < 1:
        raise InvalidInput(f"A frame of {frame[0]}x{frame[1]} has no pixels; expected 1x1 or more")
    splits = [_splits(size, largest_tile, patch) for size in sizes]
    height, width = frame
    short, longer = min(frame), max(frame)
    if fit == "pad":
        return _square(((longer - height), (longer - width)), longer, sizes, splits, frame)
    if fit == "crop" or height == width:
        return _square((0, 0), short, sizes, splits, frame)
    scales: list[Scale] = []
    for size, count in zip(sizes, splits, strict=True):
        side = size // count
        shape = (max(scales[0].tile), min(scales[0].tile)) if scales else (longer, short)  # one crop is of one shape
        other = round(side * shape[0] / shape[1] / patch) * patch
        scales.append(Scale((side, other) if width > height else (other, side), count, count))
    crop = _largest_crop(frame, scales[0].tile)
    return Plan((0, 0), ((height - crop[0]) // 2, (width - crop[1]) // 2), crop, tuple(scales))


def _square(pad: Size, side: int, sizes: Sequence[int], splits: Sequence[int], frame: Size) -> Plan:
    scales = tuple(Scale((size // n, size // n), n, n) for size, n in zip(sizes, splits, strict=True))
    corner = ((frame[0] + pad[0] - side) // 2, (frame[1] + pad[1] - side) // 2)
    return Plan(pad, corner, (side, side), scales)


def _splits(size: int, largest: int, patch: int) -> int:
    """The fewest equal tiles of at most `largest` pixels along a side of `size`."""
    if largest < patch:
        raise InvalidInput(f"A tile of at most {largest} px holds no patch of {patch} px; expected {patch} or more")
    count = math.ceil(size / largest)
    if size < patch or size % (count * patch):
        raise InvalidInput(
            f"A size of {size} px does not divide into equal tiles of at most {largest} px and whole patches of "
            f"{patch}. Near it: {', '.join(map(str, _near(size, largest, patch)))} px"
        )
    return count


def _near(size: int, largest: int, patch: int) -> list[int]:
    """The next sizes below and above that do divide."""
    fits = [s for s in range(patch, size + 2 * largest, patch) if s % (math.ceil(s / largest) * patch) == 0]
    return [*[s for s in fits if s < size][-1:], *[s for s in fits if s > size][:1]]


def _largest_crop(frame: Size, tile: Size) -> Size:
    """The largest (height, width) within the frame that has the tile's shape, to the nearest pixel."""
    factor = min(frame[0] / tile[0], frame[1] / tile[1])
    return min(frame[0], round(tile[0] * factor)), min(frame[1], round(tile[1] * factor))
