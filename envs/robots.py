"""The arms a task can be done with, and what their hands tell.

    arm             gripper           fingers                            open [m]
    Panda           PandaGripper      two that slide [m, m/s]            0.08
    Sawyer          RethinkGripper    two that slide [m, m/s]            0.058
    UR5e, Kinova3   Robotiq85         six joints that turn [rad, rad/s]  0.12
    IIWA            Robotiq140        six joints that turn [rad, rad/s]  0.126
    Jaco, XArm7     (their own)       joints that turn; no expert knows what they hold

Panda by default; `robot=` of `make_env` and `--robot` of `s2robot collect` take the others.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.envs.quiet import quiet
from s2robot.errors import InvalidInput, UnknownName, require

ROBOTS = ("Panda", "Sawyer", "UR5e", "IIWA", "Kinova3", "Jaco", "XArm7")
"""robosuite's single arms that stand still."""

SLIDING = {"PandaGripper": ("left_finger", "right_finger"), "RethinkGripper": ("left_finger", "right_finger")}
"""Grippers whose two joints are the two fingers; what other joints are called is robosuite's choice."""

OPEN = {"PandaGripper": 0.08, "RethinkGripper": 0.058, "Robotiq85Gripper": 0.12, "Robotiq140Gripper": 0.126}
"""How far apart the fingers of an open gripper are [m]: those that experts know to grasp with."""


def check_robot(robot: str) -> None:
    """Raise UnknownName, with the nearest name there is, for an arm there is not."""
    if robot not in ROBOTS:
        raise UnknownName("robot", robot, ROBOTS)


@lru_cache
def finger_names(robot: str, gripper: str = "default") -> tuple[str, ...]:
    """What the positions of the finger joints are called, in robosuite's order; empty for a hand without fingers.

    gripper: robosuite's name where a task brings its own.
    """
    if robot == "Panda" and gripper == "default":
        return SLIDING["PandaGripper"]  # without the second it takes to import robosuite
    check_robot(robot)
    with quiet():
        require("robosuite", extra="sim", purpose=f"The robot {robot}")
        from robosuite.models.grippers import GRIPPER_MAPPING
        from robosuite.models.robots.robot_model import create_robot

        if gripper == "default":
            gripper = create_robot(robot).default_gripper["right"]
        joints = [joint.removeprefix("gripper0_").removesuffix("_joint") for joint in GRIPPER_MAPPING[gripper]().joints]
    return SLIDING.get(gripper, tuple(joints))


def finger_state(env: Any) -> NDArray[np.float64]:
    """Positions and then speeds of the finger joints of robosuite's robot 0, as `finger_names` names them, (2 n,)."""
    robot = env.robots[0]
    data, hand = env.sim.data, "right"
    if not robot.gripper[hand].joints:
        return np.zeros(0)
    fingers: NDArray[np.float64] = np.concatenate(
        [data.qpos[robot._ref_gripper_joint_pos_indexes[hand]], data.qvel[robot._ref_gripper_joint_vel_indexes[hand]]]
    )
    return fingers


def hand(env: Any) -> dict[str, NDArray[np.float64]]:
    """Of robosuite's robot 0, for experts:

    gripper   where it is [m], (3,)
    fingers   how far apart they are [m], how fast they part [m/s], (2,)
    open      how far apart they are when open [m], (1,)

    Raises:
        InvalidInput: a hand no expert knows.
    """
    robot = env.robots[0]
    gripper = type(robot.gripper["right"]).__name__
    if gripper not in OPEN:
        raise InvalidInput(
            f"Of {robot.name}'s hand ({gripper}) it is not known how far apart its fingers are. Experts know"
            f" {', '.join(OPEN)}: the robots Panda, Sawyer, UR5e, Kinova3, IIWA"
        )
    if gripper == "PandaGripper":
        left, right, left_speed, right_speed = finger_state(env)
        fingers = np.array([left - right, left_speed - right_speed])
    else:
        fingers = _between_pads(env, robot.gripper["right"])
    where = env.sim.data.site_xpos[robot.eef_site_id["right"]].copy()
    return {"gripper": where, "fingers": fingers, "open": np.array([OPEN[gripper]])}


def orientation(env: Any) -> NDArray[np.float64]:
    """How the gripper of robosuite's robot 0 is turned: its axes as columns, world frame, (3, 3).

    Fingers part along the first, and point along the third.
    """
    axes: NDArray[np.float64] = env.sim.data.site_xmat[env.robots[0].eef_site_id["right"]].reshape(3, 3).copy()
    return axes


def _between_pads(env: Any, gripper: Any) -> NDArray[np.float64]:
    """The gap between the two finger pads [m] and how fast it widens [m/s]."""
    names = [gripper.important_geoms[side][0] for side in ("left_fingerpad", "right_fingerpad")]
    pads = [env.sim.model.geom_name2id(name) for name in names]
    apart = env.sim.data.geom_xpos[pads[0]] - env.sim.data.geom_xpos[pads[1]]  # (3,)
    speed = env.sim.data.get_geom_xvelp(names[0]) - env.sim.data.get_geom_xvelp(names[1])  # (3,)
    distance = float(np.linalg.norm(apart))
    thickness = env.sim.model.geom_size[pads].min(axis=1).sum()
    return np.array([distance - thickness, float(speed @ apart) / distance])
