"""`s2robot doctor --fix`: install the simulator and offscreen OpenGL, by the shortest way that is open here.

    1. the `sim` extra's requirements, if any is missing, by pip
    2. OpenGL, if nothing renders: the system's packages when root or passwordless sudo allow it,
       else OSMesa from a pip wheel, else the one line to type

Every command is printed before it runs, and none runs without a time limit.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata

from rich.console import Console

from s2robot import gl, requirements
from s2robot.errors import RenderingUnavailable, S2RobotError

_APT_SECONDS = 600
_PIP_SECONDS = 1800
_SUDO_SECONDS = 10
_IMPORT_SECONDS = 60


def fix(console: Console) -> None:
    """Bring this environment to where simulated rollouts render.

    Raises:
        S2RobotError: an installation failed; the message says which and what to type.
        RenderingUnavailable: everything that may be tried here was.
    """
    _install_simulator(console)
    if _renders():
        console.print(f"Rendering works: {gl.choose()}")
        return
    for attempt in (_install_system_gl, _install_wheel_gl):
        try:
            attempt(console)
        except S2RobotError as error:
            console.print(str(error), style="yellow", markup=False)
        if _renders():
            console.print(f"Rendering works: {gl.choose()}")
            return
    raise RenderingUnavailable(
        f"Nothing renders here yet, and what was tried did not help (see above). As root, type: {gl.APT_LINE}"
    )


def opencv_failure() -> str:
    """Why `import cv2` fails, "" if it does not or OpenCV is not installed. Asked in a child: cv2 brings its own Qt."""
    if importlib.util.find_spec("cv2") is None:
        return ""
    command = [sys.executable, "-c", "import cv2"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"import cv2 takes over {_IMPORT_SECONDS} s"
    return "" if done.returncode == 0 else _reason(done.stderr)


def _renders() -> bool:
    importlib.invalidate_caches()  # something may have been installed a moment ago
    try:
        gl.probe()
    except RenderingUnavailable:
        return False
    return not opencv_failure()


def _install_simulator(console: Console) -> None:
    missing = [need.line for need in requirements.needs("sim") if not need.fits]
    if missing:
        _pip(missing, console)


def _install_system_gl(console: Console) -> None:
    if shutil.which("apt-get") is None:
        raise S2RobotError("No apt-get on this machine.")
    prefix = _become_root()
    _run([*prefix, "apt-get", "update", "-qq"], _APT_SECONDS, console)
    # `env`, since sudo drops what it is not told to keep.
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive"]
    _run([*prefix, *quiet, *shlex.split(gl.APT_LINE)], _APT_SECONDS, console)


def _become_root() -> list[str]:
    """What to put before a command that needs root; raises if there is no way without a password."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo"):
        asked = subprocess.run(["sudo", "-n", "true"], capture_output=True, timeout=_SUDO_SECONDS, check=False)
        if asked.returncode == 0:
            return ["sudo", "-n"]
    raise S2RobotError("System packages need root, and sudo asks for a password.")


def _install_wheel_gl(console: Console) -> None:
    lines = [need.line for need in requirements.needs("osmesa") if not need.fits]
    if lines:
        # The libraries inside are all we want; the viewer they come with would bring a whole Jupyter.
        _pip(["--no-deps", *lines], console)
    # OpenCV's usual build wants libGL.so.1; the headless build of the same version is the same module without
    # windows, and put over it keeps robosuite's requirement met.
    if opencv_failure():
        version = metadata.version("opencv-python")
        _pip(["--no-deps", "--force-reinstall", f"opencv-python-headless=={version}"], console)


def _pip(arguments: Sequence[str], console: Console) -> None:
    has_pip = importlib.util.find_spec("pip") is not None
    if not has_pip and shutil.which("uv") is None:
        raise S2RobotError(
            f"This environment has no pip. Install into it by your own means: {shlex.join(arguments)}   ({sys.prefix})"
        )
    install = [sys.executable, "-m", "pip", "install"] if has_pip else ["uv", "pip", "install", "-p", sys.executable]
    _run([*install, *arguments], _PIP_SECONDS, console)


def _run(command: list[str], seconds: int, console: Console) -> None:
    """Print a command, run it, and say in one line why it failed."""
    line = shlex.join(command)
    console.print(f"$ {line}", markup=False, highlight=False)
    try:
        # No standard input: a question nobody sees would wait until the time is over.
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise S2RobotError(f"Gave up after {seconds} s: {line}") from None
    if done.returncode != 0:
        why = _reason(done.stderr) or f"exit code {done.returncode}"
        raise S2RobotError(f"This failed: {line}   ({why}). Is there a network?")


def _reason(stderr: str) -> str:
    """The line that says what went wrong: pip's and apt's last "ERROR:" or "E:", else the last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "E:"))]
    return (errors or lines or [""])[-1].removeprefix("ERROR: ").removeprefix("E: ")[:200]
