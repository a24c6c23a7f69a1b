"""Gymnasium environments that are observed by features instead of frames.

    env = S2Observation(s2robot.make_env("Lift"), encoder)                  # one environment
    env = S2VectorObservation(s2robot.make_vec_env("Lift", n=8), encoder)   # eight, encoded in one batch a step

Frames of any observation become the key `features`, see `s2robot.adapters.cameras`; the other keys stay. To decide by
the last k looks, stack features: `gymnasium.wrappers.FrameStackObservation(S2Observation(env, encoder), k)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector.utils import batch_space

from s2robot.adapters.cameras import Cameras, batched, encoded, unbatched
from s2robot.adapters.features import FEATURES, FrameFeatures
from s2robot.encoder import Encoder
from s2robot.errors import InvalidInput

FINAL = "final_obs"  # where Gymnasium puts an episode's last observations when the next one begins in the same step


class S2Observation(gymnasium.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Frames in, features out, of one environment.

    Args:
        features: what to observe; an encoder alone means its whole map in float16.
        cameras, key: see `Cameras`.

    Raises:
        InvalidInput: an environment without frames; later, observations that hold NaN.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        features: FrameFeatures | Encoder,
        *,
        cameras: Sequence[str] = (),
        key: str = FEATURES,
    ) -> None:
        self.features = as_features(features)
        RecordConstructorArgs.__init__(
            self, _disable_deepcopy=True, features=self.features, cameras=tuple(cameras), key=key
        )
        gymnasium.ObservationWrapper.__init__(self, env)
        self._cameras = Cameras(env.observation_space, cameras, key)
        self.observation_space = self._cameras.featured(self.features)

    def observation(self, observation: Any) -> Any:
        """One observation with features instead of frames."""
        batch, _ = encoded(self._cameras, self.features, batched(observation), ())
        return unbatched(batch)


class S2VectorObservation(gymnasium.vector.VectorWrapper):  # not generic before Gymnasium 1.4
    """The same of a vector environment, Gymnasium's or ours: one call of the encoder a step, whatever its autoreset.

    The last observations of episodes that end in "SameStep" mode, in `info["final_obs"]`, have features as well.
    """

    def __init__(
        self,
        env: gymnasium.vector.VectorEnv[Any, Any, Any],
        features: FrameFeatures | Encoder,
        *,
        cameras: Sequence[str] = (),
        key: str = FEATURES,
    ) -> None:
        super().__init__(env)
        self.features = as_features(features)
        self._cameras = Cameras(env.single_observation_space, cameras, key)
        self.single_observation_space = self._cameras.featured(self.features)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._featured(*self.env.reset(seed=seed, options=options))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        seen, reward, terminated, truncated, info = self.env.step(actions)
        observation, told = self._featured(seen, info)
        return observation, reward, terminated, truncated, told

    def call(self, name: str, /, *arguments: Any, **named: Any) -> tuple[Any, ...]:
        """What every environment inside answers, where the vector environment has such a method."""
        answers: tuple[Any, ...] = self.env.call(name, *arguments, **named)  # type: ignore[attr-defined]
        return answers

    def _featured(self, observation: Any, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ended = [int(k) for k in np.flatnonzero(info.get(f"_{FINAL}", ()))]
        batch, last = encoded(self._cameras, self.features, observation, [info[FINAL][k] for k in ended])
        if not ended:
            return batch, info
        final = np.full(self.num_envs, None, dtype=object)
        for k, one in zip(ended, last, strict=True):
            final[k] = one
        return batch, {**info, FINAL: final}


def as_features(features: FrameFeatures | Encoder) -> FrameFeatures:
    """An encoder alone means its whole map in float16."""
    if not isinstance(features, (FrameFeatures, Encoder)):
        raise InvalidInput(
            f"features is a {type(features).__name__}; expected FrameFeatures(encoder, ...) or an encoder alone:"
            " s2robot.load_encoder(NAME)"
        )
    return FrameFeatures(features) if isinstance(features, Encoder) else features
