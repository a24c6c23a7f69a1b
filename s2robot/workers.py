"""Work spread over processes: same results for any number of workers, and nothing left running.

Each worker is a fresh process with one thread a library (two one-thread processes beat one two-thread
process on software GL and small networks alike), makes what it needs once, and then answers items.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import reduction
from typing import Any, Generic, NamedTuple, TypeVar

from s2robot.errors import InvalidInput, S2RobotError

Item = TypeVar("Item")
Result = TypeVar("Result")

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LP_NUM_THREADS": "1",  # llvmpipe, the software GL
    "OMP_WAIT_POLICY": "PASSIVE",
}

PATIENCE = 1800.0  # for one item [s]: a driver that hangs does so for ever; or what $S2ROBOT_PATIENCE says
GRACE = 60.0  # so long it is watched before it is called hung, for this process may have been stopped itself [s]
LOOK = 5.0  # so often it is looked whether a worker is gone of which the pool says nothing [s]
HANGS = 3  # with the last of them the work is given up

_tool: Any = None  # what this worker process made once, e.g. an environment


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(
    make: Callable[[], Any],
    answer: Callable[[Any, Item], Result],
    items: Iterable[Item],
    workers: int | None = None,
    patience: float | None = None,
) -> Generator[tuple[Item, Result], None, None]:
    """Yield (item, answer(tool, item)) as they finish; `tool = make()` is made once a worker.

    Items are drawn lazily, a few ahead, so the series may be endless: stop by closing the generator. Where one is not
    answered within `patience` seconds (default `PATIENCE`) all workers are ended, new ones take their place, and what
    was under way begins again: `answer` must leave nothing behind that a second one minds.

    Raises:
        S2RobotError: a worker died (out of memory, killed), or workers hung `HANGS` times; names the items under way.
            What `make` or `answer` raised comes as it is.
    """
    count, patience = max(1, workers or cores()), _patience() if patience is None else patience
    source = iter(items)
    with one_thread_environment():
        pool = _pool(count, make)
        running: dict[Future[Any], _Under[Item]] = {}
        hangs = 0
        try:
            while True:
                while len(running) < count + 1 and (item := next(source, _END)) is not _END:
                    with _ctrl_c_held_back():
                        running[pool.submit(answer_with, answer, item)] = _Under(item)
                if not running:
                    break
                if (left := _left(running, count, patience)) <= 0:
                    hangs += 1
                    begun = {future: each.item for future, each in running.items() if not future.done()}
                    _say_hung(list(begun.values()), patience, again=hangs < HANGS)
                    stop(pool)
                    pool = _pool(count, make)
                    running = {future: each for future, each in running.items() if future not in begun}
                    with _ctrl_c_held_back():
                        running |= {pool.submit(answer_with, answer, item): _Under(item) for item in begun.values()}
                    continue
                done, _ = wait(running, min(left, LOOK), FIRST_COMPLETED)
                if not done and _is_cut_off(pool) and not wait(running, LOOK, FIRST_COMPLETED).done:
                    raise BrokenProcessPool("a worker ended in the middle of its answer")
                for future in done:
                    item = running[future].item
                    result = future.result()
                    del running[future]
                    yield item, result
        except BrokenProcessPool as error:
            at = ", ".join(str(each.item) for each in running.values())
            raise S2RobotError(
                f"A worker process died (out of memory, or killed) with these under way: {at}. Finished work is kept:"
                " run the same command again, with fewer workers if memory is short (--workers, or of a run"
                " --collect.workers, --encode.workers, --eval.workers)"
            ) from error
        finally:
            stop(pool)


def _is_cut_off(pool: ProcessPoolExecutor) -> bool:
    """Is a worker gone? Within milliseconds the pool says so, unless it waits for the rest of that one's answer."""
    return any(process.exitcode is not None for process in list((pool._processes or {}).values()))


_END: Any = object()


@dataclasses.dataclass(frozen=True)
class _Under(Generic[Item]):  # no NamedTuple: of a Generic one Python 3.10 makes none
    """An item that is under way: since when, and since when it is watched [s, monotonic]; None: not yet."""

    item: Item
    since: float | None = None  # None while it waits for a worker
    watched: float | None = None


def _left(running: dict[Future[Any], _Under[Item]], count: int, patience: float) -> float:
    """How long the next that hangs, if one does, is still waited for [s]; 0 or less: it hangs, whatever others do.

    The first `count` are under way, which are those that workers have: they are taken in order.
    """
    now, grace = time.monotonic(), min(patience, GRACE)
    ends = []
    for future, each in list(islice(running.items(), count)):
        since = now if each.since is None else each.since
        late = now - since >= patience - grace
        watched = now if late and each.watched is None else each.watched
        running[future] = dataclasses.replace(each, since=since, watched=watched)
        if not future.done():
            ends.append(since + patience - grace if watched is None else watched + grace)
    return min(ends, default=now + patience) - now


def _pool(count: int, make: Callable[[], Any]) -> ProcessPoolExecutor:
    posted: Any = _Posted(make)  # what arrives is `make`
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), start, (posted, os.getpid()))


class _Posted(Generic[Result]):
    """What makes the tool, in a file without a name.

    Through the pipe that starts a worker it would keep the parent for ever, Ctrl-C held back, where the worker dies
    before it has read all of it: Python holds that pipe's other end meanwhile.
    """

    def __init__(self, make: Callable[[], Result]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as workers may start
        self._file.write(reduction.ForkingPickler.dumps(make))
        self._file.flush()

    def __del__(self) -> None:
        self._file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _taken, (reduction.DupFd(self._file.fileno()),)


def _taken(handle: Any) -> Callable[[], Any]:
    descriptor = handle.detach()
    try:
        made: Callable[[], Any] = reduction.ForkingPickler.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
        return made
    finally:
        os.close(descriptor)


def _patience() -> float:
    words = os.environ.get("S2ROBOT_PATIENCE")
    try:
        seconds = float(words) if words else PATIENCE
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise InvalidInput(f"S2ROBOT_PATIENCE is {words!r}; expected seconds, more than 0")
    return seconds


def _say_hung(items: list[Any], patience: float, *, again: bool) -> None:
    """Warn, and in the end give up."""
    what = f"No answer within {patience:g} s, with these under way: {', '.join(map(str, items))}"
    why = f"A driver that hangs: s2robot doctor. Work that takes longer: S2ROBOT_PATIENCE={4 * patience:.0f}, seconds"
    if not again:
        raise S2RobotError(f"{what}; {HANGS} times now. Finished work is kept. {why}")
    logging.getLogger(__name__).warning("%s. The worker processes are started anew. %s", what, why)


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
    inside: Any = pool
    manager, calls, answers = inside._executor_manager_thread, inside._call_queue, inside._result_queue
    pool.shutdown(wait=False, cancel_futures=True)  # which forgets them
    # The pool's thread may be in the middle of an answer whose worker is gone. It waits for the rest as long as anyone
    # could write it, and Python, at its end, waits for that thread. First, for what follows may be interrupted.
    if answers is not None:
        answers._writer.close()
    try:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + 5
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()  # who is stopped, or hangs in the kernel, does not hear the first
    deadline = time.monotonic() + 5
    # `join` would not wait: the pool's own thread may have been told of the end, and not yet have written it down.
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.005)
    if manager is not None and manager is not threading.current_thread():
        manager.join(1)
        if manager.is_alive() and calls is not None:  # Python 3.10: it waits until an item is taken, which nobody does
            calls._reader.close()


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
