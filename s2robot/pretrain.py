"""Pre-train an encoder by masked autoencoding on frames of our own scenes: `s2robot pretrain`.

What the encoder meets in use is what it learns from: with scales (1, 2), two views in five are a whole
frame at base size, two in five one of the four tiles of the double-size frame, and one a random crop.
Every batch is a function of (seed, step) alone, so a resumed run takes the same steps as an unbroken one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot import files, registry
from s2robot.errors import CorruptFile, InvalidInput, S2RobotError
from s2robot.mae import MaskedAutoencoder

Progress = Callable[[int, int, str], None]
LOG_EVERY = 25  # steps
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PretrainConfig:
    """The recipe. Defaults made the shipped `s2robot-tiny`."""

    name: str = "s2robot-tiny"
    frames: int = 12_000  # rendered frames, at frame_size
    frame_size: int = 256
    image_size: int = 128  # the encoder's base size P
    patch: int = 16
    width: int = 192
    depth: int = 6
    heads: int = 3
    mask_ratio: float = 0.75
    batch: int = 64
    steps: int = 6_000
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: float = 0.05  # share of the steps
    seed: int = 0
    threads: int = 0  # torch threads; 0 leaves torch's own choice
    checkpoint_every: int = 250


def pretrain(config: PretrainConfig, out: Path, progress: Progress = lambda done, total, note: None) -> Path:
    """Run or resume the recipe in folder `out`; return the weights file `out/<name>.safetensors`.

    Raises:
        S2RobotError: the folder holds a run with another recipe, or the loss became NaN.
    """
    out.mkdir(parents=True, exist_ok=True)
    _same_recipe(config, out)
    if config.threads:
        torch.set_num_threads(config.threads)
    frames = render_frames(config, out / "frames.npy", progress)
    model, optimizer, start = _restore(config, out)
    held_out = len(frames) // 50
    valid, train = frames[:held_out], frames[held_out:]
    files.keep_lines(out / "metrics.jsonl", lambda row: row["step"] <= start)
    with files.JsonLines(out / "metrics.jsonl") as metrics:
        began = time.monotonic()
        for step in range(start, config.steps):
            loss = _train_step(model, optimizer, config, train, step)
            if not math.isfinite(loss):
                raise S2RobotError(f"The loss is {loss} at step {step}; the last good state is in {out}. Lower --lr")
            done = step + 1
            if done % LOG_EVERY == 0:
                seconds = time.monotonic() - began
                metrics.write(
                    {"step": done, "loss": round(loss, 5), "lr": _lr(config, step), "seconds": round(seconds, 1)}
                )
            progress(done, config.steps, f"loss {loss:.3f}")
            if done % config.checkpoint_every == 0 or done == config.steps:
                base, tile = validate(model, config, valid)
                metrics.write({"step": done, "valid_base": round(base, 5), "valid_tile": round(tile, 5)})
                _save(model, optimizer, done, out)
    return export(model, config, out)


def render_frames(config: PretrainConfig, path: Path, progress: Progress) -> NDArray[np.uint8]:
    """The training frames (n, H, W, 3), memory-mapped; rendered once, in pieces that survive a kill."""
    if not path.exists():
        pieces = path.with_suffix(".parts")
        pieces.mkdir(exist_ok=True)
        names: list[Path] = []
        count = 0
        sampler = registry.scene_sampler(config.frame_size, config.seed)
        while count < config.frames:
            piece = pieces / f"{len(names):05d}.npy"
            if not piece.exists():
                block = np.concatenate([sampler.episode(16 * len(names) + k) for k in range(16)])
                with files.atomic(piece) as temporary, temporary.open("wb") as stream:
                    np.save(stream, block)
            count += len(np.load(piece, mmap_mode="r"))
            names.append(piece)
            progress(min(count, config.frames), config.frames, "rendering")
        sampler.close()
        _join(names, config.frames, path)
    frames: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return frames


def views(frames: NDArray[np.uint8], config: PretrainConfig, rng: np.random.Generator, kind: str = "mixed") -> Tensor:
    """A batch of training views, (batch, 3, P, P) normalised. kind: "mixed", "base" or "tile"."""
    size, crops = config.image_size, []
    for index in rng.integers(len(frames), size=config.batch):
        frame = frames[index]
        draw = rng.random() if kind == "mixed" else {"base": 0.0, "tile": 0.5}[kind]
        if draw < 0.4:
            ratio = config.frame_size // size
            crop = frame.reshape(size, ratio, size, ratio, 3).mean((1, 3))
        else:
            room = config.frame_size - size
            top, left = (rng.integers(2, size=2) * room) if draw < 0.8 else rng.integers(room + 1, size=2)
            crop = frame[top : top + size, left : left + size]
        crops.append(crop.astype(np.float32))
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def validate(model: MaskedAutoencoder, config: PretrainConfig, frames: NDArray[np.uint8]) -> tuple[float, float]:
    """Loss on held-out frames with fixed masks: (whole frames, tiles)."""
    losses = []
    with torch.no_grad():
        for kind in ("base", "tile"):
            rng = np.random.default_rng(1)
            batches = [views(frames, config, rng, kind) for _ in range(4)]
            losses.append(
                float(np.mean([model(images, _noise(model, len(images), rng))[0].item() for images in batches]))
            )
    return losses[0], losses[1]


def export(model: MaskedAutoencoder, config: PretrainConfig, out: Path) -> Path:
    """Write the encoder alone, half precision, with its recipe in the file's metadata."""
    from safetensors.torch import save_file

    weights = {key: value.detach().half().contiguous() for key, value in model.encoder.state_dict().items()}
    path = out / f"{config.name}.safetensors"
    about = {"name": config.name, "licence": "MIT", "recipe": asdict(config)}
    with files.atomic(path) as temporary:  # one key: safetensors writes several in no fixed order
        save_file(weights, str(temporary), {"s2robot": json.dumps(about)})
    return path


