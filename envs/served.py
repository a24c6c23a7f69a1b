"""One environment in a process of its own: questions through a pipe, observations through shared memory.

The memory is anonymous (`RawArray`, an unlinked file that is mapped): `multiprocessing.shared_memory` gives names, and
what has a name is left behind by whoever is killed; it also dies of SIGBUS where a container's /dev/shm is full, while
this goes to an ordinary file. Every environment has two places for its observation and writes into them in turn, so
one that dies in the middle of writing leaves the last one whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnContext
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from s2robot import workers
from s2robot.envs.bridge import RobosuiteEnv
from s2robot.errors import S2RobotError

PATIENCE = 300.0  # for any one answer [s]; a driver that hangs does so for ever

Make = Callable[[], RobosuiteEnv]
Arrays = dict[str, NDArray[Any]]


class WorkerDied(S2RobotError):
    """An environment's process ended by itself: killed, out of memory, crashed or hung."""


class SharedObservations:
    """Room for two observations of each of `count` environments, in memory that all processes see."""

    def __init__(self, space: spaces.Dict, count: int, context: SpawnContext) -> None:
        self._layout: dict[str, tuple[tuple[int, ...], str, Any]] = {}
        for key, box in space.items():
            shape = (2, count, *(box.shape or ()))
            size = int(np.prod(shape)) * np.dtype(box.dtype).itemsize
            self._layout[key] = (shape, np.dtype(box.dtype).str, context.RawArray(ctypes.c_uint8, size))

    def arrays(self) -> Arrays:
        """Every key as (2, count, ...), in place."""
        return {key: np.frombuffer(raw, dtype).reshape(shape) for key, (shape, dtype, raw) in self._layout.items()}


class EnvProcess:
    """The parent's end of one environment's process. It starts at once; its first answer says that it is ready."""

    def __init__(self, index: int, make: Make, memory: SharedObservations) -> None:
        self.index, self._make, self._memory = index, make, memory
        self.start()

    def start(self) -> None:
        """Start a process, the first or in place of one that ended."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # Linux tells a child that the *thread* which started it has ended; a helper thread may well end before us.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else None
        self.process = context.Process(
            target=_serve, args=(self.index, self._make, self._memory, theirs, parent), daemon=True
        )
        with workers.one_thread_environment():
            self.process.start()
        theirs.close()
        self._question, self.starting = 0, True

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
        self.starting = False
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


def _serve(index: int, make: Make, memory: SharedObservations, pipe: connection.Connection, parent: int | None) -> None:
    """Body of the process: make the environment, then answer until the pipe ends."""
    workers.begin(parent)
    question, env = 0, None
    mine = {key: array[:, index] for key, array in memory.arrays().items()}  # (2, ...)
    while True:
        try:
            if env is None:
                env, answer = make(), None
            else:
                question, name, *arguments = pipe.recv()
                answer = _answer(env, mine, name, *arguments)
            pipe.send((question, answer))
        except (EOFError, BrokenPipeError):  # the parent closed it, or is gone
            break
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the parent's to raise
            pipe.send((question, _sendable(error)))
            if env is None:
                break
    if env is not None:
        env.close()


def _answer(env: RobosuiteEnv, mine: Arrays, name: str, *arguments: Any) -> Any:
    """`reset` and `step_chunk` leave the observation in a slot of the memory, and answer the rest."""
    if name not in ("reset", "step_chunk"):
        attribute = getattr(env, name)
        return attribute(*arguments) if callable(attribute) else attribute
    slot, argument = arguments
    observation, *rest = env.reset(seed=argument) if name == "reset" else env.step_chunk(argument)
    for key, value in observation.items():
        mine[key][slot] = value
    return rest


def _sendable(error: Exception) -> S2RobotError:
    if isinstance(error, S2RobotError):
        return error
    return S2RobotError("".join(traceback.format_exception(error)).strip())
