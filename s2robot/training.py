"""Train a policy: on stored features, so that no frame is read and no encoder run; or, for baselines, on frames.

    demonstrations + feature store or frames -> samples in memory -> steps -> policy.safetensors + policy.json

Every step's batch, versions and noise are functions of (seed, step), so a run that was killed and resumed ends with
the same weights as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2robot import allocator, engines, files, ranks, registry, seals
from s2robot.board import Board
from s2robot.contribution import by_scale
from s2robot.datasets import DemoDataset
from s2robot.encoder import EncoderConfig
from s2robot.errors import CorruptFile, InvalidInput, S2RobotError
from s2robot.frames import Frames
from s2robot.lesson import Lesson
from s2robot.precision import single_precision
from s2robot.progress import Told, silent
from s2robot.ranks import Ranks
from s2robot.samples import Samples, Source, gather
from s2robot.schedule import learning_rate
from s2robot.settings import SETTINGS, hold_against
from s2robot.store import FeatureStore
from s2robot.trained import save_policy

VALID_EVERY = 50
APART = 7_919_000_003  # between the seeds of processes that share a batch


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to learn; what is learned is the policy's own config."""

    demos: int = 0  # the first so many demonstrations; 0: all
    steps: int = 1500
    batch: int = 128  # observations a step: a policy with a context of T gets batch / T windows
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of the steps
    ema: float = 0.99  # decay of the averaged weights, which are the ones kept
    valid_fraction: float = 0.05  # of the episodes, for the curve only
    seed: int = 0
    checkpoint_every: int = 250
    snapshots: int = 0  # earlier weights that are kept too, evenly over the second half of the steps

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("checkpoint_every", 1), ("seed", 0), ("snapshots", 0)):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected a whole number from {least} on")
        if self.snapshots and 2 * (self.snapshots + 1) > self.steps:
            raise InvalidInput(
                f"snapshots is {self.snapshots}, steps {self.steps}; the second half of the steps has room for"
                f" {max(0, self.steps // 2 - 1)} beside the last weights"
            )
        if not 0 <= self.warmup < 1:
            raise InvalidInput(f"warmup is {self.warmup}; expected a share of the steps, from 0 to below 1")
        if not (0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf and 0 <= self.ema < 1):
            raise InvalidInput(
                f"lr is {self.lr}, weight_decay {self.weight_decay}, ema {self.ema}; expected a rate above 0, a decay"
                " from 0 on, and an average from 0 to below 1"
            )


@single_precision()
def train(
    dataset: DemoDataset,
    source: Source,
    encoder: EncoderConfig,
    policy: Any,
    config: TrainConfig,
    out: Path,
    *,
    progress: Told = silent,
    device: str | None = None,
) -> Path:
    """Train into folder `out`, or resume there; return it.

    Args:
        source: a feature store, or `Frames` for a policy that reads frames. If the store has versions, every window
            is seen in one of them or as it is, each as likely; compression and validation know it as it is alone.
        policy: the policy's own hyper-parameters, e.g. `policies.bc_mlp.BCConfig`; they say of which kind it is.
        device: default: the CPU for features, where a step takes milliseconds; for frames CUDA when there is one.

    Raises:
        InvalidInput: the source is not of the policy's kind; or the folder holds a policy that learned something else,
            or otherwise.
        S2RobotError: the loss became NaN.
    """
    lesson = Lesson(dataset, source, encoder, policy, config)
    check_processes(lesson.kind)
    settings = lesson.settings()
    if _is_done(out, settings, policy):
        return out
    where = _device(source, device)
    with ranks.joined(where) as here:
        out.mkdir(parents=True, exist_ok=True)
        with here.alone(out), torch.random.fork_rng(devices=[]):
            if not _is_done(out, settings, policy):  # by whoever held the lock until now
                _learn(lesson, settings, out, where, here, progress)
        here.wait()
    return out


