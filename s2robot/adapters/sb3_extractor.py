"""What a Stable-Baselines3 policy reads of features: where things are, and the robot's own numbers beside it.

    features  map (V, C, h, w)   --> read-out, the policies' own (`s2robot.policies.readout`), a view at a time
              cls (V, C)         --> as it is
    goal      (G,)               --> says what the read-out looks for, and is passed on
    others    (n,)               --> passed on; `VecNormalize(env, norm_obs_keys=["proprioception"])` scales them

All of it is trained with the policy. Nothing is drawn at random: training and evaluation mode are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from s2robot import registry
from s2robot.adapters.features import FEATURES, KINDS
from s2robot.errors import InvalidInput, UnknownName, require
from s2robot.types import GOAL

_PURPOSE = "Training with Stable-Baselines3"
require("stable_baselines3", extra="rl", purpose=_PURPOSE)
_layers: Any = require("stable_baselines3.common.torch_layers", extra="rl", purpose=_PURPOSE)

AXES = {"map": 4, "tokens": 3, "cls": 2}  # of one look; one more in front where looks are stacked
READOUT = {"queries": 16, "key_width": 32, "value_width": 16}  # unless told


class S2FeaturesExtractor(_layers.BaseFeaturesExtractor):  # type: ignore[misc]
    """Features, goal and other vectors to one vector, (B, features_dim).

    Stacks of k looks, as `gymnasium.wrappers.FrameStackObservation` makes them, are read one by one, by the same
    weights.

    Args:
        observation_space: a Dict, or a Box of features alone.
        kind: what the features are: "map", "tokens" or "cls".
        keys: the features' keys; several where cameras differ in size.
        readout: of maps and tokens: "attention" with expected places, "conv", or "flat".
        channels: a learned linear layer brings each token to so many channels first; 0 leaves it out.
        grid: (h, w) of tokens that are not a square.
        settings: of the read-out: queries, key_width, value_width.

    Raises:
        InvalidInput: features of another shape than `kind` has, or another key that is no vector.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        *,
        kind: str = "map",
        keys: Sequence[str] = (FEATURES,),
        readout: str = "attention",
        channels: int = 0,
        grid: tuple[int, int] | None = None,
        **settings: int,
    ) -> None:
        asked: list[tuple[str, str, Iterable[str]]] = [("kind of features", kind, KINDS)]
        asked += [("readout", readout, registry.readouts())]
        asked += [("setting of the read-out", name, READOUT) for name in settings]
        for what, name, known in asked:
            if name not in known:
                raise UnknownName(what, name, known)
        parts = dict(observation_space) if isinstance(observation_space, spaces.Dict) else {keys[0]: observation_space}
        shapes, stack = _looks(parts, keys, kind)
        others = [name for name in parts if name not in keys]
        widths = {name: _width(name, parts[name], stack) for name in others}
        goal = widths.get(GOAL, 0) // stack
        readers = [TokenReader(shapes[key], kind, readout, channels, grid, goal, READOUT | settings) for key in keys]
        width = stack * sum(reader.width for reader in readers) + sum(widths.values())
        super().__init__(observation_space, features_dim=width)
        self.readers = nn.ModuleList(readers)  # not a ModuleDict: keys may hold dots
        self.keys, self.others, self.stack, self.goal = tuple(keys), tuple(others), stack, goal
        self.shapes = [shapes[key] for key in keys]  # of one look

    def forward(self, observations: dict[str, Tensor] | Tensor) -> Tensor:
        """Observations by key (B, ...), or features alone -> (B, features_dim)."""
        parts = {self.keys[0]: observations} if isinstance(observations, Tensor) else observations
        batch = len(parts[self.keys[0]])
        goal = parts[GOAL] if self.goal else parts[self.keys[0]].new_zeros(batch * self.stack, 0)
        aim = goal.reshape(batch * self.stack, self.goal)  # (B*k, G)
        looks = [
            reader(parts[key].reshape(batch * self.stack, *shape), aim).reshape(batch, -1)
            for key, shape, reader in zip(self.keys, self.shapes, self.readers, strict=True)
        ]
        return torch.cat([*looks, *(parts[name].flatten(1) for name in self.others)], dim=1)


class TokenReader(nn.Module):
    """One key's features, of `shape` (V, C, h, w), (V, N, C) or (V, C), to a vector of `width`."""

    def __init__(
        self,
        shape: tuple[int, ...],
        kind: str,
        readout: str,
        channels: int,
        grid: tuple[int, int] | None,
        goal: int,
        settings: dict[str, int],
    ) -> None:
        super().__init__()
        self.kind = kind
        width = shape[-1] if kind != "map" else shape[1]
        self.squeeze = nn.Linear(width, channels) if channels else None
        self.readout: Any = None
        self.grid = shape[2:] if kind == "map" else _square(shape, grid) if kind == "tokens" else (1, 1)
        self.width = shape[0] * (channels or width)
        if kind != "cls":
            made = registry.readouts()[readout]
            self.readout = made(shape[0], channels or width, self.grid, goal=goal, **settings)
            self.width = int(self.readout.width)

    def forward(self, features: Tensor, goal: Tensor) -> Tensor:
        """features (B, ...) of one look, goal (B, G) -> (B, width)."""
        tokens = features.flatten(3).transpose(2, 3) if self.kind == "map" else features  # (B, V, N, C) or (B, V, C)
        if self.squeeze is not None:
            tokens = self.squeeze(tokens)
        if self.readout is None:
            return tokens.flatten(1)
        found: Tensor = self.readout(tokens.transpose(2, 3).unflatten(3, self.grid), goal)
        return found


def _looks(parts: dict[str, Any], keys: Sequence[str], kind: str) -> tuple[dict[str, tuple[int, ...]], int]:
    """The shape of one look by key, and how many are stacked."""
    shapes, stacks = {}, set()
    for key in keys:
        if key not in parts:
            raise UnknownName("key of features", key, parts, "wrap the environment first: S2VecEnv(env, encoder)")
        shape, axes = parts[key].shape, AXES[kind]
        if len(shape) not in (axes, axes + 1):
            raise InvalidInput(
                f"{key!r} is {shape}; kind={kind!r} has {axes} axes, or {axes + 1} where looks are stacked. Say what"
                f" they are: features_extractor_kwargs={{'kind': one of {', '.join(KINDS)}}}"
            )
        shapes[key] = shape[len(shape) - axes :]
        stacks.add(shape[0] if len(shape) > axes else 1)
    if len(stacks) > 1:
        raise InvalidInput(f"{', '.join(keys)} are stacks of {sorted(stacks)} looks; expected as many of each")
    return shapes, stacks.pop()


def _width(name: str, space: spaces.Space[Any], stack: int) -> int:
    """How many numbers another key comes to."""
    axes = 2 if stack > 1 else 1
    if isinstance(space, spaces.Box) and len(space.shape) > axes:
        raise InvalidInput(
            f"Observation {name!r} is {space.shape}, no vector: leave it out, gymnasium.wrappers.FilterObservation"
        )
    return int(spaces.utils.flatdim(space))


def _square(shape: tuple[int, ...], grid: tuple[int, int] | None) -> tuple[int, int]:
    """The grid that tokens (V, N, C) stand on."""
    side = round(shape[1] ** 0.5)
    height, width = grid or (side, side)
    if height * width != shape[1]:
        raise InvalidInput(f"{shape[1]} tokens are no grid of {height} x {width}: give grid=(h, w), or take kind='map'")
    return height, width
