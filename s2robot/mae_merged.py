"""Masked autoencoding on merged features: the loss of S2's own pre-training (Shi et al. 2024), made leak-free.

A frame is looked at as in use, whole at base size P and as s x s tiles of P pixels at every larger scale s. A cell
is a patch of the base view together with the s x s patches of each larger scale that show the same place. Whole
cells are hidden, so no scale sees what another must guess. What the encoder makes of a visible cell, tokens of a
larger scale averaged and the scales side by side on channels, is what a policy would get of it; from that the
decoder paints every hidden cell at every scale.

    frame -> base view, tiles -> encoder, visible patches only -> mean over each cell -> concat (B, visible, D*S)
          -> decoder -> each hidden cell's pixels at every scale -> mean over scales of the mean squared error

The mask is drawn block by block, a frame being L x L blocks with L the least common multiple of the scales, and
every block keeps as many cells. So every tile of every scale keeps as many patches, the same as the base view: all
of them run in one batch without padding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from s2robot.mae import MaskedAutoencoder, cut_patches


class MergedAutoencoder(MaskedAutoencoder):
    """A ViT encoder run over several scales, and the decoder that trains it on their merged features.

    Args:
        encoder: as `MaskedAutoencoder` takes it.
        scales: whole multiples of the base size, 1 first.
        options: the rest of what `MaskedAutoencoder` takes.
    """

    def __init__(self, encoder: Any, scales: tuple[int, ...], *, mask_ratio: float = 0.75, **options: Any) -> None:
        pixels = 3 * encoder.patch_embed.patch_size[0] ** 2
        super().__init__(
            encoder,
            mask_ratio=mask_ratio,
            features=encoder.embed_dim * len(scales),
            pixels=pixels * sum(scale**2 for scale in scales),
            **options,
        )
        self.scales = scales
        self.blocks = math.lcm(*scales)  # along a side
        self.block = self.grid // self.blocks  # cells along a block's side
        self.visible_in_block = round(self.block**2 * (1 - mask_ratio))
        self.visible = self.blocks**2 * self.visible_in_block
        self.size *= scales[-1]  # of the frames it takes

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images: whole frames (B, 3, F, F) normalised, F the largest scale's size; noise (B, N) in [0, 1).

        Returns:
            loss (), painted cells (B, N, pixels) with the scales one after another, mask (B, N) with 1 where hidden.
        """
        kept = self.keep(noise)
        encoded = self.into_decoder(self.merged(images, kept))
        cls, latent = encoded[:, :1], encoded[:, 1:]  # (B, 1, width), (B, visible, width)
        places = kept[..., None].expand_as(latent)
        cells = self.mask_token.to(latent.dtype).expand(len(latent), noise.shape[1], -1)
        painted = self.paint(cls, cells.scatter(1, places, latent))
        mask = torch.ones_like(noise).scatter(1, kept, 0.0)
        return self.losses(painted, images, mask).mean(), painted, mask

    def losses(self, painted: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """The error of each scale on hidden cells, (S,)."""
        errors = []
        for scale, part in zip(self.scales, self.by_scale(painted), strict=True):
            wanted = self.wanted(self.cells(images, scale))  # (B, N, s*s, pixels)
            error = (part.view_as(wanted) - wanted).square().mean(dim=(-2, -1))  # (B, N)
            errors.append((error * mask).sum() / mask.sum())
        return torch.stack(errors)

    def by_scale(self, painted: Tensor) -> tuple[Tensor, ...]:
        """Painted cells (B, N, pixels) -> each scale's (B, N, s*s*patch*patch*3)."""
        parts: tuple[Tensor, ...] = painted.split([scale**2 * self.patch**2 * 3 for scale in self.scales], dim=-1)
        return parts

    def keep(self, noise: Tensor) -> Tensor:
        """Visible cells (B, visible), block after block: in each those with the least noise (B, N)."""
        numbers = torch.arange(self.grid**2, device=noise.device).expand_as(noise)
        order = self._into_blocks(noise).argsort(dim=-1)[..., : self.visible_in_block]
        return self._into_blocks(numbers).gather(-1, order).flatten(1)

    def merged(self, images: Tensor, kept: Tensor) -> Tensor:
        """Features of frames (B, 3, F, F): CLS, of a larger scale its tiles' mean, and the visible cells (B, visible).

        (B, 1 + visible, D*S)
        """
        views, patches = [], []
        for scale in self.scales:
            views.append(self._tiles(images, scale))
            patches.append(self._patches_of(kept, scale))
        tokens = self.encode(torch.cat(views), torch.cat(patches))  # (B * all tiles, 1 + visible, D)
        features = []
        for scale, part in zip(self.scales, tokens.split([len(view) for view in views]), strict=True):
            cls = part[:, :1].unflatten(0, (-1, scale**2)).mean(dim=1)  # (B, 1, D)
            features.append(torch.cat([cls, self._onto_cells(part[:, 1:], scale)], dim=1))
        return torch.cat(features, dim=-1)

    def cells(self, images: Tensor, scale: int) -> Tensor:
        """What a scale shows of every cell: frames (B, 3, F, F) -> (B, N, s*s, patch*patch*3)."""
        cut = cut_patches(self._at(images, scale), self.patch)
        g, s = self.grid, scale
        return cut.view(len(cut), g, s, g, s, -1).transpose(2, 3).reshape(len(cut), g * g, s * s, -1)

    def _at(self, images: Tensor, scale: int) -> Tensor:
        side = scale * self.grid * self.patch
        return images if images.shape[-1] == side else adaptive_avg_pool2d(images, side)

    def _tiles(self, images: Tensor, scale: int) -> Tensor:
        """(B, 3, F, F) -> (B*s*s, 3, P, P), a frame's tiles one after another, in reading order."""
        side = self.grid * self.patch
        cut = self._at(images, scale).view(len(images), 3, scale, side, scale, side)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, side, side)

    def _patches_of(self, kept: Tensor, scale: int) -> Tensor:
        """Visible cells (B, visible) -> the patches that show them in each tile (B*s*s, visible), numbered in it."""
        inside = torch.arange(scale, device=kept.device)
        rows = (kept // self.grid)[..., None] * scale + inside  # (B, visible, s), on the whole frame's fine grid
        columns = (kept % self.grid)[..., None] * scale + inside
        numbers = (rows % self.grid)[..., None] * self.grid + (columns % self.grid)[..., None, :]  # (B, visible, s, s)
        return self._by_tile(numbers.flatten(2), scale).flatten(0, 1).flatten(1)

    def _onto_cells(self, tokens: Tensor, scale: int) -> Tensor:
        """Tokens of tiles (B*s*s, visible, D) -> their means over each visible cell (B, visible, D), as in `kept`."""
        tiles, inner, count = scale**2, self.blocks // scale, self.visible_in_block
        means: Tensor = tokens.unflatten(1, (-1, tiles)).mean(dim=2)  # (B*s*s, cells of the tile, D)
        laid = means.reshape(-1, scale, scale, inner, inner, count, means.shape[-1]).transpose(2, 3)
        return laid.reshape(-1, self.visible, means.shape[-1])

    def _by_tile(self, values: Tensor, scale: int) -> Tensor:
        """Values of visible cells (B, visible, n), block after block -> (B, s*s, visible/s/s, n), tile after tile."""
        inner, count = self.blocks // scale, self.visible_in_block
        laid = values.reshape(len(values), scale, inner, scale, inner, count, -1).transpose(2, 3)
        return laid.reshape(len(values), scale**2, inner**2 * count, -1)

    def _into_blocks(self, values: Tensor) -> Tensor:
        """(B, N) in reading order -> (B, L*L, N/L/L)."""
        blocks, side = self.blocks, self.block
        return values.reshape(-1, blocks, side, blocks, side).transpose(2, 3).reshape(-1, blocks**2, side**2)
