"""Training views: exact parts of the true frame, a function of the generator alone, alike from disk and device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from s2robot.catalogue import IMAGENET_MEAN, IMAGENET_STD, PlainViT
from s2robot.preprocess import resize_frames
from s2robot.recipe import PretrainConfig
from s2robot.views import Cuts, cut_squares, develop, draw_cuts, draw_noise

CPU = torch.device("cpu")
THREE = PretrainConfig(scales=(1, 2, 3), frame_size=96, image_size=32, batch=200)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 256, 256, 3)).astype(np.uint8)


def pixels(frames: np.ndarray, cuts: Cuts, size: int) -> Tensor:
    """Views in [0, 255], (B, size, size, 3)."""
    images = develop(cut_squares(frames, cuts), size, CPU)
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return ((images * std + mean) * 255).permute(0, 2, 3, 1)


def test_batches_are_those_of_the_plain_definition(frames: np.ndarray) -> None:
    """The recipe of the shipped weights, view by view, with the draws in this order."""
    config = PretrainConfig()
    rng = np.random.default_rng((0, 7))
    expected = []
    for index in rng.integers(len(frames), size=64):
        draw = rng.random()
        if draw < 0.4:
            expected.append(frames[index].reshape(128, 2, 128, 2, 3).mean((1, 3)))
            continue
        top, left = rng.integers(2, size=2) * 128 if draw < 0.8 else rng.integers(129, size=2)
        expected.append(frames[index, top : top + 128, left : left + 128])
    noise = rng.random((64, 64), dtype=np.float32)
    rng = np.random.default_rng((0, 7))
    images = pixels(frames, draw_cuts(len(frames), config, rng), 128)
    np.testing.assert_allclose(images, np.stack(expected), atol=1e-3)
    np.testing.assert_array_equal(draw_noise(config, rng), noise)


def test_tiles_are_those_of_each_larger_scale() -> None:
    cuts = draw_cuts(5, THREE, np.random.default_rng(0), "tile")
    assert set(cuts.side.tolist()) == {48, 32}
    assert (cuts.top % cuts.side == 0).all()
    places = {(int(side), int(top), int(left)) for side, top, left in zip(cuts.side, cuts.top, cuts.left, strict=True)}
    assert len(places) == 4 + 9


def test_with_the_base_scale_alone_every_view_is_a_whole_frame() -> None:
    cuts = draw_cuts(5, PretrainConfig(scales=(1,)), np.random.default_rng(0))
    assert set(cuts.side.tolist()) == {256}


def test_shares_are_proportions() -> None:
    config = PretrainConfig(batch=4000, whole_share=2, tile_share=1, crop_share=0, resized_share=1)
    cuts = draw_cuts(5, config, np.random.default_rng(0))
    whole = (cuts.side == 256).mean()
    tile = ((cuts.side == 128) & (cuts.top % 128 == 0) & (cuts.left % 128 == 0)).mean()
    assert whole == pytest.approx(0.5, abs=0.03)
    assert tile == pytest.approx(0.25, abs=0.03)
    assert (cuts.side >= 128).all()
    assert (cuts.top + cuts.side <= 256).all()
    assert (cuts.left + cuts.side <= 256).all()


def test_views_of_any_size_keep_what_they_show(frames: np.ndarray) -> None:
    """A square of one colour stays that colour, whatever it is resized by."""
    flat = np.empty_like(frames)
    flat[:] = np.arange(9, dtype=np.uint8)[:, None, None, None] * 20
    cuts = draw_cuts(9, PretrainConfig(whole_share=0, tile_share=0, crop_share=0, resized_share=1), _rng())
    images = pixels(flat, cuts, 128)
    np.testing.assert_allclose(images, np.broadcast_to(cuts.frame[:, None, None, None] * 20, images.shape), atol=0.01)


def test_views_of_any_size_are_what_the_encoder_would_make_of_them(frames: np.ndarray) -> None:
    cuts = draw_cuts(9, PretrainConfig(whole_share=0, tile_share=0, crop_share=0, resized_share=1), _rng())
    assert set((cuts.side - 128) % 8) == {0}
    assert len(set(cuts.side)) > 12
    contract = PlainViT(128, 4, 1, 1, "area").contract
    images = pixels(frames, cuts, 128)
    for image, k, y, x, side in zip(images, cuts.frame, cuts.top, cuts.left, cuts.side, strict=True):
        square = torch.from_numpy(frames[k, y : y + side, x : x + side]).permute(2, 0, 1)[None].float()
        expected = resize_frames(square, (128, 128), contract)[0].permute(1, 2, 0)
        torch.testing.assert_close(image, expected, rtol=0, atol=0.01)


def test_half_of_the_views_are_mirrored_when_asked(frames: np.ndarray) -> None:
    plain, mirrored = PretrainConfig(), PretrainConfig(flip=True)
    straight = pixels(frames, draw_cuts(9, plain, _rng()), 128)
    cuts = draw_cuts(9, mirrored, _rng())
    images = pixels(frames, cuts, 128)
    assert 15 < cuts.mirrored.sum() < 49
    np.testing.assert_allclose(images[cuts.mirrored], straight[cuts.mirrored].flip(2), atol=1e-3)
    np.testing.assert_allclose(images[~cuts.mirrored], straight[~cuts.mirrored], atol=1e-3)
    assert not draw_cuts(9, mirrored, _rng(), "base").mirrored.any()  # validation is of the true frames


def test_frames_on_the_device_give_the_same_views(frames: np.ndarray) -> None:
    cuts = draw_cuts(9, PretrainConfig(resized_share=0.2), _rng())
    here, there = (cut_squares(source, cuts) for source in (frames, torch.from_numpy(frames)))
    torch.testing.assert_close(develop(here, 128, CPU), develop(there, 128, CPU), rtol=0, atol=0)


def test_a_part_of_a_batch_is_the_batch_in_part(frames: np.ndarray) -> None:
    cuts = draw_cuts(9, PretrainConfig(), _rng())
    whole = develop(cut_squares(frames, cuts), 128, CPU)
    part = develop(cut_squares(frames, cuts[16:32]), 128, CPU)
    torch.testing.assert_close(whole[16:32], part, rtol=0, atol=0)


def _rng() -> np.random.Generator:
    return np.random.default_rng(3)
