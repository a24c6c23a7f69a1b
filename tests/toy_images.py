"""Environments that cost nothing: a bright dot to push to the middle of small pictures that are not square."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

HEIGHT, WIDTH = 32, 48
HORIZON = 6
LAYOUTS = ("ours", "named", "plain", "stacked", "blind")


class Dot(gymnasium.Env[Any, Any]):
    """Move the dot by an action in [-1, 1]; pushing hard at the edge ends the episode, `horizon` steps truncate it.

    Every picture of every episode is another, so one can tell which moment it shows.

    Args:
        layout: how frames are observed: "ours" (frames, proprioception, goal), "named" cameras, "plain" (H, W, 3),
            "stacked" (V, H, W, 3), or "blind".
        views: cameras of "ours".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self, layout: str = "ours", views: int = 2, horizon: int = HORIZON, render_mode: str = "rgb_array"
    ) -> None:
        self.layout, self.views, self.horizon, self.render_mode = layout, views, horizon, render_mode
        frame, state = spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8), spaces.Box(-2.0, 2.0, (3,), np.float32)
        stack = spaces.Box(0, 255, (views, HEIGHT, WIDTH, 3), np.uint8)
        goal = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.observation_space = {
            "ours": spaces.Dict({"frames": stack, "proprioception": state, "goal": goal}),
            "named": spaces.Dict({"front_image": frame, "wrist_image": frame, "state": state}),
            "plain": frame,
            "stacked": stack,
            "blind": spaces.Dict({"state": state, "depth": spaces.Box(0.0, 1.0, (HEIGHT, WIDTH), np.float32)}),
        }[layout]
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = float(self.np_random.uniform(-1, 1)), 0
        self.noise = self.np_random.integers(0, 60, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
        return self.observe(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.place += 0.4 * float(np.asarray(action).reshape(-1)[0])
        over = abs(self.place) > 1.3
        info = {"success": abs(self.place) < 0.1, "steps": self.steps}
        return self.observe(), 1 - abs(self.place), over, self.steps >= self.horizon and not over, info

    def observe(self) -> Any:
        """The present state."""
        frames = self.noise[: self.views].copy()
        column = int((np.clip(self.place, -1, 1) + 1) / 2 * (WIDTH - 8))
        frames[:, 8 + self.steps : 16 + self.steps, column : column + 8] = (255, 200 - 10 * self.steps, 90)
        state = np.array([self.place, self.steps / 10, 0.0], np.float32).clip(-2, 2)
        return {
            "ours": {"frames": frames, "proprioception": state, "goal": np.array([0.0, 1.0], np.float32)},
            "named": {"front_image": frames[0], "wrist_image": frames[-1], "state": state},
            "plain": frames[0],
            "stacked": frames,
            "blind": {"state": state, "depth": np.zeros((HEIGHT, WIDTH), np.float32)},
        }[self.layout]

    def render(self) -> NDArray[np.uint8]:
        return self.noise[0]


gymnasium.register("s2robot-tests/Dot-v0", "toy_images:Dot", max_episode_steps=None)
