"""Pieces over a Ray cluster: `--launcher ray`.

Every worker is an actor: it makes its tool once and answers one piece at a time. When one is lost, with its node or
alone, another answers its piece. Nodes share nothing but the same s2robot: pieces and answers go through Ray.

A cluster's members exchange pickles, so each of them can do to the others what it likes: keep it on a network of yours.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

from s2robot import __version__
from s2robot.errors import S2RobotError, in_words, require
from s2robot.pieces import TRIES, Outcome, Piece, Pieces
from s2robot.workers import ONE_THREAD, cores

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 8  # pieces fed before a GPU asks for them
PATIENCE = 30.0  # seconds without an answer after which we say what we wait for
_log = logging.getLogger(__name__)


class RayLauncher:
    """Workers of a Ray cluster, which may come and go."""

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        """
        Args:
            address: as `ray.init` takes it; default: RAY_ADDRESS, else a cluster of this machine while we run.
            workers: at most so many; default: as many as the cluster has room for.
        """
        self.address, self.workers = address, workers

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
        ray, most = _connect(self.address), workers or self.workers
        with contextlib.closing(_Crew(ray, make, answer, most, cpus, feed)) as crew:
            pieces = Pieces(items)
            while True:
                while pieces.draw(crew.unbusy + 1) > crew.unbusy and crew.has_room:
                    crew.hire()
                if crew.feeds:  # some pieces ahead, or the GPU would wait for each
                    pieces.draw(crew.unbusy + AHEAD)
                    crew.prepare(pieces.waiting)
                while crew.idle and pieces.waiting:
                    crew.give(pieces.waiting.popleft())
                if not (pieces.waiting or crew.busy):
                    return
                for piece, outcome, why in crew.answers():
                    if outcome is None:
                        pieces.again(piece, why)
                        continue
                    if pieces.waiting:  # its worker need not wait until the answer is on disk
                        crew.give(pieces.waiting.popleft())
                    yield piece.item, outcome.value()


class _Crew:
    """The actors: some are starting, some idle, some busy with a piece."""

    def __init__(
        self,
        ray: Any,
        make: Callable[[], Any],
        answer: Callable[[Any, Any], Any],
        most: int | None,
        cpus: int,
        feed: Callable[[Any], Any] | None,
    ) -> None:
        self.ray, self.most, self.cpus = ray, most, cpus
        self.feeds = bool(feed) and ray.cluster_resources().get("GPU", 0) >= 1
        environment = {**ONE_THREAD, "OMP_NUM_THREADS": str(cpus)} if cpus > 1 else ONE_THREAD
        # One with a GPU counts for no CPU: all of them are for those that feed it.
        takes = {"num_cpus": 0, "num_gpus": 1} if self.feeds else {"num_cpus": cpus}
        self.actor = ray.remote(_Worker).options(**takes, runtime_env={"env_vars": environment})
        self.feeder = ray.remote(_feed).options(num_cpus=1, runtime_env={"env_vars": ONE_THREAD})
        self.feed = ray.put(feed)
        self.arguments = [ray.put(make), ray.put(answer)]  # once for all of a node
        self.starting: dict[Any, Any] = {}  # what tells that it is ready -> actor
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, Piece]] = {}  # answer to come -> actor, piece
        self.stillborn = 0
        self.heard = time.monotonic()

    @property
    def unbusy(self) -> int:
        """Actors that have no piece yet."""
        return len(self.starting) + len(self.idle)

    @property
    def has_room(self) -> bool:
        """May there be one more? One is always asked for: a cluster may grow for it."""
        there = self.ray.cluster_resources()
        room = int(there.get("GPU", 0)) if self.feeds else int(there.get("CPU", 0)) // self.cpus
        return self.unbusy + len(self.busy) < max(1, min(room, self.most or room))

    def hire(self) -> None:
        actor = self.actor.remote(*self.arguments)
        self.starting[actor.ready.remote()] = actor

    def prepare(self, pieces: Iterable[Piece]) -> None:
        """Have these fed by anyone; what a node loses of that, Ray does again."""
        for piece in pieces:
            piece.fed = piece.fed or self.feeder.remote(self.feed, piece.item)

    def give(self, piece: Piece) -> None:
        """To an idle one."""
        actor = self.idle.pop()
        self.busy[actor.answer.remote(piece.fed or piece.item)] = actor, piece

    def answers(self) -> Iterator[tuple[Piece, Outcome | None, str]]:
        """Wait for something to happen. Pieces and their answers; None and a reason where a worker was lost."""
        done, _ = self.ray.wait([*self.busy, *self.starting], timeout=PATIENCE)
        for reference in done:
            self.heard = time.monotonic()
            if reference in self.starting:
                self._started(reference)
            else:
                actor, piece = self.busy.pop(reference)
                outcome, why = self._get(reference)
                if outcome is not None:
                    self.idle.append(actor)
                else:
                    self._dismiss(actor)
                yield piece, outcome, why
        if not done and not self.busy:
            waited, free = time.monotonic() - self.heard, self.ray.available_resources().get("CPU", 0)
            _log.warning(
                "Waiting for %d workers of the Ray cluster for %.0f s: it has %g CPUs free", self.unbusy, waited, free
            )

    def _started(self, reference: Any) -> None:
        actor = self.starting.pop(reference)
        outcome, error = self._get(reference)
        if outcome is not None:
            theirs, ours = outcome.value(), _version()
            if theirs != ours:
                raise S2RobotError(
                    f"A node of the Ray cluster has {theirs}, and here is {ours}. Install the same on all"
                )
            self.idle.append(actor)
            self.stillborn = 0
            return
        self._dismiss(actor)
        self.stillborn += 1
        _log.warning("A worker died before it was ready. %s", error)
        if self.stillborn >= TRIES + len(self.starting) and not (self.idle or self.busy):  # others take their places
            raise S2RobotError(f"{self.stillborn} workers in a row died before they were ready. The last: {error}")

    def _get(self, reference: Any) -> tuple[Outcome | None, str]:
        """The outcome; or, None, why there will be none."""
        errors = self.ray.exceptions
        try:
            return self.ray.get(reference), ""
        except errors.RayTaskError as error:  # not of the work: that comes as an outcome
            raise S2RobotError(f"A worker could not take or give a piece:\n{error}") from None
        except errors.RayError as error:
            return None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

    def _dismiss(self, actor: Any) -> None:
        with contextlib.suppress(Exception):
            self.ray.kill(actor)

    def close(self) -> None:
        """End them now."""
        for actor in (*self.starting.values(), *self.idle, *(actor for actor, _ in self.busy.values())):
            self._dismiss(actor)


class _Worker:
    """The actor."""

    def __init__(self, make: Callable[[], Any], answer: Callable[[Any, Any], Any]) -> None:
        self.make, self.answer_with = make, answer
        self.tool: Any = None

    def ready(self) -> Outcome:
        made = Outcome.of(self.make)
        self.tool = made.result
        return made if made.error else Outcome(_version())

    def answer(self, item: Any) -> Outcome:
        if isinstance(item, Outcome):  # of feeding
            return item if item.error else Outcome.of(self.answer_with, self.tool, item.result)
        return Outcome.of(self.answer_with, self.tool, item)


def _feed(feed: Callable[[Any], Any], item: Any) -> Outcome:
    return Outcome.of(feed, item)


def _version() -> str:
    return f"s2robot {__version__} on Python {platform.python_version()}"


def _connect(address: str | None) -> Any:
    """Ray, connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
    os.environ.setdefault("RAY_worker_niceness", "0")  # as other processes of ours: Ray's own 15 yields to everything
    ray = require("ray", extra="ray", purpose="--launcher ray")
    if not ray.is_initialized():
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        settings = {"num_cpus": cores(), "include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **settings)
        except Exception as error:  # Ray has many, and a plain one for what did not start in time
            what = "Ray did not start here" if address == "local" else f"No Ray cluster answers at {address}"
            words = in_words(error, 300)
            raise S2RobotError(f"{what} ({words}). Start one, and give its address: ray start --head") from error
    return ray
