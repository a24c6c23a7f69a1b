"""RLPD: off-policy learning with prior data (Ball et al. 2023, "Efficient Online Reinforcement Learning with Offline
Data"), on Stable-Baselines3's SAC.

    half of every batch is of demonstrations, half of what was lived; with `demos: 0` all of it was lived
    critics: an ensemble with layer normalisation; a target is the least of a random two (REDQ, Chen et al. 2021)
    several updates a decision

What is seen is read by one network, which the critics alone train, and which has no target of its own (DrQ-v2, Yarats
et al. 2021). Entropy counts for the actor and not in the targets, the paper's choice where reward is sparse. Ours has 5
critics for its 10, and 2 updates a decision of 4 control steps for its 20 a step: two cores must do.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from s2robot.errors import InvalidInput, require
from s2robot.policies.ensemble import Ensemble
from s2robot.policies.rl_actor import bottleneck
from s2robot.policies.sac import check_learning, off_policy

_PURPOSE = "Reinforcement learning"
require("stable_baselines3", extra="rl", purpose=_PURPOSE)
_sac: Any = require("stable_baselines3.sac.sac", extra="rl", purpose=_PURPOSE)
_policies: Any = require("stable_baselines3.sac.policies", extra="rl", purpose=_PURPOSE)
_layers: Any = require("stable_baselines3.common.torch_layers", extra="rl", purpose=_PURPOSE)


@dataclass(frozen=True)
class RLPDConfig:
    """Hyper-parameters of `rlpd`. A step of Stable-Baselines3 is a decision here."""

    lr: float = 3e-4
    batch: int = 256
    demos: float = 0.5  # share of a batch that is of demonstrations
    buffer: int = 100_000  # decisions
    starts: int = 250  # decisions before it learns
    updates: int = 2  # a decision
    alone: int = 0  # updates of the critics before the actor's first: it would believe what they do not know yet
    delay: int = 1  # updates of the critics to one of the actor; in the paper all of a step's
    tau: float = 0.01
    entropy: str = "auto_0.001"  # of values in [0, 1]: a temperature of 0.01 makes noise of a chunk of 16 numbers
    critics: int = 5
    settle: int = 0  # decisions between two returns of what reads to its slow average; 0: it never does
    slow: float = 0.9995  # decay of that average a decision
    trunk: int = 64  # numbers that critics and actor share of what is seen
    widths: tuple[int, ...] = (256, 256)
    activation: ClassVar[str] = "relu"
    squash: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        check_learning(self)
        if self.settle < 0 or not 0 <= self.slow < 1:
            raise InvalidInput(f"settle is {self.settle}, slow {self.slow}; expected 0 or decisions, and 0 to below 1")
        if not 0 <= self.demos < 1 or self.critics < 2 or min(self.trunk, self.updates, self.delay) < 1:
            raise InvalidInput(
                f"demos is {self.demos}, critics {self.critics}, trunk {self.trunk}, updates {self.updates}, delay"
                f" {self.delay}; expected a share from 0 to below 1, at least 2 critics, and the others from 1 on"
            )


class Trunk(_layers.BaseFeaturesExtractor):  # type: ignore[misc]
    """A features extractor and a bottleneck behind it."""

    def __init__(self, observation_space: Any, *, inner: Any, width: int, **words: Any) -> None:
        super().__init__(observation_space, features_dim=width)
        self.inner = inner(observation_space, **words)
        self.bottleneck = bottleneck(self.inner.features_dim, width)

    def forward(self, observations: Any) -> Tensor:
        seen: Tensor = self.bottleneck(self.inner(observations))
        return seen


class Critic(nn.Module):
    """What is seen, and an ensemble of values of it and an action."""

    optimizer: torch.optim.Optimizer

    def __init__(self, features_extractor: Any, moves: int, members: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.features_extractor = features_extractor
        self.values = Ensemble(members, features_extractor.features_dim + moves, widths)

    def forward(self, seen: Tensor, actions: Tensor) -> Tensor:
        """Values (E, B) of what the extractor made of observations (B, L), and actions (B, N)."""
        values: Tensor = self.values(torch.cat([seen, actions], dim=1))
        return values

    def set_training_mode(self, mode: bool) -> None:
        self.train(mode)


class RLPDPolicy(_policies.SACPolicy):  # type: ignore[misc]
    """Stable-Baselines3's actor on an extractor that belongs to the critic; the target has values alone."""

    def __init__(self, *arguments: Any, n_critics: int = 5, settles: bool = False, **words: Any) -> None:
        self.members, self.settles = n_critics, settles
        super().__init__(*arguments, **words)

    def _build(self, lr_schedule: Any) -> None:
        rate, moves = lr_schedule(1), int(np.prod(self.action_space.shape))
        extractor, widths = self.make_features_extractor(), tuple(self.net_arch)
        self.critic = Critic(extractor, moves, self.members, widths)
        self.critic_target = Ensemble(self.members, extractor.features_dim + moves, widths).requires_grad_(False)
        self.critic_target.load_state_dict(self.critic.values.state_dict())
        if self.settles:
            self.slow = copy.deepcopy(extractor).requires_grad_(False)
        self.actor = self.make_actor(features_extractor=extractor)
        own = [value for name, value in self.actor.named_parameters() if not name.startswith("features_extractor")]
        self.actor.optimizer = self.optimizer_class(own, lr=rate, fused=True)
        self.critic.optimizer = self.optimizer_class(self.critic.parameters(), lr=rate, fused=True)

    def seen(self, observations: Any) -> Tensor:
        """What the extractor makes of observations as they are sampled, (B, L)."""
        seen: Tensor = self.actor.extract_features(observations, self.critic.features_extractor)
        return seen

    def drawn(self, seen: Tensor, observations: Any) -> tuple[Tensor, Tensor]:
        """Actions of the actor (B, N), and the logarithms of their probabilities (B,)."""
        actor = self.actor
        latent = actor.latent_pi(seen)
        actions, log_prob = actor.action_dist.log_prob_from_params(self.mean(latent, observations), self.spread(latent))
        return actions, log_prob

    def spread(self, latent: Tensor) -> Tensor:
        """The logarithm of its standard deviation, before tanh, (B, N)."""
        spread: Tensor = self.actor.log_std(latent).clamp(_policies.LOG_STD_MIN, _policies.LOG_STD_MAX)
        return spread

    def price(self, seen: Tensor) -> Tensor | float:
        """What the actor pays beside, for where its distribution stands."""
        return 0.0

    def mean(self, latent: Tensor, observations: Any) -> Tensor:
        """The middle of the actor's distribution, before tanh, (B, N)."""
        mean: Tensor = self.actor.mu(latent)
        return mean


