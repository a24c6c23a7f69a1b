"""What a masked autoencoder makes of views it never trained on, as a picture.

One row a view and scale: as it is, what the encoder sees of it, and that with the hidden patches painted.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from s2robot.catalogue import IMAGENET_MEAN, IMAGENET_STD
from s2robot.mae import FLAT, MaskedAutoencoder
from s2robot.mae_merged import MergedAutoencoder

GAP, GREY = 4, 128  # pixels between views; the colour of what is hidden
Triple = tuple[Tensor, Tensor, Tensor]  # views (B, 3, H, H) as they are, seen, painted


@torch.no_grad()
def reconstruct(model: MaskedAutoencoder, images: Tensor, noise: Tensor) -> list[Triple]:
    """Of every scale, normalised images."""
    _, painted, mask = model(images, noise)
    if not isinstance(model, MergedAutoencoder):
        cells = model.patches(images)[:, :, None]  # (B, N, 1, pixels)
        return [_triple(model, cells, painted[:, :, None], mask, scale=1)]
    parts = zip(model.scales, model.by_scale(painted), strict=True)
    triples = []
    for scale, part in parts:
        cells = model.cells(images, scale)
        triples.append(_triple(model, cells, part.view_as(cells), mask, scale))
    return triples


def sheet(triples: list[Triple]) -> Image.Image:
    """One row a view, its scales one below the other, each in three columns."""
    rows = [[_picture(view[k]) for view in triple] for k in range(len(triples[0][0])) for triple in triples]
    cell = max(picture.width for row in rows for picture in row)
    canvas = Image.new("RGB", (3 * (cell + GAP) - GAP, len(rows) * (cell + GAP) - GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            canvas.paste(picture.resize((cell, cell), Image.Resampling.NEAREST), (x * (cell + GAP), y * (cell + GAP)))
    return canvas


def _triple(model: MaskedAutoencoder, cells: Tensor, painted: Tensor, mask: Tensor, scale: int) -> Triple:
    """Cells and what was painted, (B, N, s*s, pixels); mask (B, N)."""
    if model.target == "normalised":  # bring back what the target left out: each patch's own mean and deviation
        painted = painted * (cells.var(-1, keepdim=True) + FLAT).sqrt() + cells.mean(-1, keepdim=True)
    hidden = mask[..., None, None].bool()
    grey = (GREY / 255 - torch.tensor(IMAGENET_MEAN, device=cells.device)) / torch.tensor(
        IMAGENET_STD, device=cells.device
    )
    blank = grey.repeat(cells.shape[-1] // 3)
    views = (cells, torch.where(hidden, blank, cells), torch.where(hidden, painted, cells))
    whole, seen, filled = (_laid_out(view, model, scale) for view in views)
    return whole, seen, filled


def _laid_out(cells: Tensor, model: MaskedAutoencoder, scale: int) -> Tensor:
    """Cells (B, N, s*s, patch*patch*3) -> the image they were cut from, (B, 3, H, H)."""
    g, p, s = model.grid, model.patch, scale
    laid = cells.reshape(-1, g, g, s, s, p, p, 3).permute(0, 7, 1, 3, 5, 2, 4, 6)  # (B, 3, g, s, p, g, s, p)
    return laid.reshape(-1, 3, g * s * p, g * s * p)


def _picture(view: Tensor) -> Image.Image:
    pixels = view.cpu().permute(1, 2, 0) * torch.tensor(IMAGENET_STD) + torch.tensor(IMAGENET_MEAN)
    return Image.fromarray((pixels * 255).round().clamp(0, 255).numpy().astype(np.uint8))
