"""robosuite as it comes, behind none of our code: what our environment is measured and tested against."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot import gl, registry
from s2robot.envs.suite import make_robosuite, reseed
from s2robot.envs.task import command_of


class PlainRobosuite:
    """A task as `robosuite.make` gives it, drawing its own camera observations where there is a frame size.

    Resets are soft, as ours are; steps are robosuite's own. Its renderer shares a process with no other.
    """

    def __init__(self, name: str, frame_size: int = 0) -> None:
        self.task = registry.get_task(name)
        cameras: dict[str, Any] = {}
        if frame_size:
            threads = os.environ.get("LP_NUM_THREADS")
            gl.prepare()
            if threads is None:
                del os.environ["LP_NUM_THREADS"]  # a choice of ours, not robosuite's
            cameras = {
                "has_offscreen_renderer": True, "use_camera_obs": True, "camera_names": list(self.task.cameras),
                "camera_heights": frame_size, "camera_widths": frame_size,
            }  # fmt: skip
        self.env = make_robosuite(self.task, **cameras)

    def reset(self, seed: int) -> Any:
        """The same state as `RobosuiteEnv.reset(seed=seed)`."""
        reseed(self.env, np.random.Generator(np.random.PCG64(seed)))
        return self.env.reset()

    def step(self, action: NDArray[np.float32]) -> Any:
        """A task's action (M,); returns robosuite's observation."""
        return self.env.step(command_of(self.env, action, self.task))[0]

    def state(self) -> NDArray[np.float64]:
        flat: NDArray[np.float64] = self.env.sim.get_state().flatten()
        return flat
