"""NutAssemblySquare: put the square nut over the square peg.

robot      Panda, OSC_POSE at 20 Hz; the policy drives xyz, yaw and the gripper, which is held upright
cameras    agentview (in front of the pegs), robot0_eye_in_hand
start      robosuite's own: the nut left of the middle, anywhere on a line of 11 cm, any yaw
success    the nut is around its peg, less than 5 cm above the table: robosuite's own criterion
horizon    400 control steps (20 s)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.envs import lift
from s2robot.envs.robots import hand, orientation
from s2robot.envs.task import Privileged
from s2robot.envs.turning import UP, about

GRIP = 0.058  # the handle is taken this far from the nut's centre [m]
SEATED = 0.85  # height of the nut's centre well down on the peg [m]
PEG_TOP = 0.95  # [m]


class NutExpert(lift.LiftExpert):
    """Down a funnel onto the handle, close, up, over the peg with the handle towards the robot, down, let go.

    Only with the handle on its own side does a Panda reach far enough; and its last joint ends 2.1 rad one way and 3.7
    the other. So yaw is counted through from the one end to the other, and the hand takes the handle by the side from
    which it can turn there. Over the peg it comes down as it comes to the middle.
    """

    GAIN = 14.0
    CLEARANCE = 0.08  # kept above the handle when far from it [m]
    THROAT, MOUTH = 0.022, 0.07
    DEPTH = 0.004
    REACH = (0.028, 0.010)
    HOLD = (0.03, 0.03)
    THICK = (0.02, 0.06)  # fingers this far apart, once at rest there, hold the handle until they no longer are [m]
    TURN_GAIN = 2.0  # action per radian of error; saturates at 0.5 rad
    ARM, AMISS = 0.1, 0.02  # a radian amiss counts as much as this far aside, at the handle and at the peg [m]
    FIRST = -0.8  # yaw at which counting begins: no Panda comes there [rad]
    CARRY = 0.13  # height kept over SEATED while not over the peg [m]
    SPOT, BESIDE = 0.003, 0.02  # error at which the second funnel has come all the way down, begins [m]
    AROUND = 0.012  # a nut lower than the peg's top and this near is around it [m]
    LOW = 0.90  # there a nut around the peg is let go, and falls the rest [m]

    def reset(self) -> None:
        super().reset()
        self._held = False

    def act(self, state: Privileged) -> NDArray[np.float32]:
        if self._around(state, self.LOW):
            self._closing = self._held = False
            return self._pose(0.02 * UP, 0.0, close=False)
        yaw = self._count(_yaw(state["hand_axes"][:, 0]))
        turn = self._grasp(_yaw(state["nut_axes"][:, 0])) - yaw
        error = state["handle"] - state["gripper"]
        beside, deep = float(np.hypot(error[0], error[1])), abs(error[2])
        aside = beside + self.ARM * abs(turn)
        lost = beside > self.HOLD[0] or deep > self.HOLD[1]
        within = aside < self.REACH[0] and deep < self.REACH[1]
        if self._approaches(lost=lost, within=within):
            self._held = False
            height = self.CLEARANCE * np.clip((aside - self.THROAT) / (self.MOUTH - self.THROAT), 0, 1)
            return self._pose(error + UP * (height - self.DEPTH), turn, close=False)
        thin, thick = self.THICK
        self._held = (self._held or self._closed(state)) and bool(thin < state["fingers"][0] < thick)
        return self._carry(state, yaw) if self._held else self._pose(error - UP * self.DEPTH, turn, close=True)

    def _carry(self, state: Privileged, yaw: float) -> NDArray[np.float32]:
        """With the nut in hand: where the hand must be for the nut to be on the peg, first high and then low."""
        left_side = state["hand_axes"][:, 0] @ state["nut_axes"][:, 1] > 0
        turn = (1.5 * np.pi if left_side else 0.5 * np.pi) - yaw
        off = state["peg"] - state["nut"]
        error = off - (np.eye(3) - about(UP, turn)) @ (state["gripper"] - state["nut"])
        aside = float(np.hypot(error[0], error[1])) + self.AMISS * abs(turn)
        around = self._around(state, PEG_TOP)
        height = 0.0 if around else self.CARRY * np.clip((aside - self.SPOT) / (self.BESIDE - self.SPOT), 0, 1)
        below = off[2] + height > 0.03 and not around  # first up, then over
        sideways = error[:2] * (0.1 if below else 1.0)
        return self._pose(np.array([*sideways, off[2] + height]), turn, close=True)

    def _around(self, state: Privileged, height: float) -> bool:
        """Whether the nut is around the peg, and lower than this [m]."""
        off = state["peg"] - state["nut"]
        return bool(state["nut"][2] < height and np.abs(off[:2]).max() < self.AROUND)

    def _count(self, yaw: float) -> float:
        """The same yaw, counted from FIRST on [rad]."""
        return float((yaw - self.FIRST) % (2 * np.pi) + self.FIRST)

    def _grasp(self, handle: float) -> float:
        """The hand's yaw to take a handle that points this way, so that it can be turned towards the robot [rad]."""
        side = 1.0 if 0 <= handle < np.pi / 2 else -1.0
        return self._count(handle + side * np.pi / 2)

    def _pose(self, error: NDArray[np.float64], turn: float, *, close: bool) -> NDArray[np.float32]:
        xyz, spin = np.clip(self.GAIN * error, -1, 1), np.clip(self.TURN_GAIN * turn, -1, 1)
        return np.array([*xyz, spin, 1.0 if close else -1.0], np.float32)


def _yaw(axis: NDArray[np.float64]) -> float:
    return float(np.arctan2(axis[1], axis[0]))


def _privileged(env: Any) -> Privileged:
    data = env.sim.data
    nut = env.obj_body_id[env.nuts[env.nut_id].name]
    axes = data.body_xmat[nut].reshape(3, 3).copy()
    peg = data.body_xpos[env.peg1_body_id]
    return {
        "nut": data.body_xpos[nut].copy(),
        "nut_axes": axes,
        "handle": data.body_xpos[nut] + GRIP * axes[:, 0],
        "peg": np.array([peg[0], peg[1], SEATED]),
        "hand_axes": orientation(env),
        **hand(env),
    }


TASK = replace(
    lift.TASK,
    name="NutAssemblySquare",
    robosuite_name="NutAssemblySquare",
    horizon=400,
    action_names=("dx", "dy", "dz", "dyaw", "gripper"),
    success="the square nut around its peg",
    expert=NutExpert,
    orientation=True,
    upright=True,
    robosuite_kwargs=lambda rng: {},
    privileged=_privileged,
)
