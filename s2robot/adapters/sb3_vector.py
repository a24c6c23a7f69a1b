"""Stable-Baselines3's vector environments with features, and Gymnasium's (ours among them) behind its interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from s2robot.adapters.cameras import Cameras, encoded
from s2robot.adapters.features import FEATURES, FrameFeatures
from s2robot.adapters.gymnasium_wrappers import FINAL, as_features
from s2robot.encoder import Encoder
from s2robot.errors import InvalidInput, UsageError, require

_PURPOSE = "Training with Stable-Baselines3"
require("stable_baselines3", extra="rl", purpose=_PURPOSE)
_vec_env: Any = require("stable_baselines3.common.vec_env", extra="rl", purpose=_PURPOSE)

LAST = "terminal_observation"  # where Stable-Baselines3 keeps what an episode ended with
Step = tuple[Any, NDArray[Any], NDArray[Any], list[dict[str, Any]]]


class S2VecEnv(_vec_env.VecEnvWrapper):  # type: ignore[misc]
    """Any of its vector environments, observed by features: one call of the encoder a step.

    That call also encodes what the episodes that just ended were last seen to be (`terminal_observation`), from which
    values are bootstrapped when time ran out.

    Args:
        features: what to observe; an encoder alone means its whole map in float16.
        cameras, key: see `s2robot.adapters.cameras.Cameras`.

    Raises:
        InvalidInput: an environment without frames; later, observations that hold NaN.
    """

    def __init__(
        self, venv: Any, features: FrameFeatures | Encoder, *, cameras: Sequence[str] = (), key: str = FEATURES
    ) -> None:
        self.features = as_features(features)
        self._cameras = Cameras(venv.observation_space, cameras, key)
        super().__init__(venv, observation_space=self._cameras.featured(self.features))

    def reset(self) -> Any:
        observation, _ = encoded(self._cameras, self.features, self.venv.reset(), ())
        return observation

    def step_wait(self) -> Step:
        seen, rewards, dones, told = self.venv.step_wait()
        ended = [k for k, info in enumerate(told) if info.get(LAST) is not None]
        observation, last = encoded(self._cameras, self.features, seen, [told[k][LAST] for k in ended])
        infos = list(told)
        for k, one in zip(ended, last, strict=True):
            infos[k] = {**told[k], LAST: one}
        return observation, rewards, dones, infos


class GymnasiumVecEnv(_vec_env.VecEnv):  # type: ignore[misc]
    """A vector environment of Gymnasium's kind in Stable-Baselines3's: of `s2robot.make_vec_env`, for one.

    It must begin the next episode in the step that ends the last: `autoreset_mode="SameStep"`. Our `info["success"]` is
    passed on as `is_success` too, from which success rates are logged.

    Args:
        cost: taken off the reward of every step. Where rewards are in [0, 1] and success ends the episode, as in Reach
            and shaped tasks, 1: else success gives up all that staying just short of it would bring.
    """

    def __init__(self, env: gymnasium.vector.VectorEnv[Any, Any, Any], *, cost: float = 0.0) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise InvalidInput(
                f"This environment's autoreset mode is {mode}; Stable-Baselines3 needs 'SameStep':"
                " make_vec_env(..., autoreset_mode='SameStep')"
            )
        self.env, self.cost = env, cost
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        options = [given for given in self._options if given]
        if options and options != [options[0]] * self.num_envs:
            raise InvalidInput(f"Options differ between environments: {self._options}; give all the same")
        seeds: Any = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        observation, told = self.env.reset(seed=seeds, options=options[0] if options else None)
        self.reset_infos = separated(told, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> Step:
        observation, rewards, terminated, truncated, told = self.env.step(self._actions)
        infos = separated(told, self.num_envs)
        for k in np.flatnonzero(terminated | truncated):
            last, ending = infos[k].pop(FINAL), infos[k].pop("final_info")
            self.reset_infos[k], infos[k] = infos[k], {**ending, LAST: last}
        for k, info in enumerate(infos):
            info["TimeLimit.truncated"] = bool(truncated[k] and not terminated[k])
            if "success" in info:
                info["is_success"] = bool(info["success"])
        return observation, (rewards - self.cost).astype(np.float32), terminated | truncated, infos

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        images: Any = self.env.render()
        return [None] * self.num_envs if images is None else list(images)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return self.env_method(attr_name, indices=indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        if not hasattr(self.env, "set_attr"):
            raise UsageError(f"{attr_name!r} cannot be set: these environments are in processes of their own")
        values = [value] * self.num_envs if indices is None else self.get_attr(attr_name)
        for k in self._get_indices(indices):
            values[k] = value
        self.env.set_attr(attr_name, values)

    def env_method(self, method_name: str, *arguments: Any, indices: Any = None, **named: Any) -> list[Any]:
        """Asked of all, since such environments are; `indices` chooses the answers."""
        if method_name == "render_mode" and not hasattr(self.env, "call"):
            answers: Sequence[Any] = [self.env.render_mode] * self.num_envs
        else:
            answers = self.env.call(method_name, *arguments, **named)  # type: ignore[attr-defined]
        return [answers[k] for k in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """They cannot be looked into; whether one is watched is `VecMonitor`'s matter."""
        return [False for _ in self._get_indices(indices)]


def separated(told: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """Gymnasium's merged infos, one dict an environment again."""
    infos: list[dict[str, Any]] = [{} for _ in range(n)]
    for key, value in told.items():
        mask = told.get(f"_{key}")
        if mask is None:
            continue  # a mask itself
        rows = separated(value, n) if isinstance(value, dict) else value
        for k in np.flatnonzero(mask):
            infos[k][key] = rows[k]
    return infos
