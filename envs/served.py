"""One environment in a process of its own: questions through a pipe, observations through shared memory.

The memory has no name; its handle goes through the pipe. `multiprocessing.shared_memory` gives names, and what has a
name is left behind by whoever is killed, or warned about; it also dies of SIGBUS where a container's /dev/shm, 64 MB
by default, is full. Every environment has two places for its observation and writes into them in turn, so one that
dies in the middle of writing leaves the last one whole.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import connection, reduction
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from s2robot import workers
from s2robot.envs.bridge import RobosuiteEnv
from s2robot.errors import S2RobotError, UsageError

PATIENCE = 300.0  # for any one answer [s]; a driver that hangs does so for ever

Make = Callable[[], RobosuiteEnv]
Arrays = dict[str, NDArray[Any]]


class WorkerDied(S2RobotError):
    """An environment's process ended by itself: killed, out of memory, crashed or hung."""


class SharedObservations:
    """Room for two observations of each of `count` environments, in memory that all processes see.

    handle: another process's, as it came through a pipe; by default the memory is made.
    arrays: every key as (2, count, ...), in place.
    """

    def __init__(self, space: spaces.Space[Any], count: int, handle: int | None = None) -> None:
        boxes: dict[str, Any] = dict(cast(spaces.Dict, space).items())
        shapes = {key: (2, count, *box.shape) for key, box in boxes.items()}
        types = {key: np.dtype(box.dtype) for key, box in boxes.items()}
        ends = np.cumsum([-(-math.prod(shapes[key]) * types[key].itemsize // 64) * 64 for key in shapes])
        self.handle = _anonymous_file(int(ends[-1])) if handle is None else handle
        memory = mmap.mmap(self.handle, int(ends[-1]))
        self.arrays = {
            key: np.frombuffer(memory, types[key], math.prod(shapes[key]), int(start)).reshape(shapes[key])
            for key, start in zip(shapes, [0, *ends], strict=False)
        }


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("s2robot")
    else:  # not Linux
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.truncate(handle, size)
    return handle


class EnvProcess:
    """The parent's end of one environment's process. It starts at once; its first answer is its two spaces.

    starting: until it was given the memory.
    """

    def __init__(self, index: int, make: Make) -> None:
        self.index, self._make = index, make
        self.start()

    def start(self) -> None:
        """Start a process, the first or in place of one that ended."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # Linux tells a child that the *thread* which started it has ended; a helper thread may well end before us.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else None
        self.process = context.Process(target=_serve, args=(self.index, self._make, theirs, parent), daemon=True)
        with workers.one_thread_environment():
            self.process.start()
        theirs.close()
        self._question, self.starting = 0, True

    @property
    def pid(self) -> int:
        """As the operating system numbers it; never 0, which a signal would take for everybody."""
        if self.process.pid is None:
            raise S2RobotError(f"Environment {self.index} has no process yet")
        return self.process.pid

    def share(self, memory: SharedObservations, count: int) -> None:
        """Give it its place in the memory."""
        with contextlib.suppress(OSError):
            self.pipe.send(count)
            reduction.send_handle(self.pipe, memory.handle, self.pid)
        self.starting = False

    def ask(self, *question: Any) -> None:
        """Send a question; `answers` has what comes back, also if nobody is there."""
        self._question += 1
        with contextlib.suppress(OSError):
            self.pipe.send((self._question, *question))

    def answer(self) -> tuple[Any] | None:
        """What has arrived: a value or an error, `WorkerDied` too; None if it answers an older question."""
        try:
            question, answer = self.pipe.recv()
        except (EOFError, OSError):
            return (self._death(),)
        return (answer,) if question == self._question else None

    def kill(self) -> None:
        self.process.kill()

    def stop(self, deadline: float) -> None:
        """Leave it until the deadline (`time.monotonic`) to end by itself."""
        self.pipe.close()
        self.process.join(max(0.0, deadline - time.monotonic()))
        for end in (self.process.terminate, self.process.kill):
            if self.process.is_alive():
                end()
                self.process.join(1)

    def _death(self) -> WorkerDied:
        self.stop(time.monotonic() + 5)
        code = self.process.exitcode or 0
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        return WorkerDied(f"process {self.process.pid}, {how}")


@dataclass
class Episode:
    """How far one environment is, as its parent knows: to tell of it when the process is gone."""

    seed: int | None = None  # of the last reset that had one
    number: int = 0  # of the episode since then
    steps: int = 0
    over: bool = True
    lost: str = ""  # how it ended, until somebody is told
    deaths: int = 0  # of processes, no episode finished between them
    replaced: int = 0
    fresh: bool = False  # a new process has no random numbers to go on from

    def __str__(self) -> str:
        return f"(reset(seed={self.seed}), episode {self.number} from there, step {self.steps})"

    def begin(self, seed: int | None) -> int | None:
        """A new episode; returns the seed to reset with."""
        if seed is None and self.fresh:
            seed = int(np.random.SeedSequence([self.seed or 0, self.replaced]).generate_state(1)[0])
        self.seed, self.number = (self.seed, self.number + 1) if seed is None else (seed, 0)
        self.steps, self.over, self.lost, self.fresh = 0, False, "", False
        return seed

    def went_on(self, steps: int, *, over: bool, alive: bool) -> None:
        self.steps, self.over = self.steps + steps, over
        if over and alive:
            self.deaths = 0

    def bury(self, why: str) -> None:
        self.lost, self.fresh = why, True
        self.deaths, self.replaced = self.deaths + 1, self.replaced + 1


def answers(asked: Iterable[EnvProcess], patience: float | None = None) -> dict[int, Any]:
    """Everyone's answer to the last question, by index: a value, an error it raised, or `WorkerDied`."""
    waiting = {each.pipe: each for each in asked}
    found: dict[int, Any] = {}
    patience = PATIENCE if patience is None else patience
    deadline = time.monotonic() + patience
    while waiting:
        ready = connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            for each in waiting.values():  # their pipes end, which is an answer
                each.kill()
            deadline = time.monotonic() + patience
        for pipe in ready:
            each = waiting[pipe]  # type: ignore[index]
            if (answer := each.answer()) is not None:
                del waiting[pipe]  # type: ignore[arg-type]
                (found[each.index],) = answer
    return found


def _serve(index: int, make: Make, pipe: connection.Connection, parent: int | None) -> None:
    """Body of the process: make the environment, then answer until the pipe ends."""
    workers.begin(parent)
    with contextlib.suppress(EOFError, OSError):  # the parent closed the pipe, or is gone
        try:
            env = make()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the parent's to raise
            pipe.send((0, _sendable(error)))
            return
        with contextlib.closing(env):
            pipe.send((0, (env.observation_space, env.action_space)))
            count, handle = pipe.recv(), reduction.recv_handle(pipe)
            memory = SharedObservations(env.observation_space, count, handle)
            os.close(handle)
            mine = {key: array[:, index] for key, array in memory.arrays.items()}  # (2, ...)
            while True:
                question, name, *arguments = pipe.recv()
                try:
                    pipe.send((question, _answer(env, mine, name, *arguments)))
                except Exception as error:  # noqa: BLE001 - the same
                    pipe.send((question, _sendable(error)))


def _answer(env: RobosuiteEnv, mine: Arrays, name: str, *arguments: Any) -> Any:
    """`reset` and `step_chunk` leave the observation in a slot of the memory, and answer the rest.

    `call` is for all else.
    """
    if name == "call":
        what, by_place, by_name = arguments
        if not hasattr(env, what):
            raise UsageError(f"These environments have no {what!r}")
        attribute = getattr(env, what)
        return attribute(*by_place, **by_name) if callable(attribute) else attribute
    slot, argument = arguments
    observation, *rest = env.reset(seed=argument) if name == "reset" else env.step_chunk(argument)
    for key, value in observation.items():
        mine[key][slot] = value
    return rest


def _sendable(error: Exception) -> S2RobotError:
    if isinstance(error, S2RobotError):
        return error
    told = S2RobotError(f"{type(error).__name__}: {error}")
    told.__dict__["__notes__"] = ["".join(traceback.format_exception(error)).strip()]  # add_note is of Python 3.11
    return told
