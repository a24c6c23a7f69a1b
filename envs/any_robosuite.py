"""Any other task of robosuite's with one arm, by robosuite's name: `make_env("Wipe")`, `make_env("ToolHang")`.

robot      Panda by default, OSC_POSE at 20 Hz; the policy drives all six directions and the gripper, where it can close
cameras    agentview, robot0_eye_in_hand
start      robosuite's own
success    robosuite's own
horizon    robosuite's own
expert     none: it can be run, not collected
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import Any

from s2robot.envs.quiet import quiet
from s2robot.envs.robots import finger_names
from s2robot.envs.task import OSC_POSE_INPUTS, TaskSpec
from s2robot.errors import InvalidInput, MissingExtra, UnknownName, require

CAMERAS = ("agentview", "robot0_eye_in_hand")


def robosuite_task(name: str, known: tuple[str, ...], robot: str = "Panda") -> TaskSpec:
    """The spec sheet of one of robosuite's tasks, read off its class.

    Args:
        known: the tasks with a spec sheet of their own, to name them too where there is no `name`.

    Raises:
        UnknownName: with the nearest name there is.
        InvalidInput: it takes two arms.
    """
    with quiet():
        try:
            require("robosuite", extra="sim", purpose=f"The task {name}")
        except MissingExtra:
            raise UnknownName("task", name, known, "s2robot list tasks") from None
        from robosuite.environments.base import REGISTERED_ENVS
        from robosuite.environments.manipulation.two_arm_env import TwoArmEnv

    single = {key for key, kind in REGISTERED_ENVS.items() if not issubclass(kind, TwoArmEnv)}
    if name in REGISTERED_ENVS and name not in single:
        others = ", ".join(sorted(single - set(known)))
        raise InvalidInput(f"{name} takes two arms; the bridge drives one. Of robosuite's tasks there are: {others}")
    if name not in single:
        raise UnknownName("task", name, {*known, *single}, "s2robot list tasks; the others are robosuite's")
    gripper = _default(REGISTERED_ENVS[name], "gripper_types")
    fingers = finger_names(robot, gripper)
    return TaskSpec(
        name=name,
        robosuite_name=name,
        robot=robot,
        cameras=CAMERAS,
        horizon=_default(REGISTERED_ENVS[name], "horizon"),
        control_hz=20,
        action_names=OSC_POSE_INPUTS if fingers else OSC_POSE_INPUTS[:-1],
        success="robosuite's own",
        orientation=True,
        gripper=gripper,
    )


def is_robosuites(name: str) -> bool:
    """Whether robosuite has a task of that name; False where it is not installed."""
    if find_spec("robosuite") is None:
        return False
    with quiet():
        from robosuite.environments.base import REGISTERED_ENVS
    # Whatever extends one of its classes enters this table too.
    return name in REGISTERED_ENVS and REGISTERED_ENVS[name].__module__.startswith("robosuite.")


def _default(environment: Any, argument: str) -> Any:
    """What robosuite takes for an argument: the class or the nearest of its parents that names it says so."""
    for kind in environment.__mro__:
        parameters = inspect.signature(kind.__init__).parameters
        if argument in parameters:
            return parameters[argument].default
    raise InvalidInput(f"robosuite's {environment.__name__} takes no {argument}: it is no task of the kind known here")
