"""robosuite's arm controller between two actions, to the same bits in a fraction of the time.

robosuite runs its whole controller at every physics step: it looks sites up by name, asks MuJoCo for six Jacobians
where one will do, rebuilds the limits of the action space, and commands the gripper anew. Between two actions only the
arm's state changes, so only what depends on it is computed here, in robosuite's own order and by its own functions.
At a new action robosuite's controller runs as ever.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def arm_of(env: Any) -> Arm | None:
    """The arm of a robosuite environment after its reset; None where robosuite's own controller must do."""
    from robosuite.controllers.parts.arm.osc import OperationalSpaceController
    from robosuite.controllers.parts.gripper.simple_grip import SimpleGripController
    from robosuite.robots.fixed_base_robot import FixedBaseRobot

    (robot, *others), plain = env.robots, type(env)._pre_action
    parts = dict(robot.part_controllers)
    arm = parts.pop("right", None)
    fits = (
        not others
        and plain.__qualname__ == "RobotEnv._pre_action"
        and type(robot) is FixedBaseRobot
        and robot.composite_controller.name == "BASIC"
        and type(arm) is OperationalSpaceController
        and arm.impedance_mode == "fixed"
        and arm.interpolator_pos is None
        and arm.interpolator_ori is None
        and all(type(part) is SimpleGripController and part.interpolator is None for part in parts.values())
    )
    return Arm(robot, arm) if fits else None


class Arm:
    """An arm under operational space control, between two actions."""

    def __init__(self, robot: Any, controller: Any) -> None:
        from robosuite.utils import control_utils

        self._controller, self._maths = controller, control_utils
        self._model, self._data = controller.sim.model._model, controller.sim.data._data
        self._site = self._model.site(controller.ref_name).id
        base = self._model.site(f"{controller.naming_prefix}{controller.part_name}_center").id
        self._base = self._data.site_xpos[base], self._data.site_xmat[base].reshape(3, 3)  # it stands still
        self._joints = np.array(controller.qvel_index)
        self._positions = np.array(controller.qpos_index)
        self._motors = np.array(robot._ref_actuators_indexes_dict[controller.part_name])
        self._jacobians = np.zeros((2, 3, self._model.nv))
        self._mass = np.zeros((self._model.nv, self._model.nv))
        self._kp, self._kd = np.array(controller.kp), np.array(controller.kd)

    def command(self) -> None:
        """Give the motors the torques for the present state and robosuite's present goal."""
        import mujoco

        control, data, maths = self._controller, self._data, self._maths
        mujoco.mj_jacSite(self._model, data, *self._jacobians, self._site)
        mujoco.mj_fullM(self._model, self._mass, data.qM)
        mass = self._mass[self._joints, :][:, self._joints]  # in the memory layout of robosuite's, for the same bits
        forward, turning = np.ascontiguousarray(self._jacobians[:, :, self._joints])  # (3, joints) each
        jacobian = np.concatenate([forward, turning])
        position, rotation = self._goal()
        errors = (
            position - data.site_xpos[self._site],
            maths.orientation_error(rotation, data.site_xmat[self._site].reshape(3, 3)),
        )
        wanted = [
            errors[k] * self._kp[part] + -np.dot(self._jacobians[k], data.qvel) * self._kd[part]
            for k, part in enumerate((slice(0, 3), slice(3, 6)))
        ]
        whole, moving, rotating, null = maths.opspace_matrices(mass, jacobian, forward, turning)
        if control.uncoupling:
            wrench = np.concatenate([np.dot(moving, wanted[0]), np.dot(rotating, wanted[1])])
        else:
            wrench = np.dot(whole, np.concatenate(wanted))
        torques = np.dot(jacobian.T, wrench) + data.qfrc_bias[self._joints]
        torques += maths.nullspace_torques(
            mass, null, control.initial_joint, data.qpos[self._positions], data.qvel[self._joints]
        )
        low, high = self._model.actuator_ctrlrange[self._motors].T
        data.ctrl[self._motors] = np.clip(torques, low, high)

    def _goal(self) -> tuple[Vector, Vector]:
        """Position (3,) and rotation (3, 3) in the world."""
        control = self._controller
        if control.input_ref_frame == "world":
            return control.goal_pos, control.goal_ori
        position, rotation = self._base
        return position + np.dot(rotation, control.goal_pos), np.dot(rotation, control.goal_ori)
