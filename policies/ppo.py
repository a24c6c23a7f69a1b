"""Proximal policy optimisation (Schulman et al. 2017), Stable-Baselines3's as it is; pixels are not shifted.

`configs/rl-mvp.yaml` has the settings of MVP (Xiao et al. 2022; Radosavovic et al. 2022): CLS and proprioception, an
MLP of SELUs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from s2robot.errors import InvalidInput, UnknownName, require
from s2robot.policies.rl_actor import ACTIVATIONS


@dataclass(frozen=True)
class PPOConfig:
    """Hyper-parameters of `ppo`. A step of Stable-Baselines3 is a decision here."""

    lr: float = 3e-4
    cosine: bool = False  # the rate falls to zero by a cosine; else it stays
    rollout: int = 512  # decisions of each environment between two updates
    batch: int = 64
    epochs: int = 10
    clip: float = 0.2
    gae: float = 0.95
    entropy: float = 0.0
    log_std: float = -0.7  # where the noise begins, the logarithm of its standard deviation
    activation: str = "tanh"
    widths: tuple[int, ...] = (256, 128)
    squash: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.activation not in ACTIVATIONS:
            raise UnknownName("activation", self.activation, ACTIVATIONS)
        for name, least in (("rollout", 1), ("batch", 2), ("epochs", 1)):  # advantages of one decision have no spread
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected a whole number from {least} on")
        if not (0 < self.lr < math.inf and self.clip > 0 and 0 <= self.gae <= 1 and self.entropy >= 0):
            raise InvalidInput(
                f"lr is {self.lr}, clip {self.clip}, gae {self.gae}, entropy {self.entropy}; expected a rate and a"
                " range above 0, a share from 0 to 1, and a weight from 0 on"
            )


def make(config: PPOConfig, env: Any, *, reading: dict[str, Any], gamma: float, seed: int, decisions: int) -> Any:
    """The learner; see `policies.sac.make`."""
    sb3 = require("stable_baselines3", extra="rl", purpose="Reinforcement learning")

    eyes = dict(reading.get("features_extractor_kwargs", {}))
    if "shift" in eyes:  # the ratio of probabilities would be that of two shifts, not of two policies
        reading = {**reading, "features_extractor_kwargs": {**eyes, "shift": 0}}

    def falling(left: float) -> float:
        return config.lr * 0.5 * (1 - math.cos(math.pi * max(left, 0.0)))  # the last rollout goes past the end

    return sb3.PPO(
        "MultiInputPolicy", env, learning_rate=falling if config.cosine else config.lr, n_steps=config.rollout,
        batch_size=config.batch, n_epochs=config.epochs, clip_range=config.clip, gae_lambda=config.gae,
        ent_coef=config.entropy, gamma=gamma, seed=seed, device="cpu",
        policy_kwargs={"net_arch": list(config.widths), "log_std_init": config.log_std,
                       "activation_fn": ACTIVATIONS[config.activation], **reading},
    )  # fmt: skip


CONFIG = PPOConfig
