"""Who does the work: this process, processes of this machine, a Ray cluster, or Slurm jobs.

A long command is split into pieces, each named by its item: an episode by its seed or number, a run by its folder. The
answer to a piece is a function of the item alone, and it writes nothing that lasts: what it made comes back, and the
one who asked puts it on disk. So a piece may be answered twice, by anyone, and workers need see none of our disks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from s2robot.errors import UnknownName
from s2robot.workers import work as in_processes

Item = TypeVar("Item")
Result = TypeVar("Result")
NAMES = ("local", "here", "ray", "slurm")


class Launcher(Protocol):
    """Answers pieces."""

    def work(
        self,
        make: Callable[[], Any],
        answer: Callable[[Any, Item], Result],
        items: Iterable[Item],
        workers: int | None = None,
        *,
        cpus: int = 1,
        feed: Callable[[Item], Any] | None = None,
    ) -> Generator[tuple[Item, Result], None, None]:
        """Yield (item, answer(tool, item)) as they finish; `tool = make()` is made once a worker.

        Items are drawn lazily, a few ahead, so the series may be endless: stop by closing the generator. They are named
        by `str(item)` where there is something to say of one.

        Args:
            workers: at most so many at once; default: as many as there is room for.
            cpus: what one worker takes, where that is counted.
            feed: what others may do to an item beforehand; `answer` takes it either way. Given, the tool is a network:
                where there are GPUs its worker takes one, and CPUs feed it.

        Raises:
            S2RobotError: too many workers were lost. What `make` or `answer` raised comes as it is.
        """
        ...


class Local:
    """Processes of this machine, each with one thread."""

    def work(
        self,
        make: Callable[[], Any],
        answer: Callable[[Any, Item], Result],
        items: Iterable[Item],
        workers: int | None = None,
        *,
        cpus: int = 1,
        feed: Callable[[Item], Any] | None = None,
    ) -> Generator[tuple[Item, Result], None, None]:
        return in_processes(make, answer, items, workers)


class Here:
    """This very process, on one thread."""

    def work(
        self,
        make: Callable[[], Any],
        answer: Callable[[Any, Item], Result],
        items: Iterable[Item],
        workers: int | None = None,
        *,
        cpus: int = 1,
        feed: Callable[[Item], Any] | None = None,
    ) -> Generator[tuple[Item, Result], None, None]:
        with as_in_a_worker():
            tool = make()
            try:
                for item in items:
                    yield item, answer(tool, item)
            finally:
                if hasattr(tool, "close"):  # a process that ends frees what it holds; this one goes on
                    tool.close()


@contextlib.contextmanager
def as_in_a_worker() -> Iterator[None]:
    """On one thread of torch's: another number of them may sum in another order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


LOCAL, HERE = Local(), Here()


def find_launcher(words: str, workers: int | None = None) -> Launcher:
    """The launcher that `--launcher` names: local, here, ray, ray://HOST:10001, slurm:partition=cpu,workers=64.

    Args:
        workers: of Ray or Slurm at most so many.

    Raises:
        UnknownName: there is none of that name.
        MissingExtra: its package is not installed.
    """
    name = words.partition(":")[0]
    if words in ("local", "here"):
        return LOCAL if words == "local" else HERE
    if name == "ray":
        from s2robot.ray_launcher import RayLauncher

        return RayLauncher(words if words != name else None, workers)
    if name == "slurm":
        from s2robot.slurm_launcher import SlurmLauncher

        return SlurmLauncher.of(words.partition(":")[2], workers)
    raise UnknownName("launcher", words, NAMES, "docs/scaling.md")
