"""Preprocessing: the right pixels, resized once and rightly, in the contract's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_encoders import CONTRACT, Frames, eye, random_frames
from torch import Tensor

from s2robot import preprocess
from s2robot.backbones import ImageContract
from s2robot.encoder import Encoder
from s2robot.preprocess import check_frames, cut_tiles, resize_frames, resize_matrices, tile_sources
from s2robot.scales import FITS, Size

CHANGES = [  # down by whole steps, down, up, across
    ((64, 64), (16, 16)), ((48, 64), (12, 16)), ((50, 70), (16, 24)), ((11, 13), (16, 16)), ((40, 20), (16, 32)),
    ((32, 48), (32, 16)), ((64, 50), (16, 16)), ((24, 24), (24, 24)),
]  # fmt: skip


def contract(interpolation: str = "area", antialias: bool = True) -> ImageContract:
    return eye(interpolation=interpolation, antialias=antialias).contract


def tiles_of(encoder: Encoder, frames: Frames) -> list[Tensor]:
    batch = check_frames(frames)
    plan = encoder.plan((batch.shape[2], batch.shape[3]))
    return cut_tiles(batch, plan, encoder.contract, encoder.mean, encoder.std)


def bordered(inner: Size, rows: int, columns: int) -> Frames:
    """A white frame with black bars above and below, or to the left and right."""
    frame = np.zeros((inner[0] + 2 * rows, inner[1] + 2 * columns, 3), dtype=np.uint8)
    frame[rows : rows + inner[0], columns : columns + inner[1]] = 255
    return frame


# -- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [(32, 32), (48, 64), (1, 5)])
@pytest.mark.parametrize(("shape", "full"), [((), (1, 1)), ((3,), (3, 1)), ((3, 2), (3, 2))])
def test_frames_get_both_axes(shape: tuple[int, ...], full: tuple[int, int], side: Size) -> None:
    frames = random_frames(*shape, *side, 3)
    checked = check_frames(frames)
    assert checked.shape == (*full, *side, 3) and checked.dtype == torch.uint8
    assert np.array_equal(checked.numpy().reshape(frames.shape), frames)
    assert torch.equal(check_frames(torch.from_numpy(frames)), checked)


def test_mirrored_and_read_only_frames_are_taken() -> None:
    frames = random_frames(2, 32, 48, 3)
    upright = frames[:, ::-1].copy()
    frames.flags.writeable = False
    assert np.array_equal(check_frames(frames[:, ::-1])[:, 0].numpy(), upright)


# -- tiles -----------------------------------------------------------------------------------------------------------


def test_frames_are_normalised_by_the_contract() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    one, four = tiles_of(eye(mean=mean, std=std), np.full((32, 32, 3), 51, dtype=np.uint8))  # 51 / 255 = 0.2
    assert one.shape == (1, 3, 16, 16) and four.shape == (4, 3, 16, 16)
    for channel, expected in enumerate((0.2, 0.0, -0.05)):
        torch.testing.assert_close(four[:, channel], torch.full((4, 16, 16), expected))
        torch.testing.assert_close(one[:, channel], torch.full((1, 16, 16), expected))


def test_tiles_are_the_frames_blocks_row_by_row() -> None:
    frames = random_frames(2, 3, 32, 48, 3)  # two moments, three cameras; tiles of 16x24
    (tiles,) = tiles_of(eye((2,)), frames)
    assert tiles.shape == (4 * 2 * 3, 3, 16, 24)
    for t, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        for b in range(2):
            for v in range(3):
                block = frames[b, v, 16 * row : 16 * row + 16, 24 * column : 24 * column + 24] / 255
                assert np.allclose(tiles[t * 6 + b * 3 + v].permute(1, 2, 0).numpy(), block, atol=1e-6)


def test_a_frame_that_has_the_size_is_never_resampled() -> None:
    frame = random_frames(32, 32, 3)
    (tiles,) = tiles_of(eye((2,), interpolation="bicubic"), frame)
    assert torch.equal(tiles[1], torch.from_numpy(frame[:16, 16:]).permute(2, 0, 1).float() / 255)


def test_each_scale_is_made_from_the_true_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[tuple[int, Size]] = []

    def spy(images: Tensor, size: Size, contract: ImageContract) -> Tensor:
        sides.append((images.shape[-1], size))
        return resize_frames(images, size, contract)

    monkeypatch.setattr(preprocess, "resize_frames", spy)
    eye((1, 2, 3))(random_frames(60, 60, 3))
    assert sides == [(60, (16, 16)), (60, (32, 32)), (60, (48, 48))]


@pytest.mark.parametrize("bars", [(0, 8), (8, 0), (0, 7), (11, 0)])
def test_crop_sees_the_centre_alone(bars: Size) -> None:
    for tiles in tiles_of(eye(fit="crop"), bordered((32, 32), *bars)):
        assert tiles.min() == 1


@pytest.mark.parametrize("bars", [(0, 8), (8, 0)])
def test_whole_sees_every_pixel(bars: Size) -> None:
    frame = bordered((32, 32), *bars)  # 32x48: tiles of 16x24, so nothing is cropped
    for tiles in tiles_of(eye(fit="whole"), frame):
        assert tiles.mean().item() == pytest.approx(frame.mean() / 255, abs=1e-6)


@pytest.mark.parametrize("frame", [(32, 48), (48, 32), (33, 48), (48, 31)])
def test_pad_puts_the_contracts_mean_around_the_frame(frame: Size) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    encoder = eye((3,), fit="pad", mean=mean, std=std)
    (tiles,) = tiles_of(encoder, np.full((*frame, 3), 255, dtype=np.uint8))
    seen = tiles.reshape(3, 3, 3, 16, 16).permute(2, 0, 3, 1, 4).reshape(3, 48, 48)
    top, left = ((48 - side) // 2 for side in frame)
    inside = torch.zeros(48, 48, dtype=torch.bool)
    inside[top : top + frame[0], left : left + frame[1]] = True
    white = (1 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(seen[:, inside], white[:, None].expand(3, int(inside.sum())))
    assert seen[:, ~inside].abs().max() <= 0.5 / 255 / min(std) + 1e-6  # a pixel's colour is a whole number


@pytest.mark.parametrize("fit", FITS)
def test_square_frames_are_the_same_in_any_fit(fit: str) -> None:
    frames = random_frames(2, 40, 40, 3)
    for got, expected in zip(tiles_of(eye(fit=fit), frames), tiles_of(eye(), frames), strict=True):
        assert torch.equal(got, expected)


# -- resizing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("now", "size", "step"), [
    ((64, 64), (16, 16), (4, 4)), ((48, 64), (16, 16), (3, 4)), ((32, 64), (32, 16), (1, 4)),
])  # fmt: skip
def test_area_is_the_mean_of_the_pixels(now: Size, size: Size, step: Size) -> None:
    images = torch.rand(1, 3, *now) * 255
    resized = resize_frames(images, size, contract())
    for row in range(size[0]):
        for column in range(size[1]):
            block = images[..., row * step[0] : (row + 1) * step[0], column * step[1] : (column + 1) * step[1]]
            torch.testing.assert_close(resized[..., row, column], block.mean(dim=(2, 3)))


@pytest.mark.parametrize(("interpolation", "filter_"), [
    ("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR), ("area", Image.Resampling.BICUBIC),
])  # fmt: skip
@pytest.mark.parametrize(("now", "size"), [((50, 70), (16, 24)), ((97, 61), (32, 48)), ((64, 50), (16, 16))])
def test_smaller_images_are_pillows(interpolation: str, filter_: Any, now: Size, size: Size) -> None:
    frame = random_frames(*now, 3) // 2 + 64  # before 13 Pillow cuts off, between its passes, what leaves 0 to 255
    expected = np.asarray(Image.fromarray(frame).resize(size[::-1], filter_), dtype=np.float32)
    images = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    resized = resize_frames(images, size, contract(interpolation))[0].permute(1, 2, 0).numpy()
    assert np.abs(resized - expected).max() < 1.5  # Pillow rounds twice


@pytest.mark.parametrize(("interpolation", "antialias", "fades"), [
    ("area", True, True), ("bicubic", True, True), ("bilinear", True, True), ("bicubic", False, False),
])  # fmt: skip
def test_fine_stripes_fade_instead_of_aliasing(interpolation: str, antialias: bool, fades: bool) -> None:
    stripes = torch.zeros(1, 3, 70, 70)
    stripes[..., ::2] = 255
    for size in ((16, 16), (70, 16), (80, 16)):  # also where the rows stay, or grow
        assert (resize_frames(stripes, size, contract(interpolation, antialias)).std() < 40) == fades


@pytest.mark.parametrize("interpolation", ["area", "bicubic", "bilinear"])
@pytest.mark.parametrize("side", [(11, 11), (25, 25), (64, 64), (25, 11), (11, 64)])
def test_resizing_keeps_flat_frames_flat_and_pixels_in_range(interpolation: str, side: Size) -> None:
    flat = resize_frames(torch.full((1, 3, *side), 77.0), (16, 24), contract(interpolation))
    torch.testing.assert_close(flat, torch.full((1, 3, 16, 24), 77.0))
    edges = resize_frames((torch.rand(1, 3, *side) > 0.5) * 255.0, (16, 24), contract(interpolation))
    assert edges.min() >= 0
    assert edges.max() <= 255


@pytest.mark.parametrize("interpolation", ["area", "bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("now", "size"), CHANGES, ids=str)
def test_two_matrices_are_the_same_resize(interpolation: str, antialias: bool, now: Size, size: Size) -> None:
    images = torch.rand(2, 3, *now) * 100 + 80  # inside the range, where nothing is clamped
    rows, columns = resize_matrices(now, size, contract(interpolation, antialias))
    assert rows.shape == (size[0], now[0]) and columns.shape == (size[1], now[1])
    expected = resize_frames(images, size, contract(interpolation, antialias))
    assert expected.min() > 0 and expected.max() < 255
    torch.testing.assert_close(rows @ images @ columns.T, expected, atol=1e-3, rtol=0)


# -- seen through an encoder -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["base", "finest"])
@pytest.mark.parametrize("side", [(16, 16), (32, 32), (50, 50), (96, 96), (32, 48), (60, 40), (48, 64)])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0)])
def test_a_bright_corner_stays_in_its_corner_at_each_scale(corner: Size, side: Size, grid: str) -> None:
    rows, columns = side[0] // 2, side[1] // 2
    frame = np.zeros((*side, 3), dtype=np.uint8)
    frame[corner[0] * rows : (corner[0] + 1) * rows, corner[1] * columns : (corner[1] + 1) * columns] = 255
    for each in eye((1, 1.5, 2, 3), grid=grid)(frame).map[0, 0]:  # (h, w), one a scale
        quarters = F.adaptive_avg_pool2d(each[None], 2)[0]
        assert quarters[corner] > 0.8  # of five columns, the one in the middle sees both halves
        assert quarters.sum() < 1.4


def test_red_is_the_first_channel() -> None:
    red = np.zeros((32, 32, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert eye(see=lambda images: images[:, :1])(red).map.min() == 1
    assert eye(see=lambda images: images[:, 1:2])(red).map.max() == 0


def test_the_contract_of_these_tests_is_not_a_trivial_one() -> None:
    assert len(set(CONTRACT.mean)) == len(set(CONTRACT.std)) == 3


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", ["area", "bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("side", "fit"), [((64, 64), "whole"), ((120, 160), "crop"), ((75, 100), "whole"), ((50, 70), "pad")]
)
def test_a_tile_is_made_of_its_sources_and_nothing_else(
    side: Size, fit: str, interpolation: str, antialias: bool
) -> None:
    """Noise everywhere else leaves its bits as they were; at the sources' own edges it does not."""
    encoder = eye((1, 2, 3), fit=fit, interpolation=interpolation, antialias=antialias)
    plan, frame = encoder.plan(side), random_frames(*side, 3)
    boxes = tile_sources(side, plan, encoder.contract)
    before = encoder.cut(check_frames(frame), plan)
    for k, scale in enumerate(plan.scales):
        assert len(boxes[k]) == scale.tiles
        for t, box in enumerate(boxes[k]):
            outside = random_frames(*side, 3, seed=1)
            outside[box] = frame[box]
            assert torch.equal(encoder.cut(check_frames(outside), plan)[k][t], before[k][t])
            inside = frame.copy()
            inside[box][[0, -1]] ^= 255
            changed = encoder.cut(check_frames(inside), plan)[k][t] != before[k][t]
            assert changed.any() and frame[box].size


def test_wanted_tiles_have_the_bits_of_all() -> None:
    encoder = eye((1, 2, 3))
    plan, frames = encoder.plan((96, 96)), random_frames(2, 96, 96, 3)
    whole = encoder.cut(check_frames(frames), plan)
    wanted: list[list[int]] = [[], [0, 5, 7], list(range(18))]
    for rows, part, all_ in zip(wanted, encoder.cut(check_frames(frames), plan, wanted), whole, strict=True):
        assert torch.equal(part, all_[rows])
