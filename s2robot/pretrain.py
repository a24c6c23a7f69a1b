"""Pre-train an encoder by masked autoencoding: `s2robot pretrain`.

    footage (frames) -> views (a batch of them) -> mae or mae_merged (a loss) -> pretrain_state (kept, exported)

Every batch is a function of (seed, step) alone, so a resumed run takes the same steps as an unbroken one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot import files, pretrain_state, views
from s2robot.errors import S2RobotError
from s2robot.footage import gather
from s2robot.mae import MaskedAutoencoder
from s2robot.mae_merged import MergedAutoencoder
from s2robot.pretrain_state import State
from s2robot.recipe import PretrainConfig, keep_recipe, learning_rate

Progress = Callable[[int, int, str], None]
LOG_EVERY = 25  # steps
VALID_BATCHES = 4
Part = tuple[views.Squares, Tensor]  # one part of a batch, and the noise that masks it


def pretrain(config: PretrainConfig, out: Path, progress: Progress = lambda done, total, note: None) -> Path:
    """Run or resume the recipe in folder `out`; return the weights file `out/<name>.safetensors`.

    Raises:
        S2RobotError: the folder holds a run with another recipe, or the loss became NaN.
    """
    out.mkdir(parents=True, exist_ok=True)
    keep_recipe(config, out)
    if config.threads:
        torch.set_num_threads(config.threads)
    device = find_device(config.device)
    footage = gather(config, out, progress)
    state = pretrain_state.restore(config, out, device)
    train = _near(footage.train, device)
    files.keep_lines(out / "metrics.jsonl", lambda row: row["step"] <= state.step)
    with files.JsonLines(out / "metrics.jsonl") as metrics:
        began, watch = time.monotonic(), Watch(out, device)
        for step, parts in _ahead(train, config, state.step):
            loss = take_step(state, config, parts, device)
            done = state.step
            is_last, is_kept = done == config.steps, done % config.checkpoint_every == 0
            watch(step, loss, now=is_last or is_kept or done % LOG_EVERY == 0)
            if done % LOG_EVERY == 0:
                row = {"step": done, "loss": round(watch.loss, 5), "lr": learning_rate(config, step)}
                metrics.write(row | {"seconds": round(time.monotonic() - began, 1)})
            progress(done, config.steps, f"loss {watch.loss:.3f}")
            if is_kept or is_last:
                scores = validate(state.best, config, footage.valid, device)
                watch.check(step, list(scores.values()))
                metrics.write({"step": done} | {f"valid_{kind}": round(score, 5) for kind, score in scores.items()})
                pretrain_state.save(state, config, out)
    return pretrain_state.export(state, config, out)


def take_step(state: State, config: PretrainConfig, parts: list[Part], device: torch.device) -> Tensor:
    """One step of the optimiser on one batch in parts; returns [loss, norm of the gradient]  (2,)."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device)
    for squares, noise in parts:
        images = views.develop(squares, state.model.size, device)
        with _autocast(config, device):
            loss = state.model(images, noise.to(device))[0] / len(parts)
        loss.backward()
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.clip or math.inf)
    state.optimizer.step()
    if state.average is not None:
        state.average.update_parameters(state.model)
    state.step += 1
    return torch.stack([total, norm])


def draw_batch(frames: views.Frames, config: PretrainConfig, step: int) -> list[Part]:
    """The batch of a step, in the parts it is computed in."""
    rng = np.random.default_rng((config.seed, step))
    cuts = views.draw_cuts(len(frames), config, rng)
    noise = views.draw_noise(config, rng)
    return _in_parts(frames, cuts, noise, config)


@torch.no_grad()
def validate(
    model: MaskedAutoencoder, config: PretrainConfig, frames: NDArray[np.uint8], device: torch.device
) -> dict[str, float]:
    """Loss on held-out frames with fixed views and masks: of whole frames and tiles, or of each scale when merged."""
    merged = model if isinstance(model, MergedAutoencoder) else None
    kinds = ("base", "tile") if config.scales[1:] and merged is None else ("base",)
    scores: dict[str, float] = {}
    for kind in kinds:
        rng = np.random.default_rng(1)
        batches = [views.draw_cuts(len(frames), config, rng, kind) for _ in range(VALID_BATCHES)]
        losses = []
        for cuts in batches:
            for squares, noise in _in_parts(frames, cuts, views.draw_noise(config, rng), config):
                images = views.develop(squares, model.size, device)
                with _autocast(config, device):
                    loss, painted, mask = model(images, noise.to(device))
                losses.append((merged.losses(painted, images, mask) if merged else loss[None]).cpu())
        means = torch.stack(losses).double().mean(dim=0).tolist()
        names = [f"x{scale}" for scale in config.scales] if merged else [kind]
        scores |= dict(zip(names, means, strict=True))
    return scores


def find_device(name: str) -> torch.device:
    """`auto`: CUDA when there is one, else the CPU."""
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


class Watch:
    """Looks at each step's loss and gradient, and stops the run at the first that is no number.

    On an accelerator it looks now and then only, as each look waits for the device; always before a state is kept.
    """

    def __init__(self, out: Path, device: torch.device) -> None:
        self.loss = math.nan  # the last one looked at
        self._out, self._waits = out, device.type != "cpu"
        self._unseen: list[tuple[int, Tensor]] = []

    def __call__(self, step: int, numbers: Tensor, *, now: bool) -> None:
        """numbers: [loss, norm of the gradient] of a step."""
        self._unseen.append((step, numbers))
        if now or not self._waits:
            rows = torch.stack([numbers for _, numbers in self._unseen]).tolist()
            for (at, _), row in zip(self._unseen, rows, strict=True):
                self.check(at, row)
            self.loss = rows[-1][0]
            self._unseen.clear()

    def check(self, step: int, numbers: list[float]) -> None:
        """Raise S2RobotError if any is NaN or infinite."""
        wrong = [number for number in numbers if not math.isfinite(number)]
        if wrong:
            raise S2RobotError(
                f"The loss or its gradient is {wrong[0]} at step {step}; the last good state is in {self._out}. Start "
                f"again with a lower --lr in another --out"
            )


def _in_parts(frames: views.Frames, cuts: views.Cuts, noise: Tensor, config: PretrainConfig) -> list[Part]:
    size = len(cuts) // config.accumulate
    slices = [slice(start, start + size) for start in range(0, len(cuts), size)]
    return [(views.cut_squares(frames, cuts[rows]), noise[rows]) for rows in slices]


def _ahead(frames: views.Frames, config: PretrainConfig, start: int) -> Iterator[tuple[int, list[Part]]]:
    """Each step and its batch, which another thread cuts while the step before it is taken."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(draw_batch, frames, config, start)
        for step in range(start, config.steps):
            parts = coming.result()
            if step + 1 < config.steps:
                coming = pool.submit(draw_batch, frames, config, step + 1)
            yield step, parts


def _near(frames: NDArray[np.uint8], device: torch.device) -> views.Frames:
    """The frames where batches are cut fastest: on the accelerator if they take less than half of its free memory."""
    if device.type != "cuda" or frames.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return frames
    near = torch.empty(frames.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(frames), 1024):
        near[start : start + 1024] = torch.from_numpy(np.array(frames[start : start + 1024])).to(device)
    return near


def _autocast(config: PretrainConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
