"""Encode inside a Stable-Baselines3 policy, for environments that cannot be wrapped.

Wrap them if you can (`S2VecEnv`): a frame is then encoded once, when it is seen, and buffers hold features. In here it
is encoded again at every update that samples it, by the actor and by each critic, and buffers hold images.

The encoder is no part of the policy: neither a submodule, nor among its parameters, nor in what is saved. Policies hold
its settings and its fingerprint, and share one encoder a device. So it is not trained, and nothing that goes over a
policy's modules can change it: `PPO` would otherwise overwrite its weights before the first step (`ortho_init`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from s2robot import engines
from s2robot.adapters.cameras import Cameras
from s2robot.adapters.features import FEATURES, FrameFeatures
from s2robot.adapters.sb3_extractor import S2FeaturesExtractor
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.errors import CheckpointMismatch, InvalidInput, require

_PURPOSE = "Training with Stable-Baselines3"
require("stable_baselines3", extra="rl", purpose=_PURPOSE)
_layers: Any = require("stable_baselines3.common.torch_layers", extra="rl", purpose=_PURPOSE)
_preprocessing: Any = require("stable_baselines3.common.preprocessing", extra="rl", purpose=_PURPOSE)


class S2ImageExtractor(_layers.BaseFeaturesExtractor):  # type: ignore[misc]
    """Frames, goal and other vectors to one vector: a frozen encoder, then an `S2FeaturesExtractor`.

    Args:
        observation_space: with frames, as `s2robot.adapters.cameras.Cameras` finds them. A plain image may come with
            its colours first, as Stable-Baselines3 turns it.
        encoder: its settings, not an encoder: a saved policy holds them, and makes it again.
        cameras: which keys hold frames; default: as `Cameras` finds them.
        kind: "map", "tokens" or "cls".
        normalize_images: the policy's own setting: whether it divided images by 255.
        reading: the rest is `S2FeaturesExtractor`'s.

    Raises:
        CheckpointMismatch: a policy is loaded, and the encoder's weights are not those that it learned with.
    """

    encoder_fingerprint: Tensor  # (32,) uint8, saved with the policy

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        *,
        encoder: EncoderConfig,
        cameras: Sequence[str] = (),
        kind: str = "map",
        normalize_images: bool = True,
        **reading: Any,
    ) -> None:
        if not isinstance(encoder, EncoderConfig):
            raise InvalidInput(
                f"encoder is a {type(encoder).__name__}; give its settings, EncoderConfig('s2robot-tiny') or"
                " encoder.config, so that saved policies do not hold its weights"
            )
        turned = {name: _channels_last(space) for name, space in _parts(observation_space).items()}
        frames = Cameras(turned[""] if "" in turned else spaces.Dict(turned), cameras)
        features = FrameFeatures(shared_encoder(encoder, _usual_device()), kind, "float32")
        reader = S2FeaturesExtractor(frames.featured(features), kind=kind, **reading)
        super().__init__(observation_space, features_dim=reader.features_dim)
        self.reader, self.config, self.kind, self.names = reader, encoder, kind, frames.keys or ("",)
        self._divided = {
            name: normalize_images and _preprocessing.is_image_space(_parts(observation_space)[name])
            for name in self.names
        }
        self._turned = {name: turned[name] is not _parts(observation_space)[name] for name in self.names}
        self.fingerprint = features.encoder.fingerprint
        digest = list(bytes.fromhex(self.fingerprint))
        self.register_buffer("encoder_fingerprint", torch.tensor(digest, dtype=torch.uint8))
        self.register_load_state_dict_post_hook(_same_encoder)

    def forward(self, observations: dict[str, Tensor] | Tensor) -> Tensor:
        """Observations by key, or frames alone, as Stable-Baselines3 prepares them -> (B, features_dim)."""
        parts = {"": observations} if isinstance(observations, Tensor) else observations
        pictures = [self._pictures(name, parts[name]) for name in self.names]
        encoder = shared_encoder(self.config, str(pictures[0].device))
        with torch.no_grad():
            features = getattr(encoder(torch.cat(pictures, dim=1)), self.kind)
        others = {name: value for name, value in parts.items() if name not in self.names}
        vector: Tensor = self.reader({**others, FEATURES: features})
        return vector

    def _pictures(self, name: str, value: Tensor) -> Tensor:
        """One key's frames as they were before they were prepared, (B, V, H, W, 3) uint8."""
        pixels = (value * 255).round() if self._divided[name] else value
        if pixels.min() < 0 or pixels.max() > 255 or (pixels != pixels.round()).any():
            raise InvalidInput(
                f"Frames {name!r} reach from {float(value.min()):.3g} to {float(value.max()):.3g}: give this extractor"
                " the policy's own normalize_images, and put no VecNormalize on frames (norm_obs_keys)"
            )
        frames = pixels.to(torch.uint8)
        if self._turned[name]:
            frames = frames.movedim(-3, -1)
        return frames[:, None] if frames.ndim == 4 else frames


@functools.lru_cache(maxsize=8)
def shared_encoder(config: EncoderConfig, device: str) -> Encoder:
    """One encoder a process, settings and device: actors, critics and their targets all look through it."""
    return config.build(device)


def _usual_device() -> str:
    """Where policies usually are, under the name that tensors there give it."""
    return str(torch.empty(0, device=engines.find_device(None)).device)


def _parts(space: spaces.Space[Any]) -> dict[str, Any]:
    return dict(space) if isinstance(space, spaces.Dict) else {"": space}


def _channels_last(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The same image, colours last; anything else as it is."""
    if isinstance(space, spaces.Box) and _preprocessing.is_image_space(space) and space.shape[0] == 3:
        return spaces.Box(0, 255, (*space.shape[1:], 3), space.dtype.type)
    return space


def _same_encoder(module: Any, _: Any) -> None:
    """After weights are loaded: a policy that learned from other features would act on noise, without a word."""
    saved = bytes(module.encoder_fingerprint.tolist()).hex()
    if saved != module.fingerprint:
        raise CheckpointMismatch(
            f"This policy learned with another encoder ({saved[:16]}) than {module.config.name} is now"
            f" ({module.fingerprint[:16]}): its weights or settings changed"
        )
