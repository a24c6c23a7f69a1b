"""A trained network behind its encoder: what `load_policy` returns."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot.encoder import Encoder
from s2robot.errors import InvalidInput
from s2robot.policies.neck import Neck, Shapes, chosen_tokens
from s2robot.types import FRAMES, GOAL, PROPRIOCEPTION, Features, Observation, check_observation


class FeaturePolicy:
    """Frames and proprioception to action chunks. See `s2robot.types.Policy`.

    It is asked every `execute` control steps and remembers the looks of the episode that its network decides by; before
    there are enough, the first one stands in for those that are missing, as in training. A policy that draws noise
    draws the same in every episode: an episode is a function of its seed alone.
    """

    def __init__(self, encoder: Encoder, network: Neck) -> None:
        self.encoder, self.network = encoder, network.eval()
        self.seconds: dict[str, float] = {}  # wall time of the last call: encode, act
        self._noise = torch.Generator()
        self.execute = network.config.execute

    @property
    def execute(self) -> int:
        """Actions of a chunk to execute before looking again; may be changed, and begins a new episode then."""
        return self._execute

    @execute.setter
    def execute(self, steps: int) -> None:
        config = self.network.config
        if not 1 <= steps <= config.chunk:
            raise InvalidInput(f"execute is {steps}; this policy's chunks have {config.chunk} actions")
        if config.context > 1 and config.execute % steps:
            raise InvalidInput(
                f"execute is {steps}; this policy decides by {config.context} looks {config.execute} steps apart, so it"
                f" must divide {config.execute}"
            )
        self._execute = steps
        self.reset()

    def reset(self) -> None:
        """Forget the episode: its looks, and the noise begins again."""
        config = self.network.config
        self._every = max(1, config.execute // self.execute)  # calls from one look of the window to the next
        self._looks: deque[Tensor] = deque(maxlen=(config.context - 1) * self._every + 1)
        self._noise.manual_seed(0)

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """The next A actions, (A, M) float32 in [-1, 1]."""
        check_observation(observation)
        start = time.perf_counter()
        features = self.encoder(observation[FRAMES][None])
        encoded = time.perf_counter()
        chunk = self.decide(features, observation[PROPRIOCEPTION], observation.get(GOAL))
        self.seconds = {"encode": encoded - start, "act": time.perf_counter() - encoded}
        return chunk

    @torch.no_grad()
    def decide(
        self, features: Features, proprioception: NDArray[np.float32], goal: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """From features alone, for callers that encode elsewhere."""
        network, device = self.network, features.map.device
        wanted = np.zeros(0, np.float32) if goal is None else goal
        if wanted.shape != (network.shapes.goal,):
            raise InvalidInput(f"The goal is {wanted.shape}; this policy was trained with ({network.shapes.goal},)")
        state, aim = (torch.from_numpy(value)[None].to(device) for value in (proprioception, wanted))
        seen = chosen_tokens(features.map, features.cls, network.config.tokens)
        self._looks.append(network.look(network.compression(seen), state, aim))
        chunk = network.predict(self._window(), self._noise)[0].clamp(-1, 1)
        array: NDArray[np.float32] = chunk.cpu().numpy()
        return array

    def _window(self) -> Tensor:
        """The looks to decide by, oldest first: (1, T, W)."""
        last, back = len(self._looks) - 1, range(self.network.config.context - 1, -1, -1)
        return torch.stack([self._looks[max(0, last - k * self._every)] for k in back], dim=1)


def describe(network: Neck) -> dict[str, Any]:
    """What `restore` needs, as plain JSON."""
    return {"config": asdict(network.config), "shapes": asdict(network.shapes)}


def restore(module: Any, description: dict[str, Any], encoder: Encoder, weights: dict[str, Tensor]) -> FeaturePolicy:
    """A policy from `describe`'s output and its weights; module: that of its kind."""
    shapes = Shapes(**{**description["shapes"], "grid": tuple(description["shapes"]["grid"])})
    network = module.NETWORK(module.CONFIG(**description["config"]), shapes)
    network.load_state_dict(weights)
    return FeaturePolicy(encoder, network.to(encoder.device))
