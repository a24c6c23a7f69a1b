"""Nobody gets another's frames: contexts that share a process, and that a mix-up is noticed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("robosuite")
from s2robot import gl, osmesa
from s2robot.envs import make_env, own_context
from s2robot.envs.bridge import RobosuiteEnv
from s2robot.envs.own_context import OwnContext
from s2robot.errors import RenderingUnavailable

pytestmark = pytest.mark.sim
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def make() -> Iterator[Callable[..., RobosuiteEnv]]:
    made: list[RobosuiteEnv] = []

    def one(name: str, size: int = 64) -> RobosuiteEnv:
        made.append(make_env(name, fidelity="fast", frame_size=size))
        return made[-1]

    yield one
    for env in made:
        env.close()


def film(env: RobosuiteEnv, seed: int, steps: int = 8) -> list[bytes]:
    return [frames.tobytes() for frames in _film(env, seed, steps)]


def _film(env: RobosuiteEnv, seed: int, steps: int) -> Iterator[NDArray[np.uint8]]:
    env.reset(seed=seed)
    for action in np.random.default_rng(seed).uniform(-1, 1, (steps, 4)).astype(np.float32):
        env.advance(action)
        yield env.frames()


def test_environments_that_take_turns_in_a_process_keep_their_frames(make: Callable[..., RobosuiteEnv]) -> None:
    one, other, small = make("Lift"), make("PickColor"), make("Lift", 32)
    apart = [film(one, 1), film(other, 2), film(small, 3)]
    turns = zip(_film(one, 1, 8), _film(other, 2, 8), _film(small, 3, 8), strict=True)
    assert [list(column) for column in zip(*[[f.tobytes() for f in row] for row in turns], strict=True)] == apart


@pytest.mark.parametrize("end", ["close", "forget"])
def test_one_that_ends_leaves_the_others_frames_alone(end: str, make: Callable[..., RobosuiteEnv]) -> None:
    lasting, passing = make("Lift"), make_env("PickColor", fidelity="fast", frame_size=64)
    expected = film(lasting, 1)
    assert film(passing, 1) != expected
    lasting.frames()  # its context is the current one
    passing.close() if end == "close" else None
    del passing
    gc.collect()
    assert film(lasting, 1) == expected
    own_context.free_dropped()
    assert film(lasting, 1) == expected and not own_context._dropped


def test_contexts_that_are_not_made_current_are_found_out(
    make: Callable[..., RobosuiteEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault of elsewhere: whoever draws uses the context that happens to be current."""
    first = make("Lift")
    expected, before = film(first, 1), set(own_context._open)
    with monkeypatch.context() as broken:
        broken.setattr(OwnContext, "make_current", lambda self: None)
        with pytest.raises(RenderingUnavailable, match="could be another environment's"):
            make_env("Lift", fidelity="fast", frame_size=64)
    assert set(own_context._open) == before
    assert film(first, 1) == expected


def test_what_somebody_else_drew_is_not_taken_for_ones_own(make: Callable[..., RobosuiteEnv]) -> None:
    one, other = make("Lift"), make("Lift")
    one.draw_mark()
    one.check_mark()
    context = one._renderer.context  # type: ignore[union-attr]
    foreign, context._mark = context._mark, other._renderer.context._mark  # type: ignore[union-attr]
    one.draw_mark()
    context._mark = foreign
    with pytest.raises(RenderingUnavailable, match="Drawn"):
        one.check_mark()
    make_env("Lift", render_frames=False).draw_mark()  # nothing to draw with is nothing to mix up


def test_the_choice_of_opengl_is_made_before_robosuites() -> None:
    """robosuite asks for EGL when it is imported; a machine with OSMesa alone would never get to it."""
    code = (
        "import os, sys\nfrom s2robot import gl\nfrom s2robot.envs import make_env\n"
        "make_env('Lift', render_frames=False).close()\nassert 'MUJOCO_GL' not in os.environ\n"
        "def choose():\n    print('asked')\n    raise SystemExit\n"
        "gl.choose = choose\nmake_env('Lift', frame_size=32)"
    )
    clean = {
        key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", gl.CHOICE)
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "asked", done.stderr
    early = code.replace("make_env('Lift', render_frames=False).close()", "assert 'robosuite' not in sys.modules")
    early = early.replace("print('asked')", "print('robosuite' in sys.modules)")
    done = subprocess.run(
        [sys.executable, "-c", early], cwd=ROOT, env=clean, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.slow
def test_osmesa_keeps_them_apart_too(tmp_path: Path) -> None:
    """In it mujoco's own way of closing spoils the others. Installs the wheel next to, not into, this environment."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(tmp_path), osmesa.WHEEL]
    if subprocess.run(command, capture_output=True, timeout=600, check=False).returncode != 0:
        pytest.skip(f"{osmesa.WHEEL} cannot be installed here")
    clean = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    clean |= {"PYTHONPATH": str(tmp_path), gl.CHOICE: "osmesa-wheel"}
    mine = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-m", "not slow"]
    mine += ["-k", "turns or leaves or found_out"]
    done = subprocess.run(mine, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.skipif(os.environ.get("MUJOCO_GL", "egl") != "egl", reason="loses EGL contexts")
def test_a_lost_context_is_noticed_and_replaced(make: Callable[..., RobosuiteEnv]) -> None:
    """Without one OpenGL draws nothing and says nothing: what stood in memory would be taken for a frame."""
    env, other = make("Lift"), make("Lift")
    expected, neighbour = film(env, 3), film(other, 4)
    if type(env._renderer._renderer._gl_context).__module__ != "mujoco.egl":  # type: ignore[union-attr]
        pytest.skip("this OpenGL is another")
    env._renderer._renderer._gl_context.free()  # type: ignore[union-attr]
    assert film(env, 3) == expected and film(other, 4) == neighbour
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(env._renderer, "_open", lambda: None)
        env._renderer._renderer._gl_context.free()  # type: ignore[union-attr]
        with pytest.raises(RenderingUnavailable, match="The GL context was lost"):
            env.reset(seed=3)
