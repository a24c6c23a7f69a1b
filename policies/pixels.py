"""Policies that read frames themselves: bc-mlp, but for where the map comes from.

    frames, small uint8 -> random shift, in training -> a map of the network's own -> bc-mlp's read-out and head

They are what frozen features are held against. Read-out, proprioception, goal, head, loss, labels, windows and seeds
are `policies.bc_mlp`'s. The random shift is DrQ's (Kostrikov et al. 2020, "Image Augmentation Is All You Need").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from s2robot.compression import Shapes
from s2robot.encoder import EncoderConfig
from s2robot.errors import InvalidInput
from s2robot.frames import Rows
from s2robot.policies.bc_mlp import BCConfig, BCNetwork

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class PixelConfig(BCConfig):
    """Hyper-parameters of every policy that reads frames."""

    size: int = 0  # shorter side of the frames it is shown [pixels]; 0: as they are
    shift: int = 0  # training frames are moved by up to so many of these pixels, either way
    lr_eye: float = 0.1  # the share of the learning rate at which what makes the map learns; 0: it stays as it is

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 0 or self.shift < 0:
            raise InvalidInput(f"size is {self.size}, shift {self.shift}; expected pixels, 0 or more")
        if not 0 <= self.lr_eye < float("inf"):
            raise InvalidInput(f"lr_eye is {self.lr_eye}; expected a share of the learning rate, 0 or more")


class PixelNetwork(BCNetwork, ABC):
    """Frames to an action chunk. Subclasses say how frames become maps, by the module `eye`."""

    config: PixelConfig
    eye: nn.Module
    reads_frames = True

    @classmethod
    def bare(cls, config: Any, shapes: Shapes, encoder: EncoderConfig | None) -> Self:
        """A network to load trained weights into; encoder: what `needs` said of it."""
        return cls(config, shapes)

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """(B, V, H, W, 3) uint8 -> (B, V, S*D, h, w) float32."""

    def kept(self, source: Any, rows: Rows) -> Tensor:
        """(n, V, h, w, 3) uint8, of `s2robot.frames.Frames`."""
        frames: Tensor = source.read(rows, self.config.size)
        return frames

    def see(self, kept: Tensor) -> Tensor:
        """Frames (B, V, h, w, 3) uint8 -> compressed maps (B, V, C, h, w)."""
        moves = self.training and self.config.shift
        frames = random_shift(kept, self.config.shift, self.config.context) if moves else kept
        maps: Tensor = self.compression(self.encode(frames))
        return maps

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        eye = list(self.eye.parameters())
        known = {id(parameter) for parameter in eye}
        others = [parameter for parameter in self.parameters() if id(parameter) not in known]
        return [(others, 1.0), (eye, self.config.lr_eye)]

    def needs(self, source: Any, encoder: EncoderConfig) -> dict[str, Any]:
        return {"encoder": None, "encoder_fingerprint": None}


def random_shift(frames: Tensor, pad: int, looks: int = 1) -> Tensor:
    """Each view of each window moved by up to `pad` pixels on both axes; its edge fills what opens up.

    The same as padding by `pad` with the edge's pixels and cropping anywhere, each offset as likely as any other.

    Args:
        frames: (B, V, H, W, 3), on whatever device.
        looks: of a window, which are moved together: what moves from one to the next is what a context is for.
    """
    batch, views, height, width, _ = frames.shape
    device = frames.device
    by = torch.randint(-pad, pad + 1, (2, batch // looks, views, 1), device=device).repeat_interleave(looks, dim=1)
    y = (torch.arange(height, device=device) + by[0]).clamp(0, height - 1)  # (B, V, H)
    x = (torch.arange(width, device=device) + by[1]).clamp(0, width - 1)  # (B, V, W)
    sample = torch.arange(batch, device=device)[:, None, None, None]
    view = torch.arange(views, device=device)[:, None, None]
    return frames[sample, view, y[..., None], x[..., None, :]]
