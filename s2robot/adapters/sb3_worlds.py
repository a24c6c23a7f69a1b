"""Simulated robots behind Stable-Baselines3's interface, as `s2robot rl` wants them: a step is a chunk of actions.

Every episode is a function of its seed and its actions, and seeds are counted from `first_seed` on, in the order in
which episodes begin. So nothing of a simulator is ever saved: `remember` says which seeds and actions led to where it
is, and `recall` goes there again, to the bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from s2robot import registry
from s2robot.errors import S2RobotError, require
from s2robot.rl_config import WorldConfig

_PURPOSE = "Reinforcement learning"
require("stable_baselines3", extra="rl", purpose=_PURPOSE)
_vec_env: Any = require("stable_baselines3.common.vec_env", extra="rl", purpose=_PURPOSE)

LAST = "terminal_observation"
Observations = dict[str, NDArray[Any]]


class OneSimulation:
    """One environment in this process, with the part of `envs.vector.VectorEnv` that `Worlds` uses."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space

    def reset(self, *, seed: Sequence[int], options: Any = None) -> tuple[Observations, dict[str, Any]]:
        observation, _ = self.env.reset(seed=seed[0])
        return {key: np.asarray(value)[None] for key, value in observation.items()}, {}

    def step_chunk(self, actions: NDArray[np.float32]) -> tuple[Any, ...]:
        observation, reward, terminated, truncated, info = self.env.step_chunk(actions[0])
        told = {key: np.array([info[key]]) for key in ("steps", "success")}
        seen = {key: np.asarray(value)[None] for key, value in observation.items()}
        return seen, np.array([reward]), np.array([terminated]), np.array([truncated]), told

    def close(self) -> None:
        self.env.close()


class Worlds(_vec_env.VecEnv):  # type: ignore[misc]
    """n simulations of one task; an action is a chunk, (execute * M,), and an observation what its last step shows.

    The reward of a chunk is the sum of its steps', as the config asks: "dense", each less 1 (it is in [0, 1], and
    success ends an episode: were it positive, success would be what to avoid), or "sparse". An episode ends with
    success; where time ran out, `TimeLimit.truncated` says so, unless that is to count as failure. `info["episode"]` is
    as `VecMonitor` has it.

    Raises:
        S2RobotError: a reward or an observation that is no number, with its step and seed.
    """

    render_mode = None

    def __init__(self, simulations: Any, config: WorldConfig, first_seed: int) -> None:
        self.simulations, self.config = simulations, config
        self.moves = int(simulations.single_action_space.shape[0])
        space = spaces.Box(-1.0, 1.0, (config.execute * self.moves,), np.float32)
        super().__init__(config.envs, simulations.single_observation_space, space)
        self.first_seed, self.begun = first_seed, 0  # begun: episodes
        self.queue: list[int] | None = None  # seeds to take instead of counting on, while it is validated
        self.episode_seeds = [0] * config.envs
        self.played: list[list[NDArray[np.float32]]] = [[] for _ in range(config.envs)]  # pieces (n, M) of each episode
        self.returns = np.zeros(config.envs)

    def reset(self) -> Observations:
        """Begin a new episode everywhere."""
        for k in range(self.num_envs):
            self._begin(k)
        observation, _ = self.simulations.reset(seed=self.episode_seeds)
        self._reset_seeds()
        return self._checked(observation)

    def step_async(self, actions: NDArray[np.float32]) -> None:
        chunks = np.asarray(actions, np.float32).reshape(self.num_envs, self.config.execute, self.moves)
        self._chunks = chunks.clip(-1, 1)

    def step_wait(self) -> tuple[Observations, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        observation, rewards, terminated, truncated, told = self._stepped(self._chunks)
        steps, success = np.asarray(told["steps"]), np.asarray(told["success"], bool)
        for k in range(self.num_envs):
            self.played[k].append(self._chunks[k, : steps[k]].copy())
        self._checked(observation, rewards)
        earned = success.astype(np.float32) if self.config.reward == "sparse" else (rewards - steps).astype(np.float32)
        self.returns += earned
        goes_on = self.config.timeout == "truncation"
        infos = [
            {"success": bool(success[k]), "is_success": bool(success[k]), "steps": int(steps[k]),
             "TimeLimit.truncated": goes_on and bool(truncated[k] and not terminated[k])}
            for k in range(self.num_envs)
        ]  # fmt: skip
        dones = terminated | truncated
        if dones.any():
            observation = self._begin_anew(dones, observation, infos)
        return observation, earned, dones, infos

    def _stepped(self, chunks: NDArray[np.float32]) -> tuple[Any, ...]:
        found: tuple[Any, ...] = self.simulations.step_chunk(chunks)
        died = [str(why) for why in found[-1].get("worker_died", ()) if why]
        if died:  # what it tells of that step is made up
            raise S2RobotError(f"A simulation ended: {died[0]} The same command goes on from the last checkpoint")
        return found

    def remember(self) -> dict[str, Any]:
        """Where all of them are, as plain numbers and arrays."""
        return {
            "begun": self.begun,
            "seeds": list(self.episode_seeds),
            "actions": [np.concatenate([np.zeros((0, self.moves), np.float32), *pieces]) for pieces in self.played],
            "returns": self.returns.copy(),
        }

    def recall(self, memory: dict[str, Any]) -> Observations:
        """Go there again: every episode from its seed, by its actions; the observation of that moment.

        They are stepped together, so those of a shorter past wait, in episodes that nobody looks at, and begin later.
        """
        self.queue, self.begun, self.episode_seeds = None, int(memory["begun"]), [int(seed) for seed in memory["seeds"]]
        self.played = [[np.asarray(actions, np.float32)] for actions in memory["actions"]]
        self.returns = np.array(memory["returns"], float)
        pasts = [pieces[0] for pieces in self.played]
        longest = max(map(len, pasts))
        starts = [longest - len(past) for past in pasts]  # of each, at which step its episode begins
        observation, _ = self.simulations.reset(seed=self.episode_seeds)
        for first, last in _pieces(sorted({0, *starts, longest})):
            chunk = np.zeros((self.num_envs, last - first, self.moves), np.float32)
            for k, past in enumerate(pasts):
                if starts[k] <= first:
                    chunk[k] = past[first - starts[k] : last - starts[k]]
            observation, *_ = self._stepped(chunk)
            due = np.array([start >= last for start in starts])  # those still waiting may have come to an end
            if due.any():
                observation, _ = self.simulations.reset(seed=self.episode_seeds, options={"reset_mask": due})
        return dict(observation)

    def close(self) -> None:
        self.simulations.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *arguments: Any, indices: Any = None, **named: Any) -> list[Any]:
        return [getattr(self, method_name)(*arguments, **named)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def _begin(self, k: int) -> None:
        if self.queue is None:
            self.episode_seeds[k], self.begun = self.first_seed + self.begun, self.begun + 1
        elif self.queue:
            self.episode_seeds[k] = self.queue.pop(0)  # once it is empty, the one before again: nobody counts it twice
        self.played[k], self.returns[k] = [], 0.0

    def _begin_anew(self, dones: NDArray[np.bool_], seen: Observations, infos: list[dict[str, Any]]) -> Observations:
        """The first observations of new episodes in the place of the last of those that ended."""
        for k in np.flatnonzero(dones):
            infos[k][LAST] = {key: value[k].copy() for key, value in seen.items()}
            infos[k]["seed"] = self.episode_seeds[k]
            infos[k]["episode"] = {"r": float(self.returns[k]), "l": sum(map(len, self.played[k])), "t": 0.0}
            self._begin(int(k))
        first, _ = self.simulations.reset(seed=self.episode_seeds, options={"reset_mask": dones})
        return self._checked({key: np.asarray(value) for key, value in first.items()})

    def _checked(self, observation: Observations, rewards: Any = ()) -> Observations:
        named = [("reward", np.asarray(rewards, float)[:, None])] if len(rewards) else []
        named += [(f"observation {key!r}", value) for key, value in observation.items() if value.dtype.kind == "f"]
        for name, values in named:
            for k in range(self.num_envs):
                if not np.isfinite(values[k]).all():
                    raise S2RobotError(
                        f"The {name} is {values[k]} in step {sum(map(len, self.played[k]))} of the episode with seed"
                        f" {self.episode_seeds[k]} ({self.config.task}): the task is at fault, or its physics ran away."
                        f' To see it: s2robot.make_env("{self.config.task}", fidelity="{self.config.fidelity}")'
                    )
        return observation


def make_worlds(config: WorldConfig, first_seed: int, see: str, cameras: tuple[str, ...] | None = None) -> Worlds:
    """The simulations of a run; of what is not seen nothing is drawn."""
    options: dict[str, Any] = {
        "fidelity": config.fidelity, "cameras": cameras or config.cameras or None, "frame_size": config.frame_size,
        "shaped": config.reward == "dense",
    }  # fmt: skip
    if see == "privileged":
        options |= {"render_frames": False, "frame_size": 8, "extras": ("privileged",)}
    if config.robot:
        options["robot"] = config.robot
    if config.envs == 1:
        return Worlds(OneSimulation(registry.make_env(config.task, **options)), config, first_seed)
    many = registry.make_vec_env(config.task, config.envs, autoreset_mode="Disabled", **options)
    return Worlds(many, config, first_seed)


def _pieces(bounds: list[int]) -> list[tuple[int, int]]:
    return [(first, last) for first, last in itertools.pairwise(bounds) if last > first]
