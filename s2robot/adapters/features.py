"""What learning libraries observe instead of frames: features of a frozen encoder, as small as one asks for.

    eyes = FrameFeatures(encoder)                                            # the whole map, float16
    eyes = FrameFeatures(encoder, "cls")                                     # one vector a view: knows no places
    eyes = FrameFeatures(encoder, compression=fit_compression(encoder, frames, components=32))
    eyes(frames)                                                             # (B, V, C, h, w)

    kind      shape          C
    map       (V, C, h, w)   encoder.channels, or scales x components
    tokens    (V, h*w, C)    the same numbers
    cls       (V, C)         the same

The adapters of Gymnasium and Stable-Baselines3 are made of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot.compression import Compression, Shapes, chosen_tokens
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.errors import CheckpointMismatch, CorruptFile, InvalidInput, UnknownName
from s2robot.files import atomic
from s2robot.interface import encoder_said
from s2robot.preprocess import check_frames
from s2robot.scales import Size
from s2robot.types import Features

FEATURES = "features"  # the key under which they are observed
KINDS = ("map", "tokens", "cls")
DTYPES = ("float16", "float32")
FITTING_BATCH = 32  # frames encoded at once


class FrameFeatures:
    """Frames (B, V, H, W, 3) to an array (B, V, ...): see the table above. Never changes once it is made.

    Args:
        encoder: frames of any shape that it takes.
        kind: "map", "tokens" or "cls".
        dtype: what is kept, "float16" or "float32".
        compression: a fixed linear map of the channels, from `fit_compression` for the same kind.
    """

    def __init__(
        self, encoder: Encoder, kind: str = "map", dtype: str = "float16", compression: Compression | None = None
    ) -> None:
        for name, value, known in (("kind", kind, KINDS), ("dtype", dtype, DTYPES)):
            if value not in known:
                raise UnknownName(f"{name} of features", value, known)
        self.encoder, self.kind, self.dtype = encoder, kind, np.dtype(dtype)
        self.compression = compression
        if self.compression is not None:
            _, scales, width, _ = self.compression.basis.shape
            if (scales, scales * width) != (encoder.config.groups, encoder.channels):
                raise InvalidInput(
                    f"This compression is for {scales} x {width} channels; the encoder has {encoder.config.groups} x"
                    f" {encoder.channels // encoder.config.groups}: fit_compression(encoder, frames, components)"
                )

    @property
    def channels(self) -> int:
        """C, as it is observed."""
        if self.compression is None:
            return self.encoder.channels
        return int(self.compression.basis.shape[1] * self.compression.components)

    def shape(self, views: int, frame: Size) -> tuple[int, ...]:
        """What comes of the frames (V, H, W, 3) of one observation."""
        self._hold(views)
        height, width = self.encoder.grid_of(frame)
        shapes = {"map": (self.channels, height, width), "tokens": (height * width, self.channels)}
        return (views, *shapes.get(self.kind, (self.channels,)))

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[Any]:
        """Encode a batch, (B, V, H, W, 3) uint8 RGB, at one call of the encoder.

        Raises:
            InvalidInput: frames outside their contract, or numbers that `dtype` cannot hold.
        """
        found = self._found(frames).cpu().numpy()
        with np.errstate(over="ignore"):  # said below
            kept: NDArray[Any] = found.astype(self.dtype)
        if not np.isfinite(kept).all():
            raise InvalidInput(_not_finite(found, self.dtype))
        return kept

    def save(self, path: str | Path) -> None:
        """One safetensors file: a policy that learned from these features acts on no others. Keep it beside the policy.

        It names the encoder, with its fingerprint, and holds no weights of it.
        """
        from safetensors.torch import save_file

        about = {
            "kind": self.kind, "dtype": str(self.dtype),
            "encoder": encoder_said(self.encoder.config), "encoder_fingerprint": self.encoder.fingerprint,
        }  # fmt: skip
        tensors = {} if self.compression is None else self.compression.state_dict()
        with atomic(path) as temporary:
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, temporary, {"s2robot": json.dumps(about)})

    @classmethod
    def load(
        cls, path: str | Path, *, encoder: Encoder | None = None, device: str | torch.device | None = None
    ) -> FrameFeatures:
        """What `save` wrote; the encoder is made by its name and file, unless it is given.

        Raises:
            CheckpointMismatch: the encoder's weights or settings are others than when it was written.
            CorruptFile: not such a file.
        """
        kind, dtype, config, fingerprint, tensors = _read(path)
        encoder = encoder or config.build(device)
        if encoder.fingerprint != fingerprint:
            raise CheckpointMismatch(
                f"{path} was written with another encoder ({fingerprint[:16]}) than {encoder.config.name} is now"
                f" ({encoder.fingerprint[:16]}): its weights or settings changed"
            )
        return cls(encoder, kind, dtype, _restored(encoder, tensors) if tensors else None)

    @torch.no_grad()
    def of(self, seen: Features) -> Tensor:
        """What is observed of all that the encoder saw, (B, V, ...), before it is brought to `dtype`."""
        if self.compression is None:
            found: Tensor = getattr(seen, self.kind)
            return found
        maps = chosen_tokens(seen.map, seen.cls, self.kind)
        self._hold(maps.shape[1])
        compressed: Tensor = self.compression.to(maps.device)(maps)  # (B, V, C, h, w); encoders may be moved
        if self.kind == "cls":
            return compressed[..., 0, 0]
        return compressed.flatten(3).transpose(2, 3) if self.kind == "tokens" else compressed

    def _found(self, frames: NDArray[np.uint8]) -> Tensor:
        return self.of(self.encoder(frames))

    def _hold(self, views: int) -> None:
        if self.compression is not None and len(self.compression.basis) != views:
            raise InvalidInput(
                f"{views} views came, and the compression was fitted to {len(self.compression.basis)}: fit it to"
                " frames of the same cameras"
            )

    def __deepcopy__(self, _: Any) -> FrameFeatures:
        return self  # Gymnasium copies the arguments of wrappers; the weights stay where they are

    def __repr__(self) -> str:
        small = "" if self.compression is None else f", {self.compression.components} components a scale"
        return f"FrameFeatures({self.encoder.config.name}, {self.kind}, {self.dtype}{small})"


def fit_compression(encoder: Encoder, frames: NDArray[np.uint8], components: int, kind: str = "map") -> Compression:
    """Principal components of what the encoder sees in some frames, the policies' own (`s2robot.policies.neck`).

    Args:
        frames: (F, V, H, W, 3) uint8 of the cameras it is for: a hundred, of different moments, do.
        components: channels kept of each scale.
        kind: that of the `FrameFeatures` it is for.
    """
    if kind not in KINDS:
        raise UnknownName("kind of features", kind, KINDS)
    batch, width = check_frames(frames), encoder.channels // encoder.config.groups
    if not 1 <= components <= width:
        raise InvalidInput(f"components is {components}; this encoder has {width} channels a scale: 1 to {width}")
    seen = [encoder(part) for part in batch.split(FITTING_BATCH)]
    maps = torch.cat([chosen_tokens(part.map, part.cls, kind) for part in seen])
    if len(maps) * maps[0, 0, 0].numel() < 2:
        raise InvalidInput("One look is too few to find principal components in: give more frames")
    compression = _compression(encoder, maps.shape[1], components, (maps.shape[3], maps.shape[4]))
    compression.to(maps.device).fit(maps)
    return compression


def _compression(encoder: Encoder, views: int, components: int, grid: Size) -> Compression:
    groups = encoder.config.groups
    shapes = Shapes(views, groups, encoder.channels // groups, grid, proprioception=0, actions=0)
    return Compression(shapes, components)


def _read(path: str | Path) -> tuple[str, str, EncoderConfig, str, dict[str, Tensor]]:
    """Kind, dtype, encoder and its fingerprint, tensors of the compression."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["s2robot"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        config = EncoderConfig(**{**about["encoder"], "engine": "auto"})  # whichever this machine has
        return about["kind"], about["dtype"], config, about["encoder_fingerprint"], tensors
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CorruptFile(path, str(error), "It should be what FrameFeatures.save wrote") from error


def _restored(encoder: Encoder, tensors: dict[str, Tensor]) -> Compression:
    views, *_, components = tensors["basis"].shape
    compression = _compression(encoder, views, components, (1, 1))
    try:
        compression.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointMismatch(f"The compression does not fit {encoder.config.name}: {error}") from error
    return compression


def _not_finite(found: NDArray[Any], dtype: np.dtype[Any]) -> str:
    if np.isnan(found).any():
        return "The encoder's features hold NaN: its weights or the compression are damaged"
    return (
        f"Features reach {np.abs(found).max():.3g}, beyond what {dtype} holds ({np.finfo(dtype).max:.3g}):"
        " FrameFeatures(..., dtype='float32')"
    )