def _learn(
    lesson: Lesson, settings: dict[str, Any], out: Path, where: torch.device, here: Ranks, progress: Told
) -> None:
    """All of it, on this process; the first one keeps what comes of it."""
    state, samples = _prepare(lesson, out, where, here)
    learned, held_out = lesson.split()
    is_large = where.type == "cpu" and isinstance(lesson.source, Frames)
    memory = allocator.keeping_freed() if is_large else contextlib.nullcontext()
    if not here.is_first:
        with memory:
            _loop(state, samples, learned, lesson.config, here, progress)
        return
    files.write_json(out / SETTINGS, settings)
    with memory, _Log(state, samples, held_out, lesson, out) as log:
        _loop(state, samples, learned, lesson.config, here, progress, log.note)
    if worth := by_scale(state.averaged.module, samples, held_out, lesson.encoder.scale_names):
        files.write_json(out / "scales.json", worth)
    save_policy(state.averaged.module, lesson.describe(state.averaged.module), out)
    (out / "done").touch()
    (out / "state.pt").unlink(missing_ok=True)


def check_processes(kind: str) -> None:
    """Raises InvalidInput under torchrun, for a policy that learns from features."""
    if ranks.find().world > 1 and not registry.reads_frames(kind):
        raise InvalidInput(
            f"Under torchrun policies are trained that read frames, such as cnn and finetune. {kind} learns from"
            " features, a minute in one process: leave torchrun out"
        )


def _device(source: Source, asked: str | None) -> torch.device:
    return ranks.own_device(asked or "auto") if isinstance(source, Frames) else engines.find_device(asked or "cpu")


def _prepare(lesson: Lesson, out: Path, where: torch.device, here: Ranks) -> tuple[_TrainState, Samples]:
    """The network, as it was left, and what it learns from."""
    source, config, episodes = lesson.source, lesson.config, lesson.episodes
    if here.is_first:
        files.sweep(out, deep=True)
    if isinstance(source, FeatureStore):
        for store in (source, *source.versions):
            store.verify(episodes)
    torch.manual_seed(config.seed)
    network = lesson.network().to(where)
    here.share_out(network)
    state = _TrainState(network, config)
    state.restore(out / "state.pt")
    samples = gather(lesson.dataset, source, network, episodes, out)
    if (windows := _windows(samples, config)) % here.world:
        raise InvalidInput(f"--train.batch {config.batch}: {windows} windows, not divisible by {here.world} processes")
    return state, samples


def _is_done(out: Path, settings: dict[str, Any], policy: Any) -> bool:
    """Raises InvalidInput where something else was learned there, or is being."""
    hold_against(out, settings, {"policy": type(policy)(), "train": TrainConfig(), "encoder": EncoderConfig()})
    return (out / "done").exists()


class _TrainState:
    """Network, optimizer and averaged weights, saved and restored together."""

    def __init__(self, network: Any, config: TrainConfig) -> None:
        self.network = network
        self.device: torch.device = next(network.parameters()).device
        self.averaged = torch.optim.swa_utils.AveragedModel(
            network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema), use_buffers=True
        )
        groups, self.shares = zip(*network.rates(), strict=True)  # of the learning rate
        self.optimizer = torch.optim.AdamW(
            [{"params": group} for group in groups], lr=config.lr, weight_decay=config.weight_decay
        )
        self.step = 0

    def save(self, path: Path) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("network", "averaged", "optimizer")}
        with files.atomic(path) as temporary:
            torch.save({**parts, "step": self.step}, temporary)

    def restore(self, path: Path) -> None:
        if not path.exists():
            return
        remedy = f"Delete {path} to train from the start"
        seals.check_zip(path, remedy)
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            for name in ("network", "averaged", "optimizer"):
                getattr(self, name).load_state_dict(state[name])
            self.step = int(state["step"])
        except Exception as error:  # torch raises many kinds for a damaged file
            raise CorruptFile(path, (str(error).splitlines() or [type(error).__name__])[0][:200], remedy) from error


