"""What a forward pass costs: multiply-adds counted operation by operation, on a model without memory.

GFLOPs are billions of multiply-adds, as vision papers print them: 17.6 for a ViT-B/16 at 224 px. Counted are matrix
products, convolutions and both products of attention; not norms, activations or softmax (under 1 %).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s2robot.frames import small_size

if TYPE_CHECKING:
    from s2robot.backbones import FrozenViT
    from s2robot.encoder import Encoder
    from s2robot.policies.pixels import PixelNetwork
    from s2robot.scales import Size


@dataclass(frozen=True)
class Cost:
    """Of one forward pass, in billions of multiply-adds."""

    linear: float  # weights times tokens, patch embedding included
    attention: float  # queries times keys, and their weights times values

    @property
    def gflops(self) -> float:
        return self.linear + self.attention

    def times(self, count: int) -> Cost:
        return Cost(count * self.linear, count * self.attention)


def backbone_cost(backbone: FrozenViT, tile: Size | None = None) -> Cost:
    """One tile of (h, w) pixels through a backbone."""
    height, width = tile or backbone.tile
    model = backbone.at((height, width)).model
    weightless = {id(p): torch.nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    ghost = copy.deepcopy(model, memo=weightless).to("meta")
    return _counted(ghost.forward_features, torch.empty(1, 3, height, width, device="meta"))


def encoder_cost(encoder: Encoder, frame: Size | None = None) -> Cost:
    """One frame of (H, W) through an encoder: every tile of every scale."""
    plan = encoder.plan(frame or (encoder.sizes[0], encoder.sizes[0]))
    parts = [backbone_cost(encoder.backbone, scale.tile).times(scale.tiles) for scale in plan.scales]
    return Cost(sum(part.linear for part in parts), sum(part.attention for part in parts))


def eye_cost(network: PixelNetwork, frames: tuple[int, ...]) -> Cost:
    """The frames (V, H, W) of one moment through the eyes of a policy that reads frames itself."""
    views, height, width = frames
    small = small_size((height, width), network.config.size)
    with sdpa_kernel(SDPBackend.MATH):  # the counter does not know the CPU's own attention
        return _counted(network.encode, torch.zeros(1, views, *small, 3, dtype=torch.uint8))


def _counted(forward: Callable[[Tensor], object], given: Tensor) -> Cost:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward(given)
    by_kind = counter.get_flop_counts()["Global"]
    total = sum(by_kind.values())
    linear = sum(count for kind, count in by_kind.items() if any(name in str(kind) for name in ("mm", "conv")))
    batched = sum(count for kind, count in by_kind.items() if "bmm" in str(kind))
    return Cost((linear - batched) / 2e9, (total - linear + batched) / 2e9)
