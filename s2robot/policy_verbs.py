"""The verbs `train` and `eval`."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from s2robot import command, files, progress, registry, remote, statistics
from s2robot import config as configuration
from s2robot.errors import InvalidInput, UnknownName, UsageError
from s2robot.launchers import HERE, LOCAL, Launcher, find_launcher
from s2robot.parser import json_option
from s2robot.runs import SEED_FOLDER, seed_folders

SNAPSHOTS = 4  # that --validate chooses from, besides the last weights, unless told otherwise

NOT_TRAIN = {  # keys of a run that training does not read -> what to say to those who give them
    "collect": "The demonstrations are there already: s2robot collect --help",
    "eval": "To judge what was trained: s2robot eval --help",
    "baselines": "That is for s2robot demo",
}


FEW = 200  # demonstrations; with 120 augmented versions were judged
TIP = "--encode.versions 4 --steps 9000, in another --out (docs/policies.md#augmented-versions)"


def do_train(argv: Sequence[str]) -> int:
    """Train one policy, or one a seed."""
    from s2robot import ranks
    from s2robot.datasets import DemoDataset
    from s2robot.demo import check_run, run_schema, source_of
    from s2robot.lesson import learned_from
    from s2robot.sweeps import alone_in, everywhere
    from s2robot.training import check_processes

    options, rest = command.parse(_train_parser(), argv)
    if options.validate < 0:
        raise UsageError(f"--validate is {options.validate}; expected a number of rollouts, 0 for none")
    kind = command.chosen_kind(options, options.config)
    check_processes(kind)
    words = command.overrides(options, rest)
    command.refuse_unread(words, NOT_TRAIN)
    config = configuration.load(run_schema(kind), options.config, words)
    if getattr(options, "=out") is None and configuration.said(options.config, "out") in (None, "."):
        raise UsageError("Where to? Add --out runs/NAME")
    if options.validate and not config.train.snapshots:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, snapshots=SNAPSHOTS))
    check_run(config)
    asked = configuration.planted(words, type(config)).get("train", {}).get("seed")
    seeds = _seeds(options.seeds, asked, config.train.seed or config.seed)
    _one_or_many(Path(config.out), many=bool(options.seeds))
    console, dataset = Console(quiet=not ranks.find().is_first), DemoDataset(options.dataset)
    learned_from(config.train.demos, dataset)  # said before hours of encoding
    if options.validate and not _has_task(dataset):
        where = remote.shown(options.dataset)
        raise UsageError(f"--validate rolls out, and {where} names no task of s2robot's to do it in: leave it out")
    if (launcher := find_launcher(options.launcher)) not in (LOCAL, HERE):
        dataset = everywhere(dataset)
    runs = {
        SEED_FOLDER.format(seed) if options.seeds else ".": dataclasses.replace(
            config, out=".", train=dataclasses.replace(config.train, seed=seed)
        )
        for seed in seeds
    }
    for name, run in runs.items():
        configuration.check_kept(run, Path(config.out) / name)
    source = source_of(dataset, config, remote.beside(dataset.address, "features"), console, launcher)
    _one_or_many(Path(config.out), many=bool(options.seeds))  # encoding may have taken hours
    if launcher in (LOCAL, HERE):
        for name, run in runs.items():
            with alone_in(Path(config.out) / name):
                _train_one(dataset, source, options.validate, run, Path(config.out) / name, console, launcher)
    else:
        _train_elsewhere(launcher, dataset, source, options.validate, runs, Path(config.out), console)
    _tell_next(config, dataset, console)
    return 0


def _tell_next(config: Any, dataset: Any, console: Console) -> None:
    now = f"s2robot eval {config.out}" if _has_task(dataset) else "s2robot.rollout(policy, env), in an env of yours"
    console.print(f"Now: {now}", highlight=False)
    is_few = (config.train.demos or len(dataset)) <= FEW
    if is_few and not config.encode.versions and not registry.reads_frames(config.kind):
        console.print(f"With so few demonstrations more may be learned by {TIP}", highlight=False, soft_wrap=True)


def _has_task(dataset: Any) -> bool:
    """Do its demonstrations name a task that there is to roll out in?"""
    try:
        registry.get_task(str(dataset.env_args.get("task")), dataset.env_args.get("robot"))
    except UnknownName:
        return False
    return True


def _train_parser() -> argparse.ArgumentParser:
    parser = command.parser(
        "train",
        "Train a policy; encodes first what is not yet encoded, unless the policy reads frames itself.",
        "s2robot train runs/lift.hdf5 --out runs/lift-act --kind act --seeds 0,1,2 --validate 20",
        key="--policy.hidden 512",
    )
    parser.add_argument("dataset", help="an HDF5 file of demonstrations, or its address: s3://BUCKET/NAME")
    parser.add_argument("--config", default="demo", help="a config by name or .yaml path (default: demo)")
    command.policy_kind(parser)
    parser.add_argument("--seeds", default=None, help="one run a seed, OUT/seed-0 and so on: 0,1,2")
    command.launcher(parser, "each run of --seeds is a piece")
    parser.add_argument(
        "--validate",
        type=int,
        default=0,
        metavar="EPISODES",
        help="judge snapshots by so many rollouts each, on seeds of their own; the best goes to OUT/best",
    )
    command.shorthands(
        parser, out="out", seed="train.seed", steps="train.steps", demos="train.demos", snapshots="train.snapshots"
    )
    return parser


def _train_elsewhere(
    launcher: Launcher, dataset: Any, source: Any, validate: int, runs: dict[str, Any], out: Path, console: Console
) -> None:
    from s2robot.sweeps import do_runs, inputs_of

    do = partial(_train_one, dataset, source, validate)
    with progress.bar("train", console) as report:
        for done, name in enumerate(do_runs(launcher, do, runs, out, inputs_of(dataset, source)), start=1):
            report(done, len(runs), name)


def _train_one(
    dataset: Any,
    source: Any,
    validate: int,
    config: Any,
    out: Path,
    console: Console | None = None,
    launcher: Launcher = HERE,
) -> None:
    """Train and validate one run; by default as a worker does, in its process alone."""
    from s2robot import ranks
    from s2robot.selection import ValidationConfig, select
    from s2robot.training import train

    console = console or Console(quiet=True)
    with configuration.bound(config, out), progress.bar("train", console) as report:
        policy = train(dataset, source, config.encoder, config.policy, config.train, out / "policy", progress=report)
    console.print(f"{policy}: trained", highlight=False)
    if validate and ranks.find().is_first:
        with progress.bar("validate", console) as report:
            best = select(out, ValidationConfig(validate), report, launcher)
        console.print(f"{best}: the best of {config.train.snapshots + 1} by {validate} rollouts each", highlight=False)


def _one_or_many(out: Path, *, many: bool) -> None:
    """A folder holds one run, or those of `--seeds`: `eval` and `compare` would have to guess."""
    there = seed_folders(out)
    if many and (out / "policy").exists():
        raise InvalidInput(f"{out} holds a run of its own. Choose another --out for --seeds")
    if there and not many:
        raise InvalidInput(f"{out} holds the runs of --seeds ({there[0].name}, ...). Choose another --out for one run")


def _seeds(words: str | None, asked: int | None, written: int) -> list[int]:
    """Of training: those of `--seeds`, or the one of `--seed`, or that of the config."""
    if words is None:
        return [written if asked is None else asked]
    if asked is not None:
        raise UsageError("--seed beside --seeds: give one of them")
    parts = [part.strip() for part in words.split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts) or len(set(parts)) != len(parts):
        raise UsageError(f"--seeds is {words!r}; expected different whole numbers from 0 on: 0,1,2")
    return [int(part) for part in parts]


def do_eval(argv: Sequence[str]) -> int:
    """Roll a run out, or each run of `train --seeds`."""
    from s2robot.rollouts import EvalConfig
    from s2robot.seeds import seed_uses

    parser = command.parser(
        "eval",
        "Roll a trained policy out on seeds no demonstration used.",
        "s2robot eval runs/demo --episodes 100 --shift all/test",
        key=", ".join(f"--{name}" for name in configuration.keys(EvalConfig)),
    )
    parser.add_argument("run", help="a run folder that holds policy/, or one of `train --seeds`")
    command.launcher(parser, "each episode is a piece")
    parser.add_argument("--report", action="store_true", help="also write a page with videos into the run folder")
    json_option(parser, "print the result as JSON")
    options, rest = command.parse(parser, argv)
    config = configuration.load(EvalConfig, None, rest)
    folders = seed_folders(Path(options.run)) or [Path(options.run)]
    for folder in folders:
        if folder.is_file():
            raise InvalidInput(f"{folder} is a file; expected the folder of a run. Train one: s2robot train --help")
        if not (folder / "policy" / "policy.json").exists():
            raise InvalidInput(f"No policy in {folder / 'policy'}. Train one: s2robot train --help")
    console = Console(stderr=options.json)
    uses = seed_uses(range(config.seed, config.seed + config.episodes))
    if seen := [use for use in uses if use != "evaluation"]:
        console.print(f"[yellow]These are seeds of {' and '.join(seen)}:[/] no result to report", highlight=False)
    launcher = find_launcher(options.launcher)
    results = [_eval_one(folder, config, console, options, launcher) for folder in folders]
    if options.json:
        command.tell_json(results[0] if len(results) == 1 else {"runs": results, "mean": _mean(results)})
    elif len(results) > 1:
        console.print(
            f"mean of {len(results)} runs: {100 * _mean(results):.1f} %; its interval: s2robot compare {options.run}",
            highlight=False,
        )
    return 0


def _eval_one(
    run: Path, config: Any, console: Console, options: argparse.Namespace, launcher: Launcher
) -> dict[str, Any]:
    from s2robot.rollouts import STAGES, evaluate
    from s2robot.seeds import seed_uses

    log = run / f"episodes-{config.label}.jsonl"
    with progress.bar("evaluate", console) as report:
        results = evaluate(run / "policy", config, log, report, launcher)
    wins, n = sum(r.success for r in results), len(results)
    low, high = statistics.wilson(wins, n)
    latency = {stage: statistics.quantiles([ms for r in results for ms in r.ms[stage]]) for stage in STAGES}
    if not options.json:
        console.print(f"{run}: {wins} of {n} succeeded: {statistics.percent(wins / n, low, high)}", highlight=False)
        times = ", ".join(f"{stage} {each['p50']:.1f} / {each['p99']:.1f}" for stage, each in latency.items())
        console.print(f"ms, p50 / p99: {times}", highlight=False)
    if options.report:
        console.print(_report(run, results, config, log), highlight=False)
    said = {name: getattr(config, name) for name in ("seed", "fidelity", "precision", "shift", "execute", "ensemble")}
    counted = {"success_rate": wins / n, "successes": wins, "episodes": n, "interval": [low, high]}
    steps = [r.steps for r in results if r.success]
    lasted = {"steps_to_success": statistics.quantiles(steps) if steps else None, "latency_ms": latency}
    uses = seed_uses(range(config.seed, config.seed + config.episodes))
    return {**counted, **said, "seeds_of": uses, **lasted, "log": str(log)}


def _report(run: Path, results: Any, config: Any, log: Path) -> str:
    from s2robot import judged
    from s2robot.report import write_report

    out = run if config.label == "exact" else run / config.label  # a page each for other conditions
    if "stages" in (files.read_json(run / "summary.json") if (run / "summary.json").exists() else {}):
        out = run / config.label  # the demo's page says more, and stays
    judged.show(run / "policy", results, config, out)
    more = {"log": os.path.relpath(log, out)}
    files.write_json(out / "summary.json", judged.summarise(run / "policy", results, config, more))
    return str(write_report(out))


def _mean(results: list[dict[str, Any]]) -> float:
    return sum(float(each["success_rate"]) for each in results) / len(results)
