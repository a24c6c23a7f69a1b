"""IBRL: imitation bootstrapped reinforcement learning (Hu et al. 2023), on `policies.rlpd`.

    a frozen policy of behaviour cloning proposes a chunk, the actor another; the critics pick, when it acts and in
    their own targets
    from the first step on it is about as good as behaviour cloning, and where the actor is better it takes over

The paper's learner is TD3; ours is RLPD's, which also brings the demonstrations. The prior's look and proposal are
computed once, when a frame is seen, and kept as the features are; the actor sees both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot.policies.rl_picker import pick
from s2robot.policies.rlpd import ACTIVATION, OFF_POLICY, RLPD, SQUASH, RLPDConfig, RLPDPolicy
from s2robot.policies.rlpd import make as make_rlpd

PROPOSAL = "proposal"  # the key of the prior's chunk, see `s2robot.adapters.sb3_sight`


@dataclass(frozen=True)
class IBRLConfig(RLPDConfig):
    """Hyper-parameters of `ibrl`: those of `rlpd`."""

    starts: int = 500  # decisions of the prior alone, before it learns


class IBRLPolicy(RLPDPolicy):
    """Acts by the better of two proposals."""

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        seen = self.seen(observation)
        mine = self.actor.mu(self.actor.latent_pi(seen)).tanh() if deterministic else self.drawn(seen)[0]
        return pick(self.critic.values, seen, torch.stack([mine, observation[PROPOSAL]]))


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
        mine, theirs = self.policy.drawn(seen)[0], batch.next_observations[PROPOSAL]
        return torch.maximum(self._least(seen, mine), self._least(seen, theirs))


def make(config: IBRLConfig, env: Any, **words: Any) -> Any:
    """The learner; see `policies.rlpd.make`."""
    return make_rlpd(config, env, learner=IBRL, policy=IBRLPolicy, **words)


CONFIG, DEMONSTRATIONS, PRIOR = IBRLConfig, True, True
__all__ = ["ACTIVATION", "CONFIG", "DEMONSTRATIONS", "IBRL", "OFF_POLICY", "PRIOR", "SQUASH", "IBRLConfig", "make"]
