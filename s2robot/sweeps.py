"""Whole runs as pieces: `train --seeds` and `study` on a launcher.

A run's folder goes to a worker as it is so far, and comes back when it is done. The demonstrations and the features it
learns from are read where they are, so they must lie where every worker sees them: on a shared disk, or behind an
address such as s3://... (`s2robot.remote`).
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from s2robot import ranks, remote
from s2robot.datasets import DemoDataset
from s2robot.errors import InvalidInput, S2RobotError
from s2robot.frames import Frames
from s2robot.launchers import Launcher
from s2robot.parcels import Parcel
from s2robot.pieces import Outcome
from s2robot.samples import Source

What = TypeVar("What")
RUN = ("config.yaml", "policy/**/*", "best/**/*", "validation.json", "episodes-*.jsonl")
"""What of a folder is a run and travels: demonstrations and features may lie beside it."""


class _Run(NamedTuple):
    """One run: by its folder, what it is, and what there is of it."""

    name: str
    what: object
    so_far: Parcel

    def __str__(self) -> str:
        return self.name


def do_runs(
    launcher: Launcher, do: Callable[[What, Path], None], runs: Mapping[str, What], out: Path, inputs: tuple[Path, ...]
) -> Iterator[str]:
    """Call `do(what, folder)` for each run on some worker; yield its name when all of it is in `out/name`.

    Every run has as many threads as this process: with another number its last bits would differ.

    Args:
        inputs: what workers must see.

    What there is of a run that failed is in `out/name` too: one whose validation failed is trained.

    Raises:
        Occupied: another process is at one of these runs.
    """
    pieces = (_Run(name, what, Parcel.of(out / name, RUN)) for name, what in runs.items())
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as held:
        for name in runs:
            held.enter_context(alone_in(out / name))
        done = launcher.work(partial(_see, inputs), partial(_do, do, threads), pieces, cpus=threads)
        held.enter_context(contextlib.closing(done))
        for run, (folder, outcome) in done:
            folder.put(out / run.name, instead_of=run.so_far)
            outcome.value()
            yield run.name


def alone_in(run: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a run's folder. The lock in its policy/ is held where it is trained: here or on a worker."""
    return ranks.find().alone(run)


def inputs_of(dataset: DemoDataset, source: Source) -> tuple[Path, ...]:
    """What lies on a disk of what a run learns from."""
    looks = [] if isinstance(source, Frames) else [source, *source.versions]
    places = [dataset.address, *(store.address for store in looks)]
    return tuple(Path(place) for place in places if not remote.is_remote(place))


def everywhere(dataset: DemoDataset) -> DemoDataset:
    """The same by a path that means the same in other current folders."""
    return dataset if remote.is_remote(dataset.address) else DemoDataset(dataset.path.absolute())


def _see(inputs: tuple[Path, ...]) -> None:
    for path in inputs:
        if not path.exists():
            raise S2RobotError(
                f"The worker on {platform.node()} does not see {path}. Runs read demonstrations and features where they"
                " are: put them on a disk that all nodes share, or train with --launcher local"
            )


def _do(do: Callable[[What, Path], None], threads: int, tool: None, run: _Run) -> tuple[Parcel, Outcome]:
    torch.set_num_threads(threads)
    with run.so_far.unpacked() as folder:
        outcome = Outcome.of(do, run.what, folder)
        if isinstance(outcome.error, InvalidInput):
            outcome = Outcome(None, InvalidInput(str(outcome.error).replace(str(folder), run.name)))
        return Parcel.of(folder, RUN), outcome
