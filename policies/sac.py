"""Soft actor-critic (Haarnoja et al. 2018), Stable-Baselines3's as it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from s2robot.errors import InvalidInput, require


@dataclass(frozen=True)
class SACConfig:
    """Hyper-parameters of `sac`. A step of Stable-Baselines3 is a decision here."""

    lr: float = 3e-4
    batch: int = 256
    buffer: int = 100_000  # decisions
    starts: int = 250  # decisions at random before it learns
    updates: int = 1  # a decision
    tau: float = 0.005
    entropy: str = "auto_0.1"  # temperature: a number, or "auto" with where it begins
    widths: tuple[int, ...] = (256, 256)
    activation: ClassVar[str] = "relu"
    squash: ClassVar[bool] = True  # actions go through tanh

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        check_learning(self)


def check_learning(config: Any) -> None:
    """What any learner with a replay buffer must have, or it would learn nothing and say nothing.

    Raises:
        InvalidInput: a setting outside its range.
    """
    for name, least in (("batch", 1), ("buffer", 1), ("updates", 1), ("starts", 0)):
        if getattr(config, name) < least:
            raise InvalidInput(f"{name} is {getattr(config, name)}; expected a whole number from {least} on")
    if not 0 < config.tau <= 1 or config.lr <= 0:
        raise InvalidInput(f"tau is {config.tau}, lr {config.lr}; expected a share above 0 and a rate above 0")
    if config.entropy != "auto" and not _is_temperature(str(config.entropy)):
        raise InvalidInput(
            f"entropy is {config.entropy!r}; expected a number from 0 on, auto, or auto_ and a number above 0"
        )


def _is_temperature(words: str) -> bool:
    try:
        value = float(words.removeprefix("auto_"))
    except ValueError:
        return False
    return value < math.inf and (value > 0 if words.startswith("auto_") else value >= 0)


def make(config: SACConfig, env: Any, *, reading: dict[str, Any], gamma: float, seed: int, decisions: int) -> Any:
    """The learner. reading: parts of `policy_kwargs`; gamma: a decision's; decisions: how many there will be."""
    sb3 = require("stable_baselines3", extra="rl", purpose="Reinforcement learning")
    return sb3.SAC(
        "MultiInputPolicy", env, **off_policy(config, env, gamma, seed, decisions), ent_coef=config.entropy,
        policy_kwargs={"net_arch": list(config.widths), **reading},
    )  # fmt: skip


def off_policy(config: Any, env: Any, gamma: float, seed: int, decisions: int) -> dict[str, Any]:
    """What all learners with a replay buffer are told alike."""
    from s2robot.adapters.sb3_buffer import FeatureReplayBuffer
    from s2robot.adapters.sb3_sight import HALF

    return {
        "learning_rate": config.lr, "batch_size": config.batch, "buffer_size": min(config.buffer, decisions + 1),
        "learning_starts": config.starts, "gradient_steps": config.updates * env.num_envs, "tau": config.tau,
        "gamma": gamma, "seed": seed, "device": "cpu", "replay_buffer_class": FeatureReplayBuffer,
        "replay_buffer_kwargs": {"half": [key for key in HALF if key in env.observation_space.spaces]},
    }  # fmt: skip


CONFIG = SACConfig