class RLPD(_sac.SAC):  # type: ignore[misc]
    """The learner; what differs from SAC is its `train`."""

    alone, delay, settle, slow = 0, 1, 0, 0.0

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        policy = self.policy
        policy.set_training_mode(True)
        losses: list[float] = []
        target = torch.empty(0)
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            seen = policy.seen(batch.observations)
            with torch.no_grad():
                target = batch.rewards[:, 0] + (1 - batch.dones[:, 0]) * self.gamma * self._next_values(batch)
            loss = (policy.critic(seen, batch.actions) - target).pow(2).mean(dim=1).sum()
            policy.critic.optimizer.zero_grad()
            loss.backward()
            policy.critic.optimizer.step()
            losses.append(float(loss.detach()) / policy.members)
            self._n_updates += 1
            if self._n_updates > self.alone and self._n_updates % self.delay == 0:
                self._train_actor(seen.detach(), batch.observations)
            with torch.no_grad():
                for kept, new in zip(policy.critic_target.parameters(), policy.critic.values.parameters(), strict=True):
                    kept.lerp_(new, self.tau)
        if self.settle:
            self._settle()
        self.logger.record("train/critic_loss", float(np.mean(losses)))
        self.logger.record("train/target", float(target.mean()))
        policy.set_training_mode(False)

    def _settle(self) -> None:
        """A decision later. What reads goes, now and then, back to its slow average, which began where it began.

        Lookahead (Zhang et al. 2019) with an average for its last weights, as seldom as networks are reset that learn
        much from little (Nikishin et al. 2022): after 1000 decisions of learning the average is three fifths of what it
        was at random.
        """
        slow, reader = self.policy.slow, self.policy.critic.features_extractor
        with torch.no_grad():
            for kept, new in zip(slow.parameters(), reader.parameters(), strict=True):
                kept.lerp_(new, 1 - self.slow**self.n_envs)  # a decision of each environment
            if self.num_timesteps % self.settle < self.n_envs:
                for new, kept in zip(reader.parameters(), slow.parameters(), strict=True):
                    new.copy_(kept)

    def _train_actor(self, seen: Tensor, observations: Any) -> None:
        actions, log_prob = self.policy.drawn(seen, observations)
        temperature = self.ent_coef_tensor if self.ent_coef_optimizer is None else self.log_ent_coef.detach().exp()
        values = self.policy.critic(seen, actions).mean(dim=0)  # (B,)
        loss = (temperature * log_prob - values).mean() + self.policy.price(seen)
        self.actor.optimizer.zero_grad()
        loss.backward()
        self.actor.optimizer.step()
        if self.ent_coef_optimizer is not None:
            off = -(self.log_ent_coef * (log_prob.detach() + self.target_entropy)).mean()
            self.ent_coef_optimizer.zero_grad()
            off.backward()
            self.ent_coef_optimizer.step()
        self.logger.record("train/actor_loss", float(loss.detach()))
        self.logger.record("train/entropy", -float(log_prob.detach().mean()))
        self.logger.record("train/temperature", float(temperature))

    def _next_values(self, batch: Any) -> Tensor:
        """What the next observations are worth, (B,)."""
        seen = self.policy.seen(batch.next_observations)
        return self._least(seen, self.policy.drawn(seen, batch.next_observations)[0])

    def _least(self, seen: Tensor, *actions: Tensor) -> Tensor:
        """The best of these actions (B, N) by the least of two random critics' targets, (B,)."""
        two = torch.randperm(self.policy.members)[:2]
        values = [self.critic_target(torch.cat([seen, each], dim=1))[two].amin(dim=0) for each in actions]
        return torch.stack(values).amax(dim=0)


