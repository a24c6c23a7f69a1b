"""What a task is: a spec sheet, and the privileged expert that can do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from s2robot.errors import InvalidInput

Privileged = Mapping[str, NDArray[np.float64]]
"""Simulator state that no camera and no policy sees: poses in metres, world frame."""


class Expert(Protocol):
    """A scripted demonstrator. It reads privileged state; it never sees a frame."""

    def reset(self) -> None: ...

    def act(self, state: Privileged) -> NDArray[np.float32]:
        """The clean action for this state, (M,) in [-1, 1]."""
        ...


@dataclass(frozen=True)
class TaskSpec:
    """One task on one page. Lengths in metres, rates in hertz, actions in [-1, 1].

    action_names: which inputs of robosuite's OSC_POSE controller (plus gripper) the policy drives;
        the others are held at zero. One unit of dx/dy/dz asks for 5 cm of motion in one control step.
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
    proprioception_names: tuple[str, ...]
    success: str
    expert: Callable[[], Expert]
    robosuite_kwargs: Callable[[np.random.Generator], dict[str, Any]] = field(default=lambda rng: {})
    privileged: Callable[[Any], Privileged] = field(default=lambda env: {})
    goal_names: tuple[str, ...] = ()
    goal: Callable[[Any], NDArray[np.float32]] = field(default=lambda env: np.zeros(0, np.float32))
    environment: Callable[[], Any] | None = None
    colours_name_objects: bool = False


def finger_state(env: Any) -> NDArray[np.float64]:
    """Positions [m] and speeds [m/s] of the two finger joints of robosuite's robot 0, (4,)."""
    robot = env.robots[0]
    data, hand = env.sim.data, "right"
    fingers: NDArray[np.float64] = np.concatenate(
        [data.qpos[robot._ref_gripper_joint_pos_indexes[hand]], data.qvel[robot._ref_gripper_joint_vel_indexes[hand]]]
    )
    return fingers


def hand(env: Any) -> dict[str, NDArray[np.float64]]:
    """Of robosuite's robot 0: where the gripper is [m], how far apart the fingers are [m], how fast they part [m/s]."""
    gripper = env.sim.data.site_xpos[env.robots[0].eef_site_id["right"]]
    left, right, left_speed, right_speed = finger_state(env)
    return {"gripper": gripper.copy(), "fingers": np.array([left - right, left_speed - right_speed])}


OSC_POSE_INPUTS = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")


def to_controller(action: NDArray[np.float32], names: tuple[str, ...]) -> NDArray[np.float64]:
    """Spread a task's action (M,) over the inputs of OSC_POSE plus gripper, (7,)."""
    full = np.zeros(len(OSC_POSE_INPUTS))
    for value, name in zip(action, names, strict=True):
        full[OSC_POSE_INPUTS.index(name)] = value
    return full


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
