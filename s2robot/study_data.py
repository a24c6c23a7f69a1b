"""What a study's arms learn from: demonstrations collected or given, and drawn again for cameras of another size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from s2robot import files, progress, registry, remote
from s2robot.collect import collect
from s2robot.datasets import DemoDataset
from s2robot.demo import DemoConfig
from s2robot.errors import InvalidInput, S2RobotError
from s2robot.launchers import Launcher
from s2robot.rerender import RenderConfig, render

if TYPE_CHECKING:
    from s2robot.study import Cell

Seen = Mapping[int, DemoDataset]
"""The demonstrations by the size of the cameras' frames [pixels]."""


def enough(every: Sequence[Cell], there: int, who: str) -> None:
    """Raises InvalidInput where a run learns from more demonstrations than there are."""
    if (most := max(cell.config.train.demos for cell in every)) > there:
        raise InvalidInput(f"{who} {there}, and this study learns from up to {most} demonstrations")


def as_seen(every: Sequence[Cell], dataset: DemoDataset, out: Path, console: Console) -> Seen:
    """The same episodes drawn again where an arm's cameras have another size."""
    seen = {dataset.frame_shape[1]: dataset}
    for config in (cell.config.collect for cell in every if cell.config.collect.frame_size not in seen):
        path = out / f"demos-{config.frame_size}px.hdf5"
        if not path.exists():
            how = RenderConfig(frame_size=config.frame_size, workers=config.workers)
            with progress.bar(f"draw at {config.frame_size} px", console) as report:
                render(dataset.path, path, how, report)
        drawn = seen[config.frame_size] = DemoDataset(path)
        if list(drawn.lengths) != list(dataset.lengths):
            where = remote.shown(dataset.address)
            raise S2RobotError(
                f"{path} has {len(drawn)} episodes, not the {len(dataset)} of {where}: an arm would learn from others."
                f" Why some cannot be drawn: s2robot render {where} --out another.hdf5"
            )
    return seen


def same_demonstrations(dataset: DemoDataset, out: Path) -> None:
    """Later runs learn from what the first did."""
    path = out / "results.json"
    known = files.read_json(path)["dataset"].get("fingerprint") if path.exists() else None
    if known not in (None, dataset.fingerprint[:16]):
        raise InvalidInput(
            f"{out} holds a study of other demonstrations than {remote.shown(dataset.address)}. Choose another --out"
        )


def demonstrations(
    config: DemoConfig, out: Path, console: Console, data: str | Path | None, launcher: Launcher
) -> DemoDataset:
    if data is not None:
        dataset = DemoDataset(data)
        if (known := dataset.env_args.get("task")) != config.collect.task:
            data = remote.shown(str(data))
            raise InvalidInput(f"{data} has demonstrations of {known}; this study is of {config.collect.task}")
        return dataset
    registry.get_task(config.collect.task, config.collect.robot)
    path, wanted = out / "demos.hdf5", config.collect
    if path.exists():  # which arm came first then is no matter now
        wanted = dataclasses.replace(wanted, frame_size=DemoDataset(path).frame_shape[1])
    with progress.bar("collect", console) as report:
        dataset = collect(wanted, path, report, launcher)
    if len(dataset) != wanted.demos:  # collected when another number was asked for
        raise InvalidInput(
            f"{path} has {len(dataset)} demonstrations, and collect.demos is {wanted.demos}. Choose another --out"
        )
    return dataset