def make(
    config: RLPDConfig, env: Any, *, reading: dict[str, Any], gamma: float, seed: int, decisions: int,
    learner: Any = RLPD, policy: Any = RLPDPolicy,
) -> Any:  # fmt: skip
    """The learner; see `policies.sac.make`. Its replay buffer is yet to be given demonstrations: `buffer.demos`."""
    from s2robot.adapters.sb3_demos import DemoReplayBuffer

    inner = {"inner": reading["features_extractor_class"], "width": config.trunk}
    words = off_policy(config, env, gamma, seed, decisions)
    words["replay_buffer_kwargs"] |= {"share": config.demos}
    moves = int(np.prod(env.action_space.shape))
    made = learner(
        policy, env, **{**words, "replay_buffer_class": DemoReplayBuffer}, ent_coef=config.entropy,
        target_entropy=-moves / 2,
        policy_kwargs={
            "net_arch": list(config.widths), "n_critics": config.critics, "settles": config.settle > 0,
            "features_extractor_class": Trunk,
            "features_extractor_kwargs": {**reading.get("features_extractor_kwargs", {}), **inner},
        },
    )  # fmt: skip
    made.alone, made.delay, made.settle, made.slow = config.alone, config.delay, config.settle, config.slow
    return made


CONFIG, DEMONSTRATIONS = RLPDConfig, True
