"""Offscreen OpenGL: choose it, prepare this process for it, say what it is.

    gl.prepare()        before mujoco or robosuite render anything; returns "egl", "osmesa", "osmesa-wheel"
    gl.settle()         only choose, for the processes started from here
    gl.probe()          what the chosen one is: renderer, hardware or software, how fast

`MUJOCO_GL` is honoured when set. Otherwise the first that renders is taken: EGL, the system's OSMesa,
OSMesa from the pip wheel. A failed attempt spoils OpenGL for the process it happened in, so each is
tried in a child; the choice is left in the environment, and children of this process do not ask again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from s2robot import osmesa
from s2robot.errors import MissingExtra, RenderingUnavailable, UnknownName

CHOICE = "S2ROBOT_GL"
"""Environment variable with the choice; set it by hand to skip the trial."""

CANDIDATES = ("egl", "osmesa", "osmesa-wheel")
TOLD = "S2ROBOT_GL_TOLD"
"""Set once somebody was told that a GPU stands idle."""

APT_LINE = "apt-get install -y --no-install-recommends libegl1 libgl1 libglib2.0-0"

_MUJOCO_NAMES = {"egl": "egl", "osmesa": "osmesa", "osmesa-wheel": "osmesa", "glfw": "glfw", "glx": "glx"}
_NATIVE = {"darwin": "cgl", "win32": "wgl"}  # mujoco has one backend there and finds it by itself
_LIBRARIES = {"egl": ("libEGL.so.1", "libEGL.so"), "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")}
_PACKAGES = {"egl": "libegl1", "osmesa": "libosmesa6"}
IDLE_GPU = (
    "OpenGL draws on the CPU ({renderer}) though this machine has an NVIDIA GPU: a frame takes many times as long. The"
    " driver's own EGL is missing: as root, apt-get install libnvidia-gl-VERSION (the driver's, see nvidia-smi); a"
    " container must be started with NVIDIA_DRIVER_CAPABILITIES=all"
)
_DEVICES = Path("/dev")
_SOFTWARE = ("llvmpipe", "softpipe", "swrast", "software")
_TRIAL_SECONDS = 120  # a first import from a cold disk takes long; a hang takes for ever
_TRIAL = "import sys; sys.path.append({root!r}); from s2robot import gl; gl.main_trial({backend!r})"
_SCENE = """<mujoco><visual><quality offsamples="0" shadowsize="0"/></visual>
<worldbody><light pos="0 0 3"/><geom type="plane" size="1 1 .1"/>
<geom type="box" size=".2 .2 .2" rgba="1 0 0 1"/></worldbody></mujoco>"""


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GLReport:
    """What draws the frames."""

    backend: str
    renderer: str
    is_software: bool
    ms: float  # one 256 x 256 frame of a box on a floor, median


def prepare() -> str:
    """Choose offscreen OpenGL and prepare this process for it; quick after the first time.

    Returns:
        "egl", "osmesa" or "osmesa-wheel"; "glfw" or "glx" if `MUJOCO_GL` says so; "cgl" on macOS, "wgl" on Windows.

    Raises:
        RenderingUnavailable: nothing renders here; the message says what to install.
        MissingExtra: mujoco is not installed.
    """
    backend = settle()
    _apply(backend)
    return backend


def settle() -> str:
    """Choose, and leave the choice to the processes started from here, or each tries by itself. Raises as `prepare`."""
    before = os.environ.get(CHOICE)
    backend = choose()
    if backend in CANDIDATES and backend != before:
        warn_if_slow(_try(backend).renderer)  # tried just now, and remembered
    os.environ[CHOICE] = backend
    return backend


def probe() -> GLReport:
    """Draw a few frames with the chosen backend, in a child process. Raises as `prepare` does."""
    return _try(choose())


def choose() -> str:
    """The backend `prepare` would take. Changes nothing in this process."""
    if sys.platform in _NATIVE:
        return _NATIVE[sys.platform]
    told = os.environ.get("MUJOCO_GL", "").strip().lower()
    if told and told not in _MUJOCO_NAMES.values():
        raise UnknownName("MUJOCO_GL", told, set(_MUJOCO_NAMES.values()), hint="unset it to let s2robot choose")
    chosen = os.environ.get(CHOICE, "").strip().lower()
    if chosen and chosen not in _MUJOCO_NAMES:
        raise UnknownName(CHOICE, chosen, CANDIDATES, hint="unset it to let s2robot choose")
    if chosen and told in ("", _MUJOCO_NAMES[chosen]):
        return chosen
    if told in ("glfw", "glx"):
        return told  # an on-screen driver, asked for by name: nothing to try out
    return _first_that_renders(tuple(name for name in CANDIDATES if told in ("", _MUJOCO_NAMES[name])))


def warn_if_slow(renderer: str) -> None:
    """Say once, in this process and those it starts, that the CPU draws while an NVIDIA GPU stands idle."""
    if TOLD not in os.environ and is_software(renderer) and has_nvidia():
        os.environ[TOLD] = "1"
        _log.warning(IDLE_GPU.format(renderer=renderer))


def is_software(renderer: str) -> bool:
    """Whether a driver of this name draws on the CPU."""
    return any(word in renderer.lower() for word in _SOFTWARE)


@functools.cache
def has_nvidia() -> bool:
    """Whether the machine has an NVIDIA GPU; in WSL only nvidia-smi knows of it."""
    if any(_DEVICES.glob("nvidia[0-9]*")):
        return True
    if not (smi := shutil.which("nvidia-smi")):
        return False
    try:
        done = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "GPU 0" in done.stdout


def main_trial(backend: str) -> None:
    """Body of the child process: render with `backend` and print a report, or die trying."""
    _apply(backend)
    import mujoco

    model = mujoco.MjModel.from_xml_string(_SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = mujoco.Renderer(model, 256, 256)
    try:
        times = []
        frame = np.zeros(())
        for _ in range(5):
            start = time.perf_counter()
            renderer.update_scene(data)
            frame = renderer.render()
            times.append(1e3 * (time.perf_counter() - start))
        if frame.max() == frame.min():
            raise RenderingUnavailable("the frame came out blank")
        name = renderer_name()
    finally:
        renderer.close()
    report = GLReport(backend, name, is_software(name), round(median(times), 2))
    sys.stdout.write(json.dumps(asdict(report)) + "\n")


def renderer_name() -> str:
    """The driver's own name; needs a current context."""
    if sys.platform in _NATIVE:
        return _NATIVE[sys.platform]
    from OpenGL import GL

    return bytes(GL.glGetString(GL.GL_RENDERER)).decode(errors="replace")


