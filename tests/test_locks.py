"""One process at a time: the second is told who the first is, and a dead one stops nobody."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from s2robot import locks
from s2robot.errors import S2RobotError

HOLD = """
import sys, time
from pathlib import Path
from s2robot import locks
with locks.alone(Path(sys.argv[1]), "runs/x"):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(lock: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def test_the_second_is_told_who_the_first_is_and_the_dead_stop_nobody(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    process = hold(lock)
    try:
        with pytest.raises(locks.Occupied, match="runs/x is in use by process") as caught, locks.alone(lock, "runs/x"):
            pass
        said = str(caught.value)
        assert f"process {process.pid} on {socket.gethostname()}" in said and "--out" in said
        assert isinstance(caught.value, S2RobotError) and caught.value.exit_code == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert lock.exists()
    with locks.alone(lock, "runs/x"):
        assert str(os.getpid()) in lock.read_text()
        with pytest.raises(locks.Occupied), locks.alone(lock, "runs/x"):  # not even this process twice
            pass
    assert not lock.exists()


def test_a_lock_goes_with_whatever_happens_inside(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), locks.alone(tmp_path / ".lock", "x"):
            raise KeyboardInterrupt
    (tmp_path / ".lock").write_text("no JSON")
    with locks.alone(tmp_path / ".lock", "x"):
        pass
    with locks.alone(tmp_path / "gone" / ".lock", "x"):
        (tmp_path / "gone").rename(tmp_path / "elsewhere")
