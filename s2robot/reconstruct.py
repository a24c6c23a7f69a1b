"""How much of a larger model's features a smaller one holds, with one scale and with several.

Shi et al. 2024, section 4.3: features of model A are mapped linearly to those of a larger model B on the same images.
What they explain is I = -log(l / l0); the ratio is I over the same of a still larger model of the family, the bound.
Fitted on training frames, scored on others: the first ones, which are of other clips, but for one that
may be cut. The paper's map was learned by steps; here it is the least-squares one, which is where steps lead.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot import bootstrap, clips, footage, locks, machine
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.errors import InvalidInput
from s2robot.linear_map import Array, TokenSums, errors, information
from s2robot.multiscale import pool_to_grid
from s2robot.probe_subjects import parse_subject
from s2robot.progress import Report
from s2robot.recipe import PretrainConfig

BATCH = 8  # frames
GATHERED = ("frames", "frame_size", "every", "seed")  # with the source, what decides which frames there are


@dataclass(frozen=True)
class ReconstructConfig:
    """Which models, on which frames.

    small, large, bound: as `s2robot probe --encoders` names them; scales are the small one's.
    source: a folder of images, videos and demonstrations, one of these, or the frames.npy of a pre-training run.
    """

    small: str = "s2robot-tiny"
    large: str = ""
    bound: str = ""  # a still larger model; none: no ratio
    source: str = ""
    scales: tuple[float, ...] = (1.0, 2.0)
    frames: int = 2000
    frame_size: int = 256  # pixels, of the square taken from each frame
    every: int = 5  # of videos and demonstrations, take every n-th frame
    test: float = 0.2  # share of the frames that score
    engine: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.large or not self.source:
            raise InvalidInput("Give --large ENCODER, whose features are to be explained, and --source FRAMES")
        if self.frames < 20 or not 0 < self.test < 1:
            raise InvalidInput(f"frames is {self.frames}, test {self.test}; expected 20 or more, and a share of them")


def reconstruct(config: ReconstructConfig, out: Path, told: Report) -> dict[str, Any]:
    """Fit and score; returns what reconstruct.json says.

    rows: of the small model at one scale, with all (S2), and of the bound: loss, information and ratio on training
        and test frames, the test ones with a 95 % interval over frames.
    """
    target = _encoder(config.large, (1.0,), config)  # what is not there is said before frames are gathered
    models = {f"{config.small}": _encoder(config.small, config.scales[:1], config)}
    if len(config.scales) > 1:
        models[f"{config.small}, S2"] = _encoder(config.small, config.scales, config)
    models |= {f"{config.bound}, bound": _encoder(config.bound, (1.0,), config)} if config.bound else {}
    frames, held_out = _frames(config, out, told)
    sums = {name: TokenSums(model.channels, target.channels) for name, model in models.items()}
    for inputs, outputs in _features(models, target, frames[held_out:], told, "fit"):
        for name, tokens in inputs.items():
            sums[name].add(tokens.reshape(-1, tokens.shape[-1]), outputs.reshape(-1, outputs.shape[-1]))
    maps = {name: each.solve() for name, each in sums.items()}
    scored = _score(models, target, frames[:held_out], maps, next(iter(sums.values())).constant(), told)
    rows = [_row(name, models[name], sums[name], maps[name], scored[name], scored["nothing"]) for name in models]
    if config.bound:
        _ratios(rows, scored)
    return {
        "config": dataclasses.asdict(config),
        "frames": {"train": len(frames) - held_out, "test": held_out},
        "target": {"name": config.large, "parameters": _parameters(target), "channels": target.channels},
        "rows": rows,
        **machine.provenance(),
    }


def _frames(config: ReconstructConfig, out: Path, told: Report) -> tuple[NDArray[np.uint8], int]:
    """Frames (n, H, H, 3), and how many of the first are for scoring."""
    recipe = PretrainConfig(source=config.source, frames=config.frames, frame_size=config.frame_size,
                            every=config.every, seed=config.seed, scales=(1,), image_size=config.frame_size,
                            patch=1)  # fmt: skip
    asked = repr((Path(config.source).absolute(), *(getattr(recipe, name) for name in GATHERED), _files(config)))
    folder = out / f"frames-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"  # of other frames: another
    with locks.alone(folder.with_name(f".{folder.name}.lock"), str(folder), wait=True):
        frames = footage.gather(recipe, folder, told).frames[: config.frames]
    if len(frames) < 20:
        raise InvalidInput(f"{config.source} gave {len(frames)} frames; expected 20 or more")
    return frames, min(max(1, round(config.test * len(frames))), len(frames) - 1)


def _files(config: ReconstructConfig) -> list[tuple[str, int, int]]:
    """What lies at the source now: name, size and time of each file. A file of frames is held by its sum instead."""
    if not config.source or Path(config.source).suffix == ".npy":
        return []
    paths = {path for clip in clips.find_clips(Path(config.source), config.seed) for path in clip.paths}
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)]


def _encoder(text: str, scales: tuple[float, ...], config: ReconstructConfig) -> Encoder:
    name, checkpoint, is_random = parse_subject(text)
    return EncoderConfig(
        name, scales=scales, checkpoint=checkpoint, random_weights=is_random, engine=config.engine, seed=config.seed
    ).build()


def _features(
    models: dict[str, Encoder], target: Encoder, frames: NDArray[np.uint8], told: Report, label: str
) -> Iterator[tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]]:
    """Tokens (b, N, D) of every model, on the target's grid, and the target's; batch by batch."""
    for start in range(0, len(frames), BATCH):
        batch = np.ascontiguousarray(frames[start : start + BATCH])
        wanted = target(batch).map.flatten(0, 1)  # (b, D, h, w)
        grid = (wanted.shape[2], wanted.shape[3])
        found = {name: pool_to_grid(model(batch).map.flatten(0, 1), grid) for name, model in models.items()}
        told(min(start + BATCH, len(frames)), len(frames), label)
        yield {name: _tokens(each) for name, each in found.items()}, _tokens(wanted)


def _tokens(maps: Any) -> NDArray[np.float32]:
    tokens: NDArray[np.float32] = maps.flatten(2).mT.float().cpu().numpy()
    return tokens


def _score(
    models: dict[str, Encoder], target: Encoder, frames: NDArray[np.uint8], maps: dict[str, Array], nothing: Array,
    told: Report,
) -> dict[str, Array]:  # fmt: skip
    """Squared error of every test frame, (n,), under each map and under the constant."""
    found: dict[str, list[Array]] = {name: [] for name in [*models, "nothing"]}
    for inputs, outputs in _features(models, target, frames, told, "score"):
        y = outputs.reshape(-1, outputs.shape[-1])
        for name, tokens in inputs.items():
            each = errors(maps[name], tokens.reshape(len(y), -1), y)
            found[name].append(each.reshape(len(tokens), -1).mean(axis=1))
        flat = ((y - nothing[-1]) ** 2).mean(axis=1)
        found["nothing"].append(flat.reshape(len(outputs), -1).mean(axis=1))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _row(name: str, model: Encoder, sums: TokenSums, weights: Array, scored: Array, nothing: Array) -> dict[str, Any]:
    train, train_nothing = sums.loss(weights), sums.loss(sums.constant())
    test = bootstrap.estimate(np.stack([scored, nothing], axis=-1)[None], _information)
    return {
        "model": name,
        "parameters": _parameters(model),
        "channels": model.channels,
        "train": {"loss": train, "information": information(train, train_nothing)},
        "test": {"loss": float(scored.mean()), "information": test.value, "low": test.low, "high": test.high},
    }


def _information(sums: Array) -> Array:
    found: Array = -np.log(sums[..., 0] / sums[..., 1])
    return found


def _ratios(rows: list[dict[str, Any]], scored: dict[str, Array]) -> None:
    """Each row's information over the bound's, which is the last row."""
    bound, nothing = rows[-1], scored["nothing"]
    for row in rows:
        counts = np.stack([scored[row["model"]], scored[bound["model"]], nothing], axis=-1)[None]
        ratio = bootstrap.estimate(counts, _ratio)
        row["train"]["ratio"] = row["train"]["information"] / bound["train"]["information"]
        row["test"] |= {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}


def _ratio(sums: Array) -> Array:
    found: Array = np.log(sums[..., 0] / sums[..., 2]) / np.log(sums[..., 1] / sums[..., 2])
    return found


def _parameters(model: Encoder) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
