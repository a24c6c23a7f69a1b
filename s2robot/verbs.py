"""What each verb of the command line does: read options, call the library, say what came out.

`do_<verb>(argv) -> exit code`; `s2robot.cli.VERBS` names them.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from s2robot import command, files, plugins, progress, registry, remote, statistics
from s2robot import config as configuration
from s2robot.dataset_verbs import dataset_rows
from s2robot.errors import UsageError
from s2robot.launchers import LOCAL, find_launcher
from s2robot.parser import json_option


def do_demo(argv: Sequence[str]) -> int:
    parser = command.parser(
        "demo",
        "Collect, encode, train, evaluate, report. Stop it any time: it goes on where it was.",
        "s2robot demo --quick",
    )
    parser.add_argument("--config", default=None, help="a config by name or .yaml path (default: demo)")
    parser.add_argument(
        "--quick", action="store_true", help="base scale and fewer demonstrations: minutes, not a coffee"
    )
    parser.add_argument(
        "--baselines", action="store_true", help="also train with the base scale alone and with random weights"
    )
    command.policy_kind(parser)
    parser.add_argument(
        "--no-install", action="store_true", help="do not install what the simulator needs, only say it"
    )
    command.shorthands(
        parser, out="out", seed="seed", demos="collect.demos", steps="train.steps", episodes="eval.episodes"
    )
    options, rest = command.parse(parser, argv)
    _simulator_or_install(install=not options.no_install)
    from s2robot.demo import demo as run
    from s2robot.demo import run_schema

    name = options.config or ("demo-quick" if options.quick else "demo")
    overrides = command.overrides(options, rest) + (["--baselines", "true"] if options.baselines else [])
    console = command.console()
    page = run(configuration.load(run_schema(command.chosen_kind(options, name)), name, overrides), console)
    summary = files.read_json(page.parent / "summary.json")
    rate = statistics.percent(summary["success_rate"], *summary["interval"])
    console.print(
        f"{summary['task']}: {summary['successes']} of {summary['episodes']} unseen placements: {rate}\n{page}",
        highlight=False,
    )
    return 0


def do_collect(argv: Sequence[str]) -> int:
    from s2robot.collect import CollectConfig, whole
    from s2robot.collect import collect as run

    parser = command.parser(
        "collect",
        "Scripted demonstrations, in parallel, resumable.",
        "s2robot collect Lift --demos 200 --out runs/lift.hdf5",
        ", ".join(f"--{name}" for name in configuration.keys(CollectConfig) if name != "task"),
    )
    parser.add_argument("task", help="a task; see: s2robot list tasks")
    parser.add_argument("--out", required=True, help="the HDF5 file to write (robomimic's layout), or s3://BUCKET/NAME")
    command.launcher(parser, "each episode is a piece")
    options, rest = command.parse(parser, argv)
    config = configuration.load(CollectConfig, None, command.first_word("task", options.task, rest))
    registry.get_task(config.task, config.robot)
    console = command.console()
    if remote.is_remote(options.out) and remote.exists(options.out):
        dataset = whole(options.out, config)
    else:
        far = remote.is_remote(options.out)
        out = remote.outgoing(options.out) if far else Path(options.out)
        with progress.bar("collect", console) as report:
            dataset = run(config, out, report, find_launcher(options.launcher))
        if far:
            remote.store(out, options.out)
            shutil.rmtree(out.parent)
    where, cameras = remote.shown(options.out), ", ".join(dataset.cameras)
    there = f"; {config.demos} were asked for, and so many were there" * (len(dataset) != config.demos)
    console.print(f"{where}: {len(dataset)} demonstrations, {dataset.total} steps, cameras {cameras}{there}")
    return 0


def do_encode(argv: Sequence[str]) -> int:
    from s2robot.augment import Augmentation
    from s2robot.encoder import EncoderConfig
    from s2robot.store import encode_dataset

    how_far = ("augment", Augmentation, dataclasses.field(default_factory=Augmentation))
    schema = dataclasses.make_dataclass("Options", [how_far], bases=(EncoderConfig,), frozen=True)
    parser = command.parser(
        "encode",
        "Encode demonstrations once; training then reads features.",
        "s2robot encode runs/lift.hdf5",
        ", ".join(f"--{name}" for name in configuration.keys(schema)),
    )
    parser.add_argument("dataset", help="an HDF5 file of demonstrations, or its address: s3://BUCKET/NAME")
    parser.add_argument("--out", default=None, help="folder of feature stores (default: features/ beside the dataset)")
    parser.add_argument("--stride", type=int, default=2, help="encode every n-th step (default 2, as train does)")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one a core)")
    parser.add_argument(
        "--versions",
        type=int,
        default=0,
        help="also so many other looks: the camera elsewhere, other light (default 0)",
    )
    command.launcher(parser, "each episode is a piece")
    options, rest = command.parse(parser, argv)
    config: Any = configuration.load(schema, None, rest)
    encoder = EncoderConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(EncoderConfig)})
    root = options.out or remote.beside(options.dataset, "features")
    console, launcher = command.console(), find_launcher(options.launcher, options.workers)
    with progress.bar("encode", console) as report:
        workers = options.workers if launcher is LOCAL else launcher
        settings = {"stride": options.stride, "versions": options.versions, "augment": config.augment}
        store = encode_dataset(options.dataset, encoder, root, workers=workers, **settings, progress=report)
    looks = ", ".join(encoder.scale_names)
    console.print(f"{store.folder}: {len(store)} steps, map {store.map.shape[1:]}, {encoder.name} at {looks}")
    for version in store.versions:
        console.print(f"{version.folder}: version {version.version}")
    return 0


def do_report(argv: Sequence[str]) -> int:
    from s2robot.report import write_report

    parser = command.parser("report", "Write a run folder's report.html again.", "s2robot report runs/demo", "")
    parser.add_argument("run", help="a finished run folder")
    print(write_report(parser.parse_args(list(argv)).run))
    return 0


def do_list(argv: Sequence[str]) -> int:
    parser = command.parser("list", "What there is by name.", "s2robot list datasets runs", key="")
    kinds = {"encoders": _encoders, "tasks": _tasks, "policies": _policies, "configs": _configs}
    parser.add_argument("kind", nargs="?", choices=[*sorted(kinds), "datasets"], help="default: all but datasets")
    parser.add_argument("folder", nargs="?", default=None, help="of datasets: where to look (default: here)")
    json_option(parser)
    options = parser.parse_args(list(argv))
    if options.folder is not None and options.kind != "datasets":
        raise UsageError(f"{options.folder}: a folder is for datasets: s2robot list datasets {options.folder}")
    folder = options.folder or "."
    if options.kind == "datasets":
        found = {"datasets": dataset_rows(folder)}
    else:
        chosen = {options.kind: kinds[options.kind]} if options.kind else kinds
        found = {name: rows() for name, rows in chosen.items()}
        if broken := _broken(chosen):
            found["broken"] = broken
    if options.json:
        command.tell_json(found)
        return 0
    for name, rows in found.items():
        table = command.table(title=name)
        if not rows:
            print(f"no datasets below {folder}; make one: s2robot collect --help")
            continue
        columns = [key for key in rows[0] if key != "distribution" or any(row[key] != "s2robot" for row in rows)]
        for column in columns:
            table.add_column(column.replace("_", " "), overflow="fold", no_wrap=column == "name")
        for row in rows:
            table.add_row(*[_short(row[column], column) for column in columns])
        console = command.console()
        console.print(table)
    return 0


def _short(value: Any, column: str) -> str:
    if value is None:
        return "unknown"
    return f"{value / 1e6:.1f} M" if column == "params" else str(value)


def _encoders() -> Any:
    from s2robot.backbones import list_encoders

    return [dataclasses.asdict(row) for row in list_encoders()]


def _tasks() -> Any:
    from s2robot.envs import PLUGINS, TASKS

    tasks = [(task, "s2robot") for task in TASKS.values()]
    tasks += [(found.value, found.plugin.distribution) for found in PLUGINS.usable()]
    return [
        {"name": t.name, "robot": t.robot, "cameras": ", ".join(t.cameras), "success": t.success, "distribution": of}
        for t, of in tasks
    ]


def _policies() -> Any:
    kinds = [(kind, module, "s2robot") for kind, module in registry.KINDS.items()]
    kinds += [(each.name, each.entry_point.value, each.distribution) for each, *_ in registry.PLUGINS.usable()]
    reads = {kind: "frames" if registry.reads_frames(kind) else "features" for kind, *_ in kinds}
    return [{"kind": kind, "reads": reads[kind], "module": module, "distribution": of} for kind, module, of in kinds]


def _broken(kinds: Iterable[str]) -> Any:
    """Plug-ins of these kinds that cannot be used, and why."""
    return [
        {"name": each.plugin.name, "kind": each.plugin.kind, "plugin": str(each.plugin), "why": each.error.why}
        for kind in kinds
        if kind in plugins.HOMES
        for each in plugins.group(kind).every()
        if each.error
    ]


def _configs() -> Any:
    return [{"name": name} for name in configuration.names()]


def _simulator_or_install(*, install: bool) -> None:
    """The demo is one command from a fresh machine: in a virtual environment it installs what it needs."""
    if find_spec("robosuite") and find_spec("mujoco"):
        return
    if not install or sys.prefix == sys.base_prefix or "S2ROBOT_FIXED" in os.environ:
        raise UsageError("The demo needs the simulator. Run: s2robot doctor --fix   (or: pip install 's2robot[sim]')")
    print("The simulator is not installed; installing it into this environment (s2robot doctor --fix).", flush=True)
    if subprocess.run([sys.executable, "-m", "s2robot.cli", "doctor", "--fix"], check=False).returncode:
        raise UsageError("The simulator could not be installed; see the lines above, or: pip install 's2robot[sim]'")
    os.environ["S2ROBOT_FIXED"] = "1"  # a second failure must not loop
    os.execv(sys.executable, [sys.executable, "-m", "s2robot.cli", *sys.argv[1:]])  # numpy may have changed under us
