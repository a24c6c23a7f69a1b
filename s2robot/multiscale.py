"""The S2 maths: one image at several sizes, cut into tiles a fixed-size model can take, put together again.

Nothing here knows weights, files or devices. The definition is that of Shi et al., "When Do We Not Need
Larger Vision Models?" (ECCV 2024); the code is ours. Letters are those of `s2robot.types`, and K is the
number of prefix tokens (CLS, registers) of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2robot.errors import InvalidInput

OUTPUT_SHAPES = ("bnc", "bchw")


def split_tiles(images: Tensor, tile: int | tuple[int, int]) -> Tensor:
    """Cut images into tiles stacked on the batch axis.

    The order is the reference's, `(rows cols batch)`: all images' first tile, then all images' second.

    Args:
        images: (B, C, H, W), with H and W multiples of the tile's.
        tile: (h, w) of a tile [pixels], or the side of a square one.

    Returns:
        (rows*cols*B, C, h, w)
    """
    if images.ndim != 4:
        raise InvalidInput(f"Cannot split {tuple(images.shape)} into tiles; expected (B, C, H, W)")
    batch, channels, height, width = images.shape
    h, w = (tile, tile) if isinstance(tile, int) else tile
    if h < 1 or w < 1 or height % h or width % w:
        raise InvalidInput(
            f"An image of {height}x{width} does not divide into tiles of {h}x{w}; height and width must be multiples "
            f"of theirs. Resize or crop the image first"
        )
    rows, cols = height // h, width // w
    grid = images.reshape(batch, channels, rows, h, cols, w)
    return grid.permute(2, 4, 0, 1, 3, 5).reshape(rows * cols * batch, channels, h, w)


def merge_tiles(maps: Tensor, rows: int, cols: int) -> Tensor:
    """Put tiles back where `split_tiles` took them from; works on feature maps as on images.

    Args:
        maps: (rows*cols*B, C, h, w)

    Returns:
        (B, C, rows*h, cols*w)
    """
    if maps.ndim != 4 or rows < 1 or cols < 1 or maps.shape[0] % (rows * cols):
        raise InvalidInput(
            f"Cannot merge {tuple(maps.shape)} as {rows}x{cols} tiles; expected (rows*cols*B, C, h, w), a batch axis "
            f"that is a multiple of {rows * cols}"
        )
    count, channels, height, width = maps.shape
    batch = count // (rows * cols)
    grid = maps.reshape(rows, cols, batch, channels, height, width)
    return grid.permute(2, 3, 0, 4, 1, 5).reshape(batch, channels, rows * height, cols * width)


def average_tiles(prefix: Tensor, tiles: int) -> Tensor:
    """Average the prefix tokens of each image over its tiles: (T*B, K, D) -> (B, K, D)."""
    return prefix.reshape(tiles, prefix.shape[0] // tiles, *prefix.shape[1:]).mean(dim=0)


def pool_to_grid(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring feature maps to another grid: every new cell is the mean of the old cells it covers.

    Upwards by a whole factor this is nearest neighbour: each fine cell repeats the coarse cell it lies in,
    so no feature appears that the backbone never gave (a bilinear blend of two patches is the feature of
    neither), and it is still exactly what the reference computes with `resize_output_to_idx=-1`.

    Args:
        maps: (B, D, h, w)
        size: the new (h, w)
    """
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps.float(), size=size, mode="area").to(maps.dtype)  # float: half has no area kernel on CPU


