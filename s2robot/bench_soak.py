"""Everything at once, for long: `s2robot bench soak RUN --minutes 30`.

    policy server      clients, malformed messages and a stranger     `s2robot bench serve`
    ROS 2 node         a camera at a rate                             `s2robot bench ros2`, with a Python that has rclpy
    vector rollouts    environments in processes of their own, drawn  here

What is looked at: errors of any kind; memory once it has settled, its last third against its first; and latency in the
first and the last tenth. On a machine that others use, latency says more about them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s2robot import files, machine, registry, statistics
from s2robot.errors import InvalidInput, S2RobotError
from s2robot.progress import Told, silent

PART = 0.1  # of the time, at its beginning and its end, that are held against each other
SETTLED = 0.2  # of the time, after which memory should not grow
GROWTH_MB, GROWTH = 30.0, 0.05  # memory may grow by so much, or by this share
LATE = 900.0  # longer than it should take, and it hangs [s]


@dataclass(frozen=True)
class SoakConfig:
    """What runs together.

    run: the policy that is served
    minutes: how long
    clients: of the server
    task, envs: whose rollouts, and how many at once
    hz: frames a second for the ROS 2 node
    ros2_python: a Python that has rclpy; default: $S2ROBOT_ROS2_PYTHON, or this one; without any, no node runs
    """

    run: str = ""
    minutes: float = 30.0
    clients: int = 2
    task: str = "Lift"
    envs: int = 2
    hz: float = 5.0
    ros2_python: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.minutes < float("inf") or self.clients < 1 or self.envs < 1 or self.hz <= 0:
            raise InvalidInput("minutes and hz must be above 0, clients and envs 1 or more")


def bench_soak(config: SoakConfig, progress: Told = silent) -> dict[str, Any]:
    """Run all, sum up: {"passed", "rows": one a part, ...} in plain numbers."""
    if not any((Path(config.run) / name).exists() for name in ("policy.json", "policy/policy.json")):
        raise InvalidInput(f"No policy in {config.run}. Train one: s2robot train --help")
    seconds = 60 * config.minutes
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        words = ["--clients", str(config.clients), "--seconds", str(seconds), "--calls", "10", "--json"]
        start = functools.partial(_start, stack)
        parts = {"server": start(["bench", "serve", config.run, *words], sys.executable, Path(folder) / "server")}
        python = _ros2_python(config)
        if python:
            words = ["--seconds", str(seconds), "--hz", str(config.hz), "--size", "96x128", "--json"]
            parts["ROS 2 node"] = start(["bench", "ros2", *words], python, Path(folder) / "node")
        rows = [_rollouts(config, seconds, progress)]
        for name, (process, log) in parts.items():
            rows.append(_row(name, process, log, seconds))
    rows += [] if python else [{"part": "ROS 2 node", "passed": None, "faults": ["not run: no Python with rclpy"]}]
    return {
        "passed": all(row["passed"] is not False for row in rows), "minutes": config.minutes, "rows": rows,
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        **machine.provenance(),
    }  # fmt: skip


def _ros2_python(config: SoakConfig) -> str:
    asked = config.ros2_python or os.environ.get("S2ROBOT_ROS2_PYTHON", "")
    if asked and not Path(asked).exists():
        raise InvalidInput(f"No Python at {asked}. To make one: make side-ros2")
    return asked or (sys.executable if importlib.util.find_spec("rclpy") else "")


def _start(
    stack: contextlib.ExitStack, words: list[str], python: str, log: Path
) -> tuple[subprocess.Popen[bytes], Path]:
    """A part, which ends with `stack`, and with it the server or node that it starts itself."""
    command = [python, "-m", "s2robot.cli", *words]
    with log.open("wb") as out, log.with_suffix(".err").open("wb") as said:
        process = subprocess.Popen(command, stdout=out, stderr=said, start_new_session=True)
    stack.callback(_end, process)
    return process, log


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _row(name: str, process: subprocess.Popen[bytes], log: Path, seconds: float) -> dict[str, Any]:
    """What a part found, in the words that all rows share."""
    try:
        code: int | None = process.wait(seconds + LATE)
        found = json.loads(log.read_text(encoding="utf-8"))
    except (subprocess.TimeoutExpired, ValueError):
        words = log.with_suffix(".err").read_text(encoding="utf-8", errors="replace")[-500:]
        return {"part": name, "passed": False, "faults": [f"no result (exit code {process.poll()}): {words}"]}
    return (_server_row if name == "server" else _node_row)(found, code)


def _server_row(found: dict[str, Any], code: int | None) -> dict[str, Any]:
    soak = found["soak"]
    memory = _memory(soak["rss_mb"]["over_time"])
    errors = soak["wrong"] + soak["unrefused"] + len(soak["faults"]) + soak["crashed"]
    return {
        "part": "server", "passed": bool(found["passed"]) and memory["flat"], "did": f"{soak['answers']} answers",
        "refused": f"{soak['malformed']} malformed messages", "errors": errors, "exit_code": code, "memory_mb": memory,
        "first_ms": soak["first_ms"], "last_ms": soak["last_ms"], "faults": soak["faults"][:5],
    }  # fmt: skip


def _node_row(found: dict[str, Any], code: int | None) -> dict[str, Any]:
    memory = {**found["memory_mb"], "flat": _flat(found["memory_mb"]["first"], found["memory_mb"]["last"])}
    errors = found["refused"] + (found["exit_code"] not in (0, -15))
    return {
        "part": "ROS 2 node", "passed": not errors and not code and memory["flat"], "errors": errors,
        "did": f"{found['heard']} of {found['sent']} frames", "exit_code": found["exit_code"], "memory_mb": memory,
        "refused": f"{found['dropped']} dropped for newer ones, {found['lost_on_the_way']} lost on the way",
        "first_ms": found["first_ms"], "last_ms": found["last_ms"],
        "faults": [f"{found['refused']} refused, exit code {found['exit_code']}"] if errors else [],
    }  # fmt: skip


def _rollouts(config: SoakConfig, seconds: float, progress: Told) -> dict[str, Any]:
    """Random actions; an episode that ends is followed by another."""
    faults: list[str] = []
    rng, ms, memory, episodes = np.random.default_rng(0), [], [], 0
    with contextlib.closing(registry.make_vec_env(config.task, config.envs, frame_size=128, fidelity="fast")) as env:
        env.reset(seed=0)
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            asked = time.perf_counter()
            try:
                frames, _, ended, cut, info = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
            except S2RobotError as error:
                faults.append(str(error)[:300])
                break
            ms.append((now, 1e3 * (time.perf_counter() - asked)))
            episodes += int((ended | cut).sum())
            faults += [str(why) for why in info.get("worker_died", ()) if why]
            for env_at, view in np.argwhere(frames["frames"].max(axis=(2, 3, 4)) == 0):
                faults.append(f"black frames of camera {view} of environment {env_at} after {now:.0f} s")
            if len(ms) % 100 == 1:
                sizes = [machine.resident_mb(process) for process in (os.getpid(), *env.pids)]
                memory.append((now, float(sum(size or 0.0 for size in sizes))))
                progress(int(now), int(seconds), f"{len(ms)} steps, {episodes} episodes")
    grown = _memory(memory)
    first, last = ([each for at, each in ms if low <= at <= high] for low, high in _ends(seconds))
    return {
        "part": "vector rollouts", "passed": not faults and grown["flat"], "did": f"{len(ms)} steps of {config.envs}",
        "refused": f"{episodes} episodes", "errors": len(faults), "exit_code": 0, "memory_mb": grown,
        "first_ms": statistics.quantiles(first) if first else None, "faults": faults[:5],
        "last_ms": statistics.quantiles(last) if last else None,
    }  # fmt: skip


def _ends(seconds: float) -> tuple[tuple[float, float], tuple[float, float]]:
    return (0.0, PART * seconds), ((1 - PART) * seconds, seconds + LATE)


def _memory(samples: list[Any]) -> dict[str, Any]:
    """[(s, MB)] once things have settled: medians of the first and the last third."""
    if not samples:
        return {"first": 0.0, "last": 0.0, "most": 0.0, "flat": False}
    settled = [mb for when, mb in samples if when >= SETTLED * samples[-1][0]]
    third = max(1, len(settled) // 3)
    first, last = float(np.median(settled[:third])), float(np.median(settled[-third:]))
    return {"first": first, "last": last, "most": max(mb for _, mb in samples), "flat": _flat(first, last)}


def _flat(first: float, last: float) -> bool:
    return last - first <= max(GROWTH_MB, GROWTH * first)


def as_table(result: dict[str, Any]) -> str:
    """The rows in Markdown."""
    head = "| part | did | besides | errors | memory MB, first / last / most | p50 ms, first / last tenth | p99 ms |"
    lines = [head, "| --- | --- | --- | ---: | --- | --- | --- |"]
    for row in files.plain(result["rows"]):
        if row["passed"] is None:
            lines.append(f"| {row['part']} | {row['faults'][0]} | | | | | |")
            continue
        if "memory_mb" not in row:
            lines.append(f"| {row['part']} | {row['faults'][0]} | | 1 | | | |")
            continue
        memory = " / ".join(f"{row['memory_mb'][key]:.0f}" for key in ("first", "last", "most"))
        ms = [" / ".join(f"{row[part][q]:.1f}" if row[part] else "-" for part in ("first_ms", "last_ms"))
              for q in ("p50", "p99")]  # fmt: skip
        cells = (row["part"], row["did"], row["refused"], str(row["errors"]), memory, *ms)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
