"""Behaviour cloning on frozen multi-scale features: the last looks -> action chunk.

The network is small because the encoder is not: an MLP predicts the expert's next A actions (Zhao et al. 2023,
"Learning Fine-Grained Bimanual Manipulation", for chunks and the L1 loss).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s2robot.compression import Shapes
from s2robot.policies.neck import Neck, NeckConfig, masked_mean, mlp


@dataclass(frozen=True)
class BCConfig(NeckConfig):
    """Hyper-parameters of `bc-mlp`."""

    hidden: int = 256
    layers: int = 2
    dropout: float = 0.1


class BCNetwork(Neck):
    """The looks side by side to an action chunk."""

    def __init__(self, config: BCConfig, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        inputs, outputs = config.context * self.look_width, config.chunk * shapes.actions
        self.head = mlp(inputs, config.hidden, config.layers, outputs, config.dropout)

    def forward(self, looks: Tensor) -> Tensor:
        """looks (B, T, W) -> chunk (B, A, M)."""
        chunk: Tensor = self.head(looks.flatten(1)).unflatten(1, (self.config.chunk, self.shapes.actions))
        return chunk

    def predict(self, looks: Tensor, noise: torch.Generator) -> Tensor:
        """The chunk to act by, (B, A, M); draws no noise."""
        chunk: Tensor = self(looks)
        return chunk

    def loss(self, looks: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """Mean absolute error to the expert's actions (B, T, A, M) after the last look, where valid (B, T, A) is 1."""
        return masked_mean((self(looks) - actions[:, -1]).abs(), valid[:, -1])


CONFIG, NETWORK = BCConfig, BCNetwork
