"""Stack: put the small red cube on the large green one.

robot      Panda, OSC_POSE at 20 Hz; the policy drives xyz and the gripper
cameras    agentview (in front, looking down at the table), robot0_eye_in_hand
start      robosuite's own: both cubes within +-8 cm of the table centre, any yaw, apart
success    the red cube rests on the green one and the hand has let go: robosuite's own criterion
horizon    160 control steps (8 s)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.envs import lift
from s2robot.envs.task import Privileged, finger_state

HALF = (0.02, 0.025)  # half the side of the red cube and of the green one [m]


class StackExpert(lift.LiftExpert):
    """Grasp as in Lift; carry over the green cube, down a second funnel, let go, rise.

    Where it goes with the cube in hand is again a smooth function of where the cube is, and it lets go where the cube
    has come to rest, which the fingers' position cannot tell but the eyes can.
    """

    CARRY = 0.06  # height kept over the green cube while beside it [m]
    SPOT, BESIDE = 0.008, 0.05  # horizontal error at which the second funnel has come all the way down, begins [m]
    RESTING = (0.012, 0.006)  # let go within this much sideways and in height [m]

    def reset(self) -> None:
        super().reset()
        self._let_go = False

    def act(self, state: Privileged) -> NDArray[np.float32]:
        error = state["green"] + np.array([0, 0, sum(HALF)]) - state["cube"]
        aside = float(np.hypot(error[0], error[1]))
        if aside < self.RESTING[0] and abs(error[2]) < self.RESTING[1]:
            self._let_go = True
        if self._let_go:
            if aside < 2 * self.RESTING[0]:
                return self._move(np.array([0.0, 0.0, 0.05]), close=False)
            self.reset()  # it fell off: begin again
        grasp = super().act(state)
        if not self._holds(state):
            return grasp
        height = self.CARRY * np.clip((aside - self.SPOT) / (self.BESIDE - self.SPOT), 0, 1)
        low = error[2] + height > 0.02  # first up, then over: the cubes must not meet sideways
        sideways = error[:2] * (0.1 if low and aside > self.SPOT else 1.0)
        return self._move(np.array([*sideways, error[2] + height]), close=True)

    def _holds(self, state: Privileged) -> bool:
        opening, speed = state["fingers"]
        near = np.linalg.norm(state["cube"] - state["gripper"]) < 0.03
        return bool(self._closing and near and opening < self.CLOSED[0] and abs(speed) < self.CLOSED[1])


def _privileged(env: Any) -> Privileged:
    gripper = env.sim.data.site_xpos[env.robots[0].eef_site_id["right"]]
    left, right, left_speed, right_speed = finger_state(env)
    return {
        "cube": env.sim.data.body_xpos[env.cubeA_body_id].copy(),
        "green": env.sim.data.body_xpos[env.cubeB_body_id].copy(),
        "gripper": gripper.copy(),
        "fingers": np.array([left - right, left_speed - right_speed]),
    }


TASK = replace(
    lift.TASK,
    name="Stack",
    robosuite_name="Stack",
    horizon=160,
    success="the red cube rests on the green one, let go",
    expert=StackExpert,
    robosuite_kwargs=lambda rng: {},
    privileged=_privileged,
)
