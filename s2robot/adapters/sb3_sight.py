"""What an algorithm of Stable-Baselines3 is shown of `Worlds`, and by what it reads it: see `s2robot.rl_config`.

features      S2VecEnv: one call of the encoder a step; and, where there is a prior, what it thinks of the same look
pixels        frames, reduced
privileged    no frames
all           VecNormalize for proprioception (and privileged fields) alone
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from s2robot import registry
from s2robot.adapters.features import FEATURES, FrameFeatures
from s2robot.adapters.sb3_extractor import S2FeaturesExtractor
from s2robot.adapters.sb3_vector import S2VecEnv
from s2robot.adapters.sb3_worlds import LAST
from s2robot.compression import chosen_tokens
from s2robot.errors import require
from s2robot.frames import shrink, small_size
from s2robot.rl_config import SightConfig
from s2robot.types import FRAMES, GOAL, PRIVILEGED, PROPRIOCEPTION, Features

_PURPOSE = "Reinforcement learning"
require("stable_baselines3", extra="rl", purpose=_PURPOSE)
_vec_env: Any = require("stable_baselines3.common.vec_env", extra="rl", purpose=_PURPOSE)
_layers: Any = require("stable_baselines3.common.torch_layers", extra="rl", purpose=_PURPOSE)

LOOK, PROPOSAL = "look", "proposal"  # what a prior makes of what is seen: see `policies.rl_picker.propose`
HALF = (FEATURES, LOOK)  # kept in float16
NORMALISED = (PROPRIOCEPTION, PRIVILEGED)
FLOOR = 1e-6  # added to a field's variance: one that hardly moves is not blown up

Arrays = dict[str, NDArray[Any]]


class Glance(FrameFeatures):
    """`FrameFeatures` that keeps all that the encoder saw at its last call, for those who want more of it."""

    seen: Features | None = None

    def _found(self, frames: NDArray[np.uint8]) -> Tensor:
        self.seen = self.encoder(frames)
        return self.of(self.seen)


@dataclass(frozen=True)
class Sight:
    """Of one run: what it looks through."""

    config: SightConfig
    eyes: Glance | None = None
    prior: Any = None  # a `policies.bc_mlp.BCNetwork`
    execute: int = 1

    def before(self, worlds: Any) -> Any:
        """The environment that the algorithm is given."""
        env = worlds
        if self.eyes is not None:
            env = S2VecEnv(worlds, self.eyes)
            env = PriorVecEnv(env, self.eyes, self.prior, self.execute) if self.prior is not None else env
        elif self.config.see == "pixels":
            env = Mapped(worlds, self._small_space(worlds.observation_space), self.small)
        else:
            env = Mapped(worlds, without_frames(worlds.observation_space), without_frames)
        keys = [key for key in NORMALISED if key in env.observation_space.spaces]
        return _vec_env.VecNormalize(env, norm_reward=False, norm_obs_keys=keys, clip_obs=np.inf, epsilon=FLOOR)

    @property
    def reading(self) -> dict[str, Any]:
        """Parts of `policy_kwargs`: the features extractor."""
        config = self.config
        if config.see == "features":
            words: dict[str, Any] = {"kind": config.kind, "readout": config.readout, "queries": config.queries}
            words["key_width"] = config.width
            return {"features_extractor_class": S2FeaturesExtractor, "features_extractor_kwargs": words}
        if config.see == "pixels":
            words = {"shift": config.shift}
            return {"features_extractor_class": PixelExtractor, "features_extractor_kwargs": words}
        return {"features_extractor_class": _layers.CombinedExtractor}

    def small(self, batch: Any) -> Any:
        """A batch of observations with their frames reduced."""
        frames = shrink(torch.from_numpy(np.ascontiguousarray(batch[FRAMES])), self.config.size)
        return {**batch, FRAMES: frames.numpy()}

    def _small_space(self, space: spaces.Dict) -> spaces.Dict:
        views, height, width, _ = space[FRAMES].shape  # type: ignore[misc]
        shape = (views, *small_size((height, width), self.config.size), 3)
        return spaces.Dict({**space, FRAMES: spaces.Box(0, 255, shape, np.uint8)})


class Mapped(_vec_env.VecEnvWrapper):  # type: ignore[misc]
    """Every observation, those that episodes end with too, through a function of batches."""

    def __init__(self, venv: Any, space: spaces.Dict, function: Callable[[Arrays], Arrays]) -> None:
        super().__init__(venv, observation_space=space)
        self.function = function

    def reset(self) -> Arrays:
        return self.function(self.venv.reset())

    def step_wait(self) -> tuple[Arrays, Any, Any, list[dict[str, Any]]]:
        seen, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if LAST in info:
                one = self.function({key: value[None] for key, value in info[LAST].items()})
                info[LAST] = {key: value[0] for key, value in one.items()}
        return self.function(seen), rewards, dones, infos


class PriorVecEnv(_vec_env.VecEnvWrapper):  # type: ignore[misc]
    """Beside features, what a frozen policy of behaviour cloning makes of them: its look, and the chunk it proposes.

    Computed once, when a frame is seen, as the features are; buffers keep it.
    """

    def __init__(self, venv: Any, eyes: Glance, prior: Any, execute: int) -> None:
        self.eyes, self.prior, self.execute = eyes, prior, execute
        width, moves = prior.look_width, execute * prior.shapes.actions
        most = float(np.finfo(np.float16).max)
        told: dict[str, spaces.Space[Any]] = {
            LOOK: spaces.Box(-most, most, (width,), np.float16),
            PROPOSAL: spaces.Box(-1, 1, (moves,), np.float32),
        }
        super().__init__(venv, observation_space=spaces.Dict({**venv.observation_space, **told}))

    def reset(self) -> Arrays:
        observation = self.venv.reset()
        return {**observation, **self.told(observation, slice(None))}

    def step_wait(self) -> tuple[Arrays, Any, Any, list[dict[str, Any]]]:
        seen, rewards, dones, infos = self.venv.step_wait()
        count = self.num_envs  # what episodes ended with was encoded behind all that goes on
        for k, info in enumerate(infos):
            if info.get(LAST) is not None:
                one = self.told({key: value[None] for key, value in info[LAST].items()}, slice(count, count + 1))
                infos[k] = {**info, LAST: {**info[LAST], **{key: value[0] for key, value in one.items()}}}
                count += 1
        return {**seen, **self.told(seen, slice(self.num_envs))}, rewards, dones, infos

    def told(self, observation: Arrays, rows: slice) -> Arrays:
        """Look and proposal for these rows of what the eyes saw last."""
        assert self.eyes.seen is not None  # S2VecEnv has just encoded
        maps = chosen_tokens(self.eyes.seen.map, self.eyes.seen.cls, "map")[rows]
        return prior_told(self.prior, maps, observation, self.execute)


@torch.no_grad()
def prior_told(prior: Any, maps: Tensor, observation: Arrays, execute: int) -> Arrays:
    """What a prior makes of the encoder's whole maps (B, V, D*S, h, w) and the rest of the observations."""
    goal = observation.get(GOAL, np.zeros((len(maps), 0), np.float32))
    state, aim = (torch.from_numpy(np.asarray(part, np.float32)) for part in (observation[PROPRIOCEPTION], goal))
    picker = registry.policy_module("rl-ibrl")
    look, proposal = picker.propose(prior, prior.compression(maps.cpu()), state, aim, execute)
    return {LOOK: look.half().numpy(), PROPOSAL: proposal.numpy()}


class PixelExtractor(_layers.BaseFeaturesExtractor):  # type: ignore[misc]
    """Frames (V, H, W, 3) and other vectors to one vector: convolutions, under DrQ's random shift while they learn."""

    def __init__(self, observation_space: spaces.Dict, *, shift: int = 4) -> None:
        pixels = registry.policy_module("rl-pixels")
        views, height, width, _ = observation_space[FRAMES].shape  # type: ignore[misc]
        eye = pixels.NatureEyes(views, shift)
        grid = eye.grid(height, width)
        self.shape = (views, pixels.CHANNELS, *grid)
        others = [key for key in observation_space if key != FRAMES]
        numbers = sum(int(spaces.utils.flatdim(observation_space[key])) for key in others)
        super().__init__(observation_space, features_dim=int(np.prod(self.shape)) + numbers)
        self.eye, self.others = eye, tuple(others)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        maps = self.eye(observations[FRAMES]).flatten(1)
        return torch.cat([maps, *(observations[name].flatten(1) for name in self.others)], dim=1)


def without_frames(what: Any) -> Any:
    """Observations, or their space, but for the frames."""
    rest = {key: value for key, value in what.items() if key != FRAMES}
    return spaces.Dict(rest) if isinstance(what, spaces.Dict) else rest
