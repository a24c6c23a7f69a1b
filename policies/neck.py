"""What every policy does first: frozen features and proprioception to one vector.

A fixed linear compression of every token (principal components, fitted once on the demonstrations), a spatial
read-out that depends on the goal, proprioception brought to unit variance.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from s2robot.encoder import Encoder
from s2robot.errors import InvalidInput
from s2robot.policies.readout import SpatialReadout
from s2robot.types import FRAMES, GOAL, PROPRIOCEPTION, Features, Observation, check_observation


@dataclass(frozen=True)
class NeckConfig:
    """What every policy has to say of its neck and its chunks; each adds its own hyper-parameters."""

    chunk: int = 8  # actions predicted at once (A)
    execute: int = 4  # of which this many are executed before looking again
    components: int = 64  # channels kept of each scale
    queries: int = 16  # things each view may look for
    key_width: int = 32
    value_width: int = 16
    proprioception_noise: float = 0.05  # standard deviations of training noise


@dataclass(frozen=True)
class Shapes:
    """What the network must know of its inputs and outputs."""

    views: int
    scales: int
    width: int  # backbone width D
    grid: tuple[int, int]
    proprioception: int  # Q
    actions: int  # M
    goal: int = 0  # G


class Compression(nn.Module):
    """A fixed linear map of every token, per view and scale: (B, V, S*D, h, w) -> (B, V, S*components, h, w)."""

    mean: Tensor  # (V, S, D)
    basis: Tensor  # (V, S, D, components)

    def __init__(self, shapes: Shapes, components: int) -> None:
        super().__init__()
        self.components = min(components, shapes.width)
        self.register_buffer("mean", torch.zeros(shapes.views, shapes.scales, shapes.width))
        self.register_buffer("basis", torch.zeros(shapes.views, shapes.scales, shapes.width, self.components))

    def fit(self, maps: Tensor) -> None:
        """Principal components of these maps' tokens (F, V, S*D, h, w), scaled to unit overall variance."""
        views, scales, width, _ = self.basis.shape
        tokens = maps.float().reshape(len(maps), views, scales, width, -1)
        for view in range(views):
            for scale in range(scales):
                rows = tokens[:, view, scale].transpose(1, 2).reshape(-1, width)  # (F*N, D)
                mean = rows.mean(dim=0)
                values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
                kept = vectors[:, -self.components :].flip(1)
                kept = kept * _signs(kept)
                self.mean[view, scale] = mean
                self.basis[view, scale] = kept / values[-self.components :].mean().clamp_min(1e-8).sqrt()

    def forward(self, maps: Tensor) -> Tensor:
        views, scales, width, _ = self.basis.shape
        split = maps.float().reshape(len(maps), views, scales, width, *maps.shape[3:])  # (B, V, S, D, h, w)
        centred = split - self.mean[..., None, None]
        return torch.einsum("bvsdhw,vsdc->bvschw", centred, self.basis).flatten(2, 3)


class Neck(nn.Module, ABC):
    """Compressed maps, proprioception and goal to a condition, (B, `condition_width`).

    Subclasses add what turns it into actions: `loss` for training, `predict` for acting.
    """

    proprioception_mean: Tensor  # (Q,)
    proprioception_std: Tensor  # (Q,)

    def __init__(self, config: NeckConfig, shapes: Shapes) -> None:
        super().__init__()
        self.config, self.shapes = config, shapes
        self.compression = Compression(shapes, config.components)
        self.readout = SpatialReadout(
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
        self.condition_width = self.readout.width + shapes.proprioception + shapes.goal

    def condition(self, compressed: Tensor, proprioception: Tensor, goal: Tensor) -> Tensor:
        """compressed (B, V, C, h, w), proprioception (B, Q), goal (B, G) -> (B, condition_width)."""
        state = (proprioception - self.proprioception_mean) / self.proprioception_std
        if self.training:
            state = state + self.config.proprioception_noise * torch.randn_like(state)
        return torch.cat([self.readout(compressed, goal), state, goal], dim=1)

    @abstractmethod
    def loss(self, compressed: Tensor, proprioception: Tensor, goal: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """What to make small: how far from the expert's actions (B, A, M) where valid (B, A) is 1."""

    @abstractmethod
    def predict(self, compressed: Tensor, proprioception: Tensor, goal: Tensor, noise: torch.Generator) -> Tensor:
        """The chunk to act by, (B, A, M); `noise` is for those that draw it."""


class FeaturePolicy:
    """A network behind its encoder: what `load_policy` returns. See `s2robot.types.Policy`.

    A policy that draws noise draws the same in every episode: an episode is a function of its seed alone.
    """

    def __init__(self, encoder: Encoder, network: Neck) -> None:
        self.encoder, self.network = encoder, network.eval()
        self.execute = network.config.execute
        self.seconds: dict[str, float] = {}  # wall time of the last call: encode, act
        self._noise = torch.Generator()
        self.reset()

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """The next A actions, (A, M) float32 in [-1, 1]."""
        check_observation(observation)
        start = time.perf_counter()
        features = self.encoder(observation[FRAMES][None])
        encoded = time.perf_counter()
        chunk = self.decide(features, observation[PROPRIOCEPTION], observation.get(GOAL))
        self.seconds = {"encode": encoded - start, "act": time.perf_counter() - encoded}
        return chunk

    @torch.no_grad()
    def decide(
        self, features: Features, proprioception: NDArray[np.float32], goal: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """From features alone, for callers that encode elsewhere."""
        network, device = self.network, features.map.device
        wanted = np.zeros(0, np.float32) if goal is None else goal
        if wanted.shape != (network.shapes.goal,):
            raise InvalidInput(f"The goal is {wanted.shape}; this policy was trained with ({network.shapes.goal},)")
        state, aim = (torch.from_numpy(value)[None].to(device) for value in (proprioception, wanted))
        chunk = network.predict(network.compression(features.map), state, aim, self._noise)[0].clamp(-1, 1)
        array: NDArray[np.float32] = chunk.cpu().numpy()
        return array

    def reset(self) -> None:
        """Forget the episode: the noise begins again."""
        self._noise.manual_seed(0)


def mlp(inputs: int, hidden: int, layers: int, outputs: int, dropout: float) -> nn.Sequential:
    """Linear, LayerNorm, GELU, dropout, so many times; then a linear layer."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout)]
        inputs = hidden
    return nn.Sequential(*parts, nn.Linear(inputs, outputs))


def describe(network: Neck) -> dict[str, Any]:
    """What `restore` needs, as plain JSON."""
    return {"config": asdict(network.config), "shapes": asdict(network.shapes)}


def restore(module: Any, description: dict[str, Any], encoder: Encoder, weights: dict[str, Tensor]) -> FeaturePolicy:
    """A policy from `describe`'s output and its weights; module: that of its kind."""
    shapes = Shapes(**{**description["shapes"], "grid": tuple(description["shapes"]["grid"])})
    network = module.NETWORK(module.CONFIG(**description["config"]), shapes)
    network.load_state_dict(weights)
    return FeaturePolicy(encoder, network.to(encoder.device))


def _signs(vectors: Tensor) -> Tensor:
    """Signs that make each column's largest entry positive, so a fit is the same on every machine."""
    largest = vectors.abs().max(dim=0).indices
    return vectors[largest, torch.arange(vectors.shape[1])].sign()
