"""One thread that computes, and one line of those who wait for it: the event loop never does.

Every request brings its own policy (its client's looks and noise) and its own future, so an answer cannot go to
another client. A client's next message is read when it has its answer, so each has one place in the line at most, and
the line is fair. With `batch` above 1, the frames of those who wait together are encoded as one batch.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.adapters.serve_request import Request
from s2robot.errors import S2RobotError
from s2robot.types import FRAMES, GOAL, PROPRIOCEPTION, Features


@dataclass(frozen=True)
class Answer:
    """What came out, and how long each stage took [s]; actions (A, M), or None where only a reset was asked for."""

    actions: NDArray[np.float32] | None
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Job:
    policy: Any  # a `policies.acting.NetworkPolicy`
    request: Request
    answer: Future[Answer]
    since: float


class Inference:
    """The thread; close it when done."""

    def __init__(self, batch: int = 1) -> None:
        self.batch = batch
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def ask(self, policy: Any, request: Request) -> Future[Answer]:
        """Wait in line. A future that is cancelled while it waits costs nothing, and leaves the policy as it was."""
        job = _Job(policy, request, Future(), time.perf_counter())
        self._waiting.put(job)
        return job.answer

    def busy(self) -> float:
        """Since when the present computation runs [s]; 0 if there is none."""
        since = self._busy_since
        return 0.0 if since is None else time.perf_counter() - since

    def close(self) -> None:
        """End the thread when it has done what is in line."""
        self._waiting.put(None)

    def _work(self) -> None:
        for first in iter(self._waiting.get, None):
            jobs, ended = [first], False
            while len(jobs) < self.batch and not self._waiting.empty():
                if (job := self._waiting.get()) is None:
                    ended = True
                    break
                jobs.append(job)
            wanted = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
            self._busy_since = time.perf_counter()
            for _, same in itertools.groupby(sorted(wanted, key=_kind), key=_kind):
                _answer(list(same))
            self._busy_since = None
            if ended:
                return


def _kind(job: _Job) -> tuple[int, ...]:
    """What may be encoded together: frames of one shape, by policies with an encoder."""
    seen = job.request.observation
    return seen[FRAMES].shape if seen is not None and hasattr(job.policy, "encoder") else ()


def _answer(jobs: Sequence[_Job]) -> None:
    began = time.perf_counter()
    seen: Sequence[Features | None] = [None] * len(jobs)
    encoding = 0.0
    if len(jobs) > 1 and _kind(jobs[0]):
        try:
            seen = _encoded(jobs)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who asked are told
            for job in jobs:
                job.answer.set_exception(error)
            return
        encoding = time.perf_counter() - began
    for job, features in zip(jobs, seen, strict=True):
        try:
            actions, seconds = _act(job, features, encoding)
        except Exception as error:  # noqa: BLE001 - the same
            job.answer.set_exception(error)
        else:
            job.answer.set_result(Answer(actions, {"queue": began - job.since, **seconds}))


def _encoded(jobs: Sequence[_Job]) -> list[Features]:
    """Each one's features, of one batch."""
    frames = np.stack([job.request.observation[FRAMES] for job in jobs if job.request.observation])
    together: Features = jobs[0].policy.encoder(frames)
    rows = [slice(k, k + 1) for k in range(len(jobs))]
    return [Features(together.map[row], together.tokens[row], together.cls[row]) for row in rows]


def _act(job: _Job, seen: Features | None, encoding: float) -> tuple[NDArray[np.float32] | None, dict[str, float]]:
    policy, request = job.policy, job.request
    if request.execute is not None:
        policy.execute = request.execute
    if request.reset:
        policy.reset()
    if request.observation is None:
        return None, {}
    if seen is None:
        actions, seconds = policy.act(request.observation), dict(policy.seconds)
    else:
        began = time.perf_counter()
        actions = policy.decide(seen, request.observation[PROPRIOCEPTION], request.observation.get(GOAL))
        seconds = {"encode": encoding, "act": time.perf_counter() - began}
    if not np.isfinite(actions).all():  # a robot would be told to go there
        raise S2RobotError("The policy answered with NaN or infinity, which no robot should be sent")
    return actions, seconds
