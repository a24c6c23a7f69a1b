"""The recipe of a pre-training run: every number that decides the weights, checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from s2robot import files, registry
from s2robot.errors import InvalidInput, S2RobotError, UnknownName

# What a run leaves that another recipe must not go on from.
RESULTS = ("state.pt", "frames.npy", "frames.parts", "source.txt")
CHOICES = {
    "objective": ("views", "merged"),
    "target": ("raw", "normalised"),
    "precision": ("fp32", "bf16"),
    "square": ("random", "centre"),
}
# How a run is carried out, not what it computes: these may change when it is resumed. The weights are the same to
# rounding; to the bit where none of these, the machine and the number of processes are the same.
FREE = ("workers", "device", "threads", "accumulate", "checkpoint_every")


@dataclass(frozen=True)
class PretrainConfig:
    """The recipe. That of the shipped `s2robot-tiny` is configs/pretrain-tiny.yaml."""

    name: str = "encoder"  # of the weights file
    # frames
    source: str = ""  # a folder or file to read, see s2robot.footage; none: scenes are rendered
    scenes: str = "lift"  # kind of scenes to render
    frames: int = 12_000  # so many; of a source, at most so many; of an X.npy, so many to train on
    every: int = 5  # of videos and demonstrations, take every n-th frame
    square: str = "random"  # of frames that are not square: a "random" one or the one at the "centre"
    frame_size: int = 256  # pixels: the largest scale the encoder will look at
    # the encoder
    init: str = ""  # weights to begin with: a file of ours, or s2robot-tiny; none: drawn from the seed
    image_size: int = 128  # its base size P
    patch: int = 16
    width: int = 192
    depth: int = 6
    heads: int = 3
    scales: tuple[int, ...] = (1, 2)  # it will be used at
    # what it learns
    objective: str = "views"  # "views": each view on its own; "merged": features of all scales together
    target: str = "raw"  # pixels; "normalised": each patch by its own mean and deviation
    mask_ratio: float = 0.75
    decoder_width: int = 128
    decoder_depth: int = 2
    # views, in these proportions; "merged" takes whole frames only
    whole_share: float = 0.4  # whole frames at base size
    tile_share: float = 0.4  # one tile of a larger scale
    crop_share: float = 0.2  # a square the size of the finest tile, anywhere
    resized_share: float = 0.0  # a square of any size from the base size up (steps of 8), brought to it
    flip: bool = False  # mirror every other view
    # optimisation
    batch: int = 64  # views (or frames, when merged) a step, over all processes
    accumulate: int = 1  # parts a process computes its share in, one after another, to spare memory
    steps: int = 6_000
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: float = 0.05  # share of the steps
    clip: float = 1.0  # largest norm of the gradient; 0: no limit
    ema: float = 0.999  # decay of the average of the weights that is exported; 0: the last weights
    precision: str = "fp32"  # "bf16": autocast
    seed: int = 0
    # how it is carried out
    device: str = "auto"
    threads: int = 0  # torch threads; 0 leaves torch's own choice
    workers: int = 0  # processes that render; 0 takes every core
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        for name, known in {"scenes": tuple(registry.SCENES), **CHOICES}.items():
            if getattr(self, name) not in known:
                raise UnknownName(name, str(getattr(self, name)), known)
        _check_numbers(self)
        _check_sizes(self)

    @property
    def grid(self) -> int:
        """Patches along a side of a view."""
        return self.image_size // self.patch


def keep_recipe(config: PretrainConfig, out: Path) -> None:
    """Write recipe.json into a run folder, or hold this recipe against the one that is there once it has results."""
    path = out / "recipe.json"
    if path.exists() and any((out / name).exists() for name in RESULTS):
        check_same(config, files.read_json(path), out)
    else:
        files.write_json(path, asdict(config))


def check_same(config: PretrainConfig, before: Mapping[str, Any], out: Path) -> None:
    """Refuse to go on with another recipe than the one a run began with.

    An option that `before` does not know had its default then.
    """
    was = {field.name: before.get(field.name, files.plain(field.default)) for field in fields(config)}
    now = files.plain(asdict(config))
    changed = [f"{key} {was[key]!r} -> {now[key]!r}" for key in was if key not in FREE and was[key] != now[key]]
    if changed:
        raise S2RobotError(
            f"{out} holds a run with another recipe ({', '.join(changed)}). Choose another --out, or delete it"
        )


def _check_numbers(config: PretrainConfig) -> None:
    counts = ("frames", "every", "frame_size", "image_size", "patch", "width", "depth", "heads", "decoder_width")
    for name in (*counts, "decoder_depth", "batch", "accumulate", "steps", "checkpoint_every"):
        if getattr(config, name) < 1:
            raise InvalidInput(f"--{name} is {getattr(config, name)}; expected at least 1")
    if config.frames < 2:
        raise InvalidInput(f"--frames is {config.frames}; expected 2 or more: some are held out")
    shares = (config.whole_share, config.tile_share, config.crop_share, config.resized_share)
    if min(shares) < 0 or sum(shares) <= 0:
        raise InvalidInput(f"The shares of views are {shares}; expected none below 0 and one above")
    if not 0 < config.mask_ratio < 1:
        raise InvalidInput(f"--mask_ratio is {config.mask_ratio}; expected more than 0 and less than 1, e.g. 0.75")
    if not (config.lr > 0 and config.clip >= 0 and config.seed >= 0 and 0 <= config.warmup < 1):
        given = f"--lr {config.lr}, --clip {config.clip}, --seed {config.seed}, --warmup {config.warmup}"
        raise InvalidInput(f"{given}; expected a rate above 0, a norm or 0 for none, 0 or more, and a share below 1")
    if not 0 <= config.ema < 1:
        raise InvalidInput(f"--ema is {config.ema}; expected 0 (none) or a decay below 1, e.g. 0.999")
    if config.batch % config.accumulate:
        raise InvalidInput(f"--batch {config.batch} does not divide into --accumulate {config.accumulate} equal parts")


def _check_sizes(config: PretrainConfig) -> None:
    scales, side, base = config.scales, config.frame_size, config.image_size
    if not scales or scales[0] != 1 or list(scales) != sorted(set(scales)):
        raise InvalidInput(f"--scales is {scales}; expected whole multiples of the base size, 1 first, e.g. 1,2")
    if base % config.patch:
        raise InvalidInput(f"--image_size {base} is not a multiple of --patch {config.patch}")
    if side < base * scales[-1] or any(side % scale for scale in scales):
        wanted = math.lcm(base * scales[-1], *scales)
        raise InvalidInput(
            f"--frame_size {side} cannot be cut into tiles for scales {scales} of {base} px: expected at least "
            f"{base * scales[-1]} and a multiple of each scale, e.g. {wanted}"
        )
    if config.width % config.heads or config.width % 4 or config.decoder_width % 4:
        raise InvalidInput(
            f"--width {config.width} must be a multiple of --heads {config.heads} and of 4, --decoder_width "
            f"{config.decoder_width} of 4"
        )
    if config.objective == "merged":
        blocks = math.lcm(*scales)  # along a side; see s2robot.mae_merged
        if config.grid % blocks or not _hides_some((config.grid // blocks) ** 2, config.mask_ratio):
            raise InvalidInput(
                f"The merged objective cuts the {config.grid}x{config.grid} patches of a frame into {blocks}x{blocks} "
                f"blocks, each with visible and hidden ones (--mask_ratio {config.mask_ratio}). Choose --image_size "
                f"and --patch so that this divides, e.g. --image_size {config.patch * 4 * blocks}"
            )
    elif not _hides_some(config.grid**2, config.mask_ratio):
        raise InvalidInput(f"--mask_ratio {config.mask_ratio} hides all {config.grid**2} patches, or none; change it")


def _hides_some(patches: int, ratio: float) -> bool:
    """Not all, and not none, of which there would be no loss."""
    return 0 < round(patches * (1 - ratio)) < patches
