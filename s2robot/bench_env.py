"""How fast are the environments here, against robosuite alone and against their own number? `s2robot bench env`.

Each arm has a process of its own, as one who uses it would have, and they take turns, a round each, so that a ratio
holds while the machine's speed drifts. A round is a fresh episode of which `steps` control steps are timed, all arms
with the same actions; the resets are not timed.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from s2robot import machine, registry, workers
from s2robot.bench import ratio
from s2robot.errors import InvalidInput
from s2robot.progress import Told, silent

if TYPE_CHECKING:
    from s2robot.envs.vector import VectorEnv


DRAWN, BLIND = "robosuite, drawn", "robosuite"
ARMS = {  # name: (what it is held against, fidelity; drawn or not)
    "exact, drawn": (DRAWN, "exact", True),
    "fast, drawn": (DRAWN, "fast", True),
    "exact": (BLIND, "exact", False),
    "fast": (BLIND, "fast", False),
}


@dataclass(frozen=True)
class EnvBenchConfig:
    """What to time."""

    task: str = "Lift"
    frame_size: int = 256  # of each of the task's cameras [pixels]
    rounds: int = 10
    steps: int = 20  # control steps a round
    vector: tuple[int, ...] = (1, 2, 4, 8)  # environments at once; each number is kept running, about 1 GB a process
    fidelity: str = "exact"  # of the vector environments
    seed: int = 0

    def __post_init__(self) -> None:
        horizon = registry.get_task(self.task).horizon
        if self.rounds < 2 or not 1 <= self.steps <= horizon or any(n < 1 for n in self.vector):
            raise InvalidInput(f"rounds must be 2 or more, steps 1 to {horizon} (an episode), vector 1 or more")


def bench_env(config: EnvBenchConfig, progress: Told = silent) -> dict[str, Any]:
    """Time all arms in turn; returns {"machine", "versions", "git", "rows", "vector"}, plain numbers throughout."""
    seconds: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        total = len(ARMS) + 2 + len(config.vector) + config.rounds
        counted = itertools.count(1)
        jobs: dict[str, Callable[[NDArray[np.float32], int], float]] = {}
        for name, make in _makers(config).items():
            jobs[name] = stack.enter_context(_process(make))
            progress(next(counted), total, name)
        vectors: dict[int, VectorEnv] = {}
        for n in config.vector:
            options = {"fidelity": config.fidelity, "frame_size": config.frame_size}
            vectors[n] = stack.enter_context(contextlib.closing(registry.make_vec_env(config.task, n, **options)))
            jobs[f"N={n}"] = partial(_play_vector, vectors[n])
            progress(next(counted), total, f"N={n}")
        for k in range(config.rounds + 1):
            for name, job in jobs.items():
                took = job(_actions(config, k), config.seed + k)
                seconds.setdefault(name, []).append(took / config.steps)
            progress(len(jobs) + k, total, "warming up" if k == 0 else f"round {k}")
        memory = {n: [machine.resident_mb(pid) for pid in vector.pids] for n, vector in vectors.items()}
    seconds = {name: each[1:] for name, each in seconds.items()}  # the first round compiles, loads, and allocates
    return {
        **machine.provenance(),
        "rows": [_row(name, seconds) for name in (DRAWN, BLIND, *ARMS)],
        "vector": _vector_rows(seconds, memory),
    }


def _makers(config: EnvBenchConfig) -> dict[str, Callable[[], Any]]:
    """What makes each arm's environment, robosuite's own among them."""
    ours = {
        name: partial(
            registry.make_env, config.task, fidelity=fidelity, render_frames=drawn, frame_size=config.frame_size
        )
        for name, (_, fidelity, drawn) in ARMS.items()
    }
    return {
        DRAWN: partial(registry.make_plain, config.task, config.frame_size),
        BLIND: partial(registry.make_plain, config.task),
        **ours,
    }


@contextlib.contextmanager
def _process(make: Callable[[], Any]) -> Iterator[Callable[[NDArray[np.float32], int], float]]:
    """A process with an environment; called with actions (L, M) and a seed, it gives the seconds they took."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, context, initializer=workers.start, initargs=(make, os.getpid()))
    try:
        pool.submit(workers.answer_with, _ready, None).result()
        yield lambda actions, seed: float(pool.submit(workers.answer_with, _play, (actions, seed)).result())
    finally:
        workers.stop(pool)


def _ready(env: Any, _: None) -> None:
    """Asked first: the environment is there."""


def _play(env: Any, episode: tuple[NDArray[np.float32], int]) -> float:
    actions, seed = episode
    env.reset(seed=seed)
    start = time.perf_counter()
    for action in actions:
        env.step(action)
    return time.perf_counter() - start


def _play_vector(env: VectorEnv, actions: NDArray[np.float32], seed: int) -> float:
    env.reset(seed=seed)
    start = time.perf_counter()
    for action in actions:
        env.step(np.broadcast_to(action, (env.num_envs, len(action))))
    return time.perf_counter() - start


def _actions(config: EnvBenchConfig, k: int) -> NDArray[np.float32]:
    """A round's actions (L, M): small ones, after which no episode is over."""
    rng = np.random.default_rng((config.seed, k))
    shape = (config.steps, len(registry.get_task(config.task).action_names))
    return rng.uniform(-0.3, 0.3, shape).astype(np.float32)


def _row(name: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """One arm: milliseconds a control step, and how many times faster than what it is held against."""
    ms = [1e3 * s for s in seconds[name]]
    row: dict[str, Any] = {"arm": name, "ms": statistics.median(ms), "ms_range": [min(ms), max(ms)], "rounds": len(ms)}
    if name in ARMS:
        row |= {"against": ARMS[name][0], **ratio(seconds[name], seconds[ARMS[name][0]])}
    return row


def _vector_rows(seconds: dict[str, list[float]], memory: dict[int, list[float | None]]) -> list[dict[str, Any]]:
    """By number of environments: steps a second of all together, against the first of the list, and their memory."""
    rows = []
    for n, each in memory.items():
        rates = [n / s for s in seconds[f"N={n}"]]
        first = next(iter(memory))
        gain = ratio([s / n for s in seconds[f"N={n}"]], [s / first for s in seconds[f"N={first}"]])
        known: Sequence[float] = [mb for mb in each if mb is not None]
        rows.append({
            "n": n, "hz": statistics.median(rates), "hz_range": [min(rates), max(rates)],
            "ratio": gain["ratio"], "ratio_range": gain["ratio_range"], "rounds": len(rates),
            "memory_mb": sum(known) if len(known) == n else None,
        })  # fmt: skip
    return rows
