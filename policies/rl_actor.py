"""What reinforcement learning leaves to act by: a deterministic actor on frozen features.

    compressed map --> read-out --> + proprioception, goal --> trunk (where there is one) --> MLP --> chunk in [-1, 1]

It is learned by `s2robot rl`, in Stable-Baselines3's classes, and acts without them: what was learned there is copied
here. SAC and its kin squash by tanh, PPO clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s2robot.compression import Shapes
from s2robot.errors import UnknownName, UsageError
from s2robot.policies.neck import Neck, NeckConfig
from s2robot.policies.readout import FlatReadout

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "selu": nn.SELU}


@dataclass(frozen=True)
class ActorConfig(NeckConfig):
    """What was learned. Chunk and execute are the same: a decision is a whole chunk."""

    chunk: int = 4
    execute: int = 4
    trunk: int = 0  # width of the layer between what is seen and the MLP; 0: none
    widths: tuple[int, ...] = (256, 256)  # of the MLP's layers
    activation: str = "relu"
    squash: bool = True  # tanh at the end; else the action is clipped
    size: int = 0  # of those that read frames: their shorter side [pixels]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.activation not in ACTIVATIONS:
            raise UnknownName("activation", self.activation, ACTIVATIONS)


class ActorNetwork(Neck):
    """One look to one chunk."""

    config: ActorConfig

    def __init__(self, config: ActorConfig, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        if config.tokens != "map":
            self.readout = FlatReadout(shapes.views, shapes.scales * self.compression.components, shapes.grid)
            self.look_width = self.readout.width + shapes.proprioception + shapes.goal
        self.trunk, self.head = layers(self.inputs, config, config.chunk * shapes.actions)

    @property
    def inputs(self) -> int:
        """Numbers that the first layer reads."""
        return self.look_width

    def look(self, compressed: Tensor, proprioception: Tensor, goal: Tensor) -> Tensor:
        """As `Neck.look`, of maps in float16: so they were kept, and learned from."""
        return super().look(compressed.half().float(), proprioception, goal)

    def predict(self, looks: Tensor, noise: torch.Generator) -> Tensor:
        """The chunk to act by, (B, A, M); draws no noise."""
        action: Tensor = self.head(self.trunk(looks[:, -1]))
        squashed = action.tanh() if self.config.squash else action.clamp(-1, 1)
        chunk: Tensor = squashed.unflatten(1, (self.config.chunk, self.shapes.actions))
        return chunk

    def loss(self, looks: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        raise UsageError("A policy of reinforcement learning does not learn from demonstrations alone: s2robot rl")


def layers(inputs: int, config: ActorConfig, outputs: int) -> tuple[nn.Module, nn.Sequential]:
    """Trunk and MLP."""
    trunk = bottleneck(inputs, config.trunk) if config.trunk else nn.Identity()
    width, parts = config.trunk or inputs, []
    for each in config.widths:
        parts += [nn.Linear(width, each), ACTIVATIONS[config.activation]()]
        width = each
    return trunk, nn.Sequential(*parts, nn.Linear(width, outputs))


def bottleneck(inputs: int, width: int) -> nn.Sequential:
    """What is seen to a few numbers in (-1, 1), as DrQ has it (Kostrikov et al. 2020)."""
    return nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), nn.Tanh())


CONFIG, NETWORK = ActorConfig, ActorNetwork
