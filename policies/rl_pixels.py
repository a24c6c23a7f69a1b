"""The actor of reinforcement learning on frames, by a convolutional network of its own: what frozen features are held
against.

The convolutions are those of Mnih et al. 2015, Stable-Baselines3's `NatureCNN`, a network a view; DrQ's four
(Kostrikov et al. 2020) take three times as long on a CPU. They learn under DrQ's random shift.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from s2robot.compression import Shapes
from s2robot.policies.pixels import random_shift
from s2robot.policies.rl_actor import ActorConfig, ActorNetwork

if TYPE_CHECKING:
    from typing_extensions import Self

    from s2robot.encoder import EncoderConfig

CHANNELS = 64


class NatureEyes(nn.Module):
    """Frames to maps, (B, V, H, W, 3) uint8 or float in [0, 255] -> (B, V, 64, h, w); shifted in training."""

    def __init__(self, views: int, shift: int = 0) -> None:
        super().__init__()
        self.shift = shift
        self.views = nn.ModuleList([_convolutions() for _ in range(views)])

    def forward(self, frames: Tensor) -> Tensor:
        moved = random_shift(frames, self.shift) if self.training and self.shift else frames
        pixels = moved.permute(0, 1, 4, 2, 3).float() / 127.5 - 1  # (B, V, 3, H, W) in [-1, 1]
        return torch.stack([eye(pixels[:, view]) for view, eye in enumerate(self.views)], dim=1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the maps of such frames."""
        with torch.no_grad():
            shape = self.views[0](torch.zeros(1, 3, height, width)).shape
        return int(shape[2]), int(shape[3])


class PixelActor(ActorNetwork):
    """Frames to a chunk: `shapes` are those of the maps, which are not compressed."""

    reads_frames = True

    def __init__(self, config: ActorConfig, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        self.eye = NatureEyes(shapes.views)

    @classmethod
    def bare(cls, config: Any, shapes: Shapes, encoder: EncoderConfig | None) -> Self:
        """A network to load trained weights into."""
        return cls(config, shapes)

    def see(self, kept: Tensor) -> Tensor:
        """Frames (B, V, h, w, 3) uint8 -> maps (B, V, C, h, w)."""
        maps: Tensor = self.eye(kept)
        return maps

    def look(self, compressed: Tensor, proprioception: Tensor, goal: Tensor) -> Tensor:
        """As `Neck.look`: what learned from frames kept nothing in float16."""
        return super(ActorNetwork, self).look(compressed, proprioception, goal)


def _convolutions() -> nn.Sequential:
    """(B, 3, H, W) -> (B, 64, h, w)."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
        nn.Conv2d(64, CHANNELS, 3), nn.ReLU(),
    )  # fmt: skip


CONFIG, NETWORK = ActorConfig, PixelActor
