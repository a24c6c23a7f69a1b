"""What every policy does first: features and proprioception of one observation to one vector, its look.

A fixed linear compression of every token (principal components, fitted once on the demonstrations), a spatial
read-out that depends on the goal, proprioception brought to unit variance. What differs between policies is what they
make of the last T looks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from s2robot.compression import Compression, Shapes, chosen_tokens
from s2robot.errors import InvalidInput, UnknownName
from s2robot.interface import encoder_said
from s2robot.policies.readout import READOUTS, Readout

if TYPE_CHECKING:
    from typing_extensions import Self

    from s2robot.encoder import EncoderConfig
    from s2robot.samples import Batch

TOKENS = ("map", "mean", "cls")
SHARES = ("proprioception_dropout", "token_dropout", "dropout")  # hyper-parameters of any kind of policy that has them
COUNTS = ("components", "queries", "key_width", "value_width", "hidden", "modes", "width", "heads", "times", "steps")


@dataclass(frozen=True)
class NeckConfig:
    """What every policy has to say of its neck and its chunks; each adds its own hyper-parameters."""

    chunk: int = 8  # actions predicted at once (A)
    execute: int = 4  # of which this many are executed before looking again
    context: int = 1  # looks it decides by (T): the present one and those before, `execute` steps apart
    tokens: str = "map"  # what is read: the whole token "map", its "mean", or "cls"; the last two know no places
    readout: str = "attention"  # how a map is read: "attention" with expected places, "conv", or "flat"
    components: int = 64  # channels kept of each scale
    queries: int = 16  # things each view may look for
    key_width: int = 32
    value_width: int = 16
    proprioception_noise: float = 0.05  # standard deviations of training noise
    proprioception_dropout: float = 0.0  # share of training looks without proprioception
    feature_noise: float = 0.0  # the same for compressed features, which have about unit variance
    token_dropout: float = 0.0  # share of a training map's tokens that are blanked

    def __post_init__(self) -> None:
        if not 1 <= self.execute <= self.chunk or self.context < 1:
            raise InvalidInput(
                f"chunk is {self.chunk}, execute {self.execute}, context {self.context}; expected"
                " 1 <= execute <= chunk and a context of at least 1"
            )
        for name, known in (("tokens", TOKENS), ("readout", READOUTS)):
            if getattr(self, name) not in known:
                raise UnknownName(name, getattr(self, name), known)
        for name in SHARES:
            if not 0 <= getattr(self, name, 0) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected a share from 0 to below 1")
        for name in COUNTS:
            if getattr(self, name, 1) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected a whole number from 1 on")


class Neck(nn.Module, ABC):
    """Compressed maps, proprioception and goal of one observation to a look, (B, `look_width`).

    Subclasses add what turns the last T looks into actions: `loss` for training, `predict` for acting. Where maps come
    from is in `fresh`, `kept`, `see`, `rates` and `needs`: here a feature store, in `policies.pixels` the frames.
    """

    reads_frames: ClassVar[bool] = False  # it learns from `s2robot.frames.Frames` instead of a feature store
    proprioception_mean: Tensor  # (Q,)
    proprioception_std: Tensor  # (Q,)

    def __init__(self, config: NeckConfig, shapes: Shapes) -> None:
        super().__init__()
        self.config, self.shapes = config, shapes
        self.compression = Compression(shapes, config.components)
        readout = "flat" if shapes.grid == (1, 1) else config.readout  # of one place there is nothing to choose
        self.readout: Readout = READOUTS[readout](
            shapes.views,
            shapes.scales * self.compression.components,
            shapes.grid,
            queries=config.queries,
            key_width=config.key_width,
            value_width=config.value_width,
            goal=shapes.goal,
        )
        self.register_buffer("proprioception_mean", torch.zeros(shapes.proprioception))
        self.register_buffer("proprioception_std", torch.ones(shapes.proprioception))
        self.look_width = self.readout.width + shapes.proprioception + shapes.goal

    @classmethod
    def fresh(
        cls, config: Any, source: Any, rows: NDArray[np.int64], encoder: EncoderConfig, fields: Mapping[str, int]
    ) -> Self:
        """A network for what a source shows, its compression fitted to these rows of it.

        fields: how many there are of proprioception, actions and goal, by their names in `Shapes`.
        """
        maps = _stored(source, rows, config.tokens)
        _, views, channels, height, width = maps.shape
        shapes = Shapes(views, encoder.groups, channels // encoder.groups, (height, width), **fields)
        network = cls(config, shapes)
        network.compression.fit(maps)
        return network

    def kept(self, source: Any, rows: NDArray[np.int64]) -> Tensor:
        """What training keeps in memory of these rows of its source: (n, V, C, h, w) float16."""
        maps = _stored(source, rows, self.config.tokens).to(self.compression.mean.device)
        compressed: Tensor = self.compression(maps)
        return compressed.half().cpu()

    def see(self, kept: Tensor) -> Tensor:
        """What was kept -> compressed maps (B, V, C, h, w)."""
        return kept.float()

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """All parameters, in groups, and the share of the learning rate that each group learns at."""
        return [(list(self.parameters()), 1.0)]

    def needs(self, source: Any, encoder: EncoderConfig) -> dict[str, Any]:
        """What `policy.json` says of the encoder: without it the policy cannot act."""
        return {"encoder": encoder_said(encoder), "encoder_fingerprint": source.encoder_fingerprint}

    def look(self, compressed: Tensor, proprioception: Tensor, goal: Tensor) -> Tensor:
        """compressed (B, V, C, h, w), proprioception (B, Q), goal (B, G) -> what the views show, state and goal."""
        state = (proprioception - self.proprioception_mean) / self.proprioception_std
        if self.training:
            state = state + self.config.proprioception_noise * torch.randn_like(state)
            compressed, state = self._disturbed(compressed, state)
        return torch.cat([self.readout(compressed, goal), state, goal], dim=1)

    def batch_loss(self, batch: Batch) -> Tensor:
        """What to make small for these windows."""
        seen, state, goal = (part.flatten(0, 1) for part in (batch.seen, batch.proprioception, batch.goal))
        looks = self.look(self.see(seen), state, goal)
        return self.loss(looks.unflatten(0, batch.seen.shape[:2]), batch.actions, batch.valid)

    @abstractmethod
    def loss(self, looks: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """How far what looks (B, T, W) lead to is from the expert's actions (B, T, A, M) where valid (B, T, A) is 1."""

    @abstractmethod
    def predict(self, looks: Tensor, noise: torch.Generator) -> Tensor:
        """The chunk to act by after the last of the looks (B, T, W), (B, A, M); `noise` is for those that draw it."""

    def _disturbed(self, compressed: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """As the config asks: maps with noise and without some tokens, no proprioception for some."""
        config = self.config
        if config.feature_noise:
            compressed = compressed + config.feature_noise * torch.randn_like(compressed)
        if config.token_dropout:
            kept = torch.rand_like(compressed[:, :, :1]) >= config.token_dropout  # (B, V, 1, h, w)
            compressed = compressed * kept
        if config.proprioception_dropout:
            state = state * (torch.rand_like(state[:, :1]) >= config.proprioception_dropout)
        return compressed, state


def mlp(inputs: int, hidden: int, layers: int, outputs: int, dropout: float) -> nn.Sequential:
    """Linear, LayerNorm, GELU, dropout, so many times; then a linear layer."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout)]
        inputs = hidden
    return nn.Sequential(*parts, nn.Linear(inputs, outputs))


def masked_mean(error: Tensor, valid: Tensor) -> Tensor:
    """Mean of an error (..., A, M) over the actions where valid (..., A) is 1."""
    return (error.mean(dim=-1) * valid).sum() / valid.sum()


def _stored(store: Any, rows: NDArray[np.int64], which: str) -> Tensor:
    """What the policy reads of these rows, (n, V, D*S, h, w), copied: torch does not take read-only memory."""
    maps, cls = (torch.from_numpy(np.array(array[rows])) for array in (store.map, store.cls))
    return chosen_tokens(maps, cls, which)
