"""Lost GL contexts, workers that hang, a clock that jumps, two processes where one should be."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from materials import Materials
from processes import PATIENCE, ended, run_verb, start, start_verb, wait_until_gone, workers_of
from verbs import VERBS

pytestmark = [pytest.mark.faults, pytest.mark.sim]

Count = Callable[..., None]
SCALE = float(os.environ.get("S2ROBOT_FAULTS_SCALE", "1"))
SILENCE = 20.0  # after which a worker is taken to hang, or longer where a whole run takes as long [s]


def test_a_lost_gl_context_costs_no_frame(lift_env: Any, count: Count) -> None:
    """At any step, by a driver that refuses and by one that says nothing: the frames of one that was not disturbed."""
    from s2robot.envs import make_env

    count("GL context loss", "rollout")  # lost, until it is known better
    env, rng = make_env("Lift", fidelity="fast", frame_size=64), np.random.default_rng(0)
    steps, outcomes = 8, Counter[str]()
    expected = _film(env, steps, -1, lambda: None)
    neighbour = lift_env.reset(seed=9)[0]["frames"]
    for _ in range(max(2, round(24 * SCALE))):
        name = ("destroyed", "taken away")[int(rng.integers(2))]
        lose = (_destroy, _take_away)[name == "taken away"]
        found = _film(env, steps, int(rng.integers(steps)), lambda lose=lose: lose(env))
        assert np.array_equal(found, expected)
        assert np.array_equal(lift_env.reset(seed=9)[0]["frames"], neighbour), "another environment's frames changed"
        outcomes[name] += 1
    env.close()
    count("GL context loss", "rollout", outcomes)


def _film(env: Any, steps: int, at: int, lose: Callable[[], None]) -> np.ndarray:
    frames = [env.reset(seed=3)[0]["frames"]]
    for step in range(steps):
        if step == at:
            lose()
        frames.append(env.step(np.zeros(env.action_space.shape, np.float32))[0]["frames"])
    return np.stack(frames)


def _destroy(env: Any) -> None:
    """What the driver answers next is an error."""
    from mujoco.egl import EGL_DISPLAY
    from OpenGL import EGL

    context = env.unwrapped._renderer._renderer._gl_context
    EGL.eglMakeCurrent(EGL_DISPLAY, EGL.EGL_NO_SURFACE, EGL.EGL_NO_SURFACE, EGL.EGL_NO_CONTEXT)
    EGL.eglDestroyContext(EGL_DISPLAY, context._context)


def _take_away(env: Any) -> None:
    """All that is drawn and read from now on does nothing, without a word."""
    env.unwrapped._renderer._renderer._gl_context.free()


@pytest.mark.parametrize("name", ["collect", "eval", "pretrain"])
def test_a_worker_that_hangs_is_replaced(name: str, made: Materials, tmp_path: Path, count: Count) -> None:
    """SIGSTOP for a worker at a random moment: it neither answers nor hears SIGTERM."""
    count("worker hangs", name)  # lost, until it is known better
    verb, log, rng = VERBS[name], tmp_path / "log", np.random.default_rng(5)
    whole = tmp_path / "whole"
    whole.mkdir()
    verb.prepare(made, whole)
    began = time.monotonic()
    assert run_verb(verb.words(made, whole), log) == 0, log.read_text()
    seconds, outcomes, tries = time.monotonic() - began, Counter[str](), max(1, round(3 * SCALE))
    for number in range(tries):
        out = tmp_path / f"run-{number}"
        out.mkdir()
        verb.prepare(made, out)
        with ended(start(_impatient, max(SILENCE, 2 * seconds), verb.words(made, out), log)) as process:
            time.sleep(float(rng.uniform(0, 0.3)) * seconds)
            stopped = _stop_one(process, 2 * seconds, rng)
            process.join(PATIENCE)
            assert process.exitcode == 0, log.read_text()[-3000:]
            assert not wait_until_gone(process.pid)
        assert verb.result(out) == verb.result(whole)
        outcomes["replaced" if stopped else "ended before"] += 1
    count("worker hangs", name, outcomes)


def _stop_one(process: Any, seconds: float, rng: np.random.Generator) -> bool:
    """The first worker that is seen within so long; False if there is none."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.exitcode is None:
        if workers := workers_of(process.pid):
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.kill(workers[int(rng.integers(len(workers)))], signal.SIGSTOP)
                return True
        time.sleep(0.05)
    return False


def _impatient(silence: float, words: list[str], log: Path) -> None:
    from s2robot import cli, workers

    workers.PATIENCE = workers.GRACE = silence
    _say_into(log)
    sys.exit(cli.main(words))


def _say_into(log: Path) -> None:
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


@pytest.mark.parametrize("name", list(VERBS))
def test_a_clock_that_jumps_changes_nothing(name: str, made: Materials, tmp_path: Path, count: Count) -> None:
    """Years forth and back between any two readings."""
    count("clock steps", name)  # lost, until it is known better
    verb, log = VERBS[name], tmp_path / "log"
    for folder in ("whole", "jumping"):
        (tmp_path / folder).mkdir()
        verb.prepare(made, tmp_path / folder)
    assert run_verb(verb.words(made, tmp_path / "whole"), log) == 0, log.read_text()
    with ended(start(_jumping, verb.words(made, tmp_path / "jumping"), log)) as process:
        process.join(PATIENCE)
        assert process.exitcode == 0, log.read_text()[-3000:]
    assert verb.result(tmp_path / "jumping") == verb.result(tmp_path / "whole")
    count("clock steps", name, {"the same bits": 1})


def _jumping(words: list[str], log: Path) -> None:
    from s2robot import cli

    true, rng = time.time, np.random.default_rng(0)
    time.time = lambda: true() + float(rng.uniform(-1e8, 1e8))
    _say_into(log)
    sys.exit(cli.main(words))


@pytest.mark.parametrize("name", list(VERBS))
def test_of_two_processes_one_writes(name: str, made: Materials, tmp_path: Path, count: Count) -> None:
    """Started together into one place: one is told who the other is (of `encode` it waits), and nothing is spoiled."""
    count("two processes", name)  # lost, until it is known better
    verb, out = VERBS[name], tmp_path / "out"
    out.mkdir()
    verb.prepare(made, out)
    logs = [tmp_path / f"log-{k}" for k in range(2)]
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(ended(start_verb(verb.words(made, out), log))) for log in logs]
        for process in both:
            process.join(PATIENCE)
    codes = [process.exitcode for process in both]
    said = [" ".join(log.read_text().split()) for log in logs]
    assert 0 in codes, said
    refused = [text for text, code in zip(said, codes, strict=True) if code]
    waited = any("waiting for it" in text for text in said)  # or found it done: the first may have been that quick
    if name == "encode":
        assert codes == [0, 0], said
    elif refused:
        other = both[codes.index(0)].pid
        assert "in use by process" in refused[0] and str(other) in refused[0], refused
    assert run_verb(verb.words(made, out), logs[0]) == 0
    whole = tmp_path / "whole"
    whole.mkdir()
    verb.prepare(made, whole)
    assert run_verb(verb.words(made, whole), logs[0]) == 0
    assert verb.result(out) == verb.result(whole)
    count("two processes", name, {"refused" if refused else "waited" if waited else "one after the other": 1})
