"""The S2 maths against a second, slow and obvious writing of its definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from s2robot.errors import InvalidInput
from s2robot.multiscale import average_tiles, merge_tiles, multiscale_forward, pool_to_grid, split_tiles

PATCH = 4


def toy_map(images: Tensor) -> Tensor:
    """A convolutional 'backbone': (B, 3, H, W) -> (B, 5, H/4, W/4)."""
    weight = torch.randn(5, 3, PATCH, PATCH, generator=torch.Generator().manual_seed(0)).to(images.dtype)
    return torch.tanh(F.conv2d(images, weight, stride=PATCH))


def toy_vit(prefix_tokens: int) -> Callable[[Tensor], Tensor]:
    """The same as tokens, behind prefix tokens that see the whole tile."""

    def forward(images: Tensor) -> Tensor:
        tokens = toy_map(images).flatten(2).transpose(1, 2)  # (B, N, D)
        prefix = [(i + 1) * tokens.amax(dim=1, keepdim=True) for i in range(prefix_tokens)]
        return torch.cat([*prefix, tokens], dim=1)

    return forward


def area_cell(grid: Tensor, row: int, col: int, side: int) -> Tensor:
    """The mean over the cells of (D, h, w) that cell (row, col) of a side x side grid touches."""
    old = grid.shape[-1]
    top, left = row * old // side, col * old // side
    bottom, right = -(-(row + 1) * old // side), -(-(col + 1) * old // side)
    return grid[:, top:bottom, left:right].mean(dim=(1, 2))


def by_the_book(
    images: Tensor, sizes: list[int], max_split: int, target: int, prefix_tokens: int
) -> tuple[Tensor, Tensor]:
    """S2 as its paper tells it, one image, one tile, one cell at a time: prefix (B, K, D*S), map (B, D*S, h, w)."""
    prefixes: list[Tensor] = []
    maps: list[Tensor] = []
    for image in images:
        grids: list[Tensor] = []
        prefix_of_scale: list[Tensor] = []
        for size in sizes:
            resized = F.interpolate(image[None].float(), (size, size), mode="bicubic")[0].to(image.dtype)
            splits = math.ceil(size / max_split)
            tile = size // splits
            cells = tile // PATCH
            grid = torch.empty(5, splits * cells, splits * cells, dtype=image.dtype)
            seen: list[Tensor] = []
            for row in range(splits):
                for col in range(splits):
                    cut = resized[:, row * tile : (row + 1) * tile, col * tile : (col + 1) * tile]
                    tokens = toy_vit(prefix_tokens)(cut[None])[0]  # (K+N, D)
                    seen.append(tokens[:prefix_tokens])
                    for i, token in enumerate(tokens[prefix_tokens:]):
                        grid[:, row * cells + i // cells, col * cells + i % cells] = token
            grids.append(grid)
            prefix_of_scale.append(torch.stack(seen).mean(dim=0))
        side = grids[target].shape[-1]
        pooled = [[[area_cell(g, r, c, side) for c in range(side)] for r in range(side)] for g in grids]
        maps.append(torch.cat([torch.stack([torch.stack(line) for line in g]).permute(2, 0, 1) for g in pooled]))
        prefixes.append(torch.cat(prefix_of_scale, dim=-1))
    return torch.stack(prefixes), torch.stack(maps)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prefix_tokens", [0, 1, 5])
@pytest.mark.parametrize("target", [0, -1])
@pytest.mark.parametrize(
    ("arguments", "sizes", "max_split"),
    [
        ({"scales": (1, 2)}, [16, 32], 16),
        ({"scales": (1, 2, 3)}, [16, 32, 48], 16),
        ({"scales": (2, 1)}, [32, 16], 16),
        ({"scales": (0.5, 1, 1.5)}, [8, 16, 24], 16),
        ({"img_sizes": [16, 24]}, [16, 24], 16),
        ({"img_sizes": [32], "scales": (1, 2), "max_split_size": 8}, [32], 8),
        ({"scales": (1, 2), "max_split_size": 64}, [16, 32], 64),
    ],
)
def test_tokens_are_those_of_the_definition(
    images: Tensor, arguments: dict[str, Any], sizes: list[int], max_split: int, target: int, prefix_tokens: int
) -> None:
    prefix, expected = by_the_book(images, sizes, max_split, target, prefix_tokens)
    got = multiscale_forward(
        toy_vit(prefix_tokens), images, resize_output_to_idx=target, num_prefix_token=prefix_tokens, **arguments
    )
    torch.testing.assert_close(got[:, :prefix_tokens], prefix, atol=1e-5, rtol=0)
    torch.testing.assert_close(got[:, prefix_tokens:], expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("target", [0, 1, -1])
def test_maps_are_those_of_the_definition(images: Tensor, target: int) -> None:
    _, expected = by_the_book(images, [16, 32, 48], 16, target, 0)
    got = multiscale_forward(toy_map, images, (1, 2, 3), resize_output_to_idx=target, output_shape="bchw")
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_split_forward_changes_no_number_and_bounds_the_batch(images: Tensor) -> None:
    batches: list[int] = []

    def model(tiles: Tensor) -> Tensor:
        batches.append(tiles.shape[0])
        return toy_vit(1)(tiles)

    whole = multiscale_forward(toy_vit(1), images, (1, 2), num_prefix_token=1)
    parts = multiscale_forward(model, images, (1, 2), num_prefix_token=1, split_forward=True)
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=0)
    assert batches == [2] * 5


def test_one_scale_is_the_model_itself(images: Tensor) -> None:
    assert torch.equal(multiscale_forward(toy_vit(1), images, (1,), num_prefix_token=1), toy_vit(1)(images))


def test_gradients_reach_the_images(images: Tensor) -> None:
    images.requires_grad_()
    multiscale_forward(toy_vit(0), images, (1, 2)).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_kept(images: Tensor, dtype: torch.dtype) -> None:
    assert multiscale_forward(toy_vit(1), images.to(dtype), (1, 2), num_prefix_token=1).dtype == dtype


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_bright_corner_stays_in_its_corner_at_each_scale(corner: tuple[int, int]) -> None:
    images = torch.zeros(1, 3, 16, 16)
    images[..., corner[0] * 8 : corner[0] * 8 + 8, corner[1] * 8 : corner[1] * 8 + 8] = 1

    def brightness(tiles: Tensor) -> Tensor:
        return F.avg_pool2d(tiles.mean(dim=1, keepdim=True), PATCH)

    for each in multiscale_forward(brightness, images, (1, 2, 3), output_shape="bchw")[0]:  # (4, 4), one a scale
        quarters = F.avg_pool2d(each[None, None], 2)[0, 0]  # (2, 2)
        assert quarters[corner] > 0.9
        assert quarters.sum() < 1.2


def test_tiles_come_row_by_row_with_the_batch_innermost() -> None:
    images = torch.arange(2 * 6).reshape(2, 1, 2, 3).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3).float()
    tiles = split_tiles(images, 4)
    assert tiles.shape == (12, 1, 4, 4)
    assert tiles[:, 0, 0, 0].tolist() == [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]
    assert all((tile == tile[0, 0, 0]).all() for tile in tiles)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 2), (2, 3), (3, 1)])
def test_merging_undoes_splitting(rows: int, cols: int) -> None:
    images = torch.randn(3, 2, rows * 4, cols * 4)
    assert torch.equal(merge_tiles(split_tiles(images, 4), rows, cols), images)


def test_prefix_tokens_are_averaged_over_the_tiles_of_their_own_image() -> None:
    prefix = torch.tensor([1.0, 10, 2, 20, 3, 30, 6, 60]).reshape(8, 1, 1)  # four tiles of two images
    assert average_tiles(prefix, 4).flatten().tolist() == [3, 30]
    assert average_tiles(torch.zeros(8, 0, 5), 4).shape == (2, 0, 5)


def test_going_up_by_a_whole_factor_repeats_cells() -> None:
    maps = torch.randn(1, 3, 2, 2)
    repeated = maps.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    torch.testing.assert_close(pool_to_grid(maps, (6, 6)), repeated)


def test_going_down_keeps_the_mean_of_non_square_maps_too() -> None:
    maps = torch.randn(1, 3, 4, 6)
    torch.testing.assert_close(pool_to_grid(maps, (2, 3)), F.avg_pool2d(maps, 2))


SQUARE = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize(
    ("given", "arguments", "message"),
    [
        (SQUARE[0], {"scales": (1,)}, r"expected \(B, C, H, W\)"),
        (SQUARE[:0], {"scales": (1,)}, "empty batch"),
        (SQUARE.numpy(), {"scales": (1,)}, "Images are a ndarray"),
        (SQUARE, {"scales": 2}, r"in a list: \[2\]"),
        (SQUARE, {"scales": np.array([0.01, 1])}, r"image sizes \[0, 16\]"),
        (torch.zeros(1, 3, 16, 32), {"scales": (1,)}, "16x32; S2 takes square ones"),
        (SQUARE.to(torch.uint8), {"scales": (1,)}, "expected floats"),
        (SQUARE, {}, r"Try scales=\(1, 2\)"),
        (SQUARE, {"scales": ()}, r"Try scales=\(1, 2\)"),
        (SQUARE, {"scales": (0.01, 1)}, r"image sizes \[0, 16\]"),
        (SQUARE, {"img_sizes": (16, 24.5)}, "whole number of pixels"),
        (SQUARE, {"img_sizes": (16, -32)}, "whole number of pixels"),
        (SQUARE, {"img_sizes": (16, 35)}, "35 px image does not divide into 3x3 tiles of at most 16"),
        (SQUARE, {"scales": (1,), "max_split_size": -8}, "max_split_size"),
        (SQUARE, {"scales": (1, 2), "resize_output_to_idx": 2}, "names no scale; there are 2"),
        (SQUARE, {"scales": (1,), "output_shape": "nhwc"}, "Known: bnc, bchw"),
        (SQUARE, {"scales": (1,), "output_shape": "bchw", "num_prefix_token": 1}, "0 for 'bchw'"),
        (SQUARE, {"scales": (1,), "output_shape": "bchw"}, r"returned \(1, 21, 5\).*means \(1, D, h, w\)"),
        (SQUARE, {"scales": (1,), "num_prefix_token": -1}, "num_prefix_token=-1"),
        (SQUARE, {"scales": (1,)}, "21 tokens.*num_prefix_token is probably wrong: 5 would leave 4x4"),
        (SQUARE, {"scales": (1,), "num_prefix_token": 1}, "20 are left.*5 would leave 4x4"),
        (SQUARE, {"scales": (1,), "num_prefix_token": 21}, "0 are left"),
    ],
)
def test_wrong_input_is_named(given: Tensor, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        multiscale_forward(toy_vit(5), given, **arguments)


def test_a_model_that_gives_more_than_its_tokens_is_named() -> None:
    def twice(images: Tensor) -> Any:
        return images, images

    with pytest.raises(InvalidInput, match="The model returned a tuple"):
        multiscale_forward(twice, SQUARE, scales=(1,))


def test_wrong_tiles_are_named() -> None:
    with pytest.raises(InvalidInput, match="16x16 does not divide into tiles of 5"):
        split_tiles(SQUARE, 5)
    with pytest.raises(InvalidInput, match=r"expected \(B, C, H, W\)"):
        split_tiles(SQUARE[0], 4)
    with pytest.raises(InvalidInput, match="multiple of 4"):
        merge_tiles(torch.zeros(6, 1, 2, 2), 2, 2)
