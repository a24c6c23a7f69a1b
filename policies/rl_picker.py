"""What IBRL leaves to act by: two chunks are proposed, by behaviour cloning and by the actor, and the critic picks.

See `policies.ibrl`. The network of behaviour cloning is the one that training began from, and stays what it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from s2robot.compression import Shapes
from s2robot.policies.bc_mlp import BCConfig, BCNetwork
from s2robot.policies.ensemble import Ensemble
from s2robot.policies.rl_actor import ActorConfig, ActorNetwork

EDGE = 0.99  # a proposal at the very edge could not be corrected: no number is far enough before tanh


@dataclass(frozen=True)
class PickerConfig(ActorConfig):
    """The actor's `components` are the first of the prior's, of each scale."""

    prior: dict[str, Any] = field(default_factory=dict)  # the config of the bc-mlp
    critics: int = 2
    critic_widths: tuple[int, ...] = (256, 256)


class PickerNetwork(ActorNetwork):
    """Look: what the actor reads, what it is told of the prior, and the state; see `Prior`."""

    config: PickerConfig

    def __init__(self, config: PickerConfig, shapes: Shapes) -> None:
        prior = BCNetwork(BCConfig(**config.prior), shapes)
        self._told = prior.look_width + config.chunk * shapes.actions
        super().__init__(config, shapes)
        self.prior = prior
        self.compression = prior.compression  # what is seen is compressed for the prior; the actor reads a part of it
        action = config.chunk * shapes.actions
        self.critic = Ensemble(config.critics, config.trunk + action, tuple(config.critic_widths))

    @property
    def inputs(self) -> int:
        return self.look_width + self._told

    def look(self, compressed: Tensor, proprioception: Tensor, goal: Tensor) -> Tensor:
        """compressed (B, V, C, h, w) for the prior -> (B, `inputs`)."""
        told, proposal = propose(self.prior, compressed, proprioception, goal, self.config.chunk)
        few = leading(compressed, self.shapes.scales, self.config.components)
        return torch.cat([super().look(few, proprioception, goal), told.half().float(), proposal], dim=1)

    def predict(self, looks: Tensor, noise: torch.Generator) -> Tensor:
        """The chunk of the two that is picked, (B, A, M)."""
        look = looks[:, -1]
        seen = self.trunk(look)
        theirs = look[:, -self.config.chunk * self.shapes.actions :]
        picked = pick(self.critic, seen, corrected(theirs, self.head(seen)).tanh(), theirs)
        chunk: Tensor = picked.unflatten(1, (self.config.chunk, self.shapes.actions))
        return chunk


def propose(
    prior: BCNetwork, compressed: Tensor, proprioception: Tensor, goal: Tensor, execute: int
) -> tuple[Tensor, Tensor]:
    """Of the prior, on maps compressed for it: its look (B, W), and its proposal (B, execute * M)."""
    look = prior.look(compressed.float(), proprioception, goal)
    chunk: Tensor = prior(look[:, None])[:, :execute]
    return look, chunk.clamp(-1, 1).flatten(1)


def leading(compressed: Tensor, scales: int, components: int) -> Tensor:
    """The first components of each scale: (B, V, S*all, h, w) -> (B, V, S*components, h, w)."""
    few: Tensor = compressed.unflatten(2, (scales, -1))[:, :, :, :components].flatten(2, 3)
    return few


def corrected(proposal: Tensor, correction: Tensor) -> Tensor:
    """A proposal (B, N) and its correction, before tanh."""
    return proposal.clamp(-EDGE, EDGE).atanh() + correction


def pick(critic: Ensemble, seen: Tensor, mine: Tensor, theirs: Tensor, *, tries: bool = False) -> Tensor:
    """After each look (B, L), the actor's chunk or the prior's (B, N): the actor's where all critics prefer it, (B, N).

    That is, where the least of them thinks more of it than their mean of the prior's: of what no data is near, one of
    them thinks little, and their mean is what the actor was made to please.

    Args:
        tries: while it learns: hold least against least, as the paper does. What never acts is never known.
    """
    of_mine, of_theirs = (critic(torch.cat([seen, each], dim=1)) for each in (mine, theirs))  # (E, B)
    bar = of_theirs.amin(dim=0) if tries else of_theirs.mean(dim=0)
    return torch.where((of_mine.amin(dim=0) > bar)[:, None], mine, theirs)


CONFIG, NETWORK = PickerConfig, PickerNetwork
