"""Encoders small enough to trace in a moment, and frames to show them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from s2robot.backbones import FrozenViT, ImageContract
from s2robot.catalogue import find_encoder
from s2robot.encoder import Encoder, EncoderConfig

Frames = NDArray[np.uint8]
TOLERANCE = 1e-4  # the one that encoders, engines and exports state
ARTS: dict[str, dict[str, Any]] = {  # of timm's ViTs
    "plain": {"global_pool": ""},
    "registers": {"global_pool": "", "reg_tokens": 4, "no_embed_class": True},  # as DINOv2's
    "no prefix": {"global_pool": "avg", "class_token": False, "fc_norm": False},  # as SigLIP's
    "averaged": {"global_pool": "avg"},  # its last norm is behind the pooling
}
CONTRACT = ImageContract(
    size=32, patch=8, width=16, prefix_tokens=1, class_token=True, heads=2, depth=1, mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3), interpolation="area", antialias=True,
)  # fmt: skip


def random_frames(*shape: int, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def small_vit(art: str = "plain", seed: int = 0, heads: int = 2, **contract: Any) -> FrozenViT:
    """One block of 16 channels over 32 px, in which each weight matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if art == "rotary":
            model: Any = timm.create_model(
                "vit_small_patch16_dinov3", num_classes=0, embed_dim=48, depth=1, num_heads=3
            )
            return FrozenViT(_shuffled(model), art, find_encoder("vit_small_patch16_dinov3").contract(model))
        model = VisionTransformer(
            img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=heads, num_classes=0, **ARTS[art]
        )
        _shuffled(model)
    has = {"prefix_tokens": model.num_prefix_tokens, "class_token": model.has_class_token, "heads": heads}
    return FrozenViT(model, art, dataclasses.replace(CONTRACT, **has, **contract))


def small_encoder(art: str = "plain", seed: int = 0, **settings: Any) -> Encoder:
    """Of `small_vit`; settings of `EncoderConfig`, the engine torch unless told."""
    return Encoder(small_vit(art, seed), EncoderConfig(**{"engine": "torch", **settings}))


def wrap(encoder: Encoder, **changes: Any) -> Encoder:
    """The same backbone under another configuration."""
    return Encoder(encoder.backbone, dataclasses.replace(encoder.config, **changes))


class Eye(nn.Module):
    """A 'ViT' of one feature that sees the mean of each patch, and a CLS that sees the tile's maximum."""

    def __init__(self, see: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(1)
        self.see = see

    def forward_features(self, images: Tensor) -> Tensor:
        tokens = F.avg_pool2d(self.see(images), 4).flatten(2).transpose(1, 2)
        return torch.cat([tokens.amax(dim=1, keepdim=True), tokens], dim=1)

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        """Any size will do."""


def eye(
    scales: tuple[float, ...] = (1, 2),
    see: Callable[[Tensor], Tensor] = lambda images: images.mean(dim=1, keepdim=True),
    grid: str = "base",
    fit: str = "whole",
    **contract: Any,
) -> Encoder:
    """An encoder that shows what its backbone is shown."""
    settings: dict[str, Any] = {
        "size": 16, "patch": 4, "width": 1, "heads": 1, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0),
    }  # fmt: skip
    backbone = FrozenViT(Eye(see), "eye", dataclasses.replace(CONTRACT, **settings | contract))
    return Encoder(backbone, EncoderConfig(scales=scales, grid=grid, fit=fit, engine="torch"))


def close(got: Any, expected: Any) -> None:
    """Two `Features` are the same to the tolerance that is stated for them."""
    for name in ("map", "tokens", "cls"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="session")
def graph_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Traced graphs go into one folder a session: none comes from the user's cache, none is traced twice."""
    folder = tmp_path_factory.getbasetemp() / "traced"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2ROBOT_CACHE", str(folder))
        yield folder / "graphs"


def _shuffled(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model
