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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from s2robot import engines, files, ranks, registry, seals
from s2robot.board import Board
from s2robot.contribution import by_scale
from s2robot.datasets import DemoDataset
from s2robot.encoder import EncoderConfig
from s2robot.episodes import split_episodes
from s2robot.errors import CorruptFile, InvalidInput, S2RobotError
from s2robot.frames import Frames
from s2robot.interface import described
from s2robot.ranks import Ranks
from s2robot.samples import Samples, Source, gather
from s2robot.schedule import learning_rate
from s2robot.settings import SETTINGS, hold_against, settings_of
from s2robot.store import FeatureStore
from s2robot.trained import SUM

Progress = Callable[[int, int, str], None]
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
        if not (0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf and 0 <= self.ema < 1):
            raise InvalidInput(
                f"lr is {self.lr}, weight_decay {self.weight_decay}, ema {self.ema}; expected a rate above 0, a decay"
                " from 0 on, and an average from 0 to below 1"
            )


def train(
    dataset: DemoDataset,
    source: Source,
    encoder: EncoderConfig,
    policy: Any,
    config: TrainConfig,
    out: Path,
    *,
    progress: Progress = lambda done, total, note: None,
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
    kind = registry.policy_kind(policy)
    check_processes(kind)
    settings = settings_of(kind, dataset, source, encoder, policy, config)
    if _is_done(out, settings, policy):
        return out
    where = _device(source, device)
    with ranks.joined(where) as here:
        out.mkdir(parents=True, exist_ok=True)
        with here.alone(out), torch.random.fork_rng(devices=[]):
            if not _is_done(out, settings, policy):  # by whoever held the lock until now
                state, samples = _prepare(dataset, source, encoder, policy, config, out, where, here)
                learned, held_out = _split(source, len(_episodes(dataset, config)), config)
                if here.is_first:
                    files.write_json(out / SETTINGS, settings)
                    describe = partial(_description, kind, dataset, source, encoder)
                    with _Log(state, samples, held_out, config, describe, out) as log:
                        _loop(state, samples, learned, config, here, progress, log.note)
                    _finish(state, samples, held_out, encoder, describe, out)
                else:
                    _loop(state, samples, learned, config, here, progress)
        here.wait()
    return out


def check_processes(kind: str) -> None:
    """Raises InvalidInput under torchrun, for a policy that learns from features."""
    if ranks.find().world > 1 and not registry.reads_frames(kind):
        raise InvalidInput(
            f"Under torchrun policies are trained that read frames, such as cnn and finetune. {kind} learns from"
            " features, a minute in one process: leave torchrun out"
        )


def _device(source: Source, asked: str | None) -> torch.device:
    return ranks.find_device(asked or "auto") if isinstance(source, Frames) else engines.find_device(asked or "cpu")


def _prepare(
    dataset: DemoDataset,
    source: Source,
    encoder: EncoderConfig,
    policy: Any,
    config: TrainConfig,
    out: Path,
    where: torch.device,
    here: Ranks,
) -> tuple[_TrainState, Samples]:
    """The network, as it was left, and what it learns from."""
    kind, episodes = registry.policy_kind(policy), _episodes(dataset, config)
    if here.is_first:
        files.sweep(out, deep=True)
    if isinstance(source, FeatureStore):
        for store in (source, *source.versions):
            store.verify(episodes)
    torch.manual_seed(config.seed)
    network = _network(kind, policy, dataset, source, encoder, episodes).to(where)
    here.share_out(network)
    state = _TrainState(network, config)
    state.restore(out / "state.pt")
    samples = gather(dataset, source, network, episodes, out)
    if (windows := _windows(samples, config)) % here.world:
        raise InvalidInput(f"--train.batch {config.batch}: {windows} windows, not divisible by {here.world} processes")
    return state, samples


def _finish(
    state: _TrainState,
    samples: Samples,
    held_out: Tensor,
    encoder: EncoderConfig,
    describe: Callable[[Any], dict[str, Any]],
    out: Path,
) -> None:
    """Write the policy, and what each scale is worth to it."""
    if worth := by_scale(state.averaged.module, samples, held_out, encoder.scale_names):
        files.write_json(out / "scales.json", worth)
    _write_policy(state.averaged.module, describe, out)
    (out / "state.pt").unlink(missing_ok=True)
    (out / "done").touch()


def _is_done(out: Path, settings: dict[str, Any], policy: Any) -> bool:
    """Raises InvalidInput where something else was learned there, or is being."""
    hold_against(out, settings, {"policy": type(policy)(), "train": TrainConfig(), "encoder": EncoderConfig()})
    return (out / "done").exists()


def _episodes(dataset: DemoDataset, config: TrainConfig) -> range:
    """The demonstrations learned from: the dataset's first."""
    if not 0 <= config.demos <= len(dataset):
        raise InvalidInput(f"--train.demos is {config.demos}; {dataset.path} has {len(dataset)} demonstrations")
    return range(config.demos or len(dataset))


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
    progress: Progress,
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

    def __init__(
        self,
        state: _TrainState,
        samples: Samples,
        valid_rows: Tensor,
        config: TrainConfig,
        describe: Callable[[Any], dict[str, Any]],
        out: Path,
    ) -> None:
        self.state, self.samples, self.valid_rows, self.config = state, samples, valid_rows, config
        self.describe, self.out, self.began = describe, out, time.monotonic()
        count, steps = config.snapshots, config.steps
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
        state, config = self.state, self.config
        if state.step % VALID_EVERY == 0 or state.step == config.steps:
            row: dict[str, Any] = {"step": state.step, "loss": loss, "lr": learning_rate(config, state.step - 1)}
            row["valid_loss"] = _valid_loss(state, self.samples, self.valid_rows, config)
            self.metrics.write({**row, "seconds": round(time.monotonic() - self.began, 2)})
            self.board.write(row)
        if state.step in self.kept:
            _write_policy(state.averaged.module, self.describe, self.out / "snapshots" / f"{state.step:06}")
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


def _network(
    kind: str, policy: Any, dataset: DemoDataset, source: Source, encoder: EncoderConfig, episodes: range
) -> Any:
    """A fresh network for these shapes, its compression and normalisation fitted to the demonstrations."""
    network_of = registry.policy_module(kind).NETWORK
    if network_of.reads_frames != isinstance(source, Frames):
        wanted = "s2robot.frames.Frames" if network_of.reads_frames else "a feature store"
        raise InvalidInput(f"The policy {kind} was given a {type(source).__name__} to learn from; expected {wanted}")
    shape = () if isinstance(source, Frames) else source.map.shape
    spread = registry.neck().rows_to_fit(shape, int(source.rows(episodes[-1])[0][-1]) + 1)
    first = dataset.episode(0)
    fields = {"proprioception": first.proprioception.shape[1], "actions": first.actions.shape[1]}
    fields["goal"] = 0 if first.goal is None else first.goal.shape[1]
    network = network_of.fresh(policy, source, spread, encoder, fields)
    states = torch.from_numpy(np.concatenate([dataset.episode(k).proprioception for k in episodes]))
    network.proprioception_mean.copy_(states.mean(dim=0))
    network.proprioception_std.copy_(states.std(dim=0).clamp_min(1e-4))
    return network


def _split(source: Source, episodes: int, config: TrainConfig) -> tuple[Tensor, Tensor]:
    rows = []
    for part in split_episodes(episodes, config.valid_fraction, config.seed):
        found = [np.asarray(source.rows(k)[0]) for k in part]
        rows.append(torch.from_numpy(np.concatenate(found) if found else np.zeros(0, int)))
    return rows[0], rows[1]


def _write_policy(network: Any, describe: Callable[[Any], dict[str, Any]], out: Path) -> None:
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    for name, value in weights.items():  # the loss of a step says nothing of what the step itself has done
        if not value.isfinite().all():
            raise S2RobotError(f"The weights {name} became NaN or infinite. Lower --train.lr")
    out.mkdir(parents=True, exist_ok=True)
    with files.atomic(out / "policy.safetensors") as temporary:
        save_file(weights, str(temporary))
    files.write_json(out / "policy.json", {**describe(network), SUM: seals.digest(out / "policy.safetensors")})


def _description(
    kind: str, dataset: DemoDataset, source: Source, encoder: EncoderConfig, network: Any
) -> dict[str, Any]:
    return {
        "kind": kind,
        **registry.acting().describe(network),
        **network.needs(source, encoder),
        "task": dataset.env_args.get("task"),
        "robot": dataset.env_args.get("robot"),
        "cameras": list(dataset.cameras),
        "frame_size": dataset.frame_shape[1],
        "frame": list(dataset.frame_shape[1:3]),
        **described(dataset.env_args),
        "parameters": sum(p.numel() for p in network.parameters()),
    }
