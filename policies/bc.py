"""Behaviour cloning on frozen multi-scale features: the neck's condition -> action chunk.

The network is small because the encoder is not: an MLP predicts the expert's next A actions (Zhao et al. 2023,
"Learning Fine-Grained Bimanual Manipulation", for chunks and the L1 loss).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s2robot.policies.neck import Neck, NeckConfig, Shapes, mlp


@dataclass(frozen=True)
class BCConfig(NeckConfig):
    """Hyper-parameters of `bc`."""

    hidden: int = 256
    layers: int = 2
    dropout: float = 0.1


class BCNetwork(Neck):
    """The condition to an action chunk."""

    def __init__(self, config: BCConfig, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        outputs = config.chunk * shapes.actions
        self.head = mlp(self.condition_width, config.hidden, config.layers, outputs, config.dropout)

    def forward(self, compressed: Tensor, proprioception: Tensor, goal: Tensor) -> Tensor:
        """compressed (B, V, C, h, w), proprioception (B, Q), goal (B, G) -> chunk (B, A, M)."""
        chunk: Tensor = self.head(self.condition(compressed, proprioception, goal))
        return chunk.reshape(len(chunk), self.config.chunk, self.shapes.actions)

    def predict(self, compressed: Tensor, proprioception: Tensor, goal: Tensor, noise: torch.Generator) -> Tensor:
        """The chunk to act by, (B, A, M); draws no noise."""
        chunk: Tensor = self(compressed, proprioception, goal)
        return chunk

    def loss(self, compressed: Tensor, proprioception: Tensor, goal: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """Mean absolute error to the expert's actions (B, A, M) where valid (B, A) is 1."""
        error = (self(compressed, proprioception, goal) - actions).abs().mean(dim=-1)
        loss: Tensor = (error * valid).sum() / valid.sum()
        return loss


CONFIG, NETWORK = BCConfig, BCNetwork
