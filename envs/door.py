"""Door: turn the lever and pull the door open.

robot      Panda, OSC_POSE at 20 Hz; the policy drives all six directions and the gripper
cameras    agentview (from over the table, looking at the door), robot0_eye_in_hand
start      robosuite's own: the door within +-1 cm and turned up to 14 degrees, latched
success    the door stands 0.3 rad open: robosuite's own criterion
horizon    300 control steps (15 s)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.envs import lift
from s2robot.envs.robots import hand, orientation
from s2robot.envs.task import OSC_POSE_INPUTS, Privileged
from s2robot.envs.turning import UP, about, turn_to

GRIP = np.array([0.10, -0.10, 0.0])  # where the lever is taken: along it, before the door, in its own frame [m]


class DoorExpert(lift.LiftExpert):
    """Face the door, down a funnel onto the lever, close, turn it up (down, a Panda's wrist comes to its end), pull.

    All follows from where the lever is: the funnel lies along its axis of turning, so that the hand turns as the
    lever does and the fingers never slip. How far the next moment's lever is ahead of the present one, in turning and
    in pulling, is a smooth function of how far it has been turned and the door been opened.
    """

    CLEARANCE = 0.12  # kept before the lever when far from its axis [m]
    THROAT, MOUTH = 0.02, 0.08
    REACH = (0.03, 0.018)
    HOLD = (0.04, 0.035)
    ASKEW = 1.0  # turned further away than this from facing the lever, the hand has lost it [rad]
    LEVER = (0.03, 0.07)  # fingers this far apart, once come to rest there, hold the lever until they no longer are [m]
    FOLDED = 0.32  # further from the lever than this, the arm is folded up [m]
    TURN_GAIN = 2.0  # action per radian of error; saturates at 0.5 rad
    ARM = 0.1  # a radian amiss counts as much as this far aside [m]
    TURNED, UNLATCHED = -1.5, (1.1, 1.3)  # how far the lever is turned; pulling begins, is at its full [rad]
    FREE = 0.22  # opened this far, the latch has passed the frame [rad]
    LEAD, PULL = 0.8, 0.15  # how far ahead of lever and door the hand goes, at most [rad]

    def reset(self) -> None:
        super().reset()
        self._held = False

    def act(self, state: Privileged) -> NDArray[np.float32]:
        lever = state["lever_axes"]
        # Fingers above and below, pointing at the door.
        facing = np.column_stack([-lever[:, 2], -lever[:, 0], lever[:, 1]])
        error = state["lever"] - state["gripper"]  # (3,)
        turn = turn_to(state["hand_axes"], facing)  # (3,)
        along, up, deep = lever.T @ error @ np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]])
        beside, amiss = float(np.hypot(along, up)), float(np.linalg.norm(turn))
        aside = beside + self.ARM * amiss
        lost = beside > self.HOLD[0] or abs(deep) > self.HOLD[1] or amiss > self.ASKEW
        within = aside < self.REACH[0] and abs(deep) < self.REACH[1]
        thin, thick = self.LEVER
        shut = float(np.clip((thick - state["fingers"][0]) / (thick - thin), 0, 1))
        missed = self._closing and shut == 1 and self._closed(state)
        if self._approaches(lost=lost or missed, within=within and shut < 1):
            self._held = False
            # With the fingers shut as well as from beside, not onto the lever.
            back = self.CLEARANCE * max(np.clip((aside - self.THROAT) / (self.MOUTH - self.THROAT), 0, 1), shut)
            # From far away first come near: the arm folded up has no room to turn the hand, and stays folded.
            near = np.clip((self.FOLDED - np.linalg.norm(error)) / 0.05, 0, 1)
            return self._pose(error - back * lever[:, 1], near * turn, close=False)
        self._held = (self._held or self._closed(state)) and bool(thin < state["fingers"][0] < thick)
        return self._operate(state, facing) if self._held else self._pose(error, turn, close=True)

    def _operate(self, state: Privileged, facing: NDArray[np.float64]) -> NDArray[np.float32]:
        """With the lever in hand: to where it will be a moment later."""
        turned, opened = state["turned"][0], state["opened"][0]
        begins, full = self.UNLATCHED
        free = np.clip(max((abs(turned) - begins) / (full - begins), (opened - self.FREE) / 0.05), 0, 1)
        ahead = about(state["lever_axes"][:, 1], float(np.clip(self.TURNED - turned, -self.LEAD, self.LEAD)))
        swing = about(UP, self.PULL * free)
        place = state["latch"] + ahead @ (state["lever"] - state["latch"])
        place = state["hinge"] + swing @ (place - state["hinge"])
        return self._pose(place - state["gripper"], turn_to(state["hand_axes"], swing @ ahead @ facing), close=True)

    def _pose(self, error: NDArray[np.float64], turn: NDArray[np.float64], *, close: bool) -> NDArray[np.float32]:
        xyz, spin = np.clip(self.GAIN * error, -1, 1), np.clip(self.TURN_GAIN * turn, -1, 1)
        return np.array([*xyz, *spin, 1.0 if close else -1.0], np.float32)


def _privileged(env: Any) -> Privileged:
    data, model = env.sim.data, env.sim.model
    latch = env.object_body_ids["latch"]
    axes = data.body_xmat[latch].reshape(3, 3).copy()  # along the lever, into the door, up
    hinge = model.joint_name2id(env.door.joints[0])
    return {
        "lever": data.body_xpos[latch] + axes @ GRIP,
        "lever_axes": axes,
        "latch": data.body_xpos[latch].copy(),
        "hinge": data.xanchor[hinge].copy(),
        "turned": data.qpos[[env.handle_qpos_addr]].copy(),
        "opened": data.qpos[[env.hinge_qpos_addr]].copy(),
        "hand_axes": orientation(env),
        **hand(env),
    }


TASK = replace(
    lift.TASK,
    name="Door",
    robosuite_name="Door",
    horizon=300,
    action_names=OSC_POSE_INPUTS,
    success="the door 0.3 rad open",
    expert=DoorExpert,
    orientation=True,
    robosuite_kwargs=lambda rng: {},
    privileged=_privileged,
)
