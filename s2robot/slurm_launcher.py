"""Pieces as Slurm jobs: `--launcher slurm:partition=cpu,timeout_min=60 --workers 64`.

A job makes its tool, answers some pieces, and ends: short jobs find room between others' long ones, and one that is
preempted or runs out of time loses minutes. What travels does so through a folder that all nodes see, by submitit.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, TypeVar

from s2robot.errors import InvalidInput, UsageError, require
from s2robot.pieces import Outcome, Piece, Pieces
from s2robot.workers import one_thread_environment

Item = TypeVar("Item")
Result = TypeVar("Result")

POLL = 0.5  # seconds between two looks at the jobs; submitit itself asks Slurm less often
FOLDER = "slurm-jobs"  # under the current folder
SLURMS = ("partition", "account", "qos", "constraint")  # may go without submitit's slurm_ before them


class SlurmLauncher:
    """Jobs that each answer some pieces."""

    def __init__(
        self,
        folder: str | Path,
        workers: int | None = None,
        *,
        pieces: int = 8,
        cluster: str = "slurm",
        **parameters: Any,
    ) -> None:
        """
        Args:
            folder: for what travels; all nodes must see it. It may be removed when the work is done.
            workers: at most so many jobs at once.
            pieces: answered by one job. Enough that its start, some 10 s, is little of its time.
            cluster: "slurm", or "local" for processes here in Slurm's place.
            parameters: as `submitit.AutoExecutor.update_parameters` takes them: timeout_min, mem_gb, slurm_partition;
                gpus_per_node=1 for an encoder on a GPU.
        """
        for name, count in (("pieces", pieces), ("workers", workers)):
            if count is not None and (type(count) is not int or count < 1):
                raise InvalidInput(f"--launcher slurm: {name} is {count!r}; expected a whole number from 1 on")
        self.folder, self.workers, self.pieces, self.cluster = Path(folder), workers, pieces, cluster
        self.parameters = parameters

    @classmethod
    def of(cls, words: str, workers: int | None = None) -> SlurmLauncher:
        """Of what the command line says: partition=cpu,timeout_min=60,workers=64."""
        said = [word.partition("=") for word in words.split(",") if word]
        if bad := [name for name, equals, value in said if not (equals and value)]:
            raise UsageError(f"--launcher slurm: {bad[0]!r} has no value. Like this: slurm:partition=cpu,pieces=16")
        settings: dict[str, Any] = {"folder": FOLDER, "workers": workers}
        for name, _, value in said:
            settings[f"slurm_{name}" if name in SLURMS else name] = _number(value)
        return cls(**settings)

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
        """See `s2robot.launchers.Launcher`."""
        if not (most := workers or self.workers):
            raise UsageError("How many jobs at once? Say --launcher slurm:workers=64, beside what else Slurm asks for")
        executor = self._executor(cpus)
        pieces, jobs = Pieces(items), dict[Any, list[Piece]]()
        try:
            while pieces.draw(1) or jobs:
                while len(jobs) < most and pieces.draw(self.pieces):
                    # One that may have taken a job with it goes alone: others are not to be lost with it again.
                    together = 1 if pieces.waiting[0].lost else min(self.pieces, len(pieces.waiting))
                    asked = [pieces.waiting.popleft() for _ in range(together)]
                    with one_thread_environment():  # jobs inherit it; what it changes it puts back
                        os.environ["OMP_NUM_THREADS"] = str(cpus)
                        jobs[executor.submit(_answer, make, answer, [piece.item for piece in asked])] = asked
                for job in [job for job in jobs if job.done()]:
                    asked = jobs.pop(job)
                    if error := job.exception():
                        _remove(job)
                        why = f"Job {job.job_id}: {' '.join(str(error).split())[:200]}"
                        for piece in reversed(asked):
                            pieces.again(piece, why)
                        continue
                    outcomes = job.result()
                    _remove(job)
                    for piece, outcome in itertools.zip_longest(asked, outcomes):
                        yield piece.item, outcome.value()
                time.sleep(POLL)
        finally:
            for job in jobs:
                with contextlib.suppress(Exception):
                    job.cancel()

    def _executor(self, cpus: int) -> Any:
        submitit = require("submitit", extra="slurm", purpose="--launcher slurm")
        self.folder.mkdir(
            mode=0o700, parents=True, exist_ok=True
        )  # what lies there is pickled: who writes it runs code
        try:
            executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
            executor.update_parameters(cpus_per_task=cpus, **self.parameters)
        except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
            raise InvalidInput(f"--launcher slurm: {' '.join(str(error).split())}") from error
        return executor


def _remove(job: Any) -> None:
    """What travelled: the answers of ten thousand pieces would fill the disk. Logs stay."""
    for path in (job.paths.submitted_pickle, job.paths.result_pickle):
        with contextlib.suppress(OSError):
            path.unlink()


def _answer(make: Callable[[], Any], answer: Callable[[Any, Any], Any], items: list[Any]) -> list[Outcome]:
    """A job. The first error is the last outcome: nobody will ask for more."""
    made = Outcome.of(make)
    if made.error:
        return [made]
    outcomes = []
    for item in items:
        outcomes.append(Outcome.of(answer, made.result, item))
        if outcomes[-1].error:
            break
    return outcomes


def _number(word: str) -> int | float | str:
    """A number where it is one: Slurm's own times, 1:30:00, are words."""
    if word.isdigit():
        return int(word)
    return float(word) if re.fullmatch(r"\d+\.\d+", word) else word
