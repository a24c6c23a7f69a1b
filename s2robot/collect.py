"""Scripted demonstrations: `s2robot collect Lift --demos 200`.

The expert's arm is disturbed while the label kept is the clean action it would have taken there (Laskey et al.
2017, "DART"): noise on every action shows the way back to the path, and now and then a shove, a few steps of one
random command to arm and fingers, shows the way out of a missed grasp.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from s2robot import files, locks, registry
from s2robot.datasets import DemoDataset, Episode, EpisodeParts, merge
from s2robot.errors import CorruptFile, InvalidInput, S2RobotError
from s2robot.launchers import LOCAL, Launcher
from s2robot.parts import pack_episode
from s2robot.progress import Told, silent
from s2robot.seeds import APART, DEMONSTRATIONS, TRAINING

if TYPE_CHECKING:
    from s2robot.envs.bridge import RobosuiteEnv


@dataclass(frozen=True)
class CollectConfig:
    """What to demonstrate, and how."""

    task: str = "Lift"
    demos: int = 200  # successful ones
    noise: float = 0.3  # standard deviation added to the executed motion, in action units
    shoves: float = 0.04  # probability at each step that a shove begins
    robot: str | None = None  # default: the task's own, a Panda
    fidelity: str = "fast"
    frame_size: int = 256  # pixels: the largest scale the encoder will look at
    seed: int = 0
    workers: int = 0  # processes; 0 takes every core

    def __post_init__(self) -> None:
        for name, least in (("demos", 1), ("frame_size", 1), ("seed", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected a whole number from {least} on")
        if self.seed >= (most := (TRAINING - DEMONSTRATIONS) // APART):
            raise InvalidInput(f"seed is {self.seed}; expected less than {most}: what follows are training's episodes")
        if not (0 <= self.noise < math.inf and 0 <= self.shoves <= 1):
            raise InvalidInput(
                f"noise is {self.noise}, shoves {self.shoves}; expected a deviation from 0 on and a probability"
            )


def collect(
    config: CollectConfig,
    path: Path,
    progress: Told = silent,
    launcher: Launcher = LOCAL,
) -> DemoDataset:
    """Collect into `path` (HDF5), or go on where a killed collection stopped.

    The demonstrations are the first `demos` successful seeds in order: the same file whatever the number of
    workers or interruptions.

    Raises:
        UsageError: the task has no expert.
        CorruptFile: `path` is there and damaged.
        Occupied: another process collects into `path`.
        S2RobotError: the expert fails too often for this task to be what it should be.
    """
    parts = path.with_name(path.name + ".parts")
    if path.exists() and not _left_of(parts):
        return whole(path, config)
    with locks.alone(path.with_name(f".{path.name}.lock"), str(path), wait=path.exists()):
        if path.exists():  # a kill came before its parts were gone; or who held the lock until now has made it
            dataset = whole(path, config)
            files.sweep(path.parent)
            if parts.exists():
                EpisodeParts(parts).remove()
            return dataset
        return _collect(config, path, parts, progress, launcher)


def _left_of(parts: Path) -> bool:
    """Is something there to remove, where we may?"""
    there = parts.exists() or any(parts.parent.glob(f"{parts.name}.tmp-*"))
    return there and os.access(parts.parent, os.W_OK)


def whole(path: str | Path, config: CollectConfig) -> DemoDataset:
    """What was collected before, here or at an address, if it is what is asked for now, but for how many.

    Raises:
        CorruptFile: it is damaged, or was cut short.
        InvalidInput: it holds other demonstrations.
    """
    dataset = DemoDataset(path)
    if dataset.lost:
        why = f"it was cut short, {len(dataset.lost)} of {len(dataset)} episodes are lost"
        raise CorruptFile(path, why, f"To collect again: rm {path}")
    task = registry.get_task(config.task, config.robot)
    asked = {"task": task.name, "robot": task.robot, **_manner(config)}
    there = {name: dataset.env_args.get(name, value) for name, value in asked.items()}
    asked["frame_size"], there["frame_size"] = config.frame_size, dataset.frame_shape[1]
    if other := [f"{name} {there[name]}, not {asked[name]}" for name in asked if there[name] != asked[name]]:
        raise InvalidInput(f"{path} holds other demonstrations ({'; '.join(other)}). Choose another --out")
    return dataset


def _collect(config: CollectConfig, path: Path, folder: Path, progress: Told, launcher: Launcher) -> DemoDataset:
    task = registry.get_task(config.task, config.robot)
    task.demonstrator()  # a task without one is said here, not by a worker
    first = DEMONSTRATIONS + config.seed * APART
    settings = {name: value for name, value in vars(config).items() if name not in ("workers", "demos")}
    settings = {name: value for name, value in settings.items() if value is not None}  # as collections begun before had
    parts = EpisodeParts(folder, settings)
    outcome = parts.successes()
    todo = (seed for seed in count(first) if seed not in outcome)
    results = launcher.work(partial(_make, config), partial(_demonstrate, config), todo, config.workers)
    try:
        while len(kept := _first_successes(outcome, first, config.demos)) < config.demos:
            seed, (success, image) = next(results)
            parts.keep(seed, image)
            outcome[seed] = success
            tried, failed = len(outcome), len(outcome) - sum(outcome.values())
            progress(min(sum(outcome.values()), config.demos), config.demos, f"{failed} failed")
            if tried >= 50 and failed > tried // 2:
                raise S2RobotError(
                    f"The expert failed {failed} of {tried} episodes: is --noise {config.noise} too much?"
                )
    finally:
        results.close()
    env_args: dict[str, Any] = {"env_name": task.robosuite_name, "task": config.task, **_manner(config)}
    env_args |= {"robot": task.robot, "control_hz": task.control_hz, "action_names": list(task.action_names)}
    env_args |= {"proprioception_names": list(task.proprioception_names), "versions": registry.simulator_versions()}
    return merge(parts, path, env_args, task.cameras, kept)


def _manner(config: CollectConfig) -> dict[str, Any]:
    """How the demonstrations were made, for the file to say. Older files say less."""
    return {name: getattr(config, name) for name in ("fidelity", "noise", "shoves", "seed")}


def demonstrate(env: RobosuiteEnv, seed: int, noise: float, shoves: float = 0.0) -> Episode:
    """One episode of the task's expert, disturbed; a function of the arguments alone."""
    fingers = env.task.action_names.index("gripper") if "gripper" in env.task.action_names else None
    disturb = Disturbance(np.random.default_rng((seed, 1)), noise, shoves, fingers)
    expert = env.task.demonstrator()
    observation, _ = env.reset(seed=seed)
    names = ("frames", "proprioception", "actions", "executed", "states", *(["goal"] if "goal" in observation else []))
    rows: dict[str, list[Any]] = {name: [] for name in (*names, "rewards")}
    over = success = False
    while not over:
        action = expert.act(env.privileged())
        executed = disturb(action)
        row = {**observation, "actions": action, "executed": executed, "states": env.state()}
        for name in names:
            rows[name].append(row[name])
        observation, reward, success, truncated, _ = env.step(executed)
        rows["rewards"].append(np.float32(reward))
        over = success or truncated
    stacked = {name: np.stack(values) for name, values in rows.items()}
    return Episode(
        seed=seed,
        success=success,
        frames=stacked["frames"],
        proprioception=stacked["proprioception"],
        actions=stacked["actions"],
        executed_actions=stacked["executed"],
        rewards=stacked["rewards"],
        states=stacked["states"],
        goal=stacked.get("goal"),
    )


