"""Lift: grasp the red cube and raise it.

robot      Panda, OSC_POSE at 20 Hz; the policy drives xyz and the gripper
cameras    agentview (in front, looking down at the table), robot0_eye_in_hand
start      the cube anywhere within +-12 cm of the table centre, any yaw; LiftStock: within +-3 cm, as robosuite has it
success    the cube's centre is 4 cm above the table: robosuite's own criterion
horizon    100 control steps (5 s)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.envs.robots import hand
from s2robot.envs.task import Privileged, TaskSpec

TABLE_TOP = 0.8  # [m]
PLACEMENT = 0.12  # half-width of the square in which the cube's centre is placed [m]


class LiftExpert:
    """Down a funnel onto the cube, close, wait for the fingers, up: proportional control on the gripper's position.

    What it does is a function of the state, and a smooth one as far as a grasp allows: how high it stays grows
    with how far it is from above the cube. A policy that sees the cube a little wrong then acts a little wrong;
    an expert that switches between "above" and "down" teaches hovering between the two. It rises when the fingers
    have come to rest on something, which a policy can tell as well: one that counts steps instead teaches a race
    against the fingers, and every eighth grasp of its pupils was lost to it.
    """

    GAIN = 12.0  # action per metre of error; saturates at 8 cm
    DEPTH = 0.008  # aimed this far below the cube's centre, so as not to stop short of it [m]
    CLEARANCE = 0.07  # height kept above the cube when far from it [m]
    THROAT, MOUTH = 0.012, 0.045  # horizontal error at which the funnel has come all the way down, begins [m]
    REACH = (0.020, 0.018)  # closes within this much sideways and in height [m]: as wide as the grasp forgives
    HOLD = (0.035, 0.030)  # and opens again beyond this
    CLOSED = (0.070, 0.02)  # fingers less apart than this [m] and slower than this [m/s] hold whatever they hold
    LEFT = 0.01  # ... and this much less apart than when open: not every hand opens as wide [m]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._closing = False

    def act(self, state: Privileged) -> NDArray[np.float32]:
        error = state["cube"] - state["gripper"]  # (3,)
        aside = float(np.hypot(error[0], error[1]))
        deep = abs(error[2])
        lost, within = aside > self.HOLD[0] or deep > self.HOLD[1], aside <= self.REACH[0] and deep <= self.REACH[1]
        if self._approaches(lost=lost, within=within):
            height = self.CLEARANCE * np.clip((aside - self.THROAT) / (self.MOUTH - self.THROAT), 0, 1)
            return self._move(error + np.array([0, 0, height - self.DEPTH]), close=False)
        return self._move(np.array([0.0, 0.0, 0.1]) if self._closed(state) else error, close=True)

    def _approaches(self, *, lost: bool, within: bool) -> bool:
        """Whether the hand is to be open: it has yet to come within reach, or has lost what it had."""
        self._closing = not (lost if self._closing else not within)
        return not self._closing

    def _closed(self, state: Privileged) -> bool:
        """Whether the fingers have left where they are open, and come to rest."""
        opening, speed = state["fingers"]
        return bool(opening < min(self.CLOSED[0], state["open"][0] - self.LEFT) and abs(speed) < self.CLOSED[1])

    def _move(self, error: NDArray[np.float64], *, close: bool) -> NDArray[np.float32]:
        xyz = np.clip(self.GAIN * error, -1, 1)
        return np.array([*xyz, 1.0 if close else -1.0], np.float32)


def _robosuite_kwargs(rng: np.random.Generator) -> dict[str, Any]:
    from robosuite.utils.placement_samplers import UniformRandomSampler

    sampler = UniformRandomSampler(
        name="ObjectSampler",
        x_range=[-PLACEMENT, PLACEMENT],
        y_range=[-PLACEMENT, PLACEMENT],
        rotation=None,
        ensure_object_boundary_in_range=False,
        ensure_valid_placement=True,
        reference_pos=np.array((0, 0, TABLE_TOP)),
        z_offset=0.01,
        rng=rng,
    )
    return {"placement_initializer": sampler}


def privileged(env: Any) -> Privileged:
    return {"cube": env.sim.data.body_xpos[env.cube_body_id].copy(), **hand(env)}


TASK = TaskSpec(
    name="Lift",
    robosuite_name="Lift",
    robot="Panda",
    cameras=("agentview", "robot0_eye_in_hand"),
    horizon=100,
    control_hz=20,
    action_names=("dx", "dy", "dz", "gripper"),
    success="cube centre 4 cm above the table",
    expert=LiftExpert,
    robosuite_kwargs=_robosuite_kwargs,
    privileged=privileged,
)

STOCK = replace(TASK, name="LiftStock", robosuite_kwargs=lambda rng: {})
