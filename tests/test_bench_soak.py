"""The soak of everything together: whatever becomes of it, nothing that it started lives on."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

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


GOOD_SERVER = {
    "passed": True,
    "soak": {
        "answers": 900, "malformed": 30, "wrong": 0, "unrefused": 0, "crashed": 0, "faults": [],
        "rss_mb": {"over_time": [[k, 500.0] for k in range(30)]}, "first_ms": None, "last_ms": None,
    },
}  # fmt: skip
GOOD_NODE = {
    "refused": 0, "exit_code": 0, "heard": 90, "sent": 91, "dropped": 1, "lost_on_the_way": 0,
    "memory_mb": {"first": 500.0, "last": 510.0, "most": 511.0}, "first_ms": None, "last_ms": None,
}  # fmt: skip


def test_memory_may_settle_and_may_not_grow() -> None:
    settling = [(k, 100.0 + 20 * min(k, 15)) for k in range(100)]  # all of it in the first fifth
    assert bench_soak._memory(settling) == {"first": 400.0, "last": 400.0, "most": 400.0, "flat": True}
    growing = [(k, 400.0 + k) for k in range(100)]
    assert not bench_soak._memory(growing)["flat"]
    assert bench_soak._flat(2000, 2090) and not bench_soak._flat(2000, 2110)  # a twentieth
    assert bench_soak._flat(100, 129) and not bench_soak._flat(100, 131)  # or 30 MB
    assert not bench_soak._memory([])["flat"]


@pytest.mark.parametrize("change", [{"wrong": 1}, {"unrefused": 1}, {"crashed": 1}, {"faults": ["a hang"]}])
def test_a_server_that_failed_says_so(change: dict[str, Any]) -> None:
    assert bench_soak._server_row(GOOD_SERVER, 0)["passed"] and not bench_soak._server_row(GOOD_SERVER, 0)["errors"]
    bad = {"passed": False, "soak": {**GOOD_SERVER["soak"], **change}}
    row = bench_soak._server_row(bad, 1)
    assert not row["passed"] and row["errors"] == 1
    grown = {"over_time": [[k, 500.0 + 5 * k] for k in range(30)]}
    assert not bench_soak._server_row({"passed": True, "soak": {**GOOD_SERVER["soak"], "rss_mb": grown}}, 0)["passed"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"refused": 1}, 0),
        ({"exit_code": -11}, 0),
        ({}, 1),
        ({"memory_mb": {"first": 500, "last": 600, "most": 600}}, 0),
    ],
)
def test_a_node_that_failed_says_so(change: dict[str, Any], code: int) -> None:
    assert bench_soak._node_row(GOOD_NODE, 0)["passed"]
    assert not bench_soak._node_row({**GOOD_NODE, **change}, code)["passed"]


def test_the_table_has_a_line_for_all_whatever_became_of_them() -> None:
    rows = [bench_soak._server_row(GOOD_SERVER, 0), {"part": "ROS 2 node", "passed": None, "faults": ["not run"]}]
    rows.append({"part": "other", "passed": False, "faults": ["no result"]})
    table = bench_soak.as_table({"rows": rows}).splitlines()
    assert len(table) == 5 and all(line.count("|") == 8 for line in table)
    assert "900 answers" in table[2] and "not run" in table[3] and "no result | | 1" in table[4]


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
