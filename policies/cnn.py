"""A convolutional network from scratch and random shift: behaviour cloning from pixels as it is usually done.

    each view, 128 px -> four convolutions of stride 2 -> residual blocks at 8 x 8 -> map

In size between DrQ's four convolutions (Kostrikov et al. 2020) and robomimic's ResNet-18 (Mandlekar et al. 2021), and
like robomimic's one network a view. Batches are small and weights averaged, hence GroupNorm with 16 channels a group
(Chi et al. 2023, "Diffusion Policy"). It has no frozen part: `--encoder` options change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from s2robot.compression import Shapes, chosen_tokens
from s2robot.errors import InvalidInput
from s2robot.frames import Rows, small_size
from s2robot.policies.pixels import PixelConfig, PixelNetwork

if TYPE_CHECKING:
    from typing_extensions import Self

    from s2robot.encoder import EncoderConfig


@dataclass(frozen=True)
class CNNConfig(PixelConfig):
    """Hyper-parameters of `cnn`. Its map has `components` channels."""

    size: int = 128
    shift: int = 6  # the share of the side that DrQ's 4 of 84 are
    lr_eye: float = 0.3  # from scratch, convolutions at the full rate begin to learn late
    widths: tuple[int, ...] = (32, 64, 128, 128)  # channels after each convolution, which halves both sides
    blocks: int = 2  # residual blocks after the last

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "widths", tuple(self.widths))
        if not self.widths or min(self.widths) < 1 or self.blocks < 0:
            raise InvalidInput(f"widths are {self.widths}, blocks {self.blocks}; expected channels, and blocks or 0")
        if self.tokens == "cls":
            raise InvalidInput("tokens is 'cls', which a convolutional network has not; expected 'map' or 'mean'")


class Residual(nn.Module):
    """Two convolutions beside what goes in: (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(*_convolution(width, width), nn.ReLU(), *_convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inner(x))


class CNNNetwork(PixelNetwork):
    """Frames to an action chunk by a network of their own for each view."""

    config: CNNConfig
    eye: nn.ModuleList

    def __init__(self, config: CNNConfig, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        self.eye = nn.ModuleList([_eye(config, shapes.width) for _ in range(shapes.views)])

    @classmethod
    def fresh(
        cls, config: CNNConfig, source: Any, rows: Rows, encoder: EncoderConfig, fields: Mapping[str, int]
    ) -> Self:
        views, *frame, _ = source.dataset.frame_shape
        height, width = small_size((frame[0], frame[1]), config.size)
        halved = 2 ** len(config.widths)
        grid = (-(-height // halved), -(-width // halved)) if config.tokens == "map" else (1, 1)
        return cls(config, Shapes(views, 1, config.components, grid, **fields))

    def encode(self, frames: Tensor) -> Tensor:
        pixels = frames.permute(0, 1, 4, 2, 3).float() / 127.5 - 1  # (B, V, 3, H, W) in [-1, 1]
        maps = torch.stack([eye(pixels[:, view]) for view, eye in enumerate(self.eye)], dim=1)
        return chosen_tokens(maps, maps.mean(dim=(-2, -1)), self.config.tokens)


def _eye(config: CNNConfig, outputs: int) -> nn.Sequential:
    """(B, 3, H, W) -> (B, outputs, h, w), of about unit variance."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in config.widths:
        layers += [*_convolution(inputs, width, stride=2), nn.ReLU()]
        inputs = width
    layers += [Residual(inputs) for _ in range(config.blocks)]
    return nn.Sequential(*layers, *_convolution(inputs, outputs, side=1))


def _convolution(inputs: int, outputs: int, *, side: int = 3, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    groups = outputs // 16 if outputs % 16 == 0 else 1
    return nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False), nn.GroupNorm(groups, outputs)


CONFIG, NETWORK = CNNConfig, CNNNetwork
