"""robosuite's own environments, made for us: quiet, seeded, and without a say in who draws."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from s2robot.envs.quiet import quiet
from s2robot.envs.robots import check_robot
from s2robot.envs.task import TaskSpec
from s2robot.errors import require


def make_robosuite(task: TaskSpec, **changes: Any) -> Any:
    """robosuite's own environment of a task; changes: of what it is made with.

    Raises:
        UnknownName: no such robot.
    """
    check_robot(task.robot)
    rng = np.random.default_rng(0)  # model constants (the cube's size) are the same in every process
    with quiet():
        suite = require("robosuite", extra="sim", purpose=f"The task {task.name}")
        make = task.environment() if task.environment else partial(suite.make, task.robosuite_name)
        settings = {
            "robots": task.robot,
            "has_renderer": False,
            "has_offscreen_renderer": False,
            "use_camera_obs": False,
            "control_freq": task.control_hz,
            "horizon": task.horizon,
            "ignore_done": True,
            "hard_reset": False,
            "seed": 0,
        }
        return make(**settings | task.robosuite_kwargs(rng) | changes)


def reseed(env: Any, rng: np.random.Generator) -> None:
    """Have robosuite draw its next episode from these random numbers."""
    env.rng = rng
    for drawer in _drawers(env):
        drawer.rng = rng


def _drawers(env: Any) -> Iterator[Any]:
    """What of robosuite's keeps random numbers of its own: placement samplers, those they are made of, the arena."""
    if hasattr(env, "placement_initializer"):
        yield from _samplers(env.placement_initializer)
    if hasattr(env.model.mujoco_arena, "rng"):
        yield env.model.mujoco_arena


def _samplers(sampler: Any) -> Iterator[Any]:
    yield sampler
    for inner in getattr(sampler, "samplers", {}).values():
        yield from _samplers(inner)