def multiscale_forward(  # noqa: PLR0913, PLR0917 - the reference's arguments, name by name
    model: Callable[[Tensor], Tensor],
    input: Tensor,  # noqa: A002
    scales: Sequence[float] | None = None,
    img_sizes: Sequence[int] | None = None,
    max_split_size: int | None = None,
    resize_output_to_idx: int = 0,
    num_prefix_token: int = 0,
    output_shape: str = "bnc",
    split_forward: bool = False,
) -> Tensor:
    """Run any vision model over several sizes of the same images; the numbers are the reference S2-Wrapper's.

    Each scale is resized (bicubic, no antialiasing), split into the fewest equal tiles of at most
    `max_split_size`, run through the model and merged; all scales are brought to one grid and concatenated
    on channels. Prefix tokens are averaged over tiles. `s2robot.load_encoder` is the better front end for a
    robot; this is the drop-in for a model you already have.

    Args:
        model: maps (B, C, h, w) to tokens (B, K+N, D), or to (B, D, h, w) with `output_shape="bchw"`.
        input: (B, C, H, H), preprocessed as the model wants it.
        scales: image sizes as multiples of H, e.g. (1, 2). Ignored when `img_sizes` is given.
        img_sizes: image sizes in pixels, e.g. (224, 448).
        max_split_size: the largest tile the model takes [pixels]; H by default.
        resize_output_to_idx: the scale whose grid the result has; -1 keeps the last one's.
        num_prefix_token: K, the tokens before the patch tokens: 1 for a CLS, 5 for a CLS and four registers.
        output_shape: what the model returns, "bnc" or "bchw".
        split_forward: run the tiles one by one; slower, needs less memory.

    Returns:
        (B, K+N, D*S), or (B, D*S, h, w) with `output_shape="bchw"`. Scales are in the order they were given.
    """
    _check_arguments(input, output_shape, num_prefix_token)
    sizes = _image_sizes(input.shape[-1], scales, img_sizes)
    counts = [_tiles_per_side(size, max_split_size or input.shape[-1]) for size in sizes]
    if not -len(sizes) <= resize_output_to_idx < len(sizes):
        raise InvalidInput(f"resize_output_to_idx={resize_output_to_idx} names no scale; there are {len(sizes)}")
    batch = input.shape[0]
    maps: list[Tensor] = []  # one scale each, (B, D, h, w)
    prefixes: list[Tensor] = []  # one scale each, (B, K, D)
    for size, count in zip(sizes, counts, strict=True):
        tiles = split_tiles(_resize(input, size), size // count)  # (T*B, C, P, P)
        output = torch.cat([model(part) for part in tiles.split(batch)]) if split_forward else model(tiles)
        prefix, grid = _to_prefix_and_map(output, tiles.shape[0], num_prefix_token, output_shape)
        maps.append(merge_tiles(grid, count, count))
        prefixes.append(average_tiles(prefix, count * count))
    target = maps[resize_output_to_idx].shape
    merged = torch.cat([pool_to_grid(each, (target[-2], target[-1])) for each in maps], dim=1)  # (B, D*S, h, w)
    if output_shape == "bchw":
        return merged
    return torch.cat([torch.cat(prefixes, dim=-1), merged.flatten(2).transpose(1, 2)], dim=1)  # (B, K+N, D*S)


def _check_arguments(images: Tensor, output_shape: str, num_prefix_token: int) -> None:
    if not isinstance(images, Tensor):
        raise InvalidInput(f"Images are a {type(images).__name__}; expected a torch.Tensor (B, C, H, W)")
    if images.ndim != 4:
        raise InvalidInput(f"Images are {tuple(images.shape)}; expected (B, C, H, W). For one image: input[None]")
    if images.shape[0] == 0:
        raise InvalidInput(f"Images are {tuple(images.shape)}: an empty batch")
    if images.shape[2] != images.shape[3]:
        raise InvalidInput(f"Images are {images.shape[2]}x{images.shape[3]}; S2 takes square ones. Crop or pad first")
    if not images.is_floating_point():
        raise InvalidInput(f"Images are {images.dtype}; expected floats, normalised as the model wants them")
    if not torch.compiler.is_compiling() and not images.isfinite().all():
        raise InvalidInput(f"Images hold {int((~images.isfinite()).sum())} values that are NaN or infinite")
    if output_shape not in OUTPUT_SHAPES:
        raise InvalidInput(f"Unknown output_shape {output_shape!r}. Known: {', '.join(OUTPUT_SHAPES)}")
    if num_prefix_token < 0 or (output_shape == "bchw" and num_prefix_token):
        raise InvalidInput(
            f"num_prefix_token={num_prefix_token} with output_shape={output_shape!r}: it counts the tokens before the "
            f"patch tokens of a 'bnc' model, and is 0 for 'bchw'"
        )


def _several(name: str, given: Sequence[Any] | None) -> list[Any]:
    try:
        return list(given if given is not None else ())
    except TypeError as error:
        raise InvalidInput(f"{name}={given}; expected several, or one of them in a list: [{given}]") from error


def _image_sizes(base: int, scales: Sequence[float] | None, img_sizes: Sequence[int] | None) -> list[int]:
    scales, img_sizes = _several("scales", scales), _several("img_sizes", img_sizes)
    if not img_sizes and not scales:
        raise InvalidInput("Neither scales nor img_sizes was given. Try scales=(1, 2)")
    sizes = list(img_sizes) if img_sizes else [int(base * scale) for scale in scales or ()]
    if any(size < 1 or size != int(size) for size in sizes):
        asked = f"img_sizes={tuple(img_sizes)}" if img_sizes else f"scales={tuple(scales or ())} of {base} px"
        raise InvalidInput(f"{asked} gives image sizes {sizes}; each must be a whole number of pixels, 1 or more")
    return [int(size) for size in sizes]


def _tiles_per_side(size: int, largest: int) -> int:
    """The fewest equal tiles of at most `largest` pixels along one side of an image."""
    count = math.ceil(size / largest) if largest > 0 else 0
    if count == 0 or size % count:
        raise InvalidInput(
            f"A {size} px image does not divide into {count}x{count} tiles of at most {largest} px. Choose another "
            f"size or max_split_size"
        )
    return count


def _resize(images: Tensor, size: int) -> Tensor:
    """The reference's resize: bicubic in fp32, no antialiasing, no clamp; the identity at the same size."""
    return F.interpolate(images.float(), size=(size, size), mode="bicubic").to(images.dtype)


def _to_prefix_and_map(output: Tensor, count: int, prefix_tokens: int, output_shape: str) -> tuple[Tensor, Tensor]:
    """Take a model's output apart: prefix (T*B, K, D) and map (T*B, D, h, w)."""
    axes = 3 if output_shape == "bnc" else 4
    if not isinstance(output, Tensor):
        raise InvalidInput(f"The model returned a {type(output).__name__}; expected its tokens or map, a torch.Tensor")
    if output.ndim != axes or output.shape[0] != count:
        raise InvalidInput(
            f"The model returned {tuple(output.shape)} for {count} tiles; output_shape={output_shape!r} means "
            f"({count}, {'K+N, D' if axes == 3 else 'D, h, w'})"
        )
    if output_shape == "bchw":
        return output.new_zeros(count, 0, output.shape[1]), output
    prefix, tokens = output[:, :prefix_tokens], output[:, prefix_tokens:]
    side = math.isqrt(tokens.shape[1])
    if side == 0 or side * side != tokens.shape[1]:
        raise InvalidInput(_wrong_prefix(output.shape[1], prefix_tokens))
    return prefix, tokens.transpose(1, 2).reshape(count, output.shape[2], side, side)


def _wrong_prefix(total: int, prefix_tokens: int) -> str:
    side = math.isqrt(total)
    return (
        f"The model returned {total} tokens a tile; without num_prefix_token={prefix_tokens} of them, "
        f"{total - prefix_tokens} are left, which is not a square grid. num_prefix_token is probably wrong: "
        f"{total - side * side} would leave {side}x{side} patch tokens"
    )


def random_projection(stacked: int, width: int, seed: int) -> Tensor:
    """A Gaussian matrix (stacked, width) that keeps lengths on average (Johnson and Lindenstrauss); width 0: none."""
    if not width:
        return torch.zeros(0, 0)
    drawn: Tensor = torch.randn(stacked, width, dtype=torch.float32, generator=torch.Generator().manual_seed(seed))
    return torch.mul(drawn, width**-0.5)
