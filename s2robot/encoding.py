"""Encode episodes in several processes: the work behind `s2robot.store.encode_dataset`.

Every worker has one thread and encodes whole episodes in batches of a fixed size, so that the bits of an episode do
not depend on who encoded it. It writes the episode's rows, waits for the disk, and only then reports it done.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from s2robot.augment import Augmentation, augment
from s2robot.datasets import DemoDataset
from s2robot.errors import S2RobotError
from s2robot.files import explain_full_disk

if TYPE_CHECKING:
    from s2robot.encoder import Encoder, EncoderConfig

BATCH = 8  # steps in one forward pass; part of what decides the last bits, so not a setting
PATIENCE = 1800.0  # for some worker to encode a batch [s]
STEPS_WORTH_A_WORKER = 200  # one takes some 5 s to import torch and timm

Event = int | dict[str, Any]
"""Rows just encoded, or the journal line of an episode just finished."""


@dataclass(frozen=True)
class Task:
    """What every worker needs to know."""

    folder: Path
    dataset: Path
    config: EncoderConfig
    index: dict[str, Any]
    encoder: Encoder | None  # the one this process built; workers build their own
    version: int = 0  # of the frames, see `s2robot.augment`
    augmentation: Augmentation = field(default_factory=Augmentation)


def half_bytes(shape: Sequence[int]) -> int:
    """Bytes of a float16 array."""
    return 2 * math.prod(shape)


def encode_episodes(task: Task, episodes: Sequence[int], workers: int | None) -> Generator[Event, None, None]:
    """Encode `episodes`, yielding as work is done."""
    if workers is None:
        steps = sum(map(task.index["episode"].count, episodes))
        workers = 1 if torch.cuda.is_available() else min(_cores(), math.ceil(steps / STEPS_WORTH_A_WORKER))
    workers = min(workers, len(episodes))
    if workers > 1:
        yield from _encode_in_processes(replace(task, encoder=None), episodes, workers)
    elif episodes:
        with _one_thread():
            worker = _Worker(task)
            for k in episodes:
                yield from worker.encode(k)


class _Worker:
    """A dataset, an encoder, and the rows to be filled."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.dataset = DemoDataset(task.dataset)
        self.encoder = task.encoder or task.config.build()
        for thing, fingerprint in (("dataset", self.dataset.fingerprint), ("encoder", self.encoder.fingerprint)):
            if fingerprint != task.index[f"{thing}_fingerprint"]:
                raise S2RobotError(f"The {thing} changed while it was being encoded. Run the same command again")
        self.memory = self.encoder.memory()
        self.first_rows = np.searchsorted(task.index["episode"], np.arange(len(self.dataset) + 1))

    def encode(self, k: int) -> Iterator[Event]:
        """Encode episode `k` and put it safely on disk."""
        first, end = self.first_rows[k : k + 2].tolist()
        steps = self.task.index["step"][first:end]
        self.memory.forget()  # the bits of an episode must not depend on who encoded which before
        digests = {"map": hashlib.sha256(), "cls": hashlib.sha256()}
        for start in range(0, len(steps), BATCH):
            frames = self.dataset.frames(k, steps[start : start + BATCH])
            features = self.memory(augment(frames, self.task.augmentation, self.task.version, k))
            for name, digest in digests.items():
                data = self._half(name, getattr(features, name), k)  # (b, V, ...)
                digest.update(data.data)
                self._write(name, first + start, data)
            yield len(steps[start : start + BATCH])
        for name in digests:
            with (self.task.folder / f"{name}.npy").open("r+b") as file:
                os.fsync(file.fileno())
        yield {"episode": k} | {name: digest.hexdigest() for name, digest in digests.items()}

    def _half(self, name: str, value: torch.Tensor, k: int) -> NDArray[np.float16]:
        data = np.ascontiguousarray(value.detach().half().cpu().numpy())
        if not np.isfinite(data).all():
            raise S2RobotError(
                f"The encoder's {name} features of episode {k} are NaN or beyond half precision (65504):"
                f" largest {value.abs().max().item():.4g}. Check its weights; no known backbone comes near"
            )
        return data

    def _write(self, name: str, row: int, data: NDArray[np.float16]) -> None:
        path, shape = self.task.folder / f"{name}.npy", self.task.index[f"{name}_shape"]
        if list(data.shape[1:]) != shape[1:]:
            raise S2RobotError(f"The encoder gave {name} {data.shape}; it had announced {tuple(shape)}")
        # Written, not memory-mapped: a map that meets a full disk kills the process, a write says so.
        with explain_full_disk(path), path.open("r+b") as file:
            file.seek(-half_bytes([shape[0] - row, *shape[1:]]), os.SEEK_END)
            file.write(data.data)


