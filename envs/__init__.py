"""Tasks by name: `make_env("Lift")`, `make_vec_env("Lift", n=4)`; or, after `import s2robot.envs`, Gymnasium's
`gymnasium.make("s2robot/Lift-v0")` and `gymnasium.make_vec("s2robot/Lift-v0", num_envs=4)`.

Of robosuite's other tasks, those with one arm go by robosuite's own names: `make_env("Wipe")` (`envs.any_robosuite`).
To add a task, write its spec sheet in a file of its own and name it in `TASKS`; in a distribution of your own, name it
by an entry point (`s2robot.plugins`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium

from s2robot import plugins
from s2robot.envs import door, lift, nut_assembly, pick_color, pick_place_can, reach, stack
from s2robot.envs.any_robosuite import is_robosuites, robosuite_task
from s2robot.envs.bridge import RobosuiteEnv
from s2robot.envs.robots import check_robot
from s2robot.envs.task import TaskSpec
from s2robot.envs.vector import VectorEnv

TASKS: dict[str, TaskSpec] = {
    task.name: task
    for task in (
        lift.TASK,
        lift.STOCK,
        pick_color.TASK,
        pick_color.SMALL,
        stack.TASK,
        pick_place_can.TASK,
        reach.TASK,
        door.TASK,
        nut_assembly.TASK,
    )
}


def get_task(name: str, robot: str | None = None) -> TaskSpec:
    """The spec sheet of a task, of ours or of a plug-in, or what robosuite itself says of one of its own.

    Args:
        robot: one of `envs.robots.ROBOTS`; default: the task's own, a Panda.

    Raises:
        UnknownName: with the nearest task or robot there is.
        InvalidInput: a task that takes two arms.
        BrokenPlugin: a plug-in of that name cannot be used.
    """
    if robot is not None:
        check_robot(robot)
    task = _spec_sheet(name)
    if task is None:
        return robosuite_task(name, (*TASKS, *PLUGINS.names()), robot or "Panda")
    return replace(task, robot=robot) if robot else task


def has_spec_sheet(name: str) -> bool:
    """Whether a task is one of ours or of a plug-in."""
    return name in TASKS or name in PLUGINS.names()


def _spec_sheet(name: str) -> TaskSpec | None:
    if name in TASKS:
        return TASKS[name]
    found = PLUGINS.get(name)
    return found.value if found else None


def make_vec_env(name: str, n: int, **options: Any) -> VectorEnv:
    """Make n environments of a task, a process each; options are those of `VectorEnv` and `RobosuiteEnv`."""
    return VectorEnv(name, n, **options)


def make_env(name: str, *, robot: str | None = None, **options: Any) -> RobosuiteEnv:
    """Make a task's environment, with another robot than its own if one is named; options: see `RobosuiteEnv`."""
    return RobosuiteEnv(get_task(name, robot), **options)


def _owner(name: str) -> str:
    return "s2robot" if name in TASKS else "robosuite" if is_robosuites(name) else ""


def _fault(name: str, value: Any) -> str:
    if not isinstance(value, TaskSpec):
        return f"it is a {type(value).__name__}; expected a s2robot.envs.task.TaskSpec"
    return "" if value.name == name else f"its task is called {value.name!r}; expected the entry point's name"


PLUGINS = plugins.Group("tasks", "task", _owner, _fault)


def _vector_entry_point(num_envs: int, **options: Any) -> VectorEnv:
    return make_vec_env(n=num_envs, **options)


for _name in TASKS:
    gymnasium.register(
        f"s2robot/{_name}-v0",
        entry_point="s2robot.envs:make_env",
        vector_entry_point="s2robot.envs:_vector_entry_point",
        kwargs={"name": _name},
    )
