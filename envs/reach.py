"""Reach: bring the hand over the cube. Dense reward, for quick trials of reinforcement learning.

robot      Panda, OSC_POSE at 20 Hz; the policy drives xyz alone
cameras    agentview (in front, looking down at the table), robot0_eye_in_hand
start      as Lift: the cube anywhere within +-12 cm of the table centre
reward     1 - tanh(10 d) a step, d the distance of the gripper from 5 cm above the cube's centre [m]
success    d below 2 cm
horizon    60 control steps (3 s)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.envs import lift
from s2robot.envs.task import Privileged

ABOVE = np.array([0, 0, 0.05])  # the cube's centre [m]
NEAR = 0.02  # [m]


class ReachExpert(lift.LiftExpert):
    """Straight there."""

    def act(self, state: Privileged) -> NDArray[np.float32]:
        return self._move(state["cube"] + ABOVE - state["gripper"], close=False)[:3]


def _environment() -> Any:
    from robosuite.environments.manipulation.lift import Lift

    class Reach(Lift):  # type: ignore[misc]
        """Lift's scene; another reward."""

        def _distance(self) -> float:
            hand = self.sim.data.site_xpos[self.robots[0].eef_site_id["right"]]
            return float(np.linalg.norm(self.sim.data.body_xpos[self.cube_body_id] + ABOVE - hand))

        def reward(self, action: Any = None) -> float:
            return 1.0 - float(np.tanh(10.0 * self._distance()))

        def _check_success(self) -> bool:
            return self._distance() < NEAR

    return Reach


TASK = replace(
    lift.TASK,
    name="Reach",
    robosuite_name="Reach",
    horizon=60,
    action_names=("dx", "dy", "dz"),
    success="the gripper within 2 cm of the point 5 cm above the cube's centre",
    expert=ReachExpert,
    environment=_environment,
)
