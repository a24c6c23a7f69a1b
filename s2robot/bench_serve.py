"""Is a server right, steady and quick under load? `s2robot bench serve`.

    a server of its own process  <-  one client, in turn with the policy in this process: what the wire costs
                                 <-  many clients, each its own episode, malformed messages in between
                                 <-  a stranger who floods, breaks off and cheats on connections of its own

Every answer is held against the in-process one of the same episode; every malformed message must be answered in words
and leave the episode as it was. The machine should be quiet; clients and server share it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from s2robot import machine, statistics
from s2robot.adapters import serve_policy, wire
from s2robot.adapters.serve import check_packages, usual_batch
from s2robot.errors import S2RobotError
from s2robot.progress import Told, silent
from s2robot.soak import ServeBenchConfig, Step, ask, connect, press

EPISODE = 12  # observations: longer than any context, so that it is left behind as well
EPISODES = 6


def bench_serve(config: ServeBenchConfig, progress: Told = silent) -> dict[str, Any]:
    """Serve, press, compare; returns plain numbers, and "passed": nothing wrong, nothing died."""
    check_packages()
    policy, interface = serve_policy.load(config.run, engine=config.engine, precision=config.precision, execute=0)
    config = replace(config, batch=config.batch or usual_batch(policy))
    episodes = [_episode(policy, interface, config.seed + k) for k in range(EPISODES)]
    with _server(config) as (url, process):
        single = _single(url, policy, episodes, config.calls)
        soak = press(url, process, episodes, config, progress)
        process.send_signal(signal.SIGTERM)
        try:
            code: int | None = process.wait(60)
        except subprocess.TimeoutExpired:
            code = None
    passed = code == 0 and not (soak["wrong"] or soak["unrefused"] or soak["faults"] or soak["crashed"])
    return {
        "passed": passed, "exit_code": code, "single_client": single, "soak": soak, "metadata": interface.metadata,
        **machine.provenance(),
    }  # fmt: skip


@contextlib.contextmanager
def _server(config: ServeBenchConfig) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    words = ["--port", "0", "--json", "--max-clients", str(config.clients + 8), "--batch", str(config.batch)]
    words += ["--engine", config.engine, *(["--precision", config.precision] if config.precision else [])]
    command = [sys.executable, "-m", "s2robot.cli", "serve", config.run, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise S2RobotError(f"The server did not begin (exit code {process.wait(60)}); see above for why")
        yield str(json.loads(line)["url"]), process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def _episode(policy: Any, wants: serve_policy.Interface, seed: int) -> list[Step]:
    """Noise to look at, and what the policy in this process answers."""
    rng, steps = np.random.default_rng(seed), []
    policy.reset()
    for _ in range(EPISODE):
        frames = rng.integers(0, 256, (len(wants.cameras), *wants.frame, 3), dtype=np.uint8)
        state = rng.normal(size=wants.proprioception).astype(np.float32)
        goal = {"goal": np.eye(wants.goal, dtype=np.float32)[rng.integers(wants.goal)]} if wants.goal else {}
        answer = policy.act({"frames": frames, "proprioception": state, **goal})
        images = {f"observation/{camera}": image for camera, image in zip(wants.cameras, frames, strict=True)}
        steps.append(({**images, "observation/state": state, **goal}, answer))
    return steps


def _single(url: str, policy: Any, episodes: list[list[Step]], calls: int) -> dict[str, Any]:
    """One client and this process in turn, on the same observations."""
    steps = [step for episode in episodes for step in episode]
    local, remote, there = [], [], []
    with connect(url) as connection:
        for k in range(calls + 1):
            observation, _ = steps[k % len(steps)]
            images = [image for key, image in observation.items() if np.ndim(image) == 3]
            plain = {"frames": np.stack(images), "proprioception": observation["observation/state"]}
            plain |= {"goal": observation["goal"]} if "goal" in observation else {}
            began = time.perf_counter()
            policy.act(plain)
            between = time.perf_counter()
            answer = ask(connection, wire.pack(observation))
            if k:  # the first ones allocate
                local.append(1e3 * (between - began))
                remote.append(1e3 * (time.perf_counter() - between))
                there.append(float(answer["server_timing"]["infer_ms"]))
    paired = np.subtract(remote, local)
    return {
        "in_process_ms": statistics.quantiles(local), "served_ms": statistics.quantiles(remote),
        "overhead_ms": {"p50": float(np.median(paired)), "mean": float(paired.mean()), "n": len(paired)},
        "besides_inference_ms": statistics.quantiles(np.subtract(remote, there)),
    }  # fmt: skip
