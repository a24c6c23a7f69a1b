"""Recurrent behaviour cloning with a mixture of Gaussians: robomimic's strongest classic (Mandlekar et al. 2021).

    looks -> LSTM -> after every look, a mixture over action chunks

An LSTM remembers what a single frame does not show: which way the hand was going, that a grasp was tried. A mixture
keeps ways apart that demonstrations mix; its modes are of whole chunks, so that one way is taken to its end. As in
robomimic's `RNNGMMActorNetwork`, acting draws a mode and takes its mean ("low-noise evaluation"). It differs in two
things: looks lie `execute` steps apart, not one, and the last `context` of them are read anew at every call, from an
empty memory, which is what training shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s2robot.compression import Shapes
from s2robot.policies.neck import Neck, NeckConfig


@dataclass(frozen=True)
class RNNConfig(NeckConfig):
    """Hyper-parameters of `bc-rnn`."""

    context: int = 8
    hidden: int = 256
    layers: int = 2
    modes: int = 5
    smallest_std: float = 0.03  # in action units: labels are exact, and a spike would be most of the loss


class Mixture(nn.Module):
    """(..., inputs) to K Gaussians of independent coordinates: logits (..., K), means and std (..., K, D)."""

    def __init__(self, inputs: int, modes: int, outputs: int, smallest_std: float) -> None:
        super().__init__()
        self.modes, self.smallest_std = modes, smallest_std
        self.logits = nn.Linear(inputs, modes)
        self.means = nn.Linear(inputs, modes * outputs)
        self.spread = nn.Linear(inputs, modes * outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        means = self.means(x).unflatten(-1, (self.modes, -1)).tanh()
        std = nn.functional.softplus(self.spread(x)).unflatten(-1, (self.modes, -1)) + self.smallest_std
        return self.logits(x), means, std

    def log_density(self, x: Tensor, value: Tensor, counts: Tensor) -> Tensor:
        """Of value (..., D), over the coordinates where counts (..., D) is 1: (...)."""
        logits, means, std = self(x)
        error = (value[..., None, :] - means) / std
        each = -0.5 * error.square() - std.log() - 0.5 * math.log(2 * math.pi)  # (..., K, D)
        density: Tensor = (logits.log_softmax(-1) + (each * counts[..., None, :]).sum(-1)).logsumexp(-1)
        return density


class RNNNetwork(Neck):
    """Looks to a mixture of chunks after each of them."""

    def __init__(self, config: RNNConfig, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        self.enter = nn.Sequential(nn.Linear(self.look_width, config.hidden), nn.LayerNorm(config.hidden), nn.GELU())
        self.memory = nn.LSTM(config.hidden, config.hidden, config.layers, batch_first=True)
        outputs = config.chunk * shapes.actions
        self.mixture = Mixture(config.hidden, config.modes, outputs, config.smallest_std)

    def loss(self, looks: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """Negative log-likelihood of the chunks (B, T, A, M) after every look, a valid number."""
        counts = valid[..., None].expand_as(actions).flatten(-2)  # (B, T, A*M)
        density = self.mixture.log_density(self._remembered(looks), actions.flatten(-2), counts)
        return -density.sum() / counts.sum()

    def predict(self, looks: Tensor, noise: torch.Generator) -> Tensor:
        """The mean of a mode drawn, (B, A, M)."""
        logits, means, _ = self.mixture(self._remembered(looks)[:, -1])
        drawn = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=noise).to(means.device)  # (B, 1)
        mean = means.take_along_dim(drawn[..., None], dim=1)[:, 0]
        chunk: Tensor = mean.unflatten(-1, (self.config.chunk, self.shapes.actions))
        return chunk

    def _remembered(self, looks: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, hidden)."""
        entered = self.enter(looks)
        remembered: Tensor = entered + self.memory(entered)[0]  # an LSTM alone takes long to let anything through
        return remembered


CONFIG, NETWORK = RNNConfig, RNNNetwork