def _loop(
    state: _TrainState,
    samples: Samples,
    rows: Tensor,
    config: TrainConfig,
    here: Ranks,
    progress: Told,
    note: Callable[[float], None] = lambda loss: None,
) -> None:
    """All steps that are left; note: called after each, with its loss."""
    while state.step < config.steps:
        loss = _step(state, samples, rows, config, here)
        if not math.isfinite(loss):
            raise S2RobotError(
                f"The loss is {loss} at step {state.step}. Lower --train.lr (now {config.lr}), or look for NaN in"
                " the data"
            )
        state.step += 1
        progress(state.step, config.steps, f"loss {loss:.4f}")
        note(loss)
    state.network.eval()


class _Log:
    """What training leaves on its way: metrics, snapshots, checkpoints."""

    def __init__(self, state: _TrainState, samples: Samples, valid_rows: Tensor, lesson: Lesson, out: Path) -> None:
        self.state, self.samples, self.valid_rows, self.lesson = state, samples, valid_rows, lesson
        self.out, self.began = out, time.monotonic()
        count, steps = lesson.config.snapshots, lesson.config.steps
        self.kept = {steps - round(k * steps / 2 / (count + 1)) for k in range(1, count + 1)}

    def __enter__(self) -> _Log:
        out, step = self.out, self.state.step
        files.keep_lines(out / "metrics.jsonl", lambda row: row["step"] <= step)  # later ones are taken again
        self.open = contextlib.ExitStack()
        self.metrics = self.open.enter_context(files.JsonLines(out / "metrics.jsonl"))
        self.board = self.open.enter_context(Board(out / "tensorboard", step))
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()

    def note(self, loss: float) -> None:
        """After a step."""
        state, config = self.state, self.lesson.config
        if state.step % VALID_EVERY == 0 or state.step == config.steps:
            row: dict[str, Any] = {"step": state.step, "loss": loss, "lr": learning_rate(config, state.step - 1)}
            row["valid_loss"] = _valid_loss(state, self.samples, self.valid_rows, config)
            self.metrics.write({**row, "seconds": round(time.monotonic() - self.began, 2)})
            self.board.write(row)
        if state.step in self.kept:
            network = state.averaged.module
            save_policy(network, self.lesson.describe(network), self.out / "snapshots" / f"{state.step:06}")
        if state.step % config.checkpoint_every == 0:
            state.save(self.out / "state.pt")


def _step(state: _TrainState, samples: Samples, rows: Tensor, config: TrainConfig, here: Ranks) -> float:
    """One step of the optimiser on this process's share of a batch; the loss of all of it."""
    mine = here.share(_windows(samples, config))
    batch, versions = (drawn[mine] for drawn in _draw(samples, rows, config, state.step))
    samples.expect(*(drawn[mine] for drawn in _draw(samples, rows, config, state.step + 1)))
    torch.manual_seed(config.seed * 1_000_003 + state.step + here.rank * APART)  # dropout and noise
    for group, share in zip(state.optimizer.param_groups, state.shares, strict=True):
        group["lr"] = share * learning_rate(config, state.step)
    state.network.train()
    windows = samples.take(batch, state.device, versions)
    loss: Tensor = state.network.batch_loss(windows)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    loss = here.combine(state.network.parameters(), loss, windows.valid[:, -1].sum())
    nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
    state.optimizer.step()
    state.averaged.update_parameters(state.network)
    return float(loss)


def _draw(samples: Samples, rows: Tensor, config: TrainConfig, step: int) -> tuple[Tensor, Tensor]:
    """The windows of a step (B,), and in which version each is seen (B,)."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    batch = rows[torch.randint(len(rows), (_windows(samples, config),), generator=generator)]
    return batch, torch.randint(samples.versions, (len(batch),), generator=generator)  # last: versions change no rows


@torch.no_grad()
def _valid_loss(state: _TrainState, samples: Samples, rows: Tensor, config: TrainConfig) -> float | None:
    if not len(rows):
        return None
    network: Any = state.averaged.module.eval()
    parts = rows.split(_windows(samples, config))  # what fits in a step fits here
    return sum(float(network.batch_loss(samples.take(part, state.device))) * len(part) for part in parts) / len(rows)


def _windows(samples: Samples, config: TrainConfig) -> int:
    """Windows a batch."""
    return max(1, config.batch // samples.window.shape[1])
