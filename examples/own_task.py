"""A task of your own: push the cube over a line. A spec sheet, an expert, and robosuite's Lift with another aim.

python examples/own_task.py                     # without its name: ten episodes of the expert
pip install --editable examples                 # with it, by the entry point in examples/pyproject.toml:
s2robot collect Nudge --demos 20 --out runs/nudge.hdf5 && s2robot train runs/nudge.hdf5 --out runs/nudge
"""

import sys
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from s2robot.collect import demonstrate
from s2robot.envs import lift
from s2robot.envs.bridge import RobosuiteEnv
from s2robot.envs.task import Privileged

LINE = 0.10  # x of the cube's centre when it is over [m]


class NudgeExpert:
    """Fingers closed, down behind the cube, forwards. A function of the state alone, so it shows how to mend a miss."""

    def reset(self) -> None: ...

    def act(self, state: Privileged) -> NDArray[np.float32]:
        """dx, dy, dz and the gripper in [-1, 1]."""
        x, y, z = state["cube"] - state["gripper"]
        if abs(z) < 0.03 and x > 0.01 and abs(y) < 0.02:
            aim = (0.1, y, z)
        else:
            aim = (x - 0.07, y, z if x > 0.05 and abs(y) < 0.015 else z + 0.09)
        return np.array([*np.clip(12 * np.array(aim), -1, 1), 1.0], np.float32)


def environment() -> type:
    """robosuite's class; imported late, since reading this file must not need a simulator."""
    from robosuite.environments.manipulation.lift import Lift

    class Nudge(Lift):
        def _check_success(self) -> bool:
            return bool(self.sim.data.body_xpos[self.cube_body_id][0] > LINE)

        def reward(self, action: object = None) -> float:
            return float(self._check_success())

    return Nudge


TASK = replace(
    lift.STOCK,  # the cube within 3 cm of the table's centre
    name="Nudge",
    robosuite_name="Nudge",
    horizon=80,
    success="the cube's centre 10 cm in front of the table's",
    expert=NudgeExpert,
    environment=environment,
)

if __name__ == "__main__":
    env = RobosuiteEnv(TASK, fidelity="fast", frame_size=128)
    episodes = [demonstrate(env, seed, noise=0.2) for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 10)]
    print(f"{sum(each.success for each in episodes)} of {len(episodes)} pushed over the line;", end=" ")
    print(f"frames {episodes[0].frames.shape}, steps {[len(each) for each in episodes]}")
    env.close()
