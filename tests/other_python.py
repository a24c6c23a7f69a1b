"""Tests against packages that do not fit beside ours: run with the Python of an environment that has them.

`make side-NAME` makes .venvs/NAME, which is found here; S2ROBOT_NAME_PYTHON=/path/to/python names another.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HERE = "S2ROBOT_SIDE"  # set in the environment's own run: it starts no further one


def side_python(name: str) -> str:
    """The Python of environment `name`; skips where there is none."""
    if os.environ.get(HERE):
        pytest.skip(f"inside {os.environ[HERE]} already")
    python = os.environ.get(f"S2ROBOT_{name.upper()}_PYTHON") or str(ROOT / ".venvs" / name / "bin/python")
    if not Path(python).exists():
        pytest.skip(f"no environment with {name}: make side-{name}")
    return python


def run_there(name: str, file: str, *words: str, timeout: float = 900) -> str:
    """Run a test file in the environment `name`; returns what pytest printed."""
    python = side_python(name)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1", HERE: name}
    # Their warnings are not ours to mend.
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    process = subprocess.Popen(
        [*command, f"tests/{file}", *words], cwd=ROOT, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, said = process.communicate(timeout=timeout)
    finally:  # with the nodes and servers that it started: they would outlive it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == 0, out[-3000:] + said[-2000:]
    return out