class Disturbance:
    """Noise on every motion (never on the fingers), and shoves."""

    SHOVE_STEPS = (2, 7)

    def __init__(self, rng: np.random.Generator, noise: float, shoves: float, fingers: int | None) -> None:
        self.rng, self.noise, self.shoves, self.fingers = rng, noise, shoves, fingers
        self._left, self._command = 0, np.zeros(0)

    def __call__(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is executed in place of the clean action (M,)."""
        motions = len(action) - (self.fingers is not None)
        noise = self._spread(self.rng.normal(0, self.noise, motions), 0.0)
        if self._left == 0 and self.rng.random() < self.shoves:
            self._left = int(self.rng.integers(*self.SHOVE_STEPS))
            self._command = self._spread(self.rng.uniform(-1, 1, motions), self.rng.choice([-1.0, 1.0]))
        shoved = self._left > 0
        self._left = max(0, self._left - 1)
        executed: NDArray[np.float32] = np.clip((self._command if shoved else action) + noise, -1, 1).astype(np.float32)
        return executed

    def _spread(self, motions: NDArray[np.float64], fingers: float) -> NDArray[np.float64]:
        """Motions, with the fingers' command in its place."""
        return motions if self.fingers is None else np.insert(motions, self.fingers, fingers)


def _first_successes(outcome: dict[int, bool], first: int, wanted: int) -> list[int]:
    """The first `wanted` successful seeds of the unbroken series from `first` on."""
    kept: list[int] = []
    for seed in count(first):
        if seed not in outcome or len(kept) == wanted:
            return kept
        if outcome[seed]:
            kept.append(seed)
    raise AssertionError("count() does not end")


def _make(config: CollectConfig) -> RobosuiteEnv:
    return registry.make_env(config.task, robot=config.robot, fidelity=config.fidelity, frame_size=config.frame_size)


def _demonstrate(config: CollectConfig, env: RobosuiteEnv, seed: int) -> tuple[bool, bytes]:
    episode = demonstrate(env, seed, config.noise, config.shoves)
    return bool(episode.success), pack_episode(episode)
