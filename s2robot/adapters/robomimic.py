"""The frozen S2 encoder as a visual core of robomimic (0.3), for its own training code.

    observation.encoder.rgb.core_class = "S2Core"
    observation.encoder.rgb.core_kwargs = {"encoder": {"name": "s2robot-tiny"}, "feature_dimension": 64}

    image (B, 3, H, W) in [0, 1] -> the uint8 frame, to the bit -> frozen encoder -> token map (B, D*S, h, w)
          -> 1x1 convolution -> what is where -> feature_dimension numbers; the last two are trained

Importing this module registers it: robomimic looks a core up by the name of its class. robomimic's training script
imports no module of others; `python -m s2robot.adapters.robomimic` does, and runs that script with the same arguments.

The encoder stands beside the module, not in it, so that robomimic's optimizers and checkpoints never see it; a
checkpoint has its fingerprint. See docs/robomimic.md.
"""

from __future__ import annotations

import contextlib
import io
import runpy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from s2robot.adapters.images import to_frames
from s2robot.adapters.remembered import Remembered
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.errors import CheckpointMismatch, InvalidInput, UnknownName, require

if TYPE_CHECKING:
    from typing_extensions import Self

with contextlib.redirect_stdout(io.StringIO()):  # it prints a page about a file of private settings
    EncoderCore: Any = require(
        "robomimic.models.obs_core", extra="robomimic", purpose="The robomimic visual core"
    ).EncoderCore

READS = ("places", "linear")
_encoders: dict[EncoderConfig, Encoder] = {}  # a policy has a core a camera: one encoder for all


class S2Core(EncoderCore):  # type: ignore[misc] # robomimic has no types
    """A core for one camera: the frozen encoder and a small trained head.

    Args:
        input_shape: (3, H, W); robomimic fills it in.
        encoder: what differs from `EncoderConfig`, by name.
        feature_dimension: numbers it gives.
        channels: to which the token map is brought first, by a trained 1x1 convolution.
        read: "places" (of each channel, the expected place of a spatial softmax, and its mean there) or "linear" (all
            tokens side by side: more to learn).
        remember_gb: memory for the maps of this camera's frames: none is encoded twice while it lasts.
    """

    fingerprint: Tensor  # (32,) uint8 of the encoder it was trained through
    places: Tensor  # (h*w, 2)

    def __init__(
        self,
        input_shape: Sequence[int],
        encoder: Mapping[str, Any] | None = None,
        feature_dimension: int = 64,
        channels: int = 64,
        read: str = "places",
        remember_gb: float = 1.0,
    ) -> None:
        super().__init__(input_shape=tuple(input_shape))
        if len(self.input_shape) != 3 or self.input_shape[0] != 3:
            raise InvalidInput(f"S2Core was given observations of {self.input_shape}; expected RGB images (3, H, W)")
        if read not in READS:
            raise UnknownName("read", read, READS)
        self._beside = (_encoder(_config(encoder)),)  # in a tuple: torch would make it a part of this module
        height, width = self.encoder.grid_of(self.input_shape[1:])
        self.read, self.feature_dimension = read, feature_dimension
        self._remembered = Remembered(remember_gb * 1e9)
        self.enter = nn.Sequential(nn.Conv2d(self.encoder.channels, channels, 1), nn.GroupNorm(1, channels))
        found = 3 * channels if read == "places" else channels * height * width
        self.leave = nn.Linear(found, feature_dimension)
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("places", torch.stack([x, y], dim=-1).reshape(-1, 2), persistent=False)
        digest = torch.frombuffer(bytearray.fromhex(self.encoder.fingerprint), dtype=torch.uint8)
        self.register_buffer("fingerprint", digest)

    @property
    def encoder(self) -> Encoder:
        """The frozen encoder."""
        return self._beside[0]

    def output_shape(self, input_shape: Sequence[int] | None = None) -> list[int]:
        """robomimic asks for it: (feature_dimension,)."""
        return [self.feature_dimension]

    def forward(self, inputs: Tensor) -> Tensor:
        """Images (B, 3, H, W) as robomimic processes them -> (B, feature_dimension)."""
        if tuple(inputs.shape[1:]) != self.input_shape:
            raise InvalidInput(f"Images are {tuple(inputs.shape[1:])}; this core was made for {self.input_shape}")
        maps = self._remembered(to_frames(inputs, "The image"), self.maps).float()
        entered: Tensor = self.enter(maps)  # (B, C, h, w)
        if self.read == "linear":
            return self.leave(nn.functional.gelu(entered).flatten(1))  # type: ignore[no-any-return]
        tokens = entered.flatten(2)  # (B, C, N)
        attention = tokens.softmax(dim=-1)
        found = torch.cat([(attention @ self.places).flatten(1), (attention * tokens).sum(dim=-1)], dim=1)
        return self.leave(found)  # type: ignore[no-any-return]

    @torch.no_grad()
    def maps(self, frames: Tensor) -> Tensor:
        """Token maps (B, D*S, h, w) of frames (B, H, W, 3) uint8."""
        encoded: Tensor = self.encoder(frames).map[:, 0]
        return encoded

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *others: Any) -> None:
        """Hold the encoder against the one these weights were trained through."""
        saved = state.get(f"{prefix}fingerprint")
        if saved is not None and bytes(saved.cpu().tolist()) != bytes(self.fingerprint.cpu().tolist()):
            raise CheckpointMismatch(
                f"These weights were trained on features with fingerprint {bytes(saved.cpu().tolist()).hex()[:12]}, but"
                f" {self.encoder.config.name} is now {self.encoder.fingerprint[:12]}. Name that encoder and its"
                " checkpoint in core_kwargs, or train again"
            )
        super()._load_from_state_dict(state, prefix, *others)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """To another device: the encoder comes along."""
        super()._apply(fn, recurse)
        self.encoder._apply(fn)
        return self

    def __repr__(self) -> str:
        config, trained = self.encoder.config, sum(parameter.numel() for parameter in self.parameters())
        return (
            f"S2Core(input_shape={self.input_shape}, frozen={config.name} {', '.join(config.scale_names)},"
            f" feature_dimension={self.feature_dimension}, trained parameters={trained})"
        )


def _config(said: Mapping[str, Any] | None) -> EncoderConfig:
    """`EncoderConfig` of robomimic's nested words, in which lists stand for tuples."""
    known = EncoderConfig.__dataclass_fields__
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in (said or {}).items()
    }
    for name in settings:
        if name not in known:
            raise UnknownName("encoder setting", name, known)
    return EncoderConfig(**settings)


def _encoder(config: EncoderConfig) -> Encoder:
    if config not in _encoders:
        _encoders[config] = config.build("cpu")  # robomimic moves it with the rest
    return _encoders[config]


if __name__ == "__main__":
    runpy.run_module("robomimic.scripts.train", run_name="__main__")