class _Failure(NamedTuple):
    """An exception on its way out of a worker: ours take more than their message to build, so not by pickle."""

    kind: type[S2RobotError]
    arguments: tuple[Any, ...]
    state: dict[str, Any]

    def revive(self) -> S2RobotError:
        error = self.kind.__new__(self.kind, *self.arguments)
        error.__dict__.update(self.state)
        return error


def _encode_in_processes(task: Task, episodes: Sequence[int], workers: int) -> Iterator[Event]:
    """Hand out episodes one by one; on the first failure, or when the caller has enough, stop every worker."""
    waiting, left = deque(episodes), len(episodes)
    pool: dict[Any, SpawnProcess] = {}  # by this end of its pipe
    try:
        for _ in range(workers):
            pipe, process = _start(task)
            pool[pipe] = process
            _send(pipe, waiting.popleft())
        while left:
            ready = wait(list(pool), PATIENCE)
            if not ready:
                raise S2RobotError(
                    f"No worker encoded {BATCH} steps within {PATIENCE:g} s: a driver or disk that hangs. What was"
                    " encoded so far is kept: run the same command again"
                )
            for pipe in cast("list[Connection]", ready):
                event = _receive(pipe, pool[pipe])
                yield event
                if isinstance(event, dict):
                    left -= 1
                    if waiting:
                        _send(pipe, waiting.popleft())
    finally:
        for process in pool.values():
            process.kill()  # what it had not reported is encoded again
        for process in pool.values():
            process.join()


def _start(task: Task) -> tuple[Any, SpawnProcess]:
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's and HDF5's locks in whatever state
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(task, theirs), daemon=True)
    with _ctrl_c_held_back():
        process.start()
    theirs.close()  # or its end would outlive the worker, and we would wait for it forever
    return ours, process


def _work(task: Task, pipe: Connection) -> None:
    """A worker's life: episode numbers in, events out, until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of us; the parent decides
    torch.set_num_threads(1)
    try:
        worker = _Worker(task)
        while True:
            for event in worker.encode(pipe.recv()):
                pipe.send(event)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent was killed, or has enough
    except S2RobotError as error:
        _send(pipe, _Failure(type(error), error.args, vars(error)))
    except Exception:  # noqa: BLE001 (it is told, with its traceback)
        _send(pipe, _Failure(S2RobotError, (f"A worker failed while encoding:\n{traceback.format_exc()}",), {}))


def _send(pipe: Connection, message: int | _Failure) -> None:
    with contextlib.suppress(OSError):  # the other end just died: receiving will say so
        pipe.send(message)


def _receive(pipe: Connection, process: SpawnProcess) -> Event:
    try:
        message: Event | _Failure = pipe.recv()
    except (EOFError, OSError):
        process.join(timeout=10)
        raise S2RobotError(_obituary(process.exitcode)) from None
    if isinstance(message, _Failure):
        raise message.revive()
    return message


def _obituary(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        why = "was killed, as systems do when memory runs out. Fewer workers need less: run again with workers=1"
    elif exitcode is not None and exitcode < 0:
        why = f"died of {signal.Signals(-exitcode).name}. Run again, or with workers=1 to see where"
    else:
        why = f"ended with exit code {exitcode}; see what it printed above. Run again, or with workers=1"
    return f"A worker {why}. What was encoded so far is kept"


def refuse_to_start_in_a_starting_process() -> None:
    """A script without `if __name__ == "__main__"` is run again by each of its workers: say so, before it hangs."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise S2RobotError(
            "This script starts encoding when it is merely imported, which every worker process does."
            " Put the call under `if __name__ == '__main__':`, or pass workers=1"
        )


@contextlib.contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Until a worker ignores it, Ctrl-C would make it print a traceback; workers inherit the mask."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """As in every worker: another number of threads may sum in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
