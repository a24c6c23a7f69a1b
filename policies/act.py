"""A transformer over the last looks that answers with an action chunk, on frozen features.

ACT (Zhao et al. 2023, "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware"):

    T looks, each a token a view and one of proprioception and goal -> causal encoder
    A queries after each look, and a style z                        -> decoder -> chunk (A, M)

The style is ACT's: in training an encoder sees the expert's chunk and says in `latent` numbers, held near a standard
normal, what the looks cannot; acting takes z = 0. The context is RPT's (Radosavovic et al. 2023, "Robot Learning with
Sensorimotor Pre-training"; `context=16` is theirs). Both masks are causal, so every look of a window has its own label:
what is decided after look t knows nothing later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from s2robot.compression import Shapes
from s2robot.errors import InvalidInput
from s2robot.policies.neck import Neck, NeckConfig, masked_mean, mlp


@dataclass(frozen=True)
class ACTConfig(NeckConfig):
    """Hyper-parameters of `act`."""

    context: int = 4
    width: int = 128
    heads: int = 4
    encoder_layers: int = 2
    decoder_layers: int = 1
    dropout: float = 0.1
    latent: int = 16  # numbers of the style; 0: none
    kl_weight: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise InvalidInput(f"width is {self.width}, heads {self.heads}; the width must be a multiple of the heads")


class ACTNetwork(Neck):
    """Looks to a chunk after each of them."""

    config: ACTConfig
    earlier: Tensor  # (T*(V+1), T*(V+1)) True where a token must not look
    seen_by: Tensor  # (T*A, T*(V+1)) True where a query must not look
    together: Tensor  # (T*A, T*A) True between queries of different looks

    def __init__(self, config: ACTConfig, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        width, length = config.width, config.context
        self.of_view = self.readout.width // shapes.views
        self.views = nn.ModuleList([nn.Linear(self.of_view, width) for _ in range(shapes.views)])
        self.state = nn.Linear(self.look_width - self.readout.width, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, shapes.views + 1, width))
        self.queries = nn.Parameter(0.02 * torch.randn(length, config.chunk, width))
        settings: dict[str, Any] = {"dim_feedforward": 2 * width, "dropout": config.dropout}
        settings |= {"batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(width, config.heads, **settings)
        self.encoder = nn.TransformerEncoder(layer, config.encoder_layers, nn.LayerNorm(width), False)
        decoder = nn.TransformerDecoderLayer(width, config.heads, **settings)
        self.decoder = nn.TransformerDecoder(decoder, config.decoder_layers, nn.LayerNorm(width))
        self.leave = nn.Linear(width, shapes.actions)
        if config.latent:
            numbers = config.chunk * shapes.actions + self.look_width
            self.posterior = mlp(numbers, width, 1, 2 * config.latent, config.dropout)
            self.style = nn.Linear(config.latent, width)
        token, query = _times(length, shapes.views + 1), _times(length, config.chunk)
        self.register_buffer("earlier", token[:, None] < token, persistent=False)
        self.register_buffer("seen_by", query[:, None] < token, persistent=False)
        self.register_buffer("together", query[:, None] != query, persistent=False)

    def forward(self, looks: Tensor, style: Tensor | None) -> Tensor:
        """looks (B, T, W), style (B, T, latent) -> chunks (B, T, A, M)."""
        read, state = looks[..., : self.readout.width], looks[..., self.readout.width :]
        views = [layer(part) for layer, part in zip(self.views, read.split(self.of_view, dim=-1), strict=True)]
        tokens = torch.stack([*views, self.state(state)], dim=2) + self.places  # (B, T, V+1, width)
        memory = self.encoder(tokens.flatten(1, 2), mask=self.earlier)
        queries = self.queries.expand(len(looks), -1, -1, -1)
        if style is not None:
            queries = queries + self.style(style)[:, :, None]
        found = self.decoder(queries.flatten(1, 2), memory, tgt_mask=self.together, memory_mask=self.seen_by)
        chunks: Tensor = self.leave(found).unflatten(1, queries.shape[1:3])
        return chunks

    def predict(self, looks: Tensor, noise: torch.Generator) -> Tensor:
        """The chunk after the last look, (B, A, M), in the middle of all styles; draws no noise."""
        chunks: Tensor = self(looks, self._middle(looks))
        return chunks[:, -1]

    def _middle(self, looks: Tensor) -> Tensor | None:
        """No style rather than another: the mean of the standard normal, (B, T, latent)."""
        return looks.new_zeros(*looks.shape[:2], self.config.latent) if self.config.latent else None

    def loss(self, looks: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """Mean absolute error after every look, and what the style says beyond a standard normal.

        Held-out actions are not shown to it: there the loss is the error of what `predict` would do.
        """
        if not (self.config.latent and self.training):
            return masked_mean((self(looks, self._middle(looks)) - actions).abs(), valid)
        shown = torch.cat([(actions * valid[..., None]).flatten(-2), looks], dim=-1)
        mean, log_variance = self.posterior(shown).chunk(2, dim=-1)  # (B, T, latent) each
        style = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        kl = masked_mean(
            0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1, keepdim=True), valid.amax(-1)
        )
        loss: Tensor = masked_mean((self(looks, style) - actions).abs(), valid) + self.config.kl_weight * kl
        return loss


def _times(looks: int, each: int) -> Tensor:
    """Which look every token belongs to."""
    return torch.arange(looks).repeat_interleave(each)


CONFIG, NETWORK = ACTConfig, ACTNetwork
