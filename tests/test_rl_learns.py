"""That learners learn: on a task of one decision, whose best action is seen, in seconds."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close

pytest.importorskip("stable_baselines3")
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

from s2robot import registry
from s2robot.adapters.sb3_sight import PixelExtractor

BIAS = 0.25  # of the prior


class Aim(gymnasium.Env[dict[str, Any], Any]):
    """One number is seen and to be said; what it is amiss is what it costs. The prior says a quarter too much."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    observation_space = spaces.Dict(
        {key: spaces.Box(-2.0, 2.0, (1,), np.float32) for key in ("proprioception", "proposal")}
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.there = self.np_random.uniform(-0.5, 0.5, 1).astype(np.float32)
        return self._seen(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        return self._seen(), -float(np.abs(action - self.there)[0]), True, False, {}

    def _seen(self) -> dict[str, Any]:
        return {"proprioception": self.there, "proposal": self.there + BIAS}


class Watch(Aim):
    """Pixels of noise are seen."""

    observation_space = spaces.Dict({"frames": spaces.Box(0, 255, (1, 48, 48, 3), np.uint8)})

    def _seen(self) -> dict[str, Any]:
        return {"frames": self.np_random.integers(0, 256, (1, 48, 48, 3), np.uint8)}


def test_ppo_weighs_decisions_by_the_frames_they_were_of() -> None:
    """Its ratio of probabilities is 1 before anything is learned: a random shift drawn in updates is not in it."""
    module, sight = registry.algorithm("ppo"), {"features_extractor_class": PixelExtractor}
    reading = {**sight, "features_extractor_kwargs": {"shift": 4}}
    env = DummyVecEnv([Watch])
    policy = module.make(module.CONFIG(), env, reading=reading, gamma=0.9, seed=0, decisions=8).policy
    seen = {"frames": torch.as_tensor(env.reset()["frames"])}
    policy.set_training_mode(False)
    with torch.no_grad():
        actions, _, acted = policy(seen)
        policy.set_training_mode(True)
        _, learned, _ = policy.evaluate_actions(seen, actions)
    assert_close(learned, acted)


def test_a_rate_that_falls_ends_at_nothing() -> None:
    """The last rollout goes past the end, where Stable-Baselines3's share that is left is negative."""
    module = registry.algorithm("ppo")
    words = {"reading": {"features_extractor_class": CombinedExtractor}, "gamma": 0.9, "seed": 0, "decisions": 8}
    rate = module.make(module.CONFIG(cosine=True), DummyVecEnv([Aim]), **words).lr_schedule
    assert rate(1.0) == module.CONFIG().lr and rate(0.0) == rate(-0.5) == rate(-1.0) == 0.0


@pytest.mark.parametrize("algorithm", ["sac", "rlpd", "ibrl"])
def test_it_learns_to_aim(algorithm: str) -> None:
    """Better than at random (0.58 amiss on average), and than the prior (0.25)."""
    module, words = registry.algorithm(algorithm), {"starts": 50, "batch": 64, "updates": 1, "widths": (32,)}
    if algorithm != "sac":
        words |= {"demos": 0.0, "critics": 2, "trunk": 8}
    if algorithm == "ibrl":
        words |= {"alone": 50}
    config = module.CONFIG(lr=3e-3, **words)
    env = DummyVecEnv([Aim])
    reading = {"features_extractor_class": CombinedExtractor}
    model = module.make(config, env, reading=reading, gamma=0.9, seed=0, decisions=800)
    model.learn(800)
    env.seed(1)
    seen: Any = env.reset()
    amiss = []
    for _ in range(100):
        action, _ = model.predict(seen, deterministic=True)
        amiss.append(abs(float(action[0, 0] - seen["proprioception"][0, 0])))
        seen, *_ = env.step(action)
    assert np.mean(amiss) < 0.12


def test_the_actor_learns_once_where_critics_learn_as_often_as_its_delay_says() -> None:
    module = registry.algorithm("rlpd")
    config = module.CONFIG(starts=10, batch=8, updates=4, delay=3, demos=0.0, critics=2, trunk=8, widths=(8,))
    reading = {"features_extractor_class": CombinedExtractor}
    model = module.make(config, DummyVecEnv([Aim]), reading=reading, gamma=0.9, seed=0, decisions=25)
    model.learn(25)
    critic, actor = (steps_of(part.optimizer) for part in (model.critic, model.actor))
    assert critic > 30 and actor == critic // 3


def test_what_reads_goes_back_to_its_slow_average_when_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    module = registry.algorithm("rlpd")
    words = {"starts": 10, "batch": 8, "demos": 0.0, "critics": 2, "trunk": 8, "widths": (8,)}
    config = module.CONFIG(**words, settle=6, slow=0.75)
    reading = {"features_extractor_class": CombinedExtractor}
    model = module.make(config, DummyVecEnv([Aim, Aim]), reading=reading, gamma=0.9, seed=0, decisions=40)
    reader, slow, returned = model.critic.features_extractor, model.policy.slow, []

    def weights(of: Any) -> Any:
        return parameters_to_vector(of.parameters()).detach().clone()

    def settle() -> None:
        read, average = weights(reader), weights(slow)
        module.RLPD._settle(model)
        average = 0.75**2 * average + (1 - 0.75**2) * read  # of two environments
        assert_close(weights(slow), average)
        due = model.num_timesteps % 6 == 0
        assert_close(weights(reader), average if due else read)
        returned.append(due and not torch.allclose(read, average, rtol=0, atol=1e-6))

    monkeypatch.setattr(model, "_settle", settle)
    model.learn(40)
    assert sum(returned) == 5  # at 12, 18, 24, 30 and 36
    assert model.actor.features_extractor is reader


def test_what_never_settles_has_no_average() -> None:
    config = registry.algorithm("rlpd").CONFIG(demos=0.0)
    reading = {"features_extractor_class": CombinedExtractor}
    model = registry.algorithm("rlpd").make(config, DummyVecEnv([Aim]), reading=reading, gamma=0.9, seed=0, decisions=9)
    assert not any(name.startswith("slow") for name in model.policy.state_dict())


def steps_of(optimizer: Any) -> int:
    """How many it has taken."""
    (count,) = {int(state["step"]) for state in optimizer.state.values()}
    return count
