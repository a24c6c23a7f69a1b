"""Plans: every scale divides into equal tiles of whole patches, and no frame is squeezed into them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest

from s2robot.errors import InvalidInput
from s2robot.scales import FITS, Plan, Size, ascending, make_plan, sizes_of

SIZES = [  # sizes, largest tile, patch
    ((224,), 224, 16), ((224, 448), 224, 16), ((224, 448, 672), 224, 16), ((224, 448, 672, 896), 224, 16),
    ((336, 672, 1008), 336, 16), ((518, 1036), 518, 14), ((224, 448), 518, 14), ((256, 512, 1536), 256, 16),
    ((256, 512, 1024), 256, 16), ((518, 1036, 1554, 2072), 518, 14), ((128, 192), 128, 16), ((224, 252), 252, 14),
    ((96, 128, 160), 160, 16), ((16, 32), 17, 16),
]  # fmt: skip
FRAMES = [(480, 640), (720, 1280), (640, 480), (1280, 720), (1080, 1920), (240, 320), (33, 500), (97, 98), (7, 3)]


def tiles_of(size: int, largest: int) -> int:
    """The fewest tiles that are not too large, by trying."""
    count = 1
    while size / count > largest:
        count += 1
    return count


def upright(plan: Plan) -> tuple[Any, ...]:
    """A plan, told as that of the frame on its side."""
    flipped = [each[::-1] for each in (plan.pad, plan.corner, plan.crop)]
    return (*flipped, *((scale.tile[::-1], scale.cols, scale.rows) for scale in plan.scales))


# -- square frames ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "largest", "patch"), SIZES, ids=str)
@pytest.mark.parametrize("side", [1, 224, 1000])
def test_a_square_frame_is_seen_whole_at_every_size(sizes: Sequence[int], largest: int, patch: int, side: int) -> None:
    for fit in FITS:
        plan = make_plan((side, side), sizes, largest, patch, fit)
        assert (plan.pad, plan.corner, plan.crop) == ((0, 0), (0, 0), (side, side))
        for size, scale in zip(sizes, plan.scales, strict=True):
            count = tiles_of(size, largest)
            assert scale.image == (size, size)
            assert (scale.rows, scale.cols, scale.tiles) == (count, count, count * count)
            assert scale.tile == (size // count, size // count)
            assert scale.tile[0] % patch == 0 and scale.tile[0] <= largest
            assert scale.grid(patch) == (size // patch, size // patch)
        assert plan.tiles == sum(tiles_of(size, largest) ** 2 for size in sizes)


# -- frames that are not ---------------------------------------------------------------------------------------------


def check_whole(frame: Size, plan: Plan, sizes: Sequence[int], largest: int, patch: int) -> None:
    short = 0 if frame[0] < frame[1] else 1
    for size, scale in zip(sizes, plan.scales, strict=True):
        count = tiles_of(size, largest)
        assert (scale.rows, scale.cols) == (count, count)
        assert scale.image[short] == size
        assert scale.tile[0] % patch == 0 and scale.tile[1] % patch == 0
    (top, left), (height, width) = plan.corner, plan.crop
    assert height == frame[0] or width == frame[1]  # no smaller than it must be
    for start, length, whole in ((top, height, frame[0]), (left, width, frame[1])):
        assert start >= 0 and length >= 1 and start + length <= whole
        assert abs((whole - start - length) - start) <= 1  # centred


@pytest.mark.parametrize(("sizes", "largest", "patch"), SIZES, ids=str)
@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_a_frame_is_seen_in_its_own_shape(frame: Size, sizes: Sequence[int], largest: int, patch: int) -> None:
    plan = make_plan(frame, sizes, largest, patch)
    assert plan.pad == (0, 0)
    check_whole(frame, plan, sizes, largest, patch)
    (height, width), (h, w) = plan.crop, plan.scales[0].tile
    assert abs(height - width * h / w) <= 0.51 or abs(width - height * w / h) <= 0.51  # to the nearest pixel
    for scale in plan.scales:
        long, short = max(scale.tile), min(scale.tile)
        if short == min(h, w):  # tiles of one size are of one shape
            assert long == max(h, w)
        else:  # of several, they are as near to it as patches let them
            assert abs(long - short * max(h, w) / min(h, w)) <= patch / 2


@pytest.mark.parametrize("frame", FRAMES, ids=str)
@pytest.mark.parametrize("patch", [14, 16])
def test_at_most_half_a_patch_a_tile_is_cropped(frame: Size, patch: int) -> None:
    plan = make_plan(frame, (patch * 16, patch * 32), patch * 16, patch)
    kept = min(plan.crop[0] / frame[0], plan.crop[1] / frame[1])
    assert 1 - kept <= patch / 2 / min(plan.scales[0].tile) + 0.5 / min(frame)


def test_the_example_of_the_documentation() -> None:
    plan = make_plan((480, 640), (224, 448), 224, 16)
    assert [scale.tile for scale in plan.scales] == [(224, 304), (224, 304)]
    assert [scale.grid(16) for scale in plan.scales] == [(14, 19), (28, 38)]
    assert (plan.corner, plan.crop) == ((4, 0), (472, 640))
    assert plan.tiles == 5


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_a_frame_on_its_side_is_planned_on_its_side(frame: Size, fit: str) -> None:
    for sizes, largest, patch in SIZES:
        one, other = (make_plan(each, sizes, largest, patch, fit) for each in (frame, frame[::-1]))
        tiles = [(scale.tile, scale.rows, scale.cols) for scale in one.scales]
        assert upright(other) == (one.pad, one.corner, one.crop, *tiles)


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_crop_takes_the_central_square(frame: Size) -> None:
    plan = make_plan(frame, (224, 448), 224, 16, "crop")
    side = min(frame)
    assert (plan.pad, plan.crop) == ((0, 0), (side, side))
    assert plan.corner == ((frame[0] - side) // 2, (frame[1] - side) // 2)
    assert [scale.image for scale in plan.scales] == [(224, 224), (448, 448)]


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_pad_puts_the_frame_into_a_square(frame: Size) -> None:
    plan = make_plan(frame, (224, 448), 224, 16, "pad")
    side = max(frame)
    assert (frame[0] + plan.pad[0], frame[1] + plan.pad[1]) == (side, side)
    assert (plan.corner, plan.crop) == ((0, 0), (side, side))
    assert [scale.image for scale in plan.scales] == [(224, 224), (448, 448)]


# -- what does not divide --------------------------------------------------------------------------------------------


def divides(size: int, largest: int, patch: int) -> bool:
    return size >= patch and size % tiles_of(size, largest) == 0 and size // tiles_of(size, largest) % patch == 0


@pytest.mark.parametrize(("largest", "patch"), [(224, 16), (518, 14), (128, 16), (100, 16), (31, 16), (16, 16)])
def test_the_sizes_it_proposes_are_the_nearest_it_takes(largest: int, patch: int) -> None:
    refused = 0
    for size in range(1, 1200, 7):
        if divides(size, largest, patch):
            assert make_plan((64, 64), (size,), largest, patch).scales[0].image == (size, size)
            continue
        refused += 1
        with pytest.raises(InvalidInput, match=f"A size of {size} px does not divide") as caught:
            make_plan((64, 64), (size,), largest, patch)
        near = [int(word) for word in re.findall(r"\d+", str(caught.value).split("Near it:")[1])]
        assert 1 <= len(near) <= 2 and near == sorted(near)
        for each in near:
            assert make_plan((64, 64), (each,), largest, patch).scales[0].image == (each, each)
        low, high = max([n for n in near if n < size], default=0), min([n for n in near if n > size], default=size)
        assert not any(divides(between, largest, patch) for between in range(low + 1, high))
    assert refused > 50


@pytest.mark.parametrize("largest", [-5, 0, 1, 15])
def test_a_tile_that_holds_no_patch_is_named(largest: int) -> None:
    with pytest.raises(InvalidInput, match=f"at most {largest} px holds no patch of 16 px; expected 16 or more"):
        make_plan((64, 64), (224,), largest, 16)


def test_a_frame_without_pixels_is_named() -> None:
    with pytest.raises(InvalidInput, match="0x64 has no pixels"):
        make_plan((0, 64), (224,), 224, 16)


def test_an_unknown_fit_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"Unknown fit 'stretch'. Known: whole, crop, pad"):
        make_plan((64, 64), (224,), 224, 16, "stretch")


# -- settings --------------------------------------------------------------------------------------------------------


def test_scales_are_multiples_of_whole_pixels() -> None:
    assert sizes_of((1.0, 2.0), 224) == (224, 448)
    assert sizes_of((0.5, 1.5), 128) == (64, 192)
    assert sizes_of((9 / 7, 18 / 7), 336) == (432, 864)  # 9 / 7 * 336 is 432.00000000000006
    assert sizes_of((1.285714,), 336) == (432,)
    assert sizes_of((256 / 224,), 224) == (256,)
    for scale in (1.01, 0.001, 1e-9):
        with pytest.raises(InvalidInput, match=f"Scale {scale:g} of 128 px is {scale * 128:g} px; expected whole"):
            sizes_of((scale,), 128)


@pytest.mark.parametrize(("values", "kind"), [
    ((0,), int), ((-1,), int), ((1.5,), int), ("12", int), (("x",), int), ((math.inf,), int), ((math.nan,), int),
    ((0.0,), float), ((-0.5,), float), ((math.inf,), float), ((math.nan,), float), (("x",), float),
])  # fmt: skip
def test_only_positive_numbers_are_sizes(values: Any, kind: Any) -> None:
    with pytest.raises(InvalidInput, match=r"things are .*; expected (whole )?positive numbers"):
        ascending("things", values, kind)


@pytest.mark.parametrize("values", [(2, 1), (1, 1)])
def test_sizes_come_each_once_and_coarse_first(values: Sequence[int]) -> None:
    with pytest.raises(InvalidInput, match=r"each once, coarse first: \[1"):
        ascending("things", values, int)


def test_sizes_come_as_any_sequence_and_may_be_left_out() -> None:
    assert ascending("things", [1, 2], float) == (1.0, 2.0)
    assert ascending("things", [224.0, 448], int) == (224, 448)
    assert ascending("things", (), int) == ()
