"""PickPlaceCan: put the can from the one bin into its quarter of the other.

robot      Panda, OSC_POSE at 20 Hz; the policy drives xyz and the gripper
cameras    agentview (in front of both bins), robot0_eye_in_hand
start      robosuite's own: the can anywhere in the left bin, any yaw
success    the can is in the near right quarter of the right bin and the hand 4 cm away: robosuite's own criterion
horizon    200 control steps (10 s)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from s2robot.envs import lift
from s2robot.envs.carry import CarryExpert
from s2robot.envs.robots import hand
from s2robot.envs.task import Privileged


class CanExpert(CarryExpert):
    """A can stands where it is dropped from a little above, and is let go anywhere near the middle of its quarter."""

    DEPTH = 0.0
    CLEARANCE = 0.10  # over the can, which is 10 cm high
    CARRY = 0.22  # over the wall between the bins
    SPOT, BESIDE = 0.03, 0.12
    RESTING = (0.04, 0.03)
    NEAR = 0.04


def _privileged(env: Any) -> Privileged:
    can = env.obj_body_id[env.obj_to_use]
    place = env.target_bin_placements[env.object_id] + np.array([0, 0, 0.08])
    return {"cube": env.sim.data.body_xpos[can].copy(), "place": place, **hand(env)}


TASK = replace(
    lift.TASK,
    name="PickPlaceCan",
    robosuite_name="PickPlaceCan",
    horizon=200,
    success="the can stands in its quarter of the right bin, let go",
    expert=CanExpert,
    robosuite_kwargs=lambda rng: {},
    privileged=_privileged,
)
