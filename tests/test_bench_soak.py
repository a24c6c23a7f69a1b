"""The soak of everything together: whatever becomes of it, nothing that it started lives on."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from s2robot import bench_soak

PART = """#!/bin/sh
sleep 600 &
echo $!
wait
"""


def test_parts_end_with_all_that_they_started_even_if_the_next_does_not_start(tmp_path: Path) -> None:
    part, log = tmp_path / "part", tmp_path / "log"
    part.write_text(PART)
    part.chmod(0o755)
    with contextlib.ExitStack() as stack:
        process, _ = bench_soak._start(stack, ["bench", "serve"], str(part), log)
        deadline = time.monotonic() + 60
        while not log.read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(FileNotFoundError):
            bench_soak._start(stack, ["bench", "ros2"], str(tmp_path / "none"), tmp_path / "other")
    assert process.returncode == -9
    while _alive(int(log.read_text())):
        assert time.monotonic() < deadline, "what the part had started lives on"
        time.sleep(0.02)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
