"""A trained network behind its encoder, or with eyes of its own: what `load_policy` returns."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot.compression import Shapes, chosen_tokens
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.errors import InvalidInput
from s2robot.frames import shrink
from s2robot.policies.neck import Neck
from s2robot.policies.pixels import PixelNetwork
from s2robot.types import (
    FRAMES,
    GOAL,
    PRIVILEGED,
    PROPRIOCEPTION,
    Features,
    Observation,
    check_execute,
    check_observation,
)

if TYPE_CHECKING:
    from typing_extensions import Self

Seen = TypeVar("Seen")
"""What a policy's vision part gives: `Features`, or maps."""


class NetworkPolicy(ABC, Generic[Seen]):
    """Frames and proprioception to action chunks. See `s2robot.types.Policy`.

    It is asked every `execute` control steps and remembers the looks of the episode that its network decides by; before
    there are enough, the first one stands in for those that are missing, as in training. A policy that draws noise
    draws the same in every episode: an episode is a function of its seed alone.
    """

    def __init__(self, network: Neck) -> None:
        self.network = network.eval()
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
        check_execute(steps, chunk=config.chunk, trained=config.execute, context=config.context)
        self._execute = steps
        self.reset()

    def reset(self) -> None:
        """Forget the episode: its looks, and the noise begins again."""
        config = self.network.config
        self._every = max(1, config.execute // self.execute)  # calls from one look of the window to the next
        self._looks: deque[Tensor] = deque(maxlen=(config.context - 1) * self._every + 1)
        self._noise.manual_seed(0)

    def another(self) -> Self:
        """The same policy in an episode of its own: encoder and network are shared, looks and noise are not."""
        twin = copy.copy(self)
        twin.seconds, twin._noise = {}, torch.Generator()
        twin.reset()
        return twin

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """The next A actions, (A, M) float32 in [-1, 1]."""
        check_observation(observation)
        start = time.perf_counter()
        seen = self.encode(observation[FRAMES])
        encoded = time.perf_counter()
        chunk = self.decide(seen, observation[PROPRIOCEPTION], observation.get(GOAL))
        self.seconds = {"encode": encoded - start, "act": time.perf_counter() - encoded}
        return chunk

    @abstractmethod
    def encode(self, frames: NDArray[np.uint8]) -> Seen:
        """What the frames (V, H, W, 3) of one observation show."""

    @abstractmethod
    def maps(self, seen: Seen) -> Tensor:
        """That as compressed maps, (1, V, C, h, w)."""

    @torch.no_grad()
    def decide(
        self, seen: Seen, proprioception: NDArray[np.float32], goal: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """From what `encode` gives alone, for callers that encode elsewhere."""
        network, maps = self.network, self.maps(seen)
        wanted = np.zeros(0, np.float32) if goal is None else goal
        if wanted.shape != (network.shapes.goal,):
            raise InvalidInput(f"The goal is {wanted.shape}; this policy was trained with ({network.shapes.goal},)")
        if proprioception.shape != (network.shapes.proprioception,):
            raise InvalidInput(
                f"Proprioception is {proprioception.shape}; this policy was trained with"
                f" ({network.shapes.proprioception},): another robot or gripper?"
            )
        state, aim = (torch.from_numpy(value)[None].to(maps.device) for value in (proprioception, wanted))
        self._looks.append(network.look(maps, state, aim))
        chunk = network.predict(self._window(), self._noise)[0].clamp(-1, 1)
        array: NDArray[np.float32] = chunk.cpu().numpy()
        return array

    def _window(self) -> Tensor:
        """The looks to decide by, oldest first: (1, T, W)."""
        last, back = len(self._looks) - 1, range(self.network.config.context - 1, -1, -1)
        return torch.stack([self._looks[max(0, last - k * self._every)] for k in back], dim=1)


class FeaturePolicy(NetworkPolicy[Features]):
    """A network on the features of a frozen encoder."""

    def __init__(self, encoder: Encoder, network: Neck) -> None:
        super().__init__(network)
        self.encoder = encoder

    def encode(self, frames: NDArray[np.uint8]) -> Features:
        features: Features = self.encoder(frames[None])
        return features

    def maps(self, seen: Features) -> Tensor:
        shapes = self.network.shapes
        tokens = chosen_tokens(seen.map, seen.cls, self.network.config.tokens)
        wanted = (shapes.views, shapes.scales * shapes.width, *shapes.grid)
        if tokens.shape[1:] != wanted:
            raise InvalidInput(
                f"Features are {tuple(tokens.shape[1:])} (views, channels, grid); this policy was trained with"
                f" {wanted}. Give it as many cameras, with frames of the same size"
            )
        maps: Tensor = self.network.compression(tokens)
        return maps


class PixelPolicy(NetworkPolicy[Tensor]):
    """A network that reads frames itself."""

    network: PixelNetwork

    @torch.no_grad()
    def encode(self, frames: NDArray[np.uint8]) -> Tensor:
        """Compressed maps, (1, V, C, h, w)."""
        shapes, device = self.network.shapes, next(self.network.parameters()).device
        small = shrink(torch.from_numpy(np.ascontiguousarray(frames))[None], self.network.config.size)
        if len(frames) != shapes.views:
            raise InvalidInput(f"Frames are {frames.shape}; this policy was trained with {shapes.views} views")
        maps = self.network.see(small.to(device))
        if maps.shape[-2:] != shapes.grid:
            raise InvalidInput(
                f"Frames are {frames.shape}, of which this policy makes a map of {tuple(maps.shape[-2:])}; it was"
                f" trained on frames that gave {shapes.grid}"
            )
        return maps

    def maps(self, seen: Tensor) -> Tensor:
        return seen


class PrivilegedPolicy(NetworkPolicy[Tensor]):
    """A network on the simulator's state: an upper bound, for simulations that show it (`extras=("privileged",)`)."""

    def act(self, observation: Observation) -> NDArray[np.float32]:
        if PRIVILEGED not in observation:
            raise InvalidInput(
                "This policy reads the simulator's state, which this observation lacks: no robot has it. In simulation:"
                ' s2robot.make_env(TASK, extras=("privileged",))'
            )
        state = np.concatenate([observation[PROPRIOCEPTION], observation[PRIVILEGED]])
        return super().act({**observation, PROPRIOCEPTION: state})

    def encode(self, frames: NDArray[np.uint8]) -> Tensor:
        return torch.zeros(1, 0, 1, 1, 1)  # no view

    def maps(self, seen: Tensor) -> Tensor:
        return seen


def describe(network: Neck) -> dict[str, Any]:
    """What `restore` needs, as plain JSON."""
    return {"config": asdict(network.config), "shapes": asdict(network.shapes)}


def restore(module: Any, description: dict[str, Any], encoder: Encoder, weights: dict[str, Tensor]) -> FeaturePolicy:
    """A policy from `describe`'s output and its weights; module: that of its kind."""
    network = module.NETWORK(module.CONFIG(**description["config"]), _shapes(description))
    network.load_state_dict(weights)
    return FeaturePolicy(encoder, network.to(encoder.device))


def restore_pixels(
    module: Any,
    description: dict[str, Any],
    encoder: EncoderConfig | None,
    weights: dict[str, Tensor],
    device: torch.device,
) -> PixelPolicy:
    """The same of a kind that reads frames; encoder: what its network is built like, where it says."""
    network = module.NETWORK.bare(module.CONFIG(**description["config"]), _shapes(description), encoder)
    network.load_state_dict(weights)
    return PixelPolicy(network.to(device))


def restore_privileged(module: Any, description: dict[str, Any], weights: dict[str, Tensor]) -> PrivilegedPolicy:
    """The same of a kind that reads the simulator's state."""
    network = module.NETWORK(module.CONFIG(**description["config"]), _shapes(description))
    network.load_state_dict(weights)
    return PrivilegedPolicy(network)


def _shapes(description: dict[str, Any]) -> Shapes:
    return Shapes(**{**description["shapes"], "grid": tuple(description["shapes"]["grid"])})
