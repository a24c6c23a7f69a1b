"""Flow matching on frozen multi-scale features: the last looks -> a distribution over action chunks.

Where demonstrations go left or right of the same obstacle their mean goes into it; a generative policy draws one of
them (Chi et al. 2023, "Diffusion Policy"). Noise is carried to an action chunk along straight lines (Lipman et al.
2023, "Flow Matching for Generative Modeling"; in robot policies: Black et al. 2024, "pi0"), so a few Euler steps do:

    x_t = (1 - t) noise + t chunk,   v(x_t, t | condition) -> chunk - noise,   t from 0 to 1
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s2robot.compression import Shapes
from s2robot.policies.neck import Neck, NeckConfig


@dataclass(frozen=True)
class FlowConfig(NeckConfig):
    """Hyper-parameters of `flow`."""

    hidden: int = 256
    blocks: int = 3
    dropout: float = 0.1
    times: int = 8  # flow times trained on for each sample of a batch: the condition is the costly part
    steps: int = 8  # Euler steps when acting


class Block(nn.Module):
    """A residual layer that condition and time scale and shift."""

    def __init__(self, width: int, condition: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(condition, 2 * width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout))
        self.out = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (..., width), condition (..., C) -> (..., width)."""
        scale, shift = self.film(condition).chunk(2, dim=-1)
        inner = self.norm(x) * (1 + scale) + shift
        out: Tensor = x + self.out(self.layers(inner))
        return out


class FlowNetwork(Neck):
    """The looks, a noisy chunk and a time to the velocity there."""

    config: FlowConfig
    frequencies: Tensor  # (8,)

    def __init__(self, config: FlowConfig, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        width = config.hidden
        self.register_buffer("frequencies", 2.0 ** torch.arange(8), persistent=False)
        looks = config.context * self.look_width
        self.begin = nn.Sequential(nn.Flatten(), nn.Linear(looks, width), nn.LayerNorm(width), nn.GELU())
        self.enter = nn.Linear(config.chunk * shapes.actions, width)
        self.blocks = nn.ModuleList([Block(width, width + 16, config.dropout) for _ in range(config.blocks)])
        self.leave = nn.Linear(width, config.chunk * shapes.actions)

    def velocity(self, seen: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """seen (..., width), x (..., A, M), t (..., 1) -> (..., A, M)."""
        angles = torch.pi / 2 * t * self.frequencies
        condition = torch.cat([seen, angles.sin(), angles.cos()], dim=-1)
        hidden = self.enter(x.flatten(-2))
        for block in self.blocks:
            hidden = block(hidden, condition)
        found: Tensor = self.leave(hidden).unflatten(-1, x.shape[-2:])
        return found

    def predict(self, looks: Tensor, noise: torch.Generator) -> Tensor:
        """A chunk drawn, (B, A, M)."""
        seen = self.begin(looks)
        shape = (len(seen), self.config.chunk, self.shapes.actions)
        x = torch.randn(shape, dtype=seen.dtype, generator=noise).to(seen.device)
        for step in range(self.config.steps):
            t = torch.full((len(seen), 1), step / self.config.steps, dtype=seen.dtype, device=seen.device)
            x = x + self.velocity(seen, x, t) / self.config.steps
        return x

    def loss(self, looks: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """Mean squared error of the velocity at `times` random times, after the last look.

        Beyond an episode's end too, where the last action is repeated, as in Diffusion Policy: all numbers of a chunk
        are read to move each of them, so those must go where they went in training.
        """
        actions = actions[:, -1]  # (B, A, M)
        seen = self.begin(looks).expand(self.config.times, -1, -1)
        t = torch.rand(*seen.shape[:2], 1, device=seen.device)  # (times, B, 1)
        noise = torch.randn(self.config.times, *actions.shape, device=seen.device)
        x = (1 - t[..., None]) * noise + t[..., None] * actions
        return (self.velocity(seen, x, t) - (actions - noise)).square().mean()


CONFIG, NETWORK = FlowConfig, FlowNetwork
