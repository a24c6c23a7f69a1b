"""Processes: all answers, no leftovers, a dead worker is a clear error."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing.spawn
import os
import shutil
import signal
import sys
import threading
import time
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from s2robot import workers
from s2robot.errors import InvalidInput, S2RobotError, UnknownName


def make(offset: int) -> int:
    return offset


def add(tool: int, item: int) -> int:
    return tool + item


def threads(tool: int, item: int) -> str:
    return os.environ["OMP_NUM_THREADS"]


def die(tool: int, item: int) -> None:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)


def refuse() -> int:
    raise UnknownName("kind", "lihgt", ["light"])


def complain(tool: int, item: int) -> None:
    raise InvalidInput(f"item {item} is wrong")


def pid(tool: int, item: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("n", [1, 2])
def test_every_item_is_answered_once(n: int) -> None:
    answers = dict(workers.work(partial(make, 10), add, range(8), n))
    assert answers == {item: item + 10 for item in range(8)}


def test_an_endless_series_may_be_left() -> None:
    answers = workers.work(partial(make, 0), pid, count(), 2)
    pids = {next(answers)[1] for _ in range(4)}
    answers.close()
    deadline = time.monotonic() + 10
    while any(_alive(p) for p in pids):
        assert time.monotonic() < deadline, "a worker outlived its work"
        time.sleep(0.05)


def answer_in_part(folder: Path, item: int) -> int:
    """Item 1 gets no further with its answer than to say how long that is."""
    if item == 1:
        while not (folder / "heard").exists():  # of item 0: its answer would otherwise be taken for the rest of this
            time.sleep(0.01)
        frame: Any = sys._getframe()
        while "result_queue" not in frame.f_locals:
            frame = frame.f_back
        os.write(frame.f_locals["result_queue"]._writer.fileno(), (1000).to_bytes(4, "big"))
        (folder / "begun").touch()
        if (folder / "die").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    return item


def test_a_worker_stopped_in_the_middle_of_its_answer_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Python joins the pool's thread at its end: a command that had said all it had to say never ended."""
    series = workers.work(partial(Path, tmp_path), answer_in_part, (i for i in (0, 1)), 2)
    assert next(series)[0] == 0
    (tmp_path / "heard").touch()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    (pool,) = [thread for thread in threading.enumerate() if type(thread).__name__ == "_ExecutorManagerThread"]
    series.close()
    pool.join(timeout=30)
    assert not pool.is_alive()


def test_a_worker_killed_in_the_middle_of_its_answer_is_noticed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after half an hour, as a driver that hangs."""
    monkeypatch.setattr(workers, "LOOK", 0.5)
    for name in ("heard", "die"):
        (tmp_path / name).touch()
    with pytest.raises(S2RobotError, match=r"A worker process died .* under way: 1"):
        list(workers.work(partial(Path, tmp_path), answer_in_part, [1], 1, patience=120.0))


def test_workers_that_die_as_they_start_keep_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much they were to be given: a pipe takes 64 KiB, and its other end stayed open here."""
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", os.fsencode(shutil.which("false") or "/bin/false"))
    with pytest.raises(S2RobotError, match="A worker process died"):
        list(workers.work(partial(len, bytes(1 << 20)), add, [1], 1, patience=120.0))


def test_workers_use_one_thread_and_the_parent_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert dict(workers.work(partial(make, 0), threads, [1], 1)) == {1: "1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_killed_worker_is_named() -> None:
    with pytest.raises(S2RobotError, match="worker process died"):
        list(workers.work(partial(make, 0), die, range(6), 2))


def test_errors_keep_their_type_across_processes() -> None:
    with pytest.raises(InvalidInput, match="item 0 is wrong"):
        list(workers.work(partial(make, 0), complain, [0], 1))


def test_what_a_worker_cannot_make_is_said_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    """Not as a dead worker, and not as a wall of text."""
    with pytest.raises(UnknownName, match="Did you mean 'light'"):
        list(workers.work(refuse, add, range(4), 2))
    assert "Traceback" not in capfd.readouterr().err


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"


def hang_once(folder: Path, item: int) -> int:
    """The first to be asked for item 3 stops for good, deaf to SIGTERM."""
    if item == 3 and not (folder / "hung").exists():
        (folder / "hung").touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    return item


def hang(folder: Path, item: int) -> None:
    (folder / "hung").touch()
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.slow
def test_workers_that_hang_are_started_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "HANGS", 20)  # a worker that starts slowly on a busy machine is taken for one
    found = [item for item, _ in workers.work(partial(Path, tmp_path), hang_once, range(6), 2, patience=15.0)]
    assert sorted(found) == list(range(6))
    assert (tmp_path / "hung").exists() and "No answer within 15 s" in caplog.text


@pytest.mark.slow
def test_a_worker_that_hangs_is_noticed_while_another_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a series without an end, too, as `collect`'s."""
    monkeypatch.setattr(workers, "HANGS", 20)
    series = workers.work(partial(Path, tmp_path), hang_once, itertools.count(), 2, patience=15.0)
    with contextlib.closing(series):
        for item, _ in series:
            time.sleep(0.02)
            if item == 3:
                break
            assert item < 20_000, "it went on without item 3"


@pytest.mark.slow
def test_work_that_always_hangs_is_given_up_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "HANGS", 1)
    with pytest.raises(S2RobotError, match=r"with these under way: 7; 1 times now"):
        list(workers.work(partial(Path, tmp_path), hang, [7], 1, patience=60.0))
    assert (tmp_path / "hung").exists()  # or it would have been a slow start


@pytest.mark.parametrize("words", ["soon", "0", "-1", "nan", "inf"])
def test_patience_that_is_none_is_refused(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2ROBOT_PATIENCE", words)
    with pytest.raises(S2RobotError, match=f"S2ROBOT_PATIENCE is '{words}'; expected seconds"):
        next(workers.work(int, slowly, [1], 1))


def test_patience_is_as_long_as_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2ROBOT_PATIENCE", "7200")
    assert workers._patience() == 7200


def slowly(tool: int, item: int) -> int:
    time.sleep(1.5)
    return item


@pytest.mark.slow
def test_waiting_for_a_worker_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GRACE", 0.5)
    monkeypatch.setattr(workers, "HANGS", 1)
    assert len(list(workers.work(partial(make, 0), slowly, range(30), 1, patience=30.0))) == 30


def test_a_worker_whose_end_another_thread_was_told_of_is_waited_for() -> None:
    """`join` returns at once where the pool's thread took the exit code and has not yet written it down."""
    alive = iter([True, True, False])
    ended = SimpleNamespace(
        terminate=lambda: None, kill=lambda: None, join=lambda timeout: None, is_alive=alive.__next__
    )
    pool: Any = SimpleNamespace(
        _processes={1: ended},
        _result_queue=None,
        _call_queue=None,
        _executor_manager_thread=None,
        shutdown=lambda **_: None,
    )
    workers.stop(pool)
    assert list(alive) == []
