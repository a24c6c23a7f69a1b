"""Train a policy: on stored features, so that no frame is read and no encoder run; or, for baselines, on frames.

    demonstrations + feature store or frames -> samples in memory -> steps -> policy.safetensors + policy.json

Every step's batch, versions and noise are functions of (seed, step), so a run that was killed and resumed ends with
the same weights as one that was not.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from s2robot import engines, files, locks, registry, seals
from s2robot.board import Board
from s2robot.contribution import by_scale
from s2robot.datasets import DemoDataset
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.episodes import split_episodes
from s2robot.errors import CheckpointMismatch, CorruptFile, InvalidInput, S2RobotError
from s2robot.frames import Frames
from s2robot.interface import described
from s2robot.samples import Samples, Source, gather
from s2robot.schedule import learning_rate
from s2robot.settings import SETTINGS, hold_against, settings_of
from s2robot.store import FeatureStore
from s2robot.types import Policy

Progress = Callable[[int, int, str], None]
VALID_EVERY = 50
SUM = "weights_sha256"  # in policy.json: of policy.safetensors; older policies have none


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
    settings = settings_of(kind, dataset, source, encoder, policy, config)
    if _is_done(out, settings, policy):
        return out
    episodes = _episodes(dataset, config)
    out.mkdir(parents=True, exist_ok=True)
    with locks.alone(out / ".lock", str(out)), torch.random.fork_rng(devices=[]):
        if _is_done(out, settings, policy):  # by whoever held the lock until now
            return out
        files.sweep(out)
        if isinstance(source, FeatureStore):
            for store in (source, *source.versions):
                store.verify(episodes)
        torch.manual_seed(config.seed)
        network = _network(kind, policy, dataset, source, encoder, episodes)
        where = engines.find_device(device or (None if isinstance(source, Frames) else "cpu"))
        state = _TrainState(network.to(where), config)
        state.restore(out / "state.pt")
        train_rows, valid_rows = _split(source, len(episodes), config)
        samples = gather(dataset, source, network, episodes, out)
        files.write_json(out / SETTINGS, settings)
        describe = partial(_description, kind, dataset, source, encoder)
        _loop(state, samples, train_rows, valid_rows, config, out, progress, describe)
        if worth := by_scale(state.averaged.module, samples, valid_rows, encoder.scale_names):
            files.write_json(out / "scales.json", worth)
        _write_policy(state.averaged.module, describe, out)
        (out / "state.pt").unlink(missing_ok=True)
        (out / "done").touch()
    return out


def _is_done(out: Path, settings: dict[str, Any], policy: Any) -> bool:
    """Raises InvalidInput where something else was learned there, or is being."""
    hold_against(out, settings, {"policy": type(policy)(), "train": TrainConfig(), "encoder": EncoderConfig()})
    return (out / "done").exists()


def load_policy(
    folder: str | Path, device: str | None = None, *, engine: str = "auto", precision: str | None = None
) -> Policy:
    """Load a trained policy: `folder` is what `train` returned, or a run folder that holds it as `policy/`.

    Args:
        engine, precision: who computes its features, see `s2robot.engines`; default: the precision it was trained on.
            A policy that reads frames is torch's alone, in fp32.

    Raises:
        InvalidInput: there is no policy there, or not for this engine and precision.
        CorruptFile: it cannot be read back.
        CheckpointMismatch: its encoder's weights are not those it was trained on.
    """
    folder = Path(folder)
    if (folder / "policy" / "policy.json").exists():
        folder = folder / "policy"
    if not (folder / "policy.json").exists():
        raise InvalidInput(f"No policy in {folder}: it has no policy.json. Train one: s2robot train --help")
    description = files.read_json(folder / "policy.json")
    try:
        path = folder / "policy.safetensors"
        if description.get(SUM, seals.digest(path)) != seals.digest(path):
            raise ValueError(f"{path.name} is not what was written beside policy.json")
        weights = load_file(path)
        module = registry.policy_module(description["kind"])
        if getattr(module.NETWORK, "reads_privileged", False):
            privileged: Policy = registry.acting().restore_privileged(module, description, weights)
            return privileged
        if module.NETWORK.reads_frames:
            return _pixel_policy(folder, module, description, weights, device, (engine, precision))
        known = EncoderConfig(**{**description["encoder"], "engine": "auto"})
        encoder = known.build(device)
        if encoder.fingerprint != description["encoder_fingerprint"]:
            raise CheckpointMismatch(
                f"The policy in {folder} was trained on features of {description['encoder']['name']} with fingerprint"
                f" {description['encoder_fingerprint'][:12]}, but that encoder is now {encoder.fingerprint[:12]}."
                " Train it again on the new features, or give it the encoder weights it knew"
            )
        chosen = Encoder(
            encoder.backbone, dataclasses.replace(known, engine=engine, precision=precision or known.precision)
        )
        policy: Policy = registry.acting().restore(module, description, chosen.to(encoder.device), weights)
    except S2RobotError:
        raise
    except Exception as error:  # safetensors, json keys, state dict: all mean the same to the reader
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CorruptFile(folder, reason, "Train it again, or restore it from a copy") from error
    return policy


def _pixel_policy(
    folder: Path,
    module: Any,
    description: dict[str, Any],
    weights: dict[str, Tensor],
    device: str | None,
    how: tuple[str, str | None],
) -> Policy:
    if how[0] not in ("auto", "torch") or how[1] not in (None, "fp32"):
        raise InvalidInput(
            f"Engine {how[0]!r}, precision {how[1]!r}: the {description['kind']} policy in {folder} reads frames by a"
            " network of its own, which only torch in fp32 computes. Leave both out"
        )
    known = description["encoder"] and EncoderConfig(**description["encoder"])
    policy: Policy = registry.acting().restore_pixels(module, description, known, weights, engines.find_device(device))
    return policy


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
    train_rows: Tensor,
    valid_rows: Tensor,
    config: TrainConfig,
    out: Path,
    progress: Progress,
    describe: Callable[[Any], dict[str, Any]],
) -> None:
    kept = {config.steps - round(k * config.steps / 2 / (config.snapshots + 1)) for k in range(1, config.snapshots + 1)}
    files.keep_lines(out / "metrics.jsonl", lambda row: row["step"] <= state.step)  # later ones are taken again
    began, network = time.monotonic(), state.network
    with files.JsonLines(out / "metrics.jsonl") as metrics, Board(out / "tensorboard", state.step) as board:
        while state.step < config.steps:
            loss = _step(state, samples, train_rows, config)
            if not math.isfinite(loss):
                raise S2RobotError(
                    f"The loss is {loss} at step {state.step}. Lower --train.lr (now {config.lr}), or look for NaN in"
                    " the data"
                )
            state.step += 1
            progress(state.step, config.steps, f"loss {loss:.4f}")
            if state.step % VALID_EVERY == 0 or state.step == config.steps:
                row: dict[str, Any] = {"step": state.step, "loss": loss, "lr": learning_rate(config, state.step - 1)}
                row["valid_loss"] = _valid_loss(state, samples, valid_rows, config)
                metrics.write({**row, "seconds": round(time.monotonic() - began, 2)})
                board.write(row)
            if state.step in kept:
                _write_policy(state.averaged.module, describe, out / "snapshots" / f"{state.step:06}")
            if state.step % config.checkpoint_every == 0:
                state.save(out / "state.pt")
    network.eval()


def _step(state: _TrainState, samples: Samples, rows: Tensor, config: TrainConfig) -> float:
    batch, versions = _draw(samples, rows, config, state.step)
    samples.expect(*_draw(samples, rows, config, state.step + 1))
    torch.manual_seed(config.seed * 1_000_003 + state.step)  # dropout and noise
    for group, share in zip(state.optimizer.param_groups, state.shares, strict=True):
        group["lr"] = share * learning_rate(config, state.step)
    state.network.train()
    loss: Tensor = state.network.batch_loss(samples.take(batch, state.device, versions))
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
    state.optimizer.step()
    state.averaged.update_parameters(state.network)
    return float(loss.detach())


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
