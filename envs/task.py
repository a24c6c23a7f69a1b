"""What a task is: a spec sheet, and the privileged expert that can do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from s2robot.envs.robots import finger_names, finger_state, orientation
from s2robot.errors import InvalidInput, UsageError

Privileged = Mapping[str, NDArray[np.float64]]
"""Simulator state that no camera and no policy sees: poses in metres, world frame."""


class Expert(Protocol):
    """A scripted demonstrator. It reads privileged state; it never sees a frame."""

    def reset(self) -> None: ...

    def act(self, state: Privileged) -> NDArray[np.float32]:
        """The clean action for this state, (M,) in [-1, 1]."""
        ...


POSITION = ("gripper_x", "gripper_y", "gripper_z")
ORIENTATION = ("gripper_xx", "gripper_xy", "gripper_xz", "gripper_yx", "gripper_yy", "gripper_yz")
"""The gripper's own x and y axes in the world frame: smooth everywhere, as no three angles are, and of one sign."""


@dataclass(frozen=True)
class TaskSpec:
    """One task on one page. Lengths in metres, rates in hertz, actions in [-1, 1].

    robot: see `envs.robots`; replace it to do the task with another arm.
    action_names: which inputs of robosuite's OSC_POSE controller (plus gripper) the policy drives; the others are held
        at zero. One unit of dx/dy/dz asks for 5 cm of motion in one control step, of droll/dpitch/dyaw for 0.5 rad.
    orientation: whether proprioception tells how the gripper is turned, as it must where the policy turns it.
    upright: whether droll and dpitch hold the gripper pointing straight down. Held at zero, as they are where the
        policy does not drive them, they keep no direction: they leave the gripper as it was last pushed.
    gripper: robosuite's name of it, where the task brings its own.
    goal_names: fields of the goal, where a task has more than one; `goal` tells this episode's.
    colours_name_objects: which object is which, only its colour tells.
    environment: robosuite's class of the task, where it is not one of robosuite's own; called once robosuite is there.
    robosuite_kwargs: called once per environment with its random generator.
    """

    name: str
    robosuite_name: str
    robot: str
    cameras: tuple[str, ...]
    horizon: int
    control_hz: int
    action_names: tuple[str, ...]
    success: str
    expert: Callable[[], Expert] | None = None
    orientation: bool = False
    upright: bool = False
    gripper: str = "default"
    robosuite_kwargs: Callable[[np.random.Generator], dict[str, Any]] = field(default=lambda rng: {})
    privileged: Callable[[Any], Privileged] = field(default=lambda env: {})
    goal_names: tuple[str, ...] = ()
    goal: Callable[[Any], NDArray[np.float32]] = field(default=lambda env: np.zeros(0, np.float32))
    environment: Callable[[], Any] | None = None
    colours_name_objects: bool = False

    @property
    def proprioception_names(self) -> tuple[str, ...]:
        """Fields of the proprioception: position, orientation where it matters, finger joints, their speeds."""
        fingers = finger_names(self.robot, self.gripper)
        turned = ORIENTATION if self.orientation else ()
        return (*POSITION, *turned, *fingers, *(f"{finger}_speed" for finger in fingers))

    def demonstrator(self) -> Expert:
        """A fresh expert.

        Raises:
            UsageError: nobody wrote one for this task.
        """
        if self.expert is None:
            raise UsageError(
                f"{self.name} has no scripted expert, so there is nobody to demonstrate it. Tasks that have one:"
                " s2robot list tasks"
            )
        return self.expert()


def proprioception(env: Any, task: TaskSpec) -> NDArray[np.float32]:
    """The fields that `task.proprioception_names` names, (Q,)."""
    gripper = env.sim.data.site_xpos[env.robots[0].eef_site_id["right"]]
    turned = [orientation(env)[:, :2].T.ravel()] if task.orientation else []
    state: NDArray[np.float32] = np.concatenate([gripper, *turned, finger_state(env)]).astype(np.float32)
    return state


OSC_POSE_INPUTS = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")


def to_controller(
    action: NDArray[np.float32], names: tuple[str, ...], inputs: int = len(OSC_POSE_INPUTS)
) -> NDArray[np.float64]:
    """Spread a task's action (M,) over OSC_POSE's inputs and the gripper, (7,); (6,) for a hand that cannot close."""
    full = np.zeros(inputs)
    for value, name in zip(action, names, strict=True):
        full[OSC_POSE_INPUTS.index(name)] = value
    return full


TILT = slice(3, 5)  # droll and dpitch among OSC_POSE's inputs
UPRIGHT_GAIN = 2.0  # action per radian off: asks for all of it at once


def command_of(env: Any, action: NDArray[np.float32], task: TaskSpec) -> NDArray[np.float64]:
    """What robosuite is told for a task's action (M,) in the environment's present state, (7,) or (6,)."""
    command = to_controller(action, task.action_names, env.action_dim)
    if task.upright:
        x, y, _ = orientation(env)[:, 2]  # where the fingers point; turned about its cross product with straight down
        command[TILT] = np.clip(UPRIGHT_GAIN * np.array([-y, x]), -1, 1)
    return command


def checked_actions(actions: Any, task: TaskSpec, *axes: int) -> NDArray[np.float32]:
    """Actions (*axes, M) of a task as float32.

    Raises:
        InvalidInput: another shape, or a value outside [-1, 1] or not finite.
    """
    checked: NDArray[np.float32] = np.asarray(actions, np.float32)
    expected = (*axes, len(task.action_names))
    if checked.shape != expected:
        fields = ", ".join(task.action_names)
        raise InvalidInput(f"Action has shape {checked.shape}; {task.name} takes {expected}: {fields}")
    if not np.isfinite(checked).all() or np.abs(checked).max() > 1.0 + 1e-6:
        raise InvalidInput(f"Action {checked} is outside [-1, 1] or not finite; clip it if that is what you mean")
    return checked
