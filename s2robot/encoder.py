"""The frozen S2 encoder: camera frames in, multi-scale features out.

    frames uint8 -> one resize a scale, from the true frame -> tiles of all scales in one batch -> backbone
           -> merge tiles -> one grid -> fuse scales on channels, coarse first

The numbers are `multiscale_forward`'s wherever its resize and ours agree. They differ on purpose elsewhere:
the reference makes small images without antialiasing and big ones from small ones; a camera has the pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot import engines, threads
from s2robot.backbones import Frozen, FrozenViT, ImageContract, load_backbone
from s2robot.errors import InvalidInput, S2RobotError
from s2robot.memory import TileMemory
from s2robot.multiscale import average_tiles, merge_tiles, pool_to_grid, random_projection
from s2robot.preprocess import check_frames, cut_tiles
from s2robot.scales import FITS, Plan, Size, ascending, check_tile, is_count, make_plan, sizes_of
from s2robot.stream import Stream
from s2robot.types import Features

GRIDS = {"base": 0, "finest": -1}
FUSIONS = ("concat", "sum", "project")

# Raise it with any change of preprocessing or assembly that changes numbers: stored features carry it in their
# fingerprint, and must not be taken for the new ones.
PREPROCESSING_VERSION = 2

_log = logging.getLogger(__name__)
_making = threading.Lock()  # of runners: nothing that traces or compiles a model is made for two threads at once


@dataclass(frozen=True)
class EncoderConfig:
    """All that decides an encoder's numbers, but for the bytes of a weights file.

    scales: image sizes as multiples of the backbone's own input size, coarse first.
    sizes: image sizes in pixels instead, coarse first, e.g. (224, 448) for a DINOv2 trained at 518.
        They go before scales.
    tile: the largest tile [pixels]; default: the backbone's input size with `scales`, the smallest of `sizes`.
    grid: whose token grid features have: "base", "finest" or a scale's index; others are averaged into it or repeated.
    fusion: how scales become channels. "concat" as in the paper; "sum"; "project": concatenated, then a fixed random
        projection drawn from `seed` to `width` channels, to compare encoders at equal width.
    fit: what happens to frames that are not square: "whole", "crop" or "pad", see `s2robot.scales`.
    engine, precision: who computes, see `s2robot.engines`.
    """

    name: str = "s2robot-tiny"
    scales: tuple[float, ...] = (1.0, 2.0)
    sizes: tuple[int, ...] = ()
    tile: int | None = None
    grid: str = "base"
    fusion: str = "concat"
    width: int | None = None
    fit: str = "whole"
    checkpoint: str | None = None
    random_weights: bool = False
    seed: int = 0
    engine: str = "auto"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", ascending("scales", self.scales, float))
        object.__setattr__(self, "sizes", ascending("sizes", self.sizes, int))
        if not self.scales and not self.sizes:
            raise InvalidInput("Neither scales nor sizes was given. Try scales=(1, 2)")
        if type(self.random_weights).__name__ not in ("bool", "bool_"):  # numpy's too
            raise InvalidInput(f"random_weights is {self.random_weights!r}; expected True or False")
        object.__setattr__(self, "grid", str(self.grid))
        count = len(self.sizes or self.scales)
        if self.grid not in GRIDS and self.grid not in map(str, range(-count, count)):
            raise InvalidInput(f"Unknown grid {self.grid!r}. Known: {', '.join(GRIDS)}, or 0 to {count - 1}")
        if self.fusion not in FUSIONS:
            raise InvalidInput(f"Unknown fusion {self.fusion!r}. Known: {', '.join(FUSIONS)}")
        if not (is_count(self.width) if self.fusion == "project" else self.width is None):
            raise InvalidInput(f"width={self.width!r} with fusion={self.fusion!r}: 'project' takes a width, no other")
        check_tile(self.tile)
        if not (self.seed == 0 or is_count(self.seed)):
            raise InvalidInput(f"seed is {self.seed!r}; expected a whole number from 0 on")
        if self.fit not in FITS:
            raise InvalidInput(f"Unknown fit {self.fit!r}. Known: {', '.join(FITS)}")
        for name in ("tile", "width", "seed"):
            object.__setattr__(self, name, getattr(self, name) and int(getattr(self, name)))  # numpy's are no JSON

    @property
    def scale_names(self) -> tuple[str, ...]:
        """What to call each scale."""
        return tuple(f"{size} px" for size in self.sizes) or tuple(f"scale {scale:g}" for scale in self.scales)

    @property
    def groups(self) -> int:
        """Scales that stand side by side on the channel axis."""
        return len(self.scale_names) if self.fusion == "concat" else 1

    def build(self, device: str | torch.device | None = None) -> Encoder:
        where = engines.find_device(device)
        engines.pick(self.engine, self.precision, where)  # a wrong one is said before weights are read
        backbone = load_backbone(
            self.name, checkpoint=self.checkpoint, random_weights=self.random_weights, seed=self.seed
        )
        encoder = Encoder(backbone, self).to(where)
        _log.info("%s: %s", self.name, encoder.engine)
        return encoder


def load_encoder(  # noqa: PLR0913 - the front door: every field of EncoderConfig by its name
    name: str = "s2robot-tiny",
    *,
    scales: tuple[float, ...] = (1.0, 2.0),
    sizes: tuple[int, ...] = (),
    tile: int | None = None,
    grid: str | int = "base",
    fusion: str = "concat",
    width: int | None = None,
    fit: str = "whole",
    checkpoint: str | Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
    engine: str = "auto",
    precision: str = "fp32",
    device: str | torch.device | None = None,
) -> Encoder:
    """Load a frozen encoder, ready to be called on frames.

    Args:
        name: one of `s2robot.list_encoders()`, or any timm ViT as "timm:<name>".
        scales: image sizes as multiples of the backbone's input, coarse first.
        sizes: image sizes in pixels instead, e.g. (224, 448).
        tile: the largest tile [pixels].
        grid: "base" (the coarsest scale's token grid), "finest", or a scale's index.
        fusion, width: "concat", "sum", or "project" to `width` channels.
        fit: frames that are not square: "whole" (tiles of their shape), "crop", "pad".
        checkpoint: a weights file; by default those that ship with s2robot, or timm's download.
        random_weights: an untrained network drawn from `seed`, as an honest baseline.
        engine: "auto" (the fastest installed for this device), "torch", "onnxruntime", "openvino", "inductor".
        precision: "fp32"; "bf16" or "fp16" (autocast) on CUDA; "int8" on a CPU.
        device: CUDA when there is one, else the CPU.

    What was picked: `print(encoder.engine)`.
    """
    if not isinstance(name, str):
        raise InvalidInput(f"name is a {type(name).__name__}; expected a str. An EncoderConfig makes one by build()")
    if random_weights:
        _log.warning("%s has random weights (random_weights=True): a baseline, not a trained encoder", name)
    config = EncoderConfig(
        name, scales, sizes, tile, str(grid), fusion, width, fit,
        None if checkpoint is None else str(checkpoint), random_weights, seed, engine, precision,
    )  # fmt: skip
    if config.sizes and config.scales not in ((), (1, 2)):  # the default is nobody's wish
        raise InvalidInput(f"Both scales {config.scales} and sizes {config.sizes} were given: leave one out")
    return config.build(device)


class Encoder(Frozen):
    """A frozen backbone over several scales: callable on uint8 frames, gives `Features`.

    Frozen: always in eval mode, no gradient passes, and neither `.train()` nor `.requires_grad_()` changes
    that. It runs under `no_grad` rather than `inference_mode`, since inference tensors may not enter a later
    autograd graph and cloning them would cost a copy of every map; next to a ViT the two are equally fast.
    A frame's features do not depend on the batch it came in: to 1e-4 absolute in fp32, since a matrix product
    may sum in another order for another batch size.
    """

    mean: Tensor  # (3, 1, 1)
    std: Tensor  # (3, 1, 1)
    projection: Tensor  # (D*S, width), or (0, 0) without one
    _generation: int  # the backbone's, when what follows was made of it
    _fingerprint: str | None
    _engine: engines.Engine | None
    _runners: dict[tuple[Size, int], engines.Runner]  # by tile size and threads

    def __init__(self, backbone: FrozenViT, config: EncoderConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.contract: ImageContract = backbone.contract
        size = self.contract.size
        self.sizes = config.sizes or sizes_of(config.scales, size)
        default = min(self.sizes) if config.sizes else size
        self.largest_tile = default if config.tile is None else config.tile
        self.target = GRIDS[config.grid] if config.grid in GRIDS else int(config.grid)
        square = self.plan((size, size))  # sizes that do not divide are said now, not with the first frame
        self.grid_size = square.scales[self.target].grid(self.contract.patch)  # of square frames
        self.channels = config.width or self.contract.width * config.groups
        for name, value in self._constants().items():
            self.register_buffer(name, value, persistent=False)
        self._forget()
        self.freeze()

    def forward(self, frames: NDArray[np.uint8] | Tensor) -> Features:
        """Encode uint8 RGB frames: (B, V, H, W, 3), (B, H, W, 3) with V=1, or (H, W, 3) with B=V=1."""
        batch = check_frames(frames)  # (B, V, H, W, 3)
        plan = self.plan((batch.shape[2], batch.shape[3]))
        try:
            with self.computing():
                return self.assemble(self.run(self.cut(batch, plan)), plan, batch.shape[0], batch.shape[1])
        except torch.cuda.OutOfMemoryError as error:
            raise S2RobotError(_out_of_memory(batch, plan, self)) from error

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Around all that makes features: no gradient, no autocast of the caller's, no threads in the engine's way."""
        alone = threads.one_thread() if self.engine.name in ("onnxruntime", "openvino") else contextlib.nullcontext()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), alone:
            yield

    def plan(self, frame: Size) -> Plan:
        """How frames of (H, W) are looked at."""
        return _plan(frame, self.sizes, self.largest_tile, self.contract.patch, self.config.fit)

    def grid_of(self, frame: Size) -> Size:
        """The token grid (h, w) of the features of frames of (H, W); `grid_size` for square ones."""
        return self.plan(frame).scales[self.target].grid(self.contract.patch)

    def cut(self, frames: Tensor, plan: Plan, wanted: Sequence[Sequence[int]] | None = None) -> list[Tensor]:
        """Checked frames to the tiles of every scale, on the device; of the `wanted` rows alone, if given."""
        return cut_tiles(self.upload(frames), plan, self.contract, self.mean, self.std, wanted)

    def upload(self, frames: Tensor) -> Tensor:
        """uint8 to the device: a quarter of the bytes of floats, and without waiting where there is a GPU."""
        away = self.device.type == "cuda" and not frames.is_cuda
        return (frames.pin_memory() if away else frames).to(self.device, non_blocking=away)

    def run(self, tiles: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The backbone over (n, 3, h, w) of every scale: prefix (n, K, D) and grid (n, D, h, w) of each."""
        return run_tiles(tiles, lambda size, batch: self._runner(size)(batch.to(self.dtype)))

    def assemble(
        self,
        answers: list[tuple[Tensor, Tensor]],
        plan: Plan,
        batch: int,
        views: int,
        pool: Callable[[Tensor, Size], Tensor] = pool_to_grid,
    ) -> Features:
        """Merge the backbone's answers for every scale's tiles, (T*B*V, K, D) and (T*B*V, D, h, w)."""
        maps: list[Tensor] = []  # one scale each, (B*V, D, h, w)
        summaries: list[Tensor] = []  # one scale each, (B*V, D)
        target = plan.scales[self.target].grid(self.contract.patch)
        for scale, (prefix, grid) in zip(plan.scales, answers, strict=True):
            # A ViT without a CLS was trained to be averaged, so that is its summary. Registers are scratch paper.
            summary = prefix[:, :1] if self.contract.class_token else grid.mean(dim=(2, 3))[:, None]
            maps.append(pool(merge_tiles(grid, scale.rows, scale.cols), target))
            summaries.append(average_tiles(summary, scale.tiles)[:, 0])
        features = self._fuse(maps).unflatten(0, (batch, views))  # (B, V, C, h, w)
        summary = self._fuse(summaries).unflatten(0, (batch, views))  # (B, V, C)
        return Features(map=features, tokens=features.flatten(3).transpose(2, 3), cls=summary)

    def stream(self, camera: str, tolerance: float = 0.0) -> Stream:
        """The live feed of one camera: tiles that did not change are not encoded again. See `s2robot.stream`."""
        return Stream(self, camera, tolerance)

    def memory(self) -> TileMemory:
        """This encoder for recordings: on a CPU no tile is encoded twice. See `s2robot.memory`."""
        return TileMemory(self)

    @property
    def engine(self) -> engines.Engine:
        """Who computes: what `config.engine` and `config.precision` come to on this device."""
        self._follow()
        if self._engine is None:
            config, own = self.config, self.backbone.is_own_code
            self._engine = engines.pick(config.engine, config.precision, self.device, self.dtype, is_own_code=own)
        return self._engine

    def extra_repr(self) -> str:
        config = self.config
        return f"{config.name} at {', '.join(config.scale_names)}: {self._engine or config.engine}"

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are in; features are float32 in any case."""
        return next(self.backbone.parameters()).dtype

    @property
    def fingerprint(self) -> str:
        """sha256 over everything that decides the features: the key of whatever is stored of them.

        The same weights from another file, on another device or under another engine have the same fingerprint;
        another precision has another.
        """
        self._follow()
        if self._fingerprint is None:
            self._fingerprint = _fingerprint(self)
        return self._fingerprint

    def _fuse(self, parts: list[Tensor]) -> Tensor:
        """Scales (n, D, ...) to (n, C, ...) float32."""
        if self.config.fusion == "sum":
            return torch.stack(parts).sum(dim=0).float()
        stacked = torch.cat(parts, dim=1).float()  # (n, D*S, ...)
        if self.config.fusion == "project":
            return torch.einsum("nd...,dc->nc...", stacked, self.projection.float())
        return stacked

    def _runner(self, tile: Size) -> engines.Runner:
        key, runners = (tile, threads.usual()), self._runners
        if key not in runners:
            with _making:
                if key not in runners:  # another thread may have been first
                    runners[key] = self.engine.runner(self.backbone.at(tile))
        return runners[key]

    def _follow(self) -> None:
        """Notice weights that changed behind our back: another encoder may share the backbone, or a caller hold it."""
        if self._generation != self.backbone.generation:
            self._forget()

    def _forget(self) -> None:
        """Drop what was derived from the weights: they have changed, or moved."""
        self._generation = self.backbone.generation
        self._fingerprint = None
        self._engine = None
        self._runners = {}

    def _apply(self, fn: Any, recurse: bool = True) -> Encoder:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in self._constants().items():  # anew: .half().float() would leave them rounded
            setattr(self, name, value.to(self.device, self.dtype))
        self._forget()
        return self

    def _constants(self) -> dict[str, Tensor]:
        found = {name: torch.tensor(getattr(self.contract, name)).view(3, 1, 1) for name in ("mean", "std")}
        stacked = self.contract.width * len(self.sizes)
        return {**found, "projection": random_projection(stacked, self.config.width or 0, self.config.seed)}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_runners": {}, "_engine": None}  # sessions of an engine stay in their process


def run_tiles(
    tiles: list[Tensor], forward: Callable[[Size, Tensor], tuple[Tensor, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Tiles of one size make one batch, whatever their scale; answers come back scale by scale."""
    answers: dict[int, tuple[Tensor, Tensor]] = {}
    for size in dict.fromkeys((part.shape[-2], part.shape[-1]) for part in tiles):
        same = [k for k, part in enumerate(tiles) if part.shape[-2:] == size]
        prefix, grid = forward(size, torch.cat([tiles[k] for k in same]))
        counts = [tiles[k].shape[0] for k in same]  # not len(): exporters follow shapes
        answers |= dict(zip(same, zip(prefix.split(counts), grid.split(counts), strict=True), strict=True))
    return [answers[k] for k in range(len(tiles))]


@functools.lru_cache(maxsize=64)
def _plan(frame: Size, sizes: tuple[int, ...], largest_tile: int, patch: int, fit: str) -> Plan:
    return make_plan(frame, sizes, largest_tile, patch, fit)


def _out_of_memory(frames: Tensor, plan: Plan, encoder: Encoder) -> str:
    batch, views = frames.shape[:2]
    return (
        f"The GPU ran out of memory on {batch} x {views} frames at sizes {encoder.sizes} px: "
        f"{plan.tiles * batch * views} tiles of {plan.scales[0].tile[0]} px in one batch. Encode fewer at once, e.g. "
        f"frames[:{max(1, batch // 2)}], or drop the largest scale, or load_encoder(..., device='cpu')"
    )


def _fingerprint(encoder: Encoder) -> str:
    identity = {
        "version": PREPROCESSING_VERSION,
        "architecture": encoder.backbone.identity,  # activations and norms have no weights, yet make features
        "contract": dataclasses.asdict(encoder.contract),
        "sizes": encoder.sizes,
        "tile": encoder.largest_tile,
        "grid": encoder.target % len(encoder.sizes),
        "fusion": [encoder.config.fusion, encoder.config.width, encoder.config.width and encoder.config.seed],
        "fit": encoder.config.fit,
        "dtype": str(encoder.dtype),
        "precision": encoder.config.precision,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for key, value in sorted(encoder.backbone.weights().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
