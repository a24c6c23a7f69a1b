"""Tasks by name: `make_env("Lift")`, `make_vec_env("Lift", n=4)`; or, after `import s2robot.envs`, Gymnasium's
`gymnasium.make("s2robot/Lift-v0")` and `gymnasium.make_vec("s2robot/Lift-v0", num_envs=4)`.

To add a task, write its spec sheet in a file of its own and name it in `TASKS`.
"""

from __future__ import annotations

from typing import Any

import gymnasium

from s2robot.envs import lift, pick_color, pick_place_can, reach, stack
from s2robot.envs.bridge import RobosuiteEnv
from s2robot.envs.task import TaskSpec
from s2robot.envs.vector import VectorEnv
from s2robot.errors import UnknownName

SPECS = (lift.TASK, pick_color.TASK, pick_color.SMALL, stack.TASK, pick_place_can.TASK, reach.TASK)
TASKS: dict[str, TaskSpec] = {task.name: task for task in SPECS}


def get_task(name: str) -> TaskSpec:
    """The spec sheet of a task.

    Raises:
        UnknownName: with the nearest name there is.
    """
    if name not in TASKS:
        raise UnknownName("task", name, TASKS, "s2robot list tasks")
    return TASKS[name]


def make_vec_env(name: str, n: int, **options: Any) -> VectorEnv:
    """Make n environments of a task, a process each; options are those of `VectorEnv` and `RobosuiteEnv`."""
    return VectorEnv(name, n, **options)


def make_env(name: str, **options: Any) -> RobosuiteEnv:
    """Make a task's environment; options are those of `RobosuiteEnv`."""
    return RobosuiteEnv(get_task(name), **options)


def _vector_entry_point(num_envs: int, **options: Any) -> VectorEnv:
    return make_vec_env(n=num_envs, **options)


for _name in TASKS:
    gymnasium.register(
        f"s2robot/{_name}-v0",
        entry_point="s2robot.envs:make_env",
        vector_entry_point="s2robot.envs:_vector_entry_point",
        kwargs={"name": _name},
    )
