"""The whole way, once: demonstrations -> features -> policy -> rollouts -> a page. Every stage resumes.

<out>/config.yaml       the resolved configuration
      demos.hdf5        demonstrations
      features/         the feature store
      policy/           weights, metrics
      episodes.jsonl    evaluation, one line an episode
      videos/ pictures/ summary.json report.html
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from s2robot import config as configuration
from s2robot import files, judged, progress, registry, statistics, training
from s2robot.augment import Augmentation
from s2robot.collect import CollectConfig, collect
from s2robot.datasets import DemoDataset
from s2robot.encoder import EncoderConfig
from s2robot.errors import InvalidInput
from s2robot.frames import Frames
from s2robot.launchers import LOCAL, Launcher
from s2robot.policies.bc_mlp import BCConfig
from s2robot.report import write_report
from s2robot.rollouts import EpisodeResult, EvalConfig, evaluate
from s2robot.samples import Source, check_stride
from s2robot.store import FeatureStore, encode_dataset
from s2robot.training import TrainConfig
from s2robot.types import check_execute


@dataclass(frozen=True)
class EncodeConfig:
    """Which frames of the demonstrations are encoded."""

    stride: int = 2  # every second step: neighbours look alike
    workers: int = 0  # processes; 0 takes every core
    versions: int = 0  # other looks of all these frames, to train on as well; see `s2robot.augment`
    augment: Augmentation = field(default_factory=Augmentation)  # how far these go


@dataclass(frozen=True)
class DemoConfig:
    """Everything the demo does."""

    out: str = "runs/demo"
    seed: int = 0  # of demonstrations, network and batches; evaluation has its own, `eval.seed`
    baselines: bool = False  # also train and judge base scale alone and random weights, on the same seeds
    collect: CollectConfig = field(default_factory=CollectConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    kind: str = "bc-mlp"  # of policy; which hyper-parameters it has follows, see `run_schema`
    policy: BCConfig = field(default_factory=BCConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def run_schema(kind: str) -> type[DemoConfig]:
    """The same with the hyper-parameters of another kind of policy."""
    policy = registry.policy_module(kind).CONFIG
    if policy is BCConfig:
        return DemoConfig
    fields = [("kind", str, field(default=kind)), ("policy", policy, field(default_factory=policy))]
    return dataclasses.make_dataclass("DemoConfig", fields, bases=(DemoConfig,), frozen=True)


def check_run(config: DemoConfig) -> None:
    """What training or rollouts would refuse, said before demonstrations are collected and encoded.

    Raises:
        InvalidInput: versions of features are asked for and the policy reads frames, the looks of a context would lie
            between encoded steps, or rollouts shall execute what the policy cannot.
    """
    policy, execute = config.policy, config.eval.execute
    if registry.reads_frames(config.kind) and config.encode.versions:
        raise InvalidInput(
            f"--encode.versions is {config.encode.versions}: versions are features, encoded beforehand, and"
            f" {config.kind} reads frames. It moves them itself as it learns: --policy.shift 6 (pixels)"
        )
    check_stride(policy, config.encode.stride)
    if execute:
        check_execute(execute, chunk=policy.chunk, trained=policy.execute, context=policy.context)


def demo(config: DemoConfig, console: Console) -> Path:
    """Run or resume the demo; return the report.

    Raises:
        InvalidInput: the folder holds a run with other settings, or the policy needs no encoder.
    """
    if registry.reads_frames(config.kind):
        raise InvalidInput(
            f"The demo shows frozen features, and {config.kind} reads frames. Train it on the demo's demonstrations:"
            f" s2robot train {config.out}/demos.hdf5 --kind {config.kind} --out runs/{config.kind}"
        )
    config = _seeded(config)
    check_run(config)
    out = Path(config.out)
    registry.check_manner(config.eval.fidelity, config.eval.shift)
    if not 0 <= config.train.demos <= config.collect.demos:
        raise InvalidInput(f"--train.demos is {config.train.demos}; --collect.demos is {config.collect.demos}")
    with configuration.bound(dataclasses.replace(config, out="."), out):
        clock = StageClock(out / "stages.json")
        with clock.stage("collect"), progress.bar("collect", console) as report:
            dataset = collect(config.collect, out / "demos.hdf5", report)
    store, policy = _learn(config, config.encoder, dataset, out / "policy", clock, console)
    with clock.stage("evaluate"), progress.bar("evaluate", console) as report:
        results = evaluate(policy, config.eval, out / _log(config), report)
    baselines = _baselines(config, dataset, results, console) if config.baselines else []
    with clock.stage("report"):
        judged.show(policy, results, config.eval, out)
        more = {**_more(config, dataset, store, baselines, clock), "log": _log(config)}
        files.write_json(out / "summary.json", judged.summarise(policy, results, config.eval, more))
        return write_report(out)


class StageClock:
    """Wall time of every stage, summed over interruptions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = files.read_json(path) if path.exists() else {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began
            files.write_json(self.path, self.seconds)


def _learn(
    config: DemoConfig, encoder: EncoderConfig, dataset: DemoDataset, out: Path, clock: StageClock, console: Console
) -> tuple[FeatureStore, Path]:
    with clock.stage("encode"), progress.bar("encode", console) as report:
        store = encode(dataset, encoder, config.encode, Path(config.out) / "features", report)
    with clock.stage("train"), progress.bar("train", console) as report:
        policy = training.train(dataset, store, encoder, config.policy, config.train, out, progress=report)
    return store, policy


def encode(
    dataset: DemoDataset,
    encoder: EncoderConfig,
    config: EncodeConfig,
    root: str | Path,
    report: progress.Report,
    launcher: Launcher = LOCAL,
) -> FeatureStore:
    """The dataset's store in `root`, with its versions."""
    settings = {**vars(config), "workers": launcher if launcher is not LOCAL else config.workers or None}
    return encode_dataset(dataset.address, encoder, root, **settings, progress=report)


def source_of(
    dataset: DemoDataset, config: DemoConfig, features: str | Path, console: Console, launcher: Launcher = LOCAL
) -> Source:
    """What a run's policy learns from: frames, or its encoder's store in the folder `features`."""
    if not registry.reads_frames(config.kind):
        with progress.bar("encode", console) as report:
            return encode(dataset, config.encoder, config.encode, features, report, launcher)
    return Frames(dataset, config.encode.stride)


def _log(config: DemoConfig) -> str:
    """Of the rollouts: `compare` takes what is called so for the physics of `exact`."""
    return "episodes.jsonl" if config.eval.label == "exact" else f"episodes-{config.eval.label}.jsonl"


def _others(encoder: EncoderConfig) -> dict[str, EncoderConfig]:
    """What the encoder is held against."""
    sizes = encoder.sizes and encoder.sizes[:1]
    return {
        "base scale only": dataclasses.replace(encoder, scales=encoder.scales[:1], sizes=sizes, grid="base"),
        "random weights": dataclasses.replace(encoder, random_weights=True, checkpoint=None),
    }


def _baselines(
    config: DemoConfig, dataset: DemoDataset, results: list[EpisodeResult], console: Console
) -> list[dict[str, Any]]:
    """The same everything with another encoder, judged on the same seeds."""
    rows = []
    for name, encoder in _others(config.encoder).items():
        folder = Path(config.out) / "baselines" / name.replace(" ", "-")
        console.print(f"Baseline: {name}")
        _, policy = _learn(config, encoder, dataset, folder / "policy", StageClock(folder / "stages.json"), console)
        with progress.bar("evaluate", console) as report:
            theirs = evaluate(policy, config.eval, folder / _log(config), report)
        wins = sum(r.success for r in theirs)
        paired = statistics.paired_difference([r.success for r in results], [r.success for r in theirs])
        rows.append(
            {
                "name": name,
                "scale_names": list(encoder.scale_names),
                "successes": wins,
                "episodes": len(theirs),
                "interval": list(statistics.wilson(wins, len(theirs))),
                "paired": {**dataclasses.asdict(paired), "resolved": paired.resolved},
            }
        )
    return rows


def _more(
    config: DemoConfig, dataset: DemoDataset, store: FeatureStore, baselines: list[dict[str, Any]], clock: StageClock
) -> dict[str, Any]:
    """What the page says beyond the evaluation."""
    details = {
        "collect": f"{len(dataset)} demonstrations, {dataset.total} steps",
        "encode": f"{len(store)} steps x {len(dataset.cameras)} views"
        + (f", {len(store.versions) + 1} versions" if store.versions else ""),
        "train": f"{config.train.steps} steps of {config.train.batch}",
        "evaluate": f"{config.eval.episodes} rollouts",
    }
    return {
        "seed": config.seed,
        "demos": config.train.demos or len(dataset),
        "stages": [
            {"name": name, "seconds": round(seconds, 1), "detail": details.get(name, "")}
            for name, seconds in clock.seconds.items()
        ],
        "baselines": baselines,
        "fidelity": {"collect": config.collect.fidelity, "evaluate": config.eval.fidelity},
    }


def _seeded(config: DemoConfig) -> DemoConfig:
    """One seed for all that is learned; what is judged keeps its own.

    Raises:
        InvalidInput: collecting or training was given another.
    """
    for name, asked in (("collect", config.collect.seed), ("train", config.train.seed)):
        if asked not in (0, config.seed):
            raise InvalidInput(
                f"--{name}.seed is {asked}, --seed {config.seed}: the demo has one seed. Give --seed {asked}"
            )
    return dataclasses.replace(
        config,
        collect=dataclasses.replace(config.collect, seed=config.seed),
        train=dataclasses.replace(config.train, seed=config.seed),
    )
