"""Work spread over processes: same results for any number of workers, and nothing left running.

Each worker is a fresh process with one thread a library (two one-thread processes beat one two-thread
process on software GL and small networks alike), makes what it needs once, and then answers items.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, TypeVar

from s2robot.errors import S2RobotError

Item = TypeVar("Item")
Result = TypeVar("Result")

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LP_NUM_THREADS": "1",  # llvmpipe, the software GL
    "OMP_WAIT_POLICY": "PASSIVE",
}

_tool: Any = None  # what this worker process made once, e.g. an environment


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(
    make: Callable[[], Any], answer: Callable[[Any, Item], Result], items: Iterable[Item], workers: int | None = None
) -> Generator[tuple[Item, Result], None, None]:
    """Yield (item, answer(tool, item)) as they finish; `tool = make()` is made once a worker.

    Items are drawn lazily, a few ahead, so the series may be endless: stop by closing the generator.

    Raises:
        S2RobotError: a worker died (out of memory, killed); names the items it had. What `make` or `answer` raised
            comes as it is.
    """
    count = max(1, workers or cores())
    source = iter(items)
    with one_thread_environment():
        pool = ProcessPoolExecutor(
            count, multiprocessing.get_context("spawn"), initializer=start, initargs=(make, os.getpid())
        )
        running: dict[Future[Any], Item] = {}
        try:
            while True:
                while len(running) < count + 1 and (item := next(source, _END)) is not _END:
                    with _ctrl_c_held_back():
                        running[pool.submit(answer_with, answer, item)] = item
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    item = running[future]
                    result = future.result()
                    del running[future]
                    yield item, result
        except BrokenProcessPool as error:
            at = ", ".join(str(item) for item in running.values())
            raise S2RobotError(
                f"A worker process died (out of memory, or killed) with these under way: {at}. Finished work is kept:"
                " run the same command again, with fewer --workers if memory is short"
            ) from error
        finally:
            stop(pool)


_END: Any = object()


def start(make: Callable[[], Any], parent: int) -> None:
    global _tool  # noqa: PLW0603 - a worker process has exactly one tool; ProcessPoolExecutor offers no other place
    begin(parent)
    try:
        _tool = make()
    except Exception as error:  # noqa: BLE001 - raised here it would be a dead worker; it is the answer to every item
        _tool = _Unmade(error)


def begin(parent: int | None) -> None:
    """The first thing a worker process does: Ctrl-C is its parent's to handle, and it ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parent is not None:
        _die_with(parent)


def answer_with(answer: Callable[[Any, Item], Result], item: Item) -> Result:
    if isinstance(_tool, _Unmade):
        raise _tool.error
    return answer(_tool, item)


class _Unmade(NamedTuple):
    """In the tool's place: why there is none."""

    error: Exception


def stop(pool: ProcessPoolExecutor) -> None:
    """End the workers now: what they are in the middle of is written atomically or not at all."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(timeout=5)


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


def _die_with(parent: int) -> None:
    """Ask Linux to end this worker when its parent dies, even by SIGKILL."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise SystemExit


@contextlib.contextmanager
def one_thread_environment() -> Iterator[None]:
    """For the processes started within: they inherit the environment, and libraries read it on import."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
