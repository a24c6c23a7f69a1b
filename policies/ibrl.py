"""IBRL: imitation bootstrapped reinforcement learning (Hu et al. 2023), on `policies.rlpd`.

    a frozen policy of behaviour cloning proposes a chunk, the actor another; the critics pick, when it acts and in
    their own targets
    from the first step on it is about as good as behaviour cloning, and where the actor is better it takes over

The paper's learner is TD3, with dropout in the actor; ours is RLPD's, whose batches are half of demonstrations. Ours
does not begin at random: the actor's is the prior's chunk with a correction, which begins at nothing and has its price
(residual policies, Silver et al. 2018, and Ankile et al. 2024). In the end the prior's is picked unless all critics
prefer the actor's. The prior's look and proposal are computed once, when a frame is seen, and kept as the features are;
the actor sees both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot.policies.rl_picker import corrected, pick
from s2robot.policies.rlpd import RLPD, RLPDConfig, RLPDPolicy
from s2robot.policies.rlpd import make as make_rlpd

LOG_STD = -2.0  # of the actor's noise, fixed as TD3's, but before tanh: little is left of it near -1 and 1
PRICE = 0.01  # of a correction of 1, before tanh, in all numbers of a chunk; values are in [0, 1]
PROPOSAL = "proposal"  # the key of the prior's chunk, see `s2robot.adapters.sb3_sight`


@dataclass(frozen=True)
class IBRLConfig(RLPDConfig):
    """Hyper-parameters of `ibrl`: those of `rlpd`."""

    starts: int = 250  # decisions of the prior alone, before it learns
    alone: int = 1000
    entropy: str = "0.0001"


class IBRLPolicy(RLPDPolicy):
    """Acts by the better of two proposals."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        with torch.no_grad():  # begins as the prior
            self.actor.mu.weight.mul_(0.01)
            self.actor.mu.bias.zero_()

    def mean(self, latent: Tensor, observations: Any) -> Tensor:
        return corrected(observations[PROPOSAL], self.actor.mu(latent))

    def spread(self, latent: Tensor) -> Tensor:
        return torch.full((len(latent), self.actor.mu.out_features), LOG_STD)

    def price(self, seen: Tensor) -> Tensor:
        """Free corrections run away after what the critics do not know yet."""
        correction: Tensor = self.actor.mu(self.actor.latent_pi(seen))
        return PRICE * correction.pow(2).mean()

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        seen = self.seen(observation)
        if deterministic:
            mine = self.mean(self.actor.latent_pi(seen), observation).tanh()
        else:
            mine, _ = self.drawn(seen, observation)
        return pick(self.critic_target, seen, mine, observation[PROPOSAL], tries=not deterministic)


class IBRL(RLPD):
    """The learner."""

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self.num_timesteps < learning_starts:
            proposal = np.array(self._last_obs[PROPOSAL], np.float32)
            return proposal, proposal
        both: tuple[Any, Any] = super()._sample_action(learning_starts, action_noise, n_envs)
        return both

    def _next_values(self, batch: Any) -> Tensor:
        seen = self.policy.seen(batch.next_observations)
        mine, _ = self.policy.drawn(seen, batch.next_observations)
        return self._least(seen, mine, batch.next_observations[PROPOSAL])


def make(config: IBRLConfig, env: Any, **words: Any) -> Any:
    """The learner; see `policies.rlpd.make`."""
    return make_rlpd(config, env, learner=IBRL, policy=IBRLPolicy, **words)


CONFIG, DEMONSTRATIONS, PRIOR = IBRLConfig, True, True