def _train_step(
    model: MaskedAutoencoder,
    optimizer: torch.optim.Optimizer,
    config: PretrainConfig,
    frames: NDArray[np.uint8],
    step: int,
) -> float:
    rng = np.random.default_rng((config.seed, step))
    images = views(frames, config, rng)
    for group in optimizer.param_groups:
        group["lr"] = _lr(config, step)
    loss, _, _ = model(images, _noise(model, len(images), rng))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _noise(model: MaskedAutoencoder, batch: int, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random((batch, model.grid**2), dtype=np.float32))


def _lr(config: PretrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return config.lr * (step + 1) / warm
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm)))


def _build(config: PretrainConfig) -> MaskedAutoencoder:
    from timm.models.vision_transformer import VisionTransformer

    if config.frame_size % config.image_size:
        raise InvalidInput(f"--frame_size {config.frame_size} is not a multiple of --image_size {config.image_size}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        vit = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            num_classes=0,
            global_pool="",
        )
        return MaskedAutoencoder(vit, mask_ratio=config.mask_ratio)


def _restore(config: PretrainConfig, out: Path) -> tuple[MaskedAutoencoder, torch.optim.Optimizer, int]:
    model = _build(config)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95))
    path = out / "state.pt"
    if not path.exists():
        return model, optimizer, 0
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CorruptFile(path, str(error).splitlines()[0], f"Delete {path} to start again") from error
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return model, optimizer, int(state["step"])


def _save(model: MaskedAutoencoder, optimizer: torch.optim.Optimizer, step: int, out: Path) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    with files.atomic(out / "state.pt") as temporary:
        torch.save(state, temporary)


def _same_recipe(config: PretrainConfig, out: Path) -> None:
    path, recipe = out / "recipe.json", asdict(config)
    if not path.exists():
        files.write_json(path, recipe)
        return
    before = files.read_json(path)
    changed = {k: (before.get(k), v) for k, v in recipe.items() if before.get(k) != v}
    if changed:
        listed = ", ".join(f"{key} {was!r} -> {now!r}" for key, (was, now) in changed.items())
        raise S2RobotError(f"{out} holds a run with another recipe ({listed}). Choose another --out, or delete it")


def _join(pieces: list[Path], count: int, path: Path) -> None:
    first = np.load(pieces[0], mmap_mode="r")
    with files.atomic(path) as temporary:
        whole = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            temporary, "w+", np.uint8, (count, *first.shape[1:])
        )
        at = 0
        for piece in pieces:
            block = np.load(piece, mmap_mode="r")[: count - at]
            whole[at : at + len(block)] = block
            at += len(block)
        whole.flush()
    for piece in pieces:
        piece.unlink()
    pieces[0].parent.rmdir()
