"""MuJoCo's state as robosuite and robomimic store it: one row of numbers, time, qpos, qvel (and act)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.errors import InvalidInput


def put_state(model: Any, data: Any, state: NDArray[np.float64]) -> None:
    """Write a stored state into MuJoCo's data; nothing else is brought up to date.

    Raises:
        InvalidInput: the state is of another model: more or fewer joints.
    """
    expected = 1 + model.nq + model.nv
    if state.shape not in ((expected,), (expected + model.na,)):
        raise InvalidInput(
            f"The states have {len(state)} numbers, this model {expected} (time, {model.nq} positions, {model.nv}"
            " speeds): they were recorded with another robot, task or version of robosuite"
        )
    data.time = state[0]
    data.qpos[:] = state[1 : 1 + model.nq]
    data.qvel[:] = state[1 + model.nq : expected]


def place_bodies(model: Any, data: Any) -> None:
    """Put bodies, cameras and lights where the joints say."""
    import mujoco

    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
    mujoco.mj_tendon(model, data)
