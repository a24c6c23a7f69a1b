"""The frozen S2 encoder: camera frames in, multi-scale features out.

    frames uint8 -> one resize a scale, from the true frame -> tiles of all scales in one batch -> backbone
           -> merge tiles -> one grid -> concatenate scales on channels, coarse first

The numbers are `multiscale_forward`'s wherever its resize and ours agree. They differ on purpose elsewhere:
the reference makes small images without antialiasing and big ones from small ones; a camera has the pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from s2robot.backbones import Frozen, FrozenViT, ImageContract, load_backbone
from s2robot.errors import InvalidInput, S2RobotError
from s2robot.multiscale import average_tiles, merge_tiles, pool_to_grid, split_tiles
from s2robot.types import Features

GRIDS = ("base", "finest")

# Raise it with any change of `preprocess`, `resize_frames` or `assemble` that changes numbers: stored features
# carry it in their fingerprint, and must not be taken for the new ones.
PREPROCESSING_VERSION = 1


@dataclass(frozen=True)
class EncoderConfig:
    """All that decides an encoder's numbers, but for the bytes of a weights file.

    scales: image sizes as whole multiples of the backbone's input, coarse first. Whole, because every tile
        has the one size the backbone's position embedding was trained for.
    grid: "base" averages every scale into the coarsest one's token grid; "finest" keeps the finest one's.
    """

    name: str = "s2robot-tiny"
    scales: tuple[float, ...] = (1.0, 2.0)
    grid: str = "base"
    checkpoint: str | None = None
    random_weights: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        scales = tuple(float(scale) for scale in self.scales)
        if not scales or any(scale < 1 or scale != int(scale) for scale in scales):
            raise InvalidInput(
                f"Scales are {self.scales}; expected whole multiples of the backbone's input size, e.g. (1, 2)"
            )
        if list(scales) != sorted(set(scales)):
            raise InvalidInput(f"Scales are {self.scales}; expected each once, coarse first: {sorted(set(scales))}")
        if self.grid not in GRIDS:
            raise InvalidInput(f"Unknown grid {self.grid!r}. Known: {', '.join(GRIDS)}")
        object.__setattr__(self, "scales", scales)

    def build(self, device: str | torch.device | None = None) -> Encoder:
        where = _device(device)
        backbone = load_backbone(
            self.name, checkpoint=self.checkpoint, random_weights=self.random_weights, seed=self.seed
        )
        return Encoder(backbone, self).to(where)


def load_encoder(
    name: str = "s2robot-tiny",
    *,
    scales: tuple[float, ...] = (1.0, 2.0),
    grid: str = "base",
    checkpoint: str | Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Encoder:
    """Load a frozen encoder, ready to be called on frames.

    Args:
        name: one of `s2robot.list_encoders()`, or any timm ViT as "timm:<name>".
        scales: image sizes as whole multiples of the backbone's input, coarse first.
        grid: "base" (the coarsest scale's token grid) or "finest".
        checkpoint: a weights file; by default those that ship with s2robot, or timm's download.
        random_weights: an untrained network drawn from `seed`, as an honest baseline.
        device: CUDA when there is one, else the CPU.
    """
    file = None if checkpoint is None else str(checkpoint)
    return EncoderConfig(name, tuple(scales), grid, file, random_weights, seed).build(device)


class Encoder(Frozen):
    """A frozen backbone over several scales: callable on uint8 frames, gives `Features`.

    Frozen: always in eval mode, no gradient passes, and neither `.train()` nor `.requires_grad_()` changes
    that. It runs under `no_grad` rather than `inference_mode`, since inference tensors may not enter a later
    autograd graph and cloning them would cost a copy of every map; next to a ViT the two are equally fast.
    Autocast is off inside, so that features made in a mixed-precision training loop equal the stored ones.
    A frame's features do not depend on the batch it came in: to 1e-4 absolute in fp32, since a matrix product
    may sum in another order for another batch size.
    """

    mean: Tensor  # (3, 1, 1)
    std: Tensor  # (3, 1, 1)

    def __init__(self, backbone: FrozenViT, config: EncoderConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.contract: ImageContract = backbone.contract
        self.scales = config.scales
        self.grid = config.grid
        h, w = self.contract.grid_size
        factor = int(self.scales[-1] if self.grid == "finest" else self.scales[0])
        self.grid_size = (factor * h, factor * w)
        self.channels = self.contract.width * len(self.scales)  # D*S
        self._fingerprint: str | None = None
        mean, std = torch.tensor(self.contract.mean), torch.tensor(self.contract.std)
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)
        self.register_load_state_dict_post_hook(_forget_fingerprint)  # type: ignore[no-untyped-call]
        self.freeze()

    def forward(self, frames: NDArray[np.uint8] | Tensor) -> Features:
        """Encode uint8 RGB frames: (B, V, H, W, 3), (B, H, W, 3) with V=1, or (H, W, 3) with B=V=1."""
        batch = check_frames(frames).to(self.device)  # (B, V, H, W, 3)
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                prefix, grid = self.backbone(self.preprocess(batch))
                return self.assemble(prefix, grid, batch.shape[0], batch.shape[1])
        except torch.cuda.OutOfMemoryError as error:
            raise S2RobotError(_out_of_memory(batch, self)) from error

    def preprocess(self, frames: Tensor) -> Tensor:
        """(B, V, H, W, 3) uint8 -> (T*B*V, 3, P, P), normalised: every scale's tiles, coarse first."""
        images = frames.flatten(0, 1).permute(0, 3, 1, 2).float()  # (B*V, 3, H, W)
        tiles: list[Tensor] = []
        for scale in self.scales:
            resized = resize_frames(images, int(scale) * self.contract.size, self.contract)
            tiles.append(split_tiles((resized / 255 - self.mean) / self.std, self.contract.size))
        return torch.cat(tiles).to(self.dtype)

    def assemble(self, prefix: Tensor, grid: Tensor, batch: int, views: int) -> Features:
        """Merge the backbone's answer for `preprocess`'s tiles: (T*B*V, K, D) and (T*B*V, D, h, w)."""
        if not self.contract.class_token:  # such a ViT was trained to be averaged, so that is its summary
            prefix = grid.mean(dim=(2, 3))[:, None]
        maps: list[Tensor] = []
        summaries: list[Tensor] = []
        start = 0
        for side in map(int, self.scales):
            end = start + side * side * batch * views
            merged = merge_tiles(grid[start:end], side, side)  # (B*V, D, side*h, side*w)
            maps.append(pool_to_grid(merged, self.grid_size))
            summaries.append(average_tiles(prefix[start:end, :1], side * side)[:, 0])  # registers are scratch paper
            start = end
        features = torch.cat(maps, dim=1).unflatten(0, (batch, views)).float()  # (B, V, D*S, h, w)
        summary = torch.cat(summaries, dim=1).unflatten(0, (batch, views)).float()  # (B, V, D*S)
        return Features(map=features, tokens=features.flatten(3).transpose(2, 3), cls=summary)

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the backbone computes in; features are float32 in any case."""
        return next(self.backbone.parameters()).dtype

    @property
    def fingerprint(self) -> str:
        """sha256 over everything that decides the features: the key of whatever is stored of them.

        The same weights from another file, or on another device, have the same fingerprint.
        """
        if self._fingerprint is None:
            self._fingerprint = _fingerprint(self)
        return self._fingerprint

    def _apply(self, fn: Any, recurse: bool = True) -> Encoder:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._fingerprint = None  # .to(), .half() and their kin may have changed the weights
        return self


def check_frames(frames: NDArray[np.uint8] | Tensor) -> Tensor:
    """Hold frames against their contract and give them both axes: (B, V, H, W, 3) uint8."""
    if isinstance(frames, np.ndarray):
        shape, dtype = frames.shape, str(frames.dtype)
    elif isinstance(frames, Tensor):
        shape, dtype = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
    else:
        raise InvalidInput(f"Frames are a {type(frames).__name__}; expected a uint8 array. Try numpy.asarray(frames)")
    came = f"Frames are {dtype} {shape}"
    if len(shape) not in (3, 4, 5):
        raise InvalidInput(f"{came}; expected (B, V, H, W, 3), (B, H, W, 3) or (H, W, 3)")
    if shape[-1] != 3:
        raise InvalidInput(f"{came}; expected RGB in the last axis. {_channel_mistake(shape)}")
    if 0 in shape:
        raise InvalidInput(f"{came}: an empty batch. Give at least one frame")
    if dtype != "uint8":
        raise InvalidInput(f"{came}; expected uint8 in [0, 255]. {_dtype_mistake(dtype)}")
    if shape[-3] != shape[-2]:
        raise InvalidInput(
            f"{came}: {shape[-3]} rows by {shape[-2]} columns, and only square frames are taken. Crop, e.g. the "
            f"centre: {_centre_crop(shape[-3], shape[-2])}"
        )
    if isinstance(frames, np.ndarray):  # torch takes neither mirrored views nor, without a warning, read-only ones
        frames = torch.from_numpy(np.require(frames, requirements=["C", "W"]))
    return frames.reshape(*(1,) * (5 - len(shape)), *shape) if len(shape) != 4 else frames[:, None]


def resize_frames(images: Tensor, size: int, contract: ImageContract) -> Tensor:
    """Bring square images in [0, 255] to `size`, from the true frame and never twice.

    The result stays in [0, 255]: bicubic overshoots at edges, and no backbone was trained on such pixels.

    Args:
        images: (B, 3, H, H) float
    """
    side = images.shape[-1]
    if side == size:
        return images
    if side > size and side % size == 0 and contract.interpolation == "area":
        return F.avg_pool2d(images, side // size)
    mode = "bilinear" if contract.interpolation == "bilinear" else "bicubic"
    smooth = contract.antialias and side > size
    return F.interpolate(images, size=(size, size), mode=mode, antialias=smooth).clamp(0, 255)


def _channel_mistake(shape: tuple[int, ...]) -> str:
    if shape[-3] == 3:
        return "The colours seem to come first: move them with numpy.moveaxis(frames, -3, -1)"
    if shape[-1] == 4:
        return "The fourth channel seems to be alpha: drop it with frames[..., :3]"
    if shape[-1] == 1:
        return "One channel seems to be grey: repeat it with numpy.repeat(frames, 3, axis=-1)"
    return "If they are grey without a colour axis: numpy.stack([frames] * 3, axis=-1)"


def _dtype_mistake(dtype: str) -> str:
    if "float" in dtype:
        return "If they are in [0, 1]: (frames * 255).round().astype('uint8'); do not normalise, the encoder does"
    return "If the values are in [0, 255]: frames.astype('uint8')"


def _centre_crop(height: int, width: int) -> str:
    side, cut = min(height, width), abs(height - width) // 2
    rows, cols = (f"{cut}:{cut + side}", ":") if height > width else (":", f"{cut}:{cut + side}")
    return f"frames[..., {rows}, {cols}, :]"


def _out_of_memory(frames: Tensor, encoder: Encoder) -> str:
    batch, views = frames.shape[:2]
    tiles = sum(int(scale) ** 2 for scale in encoder.scales) * batch * views
    return (
        f"The GPU ran out of memory on {batch} x {views} frames at scales {encoder.scales}: {tiles} tiles of "
        f"{encoder.contract.size} px in one batch. Encode fewer at once, e.g. frames[:{max(1, batch // 2)}], or drop "
        f"the largest scale, or load_encoder(..., device='cpu')"
    )


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InvalidInput(f"Unknown device {device!r}. Try 'cpu', 'cuda' or 'cuda:1'") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InvalidInput(
            f"Device {str(device)!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices. Try "
            f"device='cpu', or leave it out"
        )
    return chosen


def _forget_fingerprint(encoder: Encoder, _: Any) -> None:
    """After `load_state_dict` the weights are others. A function, not a lambda: encoders can be pickled."""
    encoder._fingerprint = None


def _fingerprint(encoder: Encoder) -> str:
    identity = {
        "version": PREPROCESSING_VERSION,
        "architecture": encoder.backbone.name,  # activations and norms have no weights, yet make features
        "contract": dataclasses.asdict(encoder.contract),
        "scales": encoder.scales,
        "grid": encoder.grid,
        "dtype": str(encoder.dtype),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for key, value in sorted(encoder.backbone.model.state_dict().items()):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
