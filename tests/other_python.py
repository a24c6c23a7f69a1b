"""Tests against packages that do not fit beside ours: run with the Python of an environment that has them.

S2ROBOT_LEROBOT_PYTHON=/path/to/bin/python      lerobot, h5py, pytest
S2ROBOT_ROBOMIMIC_PYTHON=/path/to/bin/python    robomimic, h5py, pytest
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_there(variable: str, file: str) -> str:
    """Run a test file in the environment that `variable` names; skip where it names none."""
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no Python")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | {variable: ""}
    # Their warnings are not ours to mend.
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default", f"tests/{file}"]
    done = subprocess.run(
        [python, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout
