"""Our tasks as LeRobot's environments: `lerobot-eval --env.type=s2robot --env.task=Lift`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_IMAGES, OBS_STATE
from numpy.typing import NDArray

from s2robot import registry
from s2robot.errors import UsageError
from s2robot.sources import goal_words
from s2robot.types import FRAMES, GOAL, PROPRIOCEPTION

GYM_ID = "s2robot/LeRobot-v0"
_IMPORTED_BY = os.getpid()  # a forked process has not imported this itself


@EnvConfig.register_subclass("s2robot")
@dataclass
class S2RobotEnv(EnvConfig):  # type: ignore[misc] # LeRobot has no types here
    """Which task, and how it is simulated and drawn; see `s2robot.envs`.

    fps: the task's control rate, whatever is said here.
    """

    task: str | None = "Lift"
    fps: int = 0
    frame_size: int = 256
    fidelity: str = "exact"
    robot: str | None = None
    cameras: list[str] = field(default_factory=list)
    shift: str = ""

    def __post_init__(self) -> None:
        task = registry.get_task(self.task or "", self.robot)
        self.fps = task.control_hz
        image, state = (self.frame_size, self.frame_size, 3), len(task.proprioception_names)
        shapes: dict[str, tuple[str, FeatureType, tuple[int, ...]]] = {
            ACTION: (ACTION, FeatureType.ACTION, (len(task.action_names),)),
            "agent_pos": (OBS_STATE, FeatureType.STATE, (state,)),
        }
        if task.goal_names:
            shapes["environment_state"] = (OBS_ENV_STATE, FeatureType.ENV, (len(task.goal_names),))
        for camera in self.cameras or task.cameras:
            shapes[f"pixels/{camera}"] = (f"{OBS_IMAGES}.{camera}", FeatureType.VISUAL, image)
        self.features = {key: PolicyFeature(type=kind, shape=shape) for key, (_, kind, shape) in shapes.items()}
        self.features_map = {key: named for key, (named, _, _) in shapes.items()}

    @property
    def package_name(self) -> str:
        """What registers the environment."""
        return __name__

    @property
    def gym_id(self) -> str:
        """One for all tasks: the task is an argument."""
        return GYM_ID

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Arguments of `LeRobotEnv`."""
        options: dict[str, Any] = {"cameras": tuple(self.cameras) or None, "shift": self.shift}
        options |= {"frame_size": self.frame_size, "fidelity": self.fidelity}
        return {"task": self.task, "robot": self.robot, **options}


class LeRobotEnv(gymnasium.Env[Any, Any]):
    """A task of ours in the words that LeRobot's rollouts know: `pixels`, `agent_pos`, `is_success`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - Gymnasium's own declaration
    render_mode = "rgb_array"

    def __init__(self, task: str, robot: str | None = None, **options: Any) -> None:
        if os.getpid() != _IMPORTED_BY:  # OpenGL was at work before the fork, and would wait in here for ever
            raise UsageError(
                "LeRobot's asynchronous environments are forked, which OpenGL does not survive. Leave out"
                " --eval.use_async_envs=true; for processes of their own there is s2robot eval"
            )
        self._env = registry.make_env(task, robot=robot, **options)
        self.task, self._max_episode_steps = task, self._env.task.horizon  # LeRobot reads both
        self.metadata = {**self.metadata, "render_fps": self._env.task.control_hz}
        inner = self._env.observation_space
        assert isinstance(inner, spaces.Dict)
        size, known = self._env.frame_size, {PROPRIOCEPTION: "agent_pos", GOAL: "environment_state"}
        image = spaces.Box(0, 255, (size, size, 3), np.uint8)
        observed: dict[str, spaces.Space[Any]] = {"pixels": spaces.Dict(dict.fromkeys(self._env.cameras, image))}
        self._known = {ours: theirs for ours, theirs in known.items() if ours in inner.spaces}
        observed |= {theirs: inner.spaces[ours] for ours, theirs in self._known.items()}
        self.observation_space, self.action_space = spaces.Dict(observed), self._env.action_space
        self.task_description = task
        self._shown = np.zeros((size, size, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        observation, info = self._env.reset(seed=seed)
        words = goal_words({"task": self.task}, observation[GOAL]) if GOAL in observation else ""
        self.task_description = f"{self.task} {words}".strip()  # as `s2robot convert` writes it
        return self._translated(observation), {"is_success": info["success"]}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One control step. What lies outside [-1, 1] by a rounding of LeRobot's is put there."""
        inside = np.where(np.abs(action) <= 1 + 1e-5, np.clip(action, -1, 1), action)
        observation, reward, terminated, truncated, info = self._env.step(inside)
        return self._translated(observation), reward, terminated, truncated, {"is_success": bool(info["success"])}

    def render(self) -> NDArray[np.uint8]:
        """The first camera as the last observation shows it, (H, W, 3)."""
        return self._shown

    def close(self) -> None:
        self._env.close()

    def _translated(self, observation: Any) -> dict[str, Any]:
        frames = observation[FRAMES]
        self._shown = frames[0]
        pixels = dict(zip(self._env.cameras, frames, strict=True))
        return {"pixels": pixels, **{theirs: observation[ours] for ours, theirs in self._known.items()}}


if GYM_ID not in gymnasium.registry:
    # In no wrapper: LeRobot reads attributes of the environment itself.
    gymnasium.register(GYM_ID, entry_point=f"{__name__}:LeRobotEnv", order_enforce=False)
