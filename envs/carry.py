"""An expert for whatever is picked up in one place and put down in another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s2robot.envs.lift import LiftExpert
from s2robot.envs.task import Privileged


class CarryExpert(LiftExpert):
    """Grasp as in Lift; carry over the place, down a second funnel, let go, rise.

    Reads `cube` (whatever is carried), `place` (where its centre should come to), `gripper`, `fingers`. Where it goes
    with the thing in hand is again a smooth function of where the thing is, and it lets go where the thing has come to
    rest: that the fingers' position cannot tell, but the eyes can. It aims a little below the place, as a grasp does
    below the centre: a pupil that is some millimetres wrong would else come to rest above it, and never let go.
    """

    CARRY = 0.06  # height kept over the place while beside it [m]
    SPOT, BESIDE = 0.008, 0.05  # horizontal error at which the second funnel has come all the way down, begins [m]
    PRESS = 0.012  # aimed this far below the place [m]
    RESTING = (0.012, 0.006)  # let go within this much sideways and in height [m]
    NEAR = 0.03  # the thing's centre is this near the gripper when it is held [m]

    def reset(self) -> None:
        super().reset()
        self._let_go = False

    def act(self, state: Privileged) -> NDArray[np.float32]:
        error = state["place"] - state["cube"]
        aside = float(np.hypot(error[0], error[1]))
        if aside < self.RESTING[0] and abs(error[2]) < self.RESTING[1]:
            self._let_go = True
        if self._let_go:
            if aside < 2 * self.RESTING[0]:
                return self._move(np.array([0.0, 0.0, 0.05 if self._open(state) else 0.0]), close=False)
            self.reset()  # it fell off: begin again
        grasp = super().act(state)
        if not self._holds(state):
            return grasp
        height = self.CARRY * np.clip((aside - self.SPOT) / (self.BESIDE - self.SPOT), 0, 1) - self.PRESS
        below = error[2] + height > 0.02  # first up, then over: nothing must be met sideways
        sideways = error[:2] * (0.1 if below and aside > self.SPOT else 1.0)
        return self._move(np.array([*sideways, error[2] + height]), close=True)

    def _open(self, state: Privileged) -> bool:
        """Whether the fingers are off the thing: who rises before takes it along, and is to carry again."""
        return bool(state["fingers"][0] > state["open"][0] - self.LEFT)

    def _holds(self, state: Privileged) -> bool:
        near = np.linalg.norm(state["cube"] - state["gripper"]) < self.NEAR
        return bool(self._closing and near and self._closed(state))
