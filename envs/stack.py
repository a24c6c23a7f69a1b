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

from s2robot.envs import lift
from s2robot.envs.carry import CarryExpert
from s2robot.envs.robots import hand
from s2robot.envs.task import Privileged

HALF = (0.02, 0.025)  # half the side of the red cube and of the green one [m]


def _privileged(env: Any) -> Privileged:
    place = env.sim.data.body_xpos[env.cubeB_body_id] + np.array([0, 0, sum(HALF)])
    return {"cube": env.sim.data.body_xpos[env.cubeA_body_id].copy(), "place": place, **hand(env)}


TASK = replace(
    lift.TASK,
    name="Stack",
    robosuite_name="Stack",
    horizon=160,
    success="the red cube rests on the green one, let go",
    expert=CarryExpert,
    robosuite_kwargs=lambda rng: {},
    privileged=_privileged,
    colours_name_objects=True,
)
