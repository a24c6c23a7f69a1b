"""Pre-train an encoder by masked autoencoding: `s2robot pretrain`.

    footage (frames) -> views (a batch of them) -> mae or mae_merged (a loss) -> pretrain_state (kept, exported)

Every batch is a function of (seed, step) alone, so a resumed run takes the same steps as an unbroken one.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from s2robot import files, pretrain_state, ranks, reconstructions, views
from s2robot.errors import InvalidInput, S2RobotError
from s2robot.footage import Footage, gather
from s2robot.mae import MaskedAutoencoder
from s2robot.mae_merged import MergedAutoencoder
from s2robot.pretrain_log import Journal
from s2robot.pretrain_state import State
from s2robot.progress import Told, silent
from s2robot.ranks import Ranks
from s2robot.recipe import PretrainConfig, keep_recipe
from s2robot.schedule import learning_rate

LOG_EVERY = 25  # steps
VALID_BATCHES = 4
PICTURED = 4  # held-out views of each kind
ALONE = Ranks()
Part = tuple[views.Squares, Tensor]  # one part of a batch, and the noise that masks it


def pretrain(config: PretrainConfig, out: Path, progress: Told = silent) -> Path:
    """Run or resume the recipe in folder `out`; return the weights file `out/<name>.safetensors`.

    Raises:
        S2RobotError: the folder holds a run with another recipe, or the loss became NaN.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = ranks.own_device(config.device)
    if config.init and not (out / "state.pt").exists():
        pretrain_state.adopt(pretrain_state.build_model(config), config)  # said before hours of drawing
    with ranks.joined(device) as here:
        if config.batch % (here.world * config.accumulate):
            raise InvalidInput(
                f"--batch {config.batch} does not divide among {here.world} processes and --accumulate "
                f"{config.accumulate} equal parts"
            )
        with here.alone(out):
            footage = _prepare(config, out, here, progress)
            state = pretrain_state.restore(config, out, device)
            if here.world > 1:
                places = [device] if device.type == "cuda" else None
                state.shared = DistributedDataParallel(state.model, device_ids=places, broadcast_buffers=False)
            _train(state, config, out, footage, here, progress)
            if here.is_first:
                pretrain_state.export(state, config, out)
            here.wait()
    return pretrain_state.weights_file(config, out)


def _prepare(config: PretrainConfig, out: Path, here: Ranks, progress: Told) -> Footage:
    """The folder and its frames: the first process makes them, the others find them there."""
    if here.is_first:
        out.mkdir(parents=True, exist_ok=True)
        files.sweep(out, deep=True)
        keep_recipe(config, out)
        gather(config, out, progress)
    here.wait()
    return gather(config, out, progress)


def _train(state: State, config: PretrainConfig, out: Path, footage: Footage, here: Ranks, progress: Told) -> None:
    device = next(state.model.parameters()).device
    train, watch = _near(footage.train, device), Watch(out, device)
    with Journal(config, out, state.step, here, device) as journal:
        for step, parts in _ahead(train, config, state.step, here):
            numbers = take_step(state, config, parts, device, here)
            done = state.step
            is_logged, is_kept = done % LOG_EVERY == 0, done % config.checkpoint_every == 0 or done == config.steps
            watch(step, numbers, now=is_logged or is_kept)
            if is_logged:
                journal.step(done, watch.loss, learning_rate(config, step))
            if is_kept and here.is_first:
                began = time.monotonic()
                scores = validate(state.best, config, footage.valid, device)
                watch.check(step, list(scores.values()))
                journal.write({"step": done} | {f"valid_{kind}": round(score, 5) for kind, score in scores.items()})
                picture(state.best, config, footage.valid, out / "pictures" / f"{done:07d}.png")
                pretrain_state.save(state, config, out)
                journal.rested(time.monotonic() - began)
            if here.is_first:
                progress(done, config.steps, journal.note(done, watch.loss))


def take_step(
    state: State, config: PretrainConfig, parts: list[Part], device: torch.device, here: Ranks = ALONE
) -> Tensor:
    """One step of the optimiser on this process's share of a batch; returns [loss, norm of the gradient]  (2,)."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device)
    for number, (squares, noise) in enumerate(parts):
        images = views.develop(squares, state.model.size, device)
        # Gradients are exchanged once, with the last part.
        quiet = state.shared.no_sync() if state.shared and number < len(parts) - 1 else contextlib.nullcontext()
        with quiet:
            with _autocast(config, device):
                loss = (state.shared or state.model)(images, noise.to(device))[0] / len(parts)
            loss.backward()
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.clip or math.inf)
    state.optimizer.step()
    if state.average is not None:
        state.average.update_parameters(state.model)
    state.step += 1
    return torch.stack([here.mean(total), norm])


def draw_batch(frames: views.Frames, config: PretrainConfig, step: int, here: Ranks = ALONE) -> list[Part]:
    """This process's share of the batch of a step, in the parts it is computed in."""
    rng = np.random.default_rng((config.seed, step))
    cuts = views.draw_cuts(len(frames), config, rng)
    noise = views.draw_noise(config, rng)
    mine = here.share(config.batch)
    return _in_parts(frames, cuts[mine], noise[mine], config)


@torch.no_grad()
def validate(
    model: MaskedAutoencoder, config: PretrainConfig, frames: NDArray[np.uint8], device: torch.device
) -> dict[str, float]:
    """Loss on held-out frames with fixed views and masks: of whole frames and tiles, or of each scale when merged."""
    merged = model if isinstance(model, MergedAutoencoder) else None
    scores: dict[str, float] = {}
    for kind in _kinds(model, config):
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


def picture(model: MaskedAutoencoder, config: PretrainConfig, frames: NDArray[np.uint8], path: Path) -> None:
    """Paint a few held-out views, the same at every checkpoint."""
    device, rng = next(model.parameters()).device, np.random.default_rng(2)
    triples: list[reconstructions.Triple] = []
    for kind in _kinds(model, config):
        cuts, noise = views.draw_cuts(len(frames), config, rng, kind)[:PICTURED], views.draw_noise(config, rng)
        images = views.develop(views.cut_squares(frames, cuts), model.size, device)
        with _autocast(config, device):
            triples += reconstructions.reconstruct(model, images, noise[: len(cuts)].to(device))
    with files.atomic(path) as temporary:
        reconstructions.sheet(triples).save(temporary, format="PNG")


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
                f"The loss or its gradient is {wrong[0]} at step {step}; the last good state, if one was written, is in"
                f" {self._out}. Start again with a lower --lr in another --out"
            )


def _in_parts(frames: views.Frames, cuts: views.Cuts, noise: Tensor, config: PretrainConfig) -> list[Part]:
    size = len(cuts) // config.accumulate
    slices = [slice(start, start + size) for start in range(0, len(cuts), size)]
    return [(views.cut_squares(frames, cuts[rows]), noise[rows]) for rows in slices]


def _kinds(model: MaskedAutoencoder, config: PretrainConfig) -> tuple[str, ...]:
    """Kinds of views to look at one by one: whole frames, and tiles where they are seen by themselves."""
    return ("base", "tile") if config.scales[1:] and not isinstance(model, MergedAutoencoder) else ("base",)


def _ahead(frames: views.Frames, config: PretrainConfig, start: int, here: Ranks) -> Iterator[tuple[int, list[Part]]]:
    """Each step and its batch, which another thread cuts while the step before it is taken."""
    draw = functools.partial(draw_batch, frames, config, here=here)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(draw, start)
        for step in range(start, config.steps):
            parts = coming.result()
            if step + 1 < config.steps:
                coming = pool.submit(draw, step + 1)
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
