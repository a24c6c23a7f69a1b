"""Masked autoencoding (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners") around a timm ViT.

The encoder sees the visible quarter of the patches; a small decoder paints the rest. The loss is the mean
squared error on masked patches: of their pixels ("raw"), or of each patch less its mean and over its deviation
("normalised"), as in the paper.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

# Added to a patch's variance. The paper's 1e-6 suits photographs: most patches of a table are flat, and their
# noise divided by next to nothing would be most of the loss.
FLAT = 1e-4


class MaskedAutoencoder(nn.Module):
    """A ViT encoder and the decoder that trains it, one view at a time.

    Args:
        encoder: a timm VisionTransformer with one class token; its position embedding is replaced by a
            fixed 2-D sine-cosine table, as in MAE.
        decoder_width, decoder_depth: of the decoder's transformer.
        mask_ratio: share of patches hidden from the encoder.
        target: "raw" or "normalised".
        features, pixels: numbers a visible cell brings to the decoder, and a hidden one gets from it; by default one
            token of the encoder and one patch.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        decoder_width: int = 128,
        decoder_depth: int = 2,
        mask_ratio: float = 0.75,
        target: str = "raw",
        features: int | None = None,
        pixels: int | None = None,
    ) -> None:
        super().__init__()
        self.decoder_positions: Tensor  # (1, N, decoder_width)
        from timm.models.vision_transformer import Block

        self.encoder = encoder
        self.grid: int = encoder.patch_embed.grid_size[0]
        self.patch: int = encoder.patch_embed.patch_size[0]
        self.size = self.grid * self.patch  # of the images it takes
        self.visible = round(self.grid**2 * (1 - mask_ratio))
        self.target = target
        width = encoder.embed_dim
        encoder.pos_embed = nn.Parameter(sincos_table(width, self.grid, prefix=1), requires_grad=False)
        self.into_decoder = nn.Linear(features or width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.register_buffer("decoder_positions", sincos_table(decoder_width, self.grid), persistent=False)
        self.decoder = nn.Sequential(*[Block(decoder_width, num_heads=4) for _ in range(decoder_depth)])
        self.decoder_norm = nn.LayerNorm(decoder_width)
        self.to_pixels = nn.Linear(decoder_width, pixels or self.patch**2 * 3)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images (B, 3, P, P) normalised; noise (B, N) in [0, 1): patches with the smallest stay visible.

        Returns:
            loss (), painted patches (B, N, patch*patch*3), mask (B, N) with 1 where hidden.
        """
        order = noise.argsort(dim=1)  # (B, N)
        kept = order[:, : self.visible]
        encoded = self.into_decoder(self.encode(images, kept))
        cls, latent = encoded[:, :1], encoded[:, 1:]  # (B, 1, width), (B, visible, width)
        batch, _, width = latent.shape
        hidden = self.mask_token.to(latent.dtype).expand(batch, order.shape[1] - self.visible, width)
        restore = order.argsort(dim=1)[..., None].expand(-1, -1, width)
        tokens = torch.cat([latent, hidden], dim=1).gather(1, restore)  # (B, N, width), back in place
        painted = self.paint(cls, tokens)
        mask = torch.ones_like(noise).scatter(1, kept, 0.0)
        error = (painted - self.wanted(self.patches(images))).square().mean(dim=-1)  # (B, N)
        return (error * mask).sum() / mask.sum(), painted, mask

    def encode(self, images: Tensor, kept: Tensor) -> Tensor:
        """Encode the kept patches alone: (B, 1 + visible, D)."""
        encoder = self.encoder
        tokens = encoder.patch_embed(images) + encoder.pos_embed[:, 1:]  # (B, N, D)
        tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
        cls = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        encoded: Tensor = encoder.norm(encoder.blocks(torch.cat([cls, tokens], dim=1)))
        return encoded

    def paint(self, cls: Tensor, tokens: Tensor) -> Tensor:
        """Decode a token a cell, (B, N, decoder_width), to its pixels, fp32 (B, N, pixels).

        The class token (B, 1, decoder_width) is there to be read, as in the paper: from nothing else does CLS learn.
        """
        decoded = self.decoder(torch.cat([cls, tokens + self.decoder_positions], dim=1))
        painted: Tensor = self.to_pixels(self.decoder_norm(decoded[:, 1:]))
        return painted.float()

    def wanted(self, patches: Tensor) -> Tensor:
        """What is to be painted in place of patches (..., pixels)."""
        if self.target == "raw":
            return patches
        mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
        return (patches - mean) / (variance + FLAT).sqrt()

    def patches(self, images: Tensor) -> Tensor:
        """Cut images (B, 3, P, P) into rows of pixels, (B, N, patch*patch*3)."""
        return cut_patches(images, self.patch)

    def images(self, patches: Tensor) -> Tensor:
        """The inverse of `patches`: (B, 3, P, P)."""
        batch, g, p = len(patches), self.grid, self.patch
        laid = patches.reshape(batch, g, g, p, p, 3).permute(0, 5, 1, 3, 2, 4)  # (B, 3, g, p, g, p)
        return laid.reshape(batch, 3, g * p, g * p)


def cut_patches(images: Tensor, patch: int) -> Tensor:
    """Images (B, 3, P, P) as rows of pixels, (B, N, patch*patch*3), patches in reading order."""
    batch, g = len(images), images.shape[-1] // patch
    cut = images.reshape(batch, 3, g, patch, g, patch).permute(0, 2, 4, 3, 5, 1)  # (B, g, g, patch, patch, 3)
    return cut.reshape(batch, g * g, patch * patch * 3)


def sincos_table(width: int, grid: int, prefix: int = 0) -> Tensor:
    """Fixed 2-D sine-cosine positions, (1, prefix + grid*grid, width); prefix tokens get zeros."""
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(width // 4) / (width // 4))
    angle = torch.arange(grid)[:, None] * frequency  # (grid, width/4)
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid, width/2)
    rows = wave[:, None].expand(-1, grid, -1)
    columns = wave[None].expand(grid, -1, -1)
    table = torch.cat([rows, columns], dim=-1).reshape(1, grid * grid, width)
    return torch.cat([torch.zeros(1, prefix, width), table], dim=1)