def _first_that_renders(candidates: tuple[str, ...]) -> str:
    if importlib.util.find_spec("mujoco") is None:
        raise MissingExtra("mujoco", "sim", "Rendering")
    reasons = []
    for backend in candidates:
        try:
            _try(backend)
        except RenderingUnavailable as error:
            reasons.append(str(error))
        else:
            return backend
    told = os.environ.get("MUJOCO_GL", "")
    told = f"MUJOCO_GL={told} allows no other; unset it to let s2robot choose. " if told else ""
    raise RenderingUnavailable(
        f"No offscreen OpenGL on this machine ({'; '.join(reasons)}). {told}"
        f"Run: s2robot doctor --fix   or, as root: {APT_LINE}   or, without root: pip install --no-deps {osmesa.WHEEL}"
    )


@functools.cache
def _try(backend: str) -> GLReport:
    """Render with `backend` in a child process."""
    if missing := _missing(backend):
        package = f" (apt: {_PACKAGES[backend]})" if backend in _PACKAGES else ""
        raise RenderingUnavailable(f"{backend}: {missing} is not installed{package}")
    program = _TRIAL.format(root=str(Path(__file__).parents[1]), backend=backend)
    clean = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", CHOICE)}
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=_TRIAL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise RenderingUnavailable(f"{backend}: no frame within {_TRIAL_SECONDS} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise RenderingUnavailable(f"{backend}: {_last_error(done.stderr) or f'exit code {done.returncode}'}")
    return GLReport(**json.loads(lines[-1]))


def _missing(backend: str) -> str:
    """The library `backend` lacks, "" if it is there: spares the child, and its riddle of an error."""
    if backend == "osmesa-wheel":
        return "" if osmesa.is_installed() else osmesa.WHEEL
    names = _LIBRARIES.get(backend, ())
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return ""
    return names[0] if names else ""


def _last_error(stderr: str) -> str:
    """The line of a traceback that says what went wrong."""
    raised = [line.strip() for line in stderr.splitlines() if line and not line[0].isspace()]
    # What is printed while the interpreter dies ("Exception ignored in ...") comes after the reason.
    raised = [line for line in raised if "Error" in line or "s2robot." in line]
    return raised[0][:200] if raised else ""


def _apply(backend: str) -> None:
    """Prepare this process; harmless to repeat."""
    # llvmpipe starts a thread a core, and torch does too: together they run several times slower than one
    # thread each. Vertices, where a robot's meshes cost most, are not threaded anyway.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    if backend in _NATIVE.values():
        return
    name = _MUJOCO_NAMES[backend]
    _load_triton_first()
    if backend in CANDIDATES:
        _claim_pyopengl(name)
    if backend == "osmesa-wheel":
        osmesa.register()
    os.environ["MUJOCO_GL"] = name
    _rebind_mujoco(name)


def _load_triton_first() -> None:
    """Mesa and triton each bring an LLVM; triton's, loaded after Mesa's, binds to the wrong one and crashes.

    torch imports triton by itself, late (the first optimizer does), so a process that renders first and learns
    later would die. It is part of torch's CUDA builds only.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("triton._C.libtriton")


def _claim_pyopengl(platform: str) -> None:
    """PyOpenGL picks its platform at import, once for the life of the process."""
    current = os.environ.get("PYOPENGL_PLATFORM", "").lower()
    if "OpenGL.platform" in sys.modules and current != platform:
        raise RenderingUnavailable(
            f"PyOpenGL was already imported for {current or 'a display'!r} and cannot change to {platform!r}. "
            "Call s2robot.gl.prepare() before anything imports OpenGL."
        )
    os.environ["PYOPENGL_PLATFORM"] = platform


def _rebind_mujoco(name: str) -> None:
    """`import mujoco` fixed a GL context by the MUJOCO_GL of that moment; make it look again."""
    for module in ("mujoco.rendering.classic.gl_context", "mujoco.gl_context"):
        loaded = sys.modules.get(module)
        context = getattr(loaded, "GLContext", None)
        if loaded is not None and getattr(context, "__module__", "") != f"mujoco.{name}":
            importlib.reload(loaded)
