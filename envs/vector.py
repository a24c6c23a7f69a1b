"""Several environments at once, one process and one GL context each: `s2robot.make_vec_env("Lift", n=4)`.

    env = s2robot.make_vec_env("Lift", n=4, frame_size=256)
    observation, info = env.reset(seed=0)                  # environment k gets seed + k
    features = encoder(observation["frames"])              # (N, V, H, W, 3): all of them in one batch
    observation, reward, terminated, truncated, info = env.step(actions)            # (N, M)
    observation, reward, terminated, truncated, info = env.step_chunk(chunks)       # (N, A, M), drawn once a chunk

Environment k gives the same bits as a single one with the same seed and actions. An episode that ended is followed by
a new one as `autoreset_mode` says, in Gymnasium's words: "NextStep" (the next `step` resets and ignores that action;
the default), "SameStep" (the observation is the new episode's, the last one is in `info["final_obs"]`), "Disabled"
(`reset(options={"reset_mask": mask})` is yours to call).

A process that dies costs its own episode and no other: `truncated`, with `info["worker_died"]` saying what happened,
and the observation that was its last. A new process takes its place, on a seed that follows from the old one.

Gymnasium's own `AsyncVectorEnv` is not the engine, though it has spawned processes and shared memory: it makes a spare
environment, and with it a GL context, in the parent; once a worker dies every call is a BrokenPipeError, and nothing
can take its place; and it has no chunks of actions.
"""

from __future__ import annotations

import logging
import operator
import os
import time
import weakref
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from s2robot import gl, registry
from s2robot.envs.bridge import RobosuiteEnv
from s2robot.envs.served import EnvProcess, Episode, SharedObservations, WorkerDied, answers
from s2robot.envs.task import checked_actions
from s2robot.errors import InvalidInput, S2RobotError, UnknownName, UsageError
from s2robot.scales import is_count
from s2robot.types import FRAMES

Observations = dict[str, NDArray[Any]]
Step = tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]

DEATHS = 3  # of one environment's processes, no episode finished between them: then it is not bad luck
GOODBYE = 5.0  # what processes have to end by themselves [s]

_log = logging.getLogger(__name__)


class VectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """`n` environments of one task, stepped together.

    Args:
        name: the task.
        n: how many.
        autoreset_mode: see above.
        copy: False returns the shared memory itself: the observation after the next one overwrites it.
        options: those of `RobosuiteEnv`.

    Raises:
        RenderingUnavailable: no offscreen OpenGL, or contexts that get each other's pictures.
        S2RobotError: a process did not come up.
    """

    metadata = RobosuiteEnv.metadata

    def __init__(
        self, name: str, n: int, *, autoreset_mode: str | AutoresetMode = "NextStep", copy: bool = True, **options: Any
    ) -> None:
        if not is_count(n):
            raise InvalidInput(f"n is {n!r}; ask for at least 1 environment")
        modes = [mode.value for mode in AutoresetMode]
        if not isinstance(autoreset_mode, AutoresetMode) and autoreset_mode not in modes:
            raise UnknownName("autoreset mode", autoreset_mode, modes)
        self.task, self.num_envs, self.copy = registry.get_task(name, options.get("robot")), n, copy
        self.mode = AutoresetMode(autoreset_mode)
        self.metadata = {**RobosuiteEnv.metadata, "autoreset_mode": self.mode}
        self.render_mode = RobosuiteEnv.render_mode
        if options.get("render_frames", True):
            gl.settle()
        make = partial(registry.make_env, name, **options)
        self._episodes = [Episode() for _ in range(n)]
        self._processes = [EnvProcess(k, make) for k in range(n)]
        handles: list[int] = []
        self._finalizer = weakref.finalize(self, _stop, self._processes, handles)
        try:
            self.single_observation_space, self.single_action_space = self._started(self._processes)
            self.observation_space = batch_space(self.single_observation_space, n)
            self.action_space = batch_space(self.single_action_space, n)
            self._memory, self._slot = SharedObservations(self.single_observation_space, n), 0
            handles.append(self._memory.handle)
            self._arrays = self._memory.arrays  # each (2, N, ...)
            for process in self._processes:
                process.share(self._memory, n)
            for step in ("draw_mark", "check_mark"):  # all draw before any looks: see `envs.own_context`
                self.call(step)
        except BaseException:
            self.close()
            raise

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start new episodes; environment k from `seed + k`, or from `seed[k]` of a list.

        options: {"reset_mask": (N,) bool} resets some and leaves the others where they are.
        """
        self._must_be_open()
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise InvalidInput(f"reset_mask is {mask}; expected ({self.num_envs},) of bool, one of them True")
        seeds = self._seeds(seed)
        self._turn(keep=np.flatnonzero(~mask))
        told = self._reset({int(k): seeds[k] for k in np.flatnonzero(mask)})
        return self._observations(), self._merged(told)

    def step(self, actions: NDArray[np.float32]) -> Step:
        """One action each, (N, M)."""
        return self._step(checked_actions(actions, self.task, self.num_envs)[:, None])

    def step_chunk(self, actions: NDArray[np.float32]) -> Step:
        """Actions (N, A, M), one after another up to an episode's end, drawn once: see `RobosuiteEnv.step_chunk`."""
        length = max(1, np.shape(actions)[1]) if np.ndim(actions) == 3 else 1
        return self._step(checked_actions(actions, self.task, self.num_envs, length))

    def call(self, name: str, /, *arguments: Any, **named: Any) -> tuple[Any, ...]:
        """An attribute of every environment, or what a method of theirs returns: `call("privileged")`.

        Raises:
            UsageError: a method that changes the episode, of which this environment must know.
            S2RobotError: what one of them raised.
        """
        self._must_be_open()
        if name in ("reset", "step", "step_chunk", "close"):
            raise UsageError(f"call({name!r}) would go behind this environment's back. Use its own {name}()")
        found = self._ask(dict.fromkeys(range(self.num_envs), ("call", name, arguments, named)))
        if lost := [episode.lost for episode in self._episodes if episode.lost]:
            raise S2RobotError(lost[0])
        return tuple(found[k] for k in range(self.num_envs))

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes, as the operating system numbers them."""
        return tuple(each.pid for each in self._processes)

    def render(self) -> tuple[NDArray[np.uint8], ...]:
        """Every environment's first camera as it was last seen, (H, W, 3) each."""
        return tuple(frames[0].copy() for frames in self._arrays[FRAMES][self._slot])

    def close_extras(self, **kwargs: Any) -> None:
        self._finalizer()

    def _step(self, actions: NDArray[np.float32]) -> Step:
        """Actions (N, A, M). A process that dies ends its episode."""
        self._must_be_open()
        if any(episode.seed is None for episode in self._episodes):
            raise UsageError("No episode has begun: call reset() before step()")
        due = [k for k in range(self.num_envs) if self._episodes[k].over]
        if due and self.mode == AutoresetMode.DISABLED:
            raise UsageError(f"The episodes of environments {due} are over: reset() with a reset_mask before step()")
        going = [k for k in range(self.num_envs) if k not in due]
        self._turn()
        found = self._ask({k: ("step_chunk", self._slot, actions[k]) for k in going})
        rewards, ends = np.zeros(self.num_envs), np.zeros((2, self.num_envs), bool)
        told: dict[int, dict[str, Any]] = {}
        for k in going:
            rewards[k], *ends[:, k], told[k] = found[k] if k in found else self._last_of(k)
            self._episodes[k].went_on(told[k]["steps"], over=bool(ends[:, k].any()), alive=k in found)
        told |= {k: {"success": False, "steps": 0, **info} for k, info in self._reset(dict.fromkeys(due)).items()}
        if self.mode == AutoresetMode.SAME_STEP and ends.any():
            last = {int(k): self._observation(int(k)) for k in np.flatnonzero(ends.any(axis=0))}
            for k, info in self._reset(dict.fromkeys(last)).items():
                told[k] = {"final_obs": last[k], "final_info": told[k], **info}
        return self._observations(), rewards, ends[0], ends[1], self._merged(told)

    def _reset(self, seeds: dict[int, int | None]) -> dict[int, dict[str, Any]]:
        """Reset these, by index; None goes on from where the environment's random numbers are."""
        told: dict[int, dict[str, Any]] = {}
        while wanted := [k for k in seeds if k not in told]:
            for k in wanted:
                seeds[k] = self._episodes[k].begin(seeds[k])
            for k, (info,) in self._ask({k: ("reset", self._slot, seeds[k]) for k in wanted}).items():
                told[k] = info if seeds[k] is None else {**info, "seed": seeds[k]}
        return told

    def _ask(self, questions: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Ask these, by index, and wait for all. Whoever is dead or dies is missing from the answers, and replaced.

        Raises:
            S2RobotError: what one of them raised, once all others have answered.
        """
        asked = [self._processes[k] for k in questions if not self._episodes[k].lost]
        starting = [process for process in asked if process.starting]
        self._started(starting)
        for process in starting:
            process.share(self._memory, self.num_envs)
        for process in asked:
            process.ask(*questions[process.index])
        found = answers(asked)
        for k in [k for k, answer in found.items() if isinstance(answer, WorkerDied)]:
            self._replace(k, found.pop(k))
        for answer in found.values():
            if isinstance(answer, Exception):
                raise answer
        return found

    def _started(self, processes: list[EnvProcess]) -> Any:
        """Wait until they have their environments; the spaces of one, as all are made alike."""
        found = answers(processes)
        for k, answer in found.items():
            if isinstance(answer, Exception):
                self.close()
                raise _did_not_start(k, answer) if isinstance(answer, WorkerDied) else answer
        return next(iter(found.values()), None)

    def _replace(self, k: int, error: WorkerDied) -> None:
        episode = self._episodes[k]
        episode.bury(f"Environment {k} {episode} was lost: its process died ({error})")
        if episode.deaths >= DEATHS:
            self.close()
            raise S2RobotError(f"{episode.lost}, the last of {DEATHS} without an episode finished between them")
        _log.warning("%s. The other environments go on, and a new process takes its place", episode.lost)
        self._processes[k].start()

    def _last_of(self, k: int) -> tuple[float, bool, bool, dict[str, Any]]:
        """What a step says of an episode that ended with its process; its observation is the one before."""
        self._keep(k)
        why, self._episodes[k].lost = self._episodes[k].lost, ""
        return 0.0, False, True, {"success": False, "steps": 0, "worker_died": why}

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if isinstance(seed, (int, np.integer)):
            super().reset(seed=int(seed))
            return [int(seed) + k for k in range(self.num_envs)]
        given = [None] * self.num_envs if seed is None else list(seed)
        seeds = [None if each is None else operator.index(each) for each in given]  # numpy's numbers too
        if len(seeds) != self.num_envs:
            raise InvalidInput(f"{len(seeds)} seeds came for {self.num_envs} environments; give one each, or an int")
        for k, episode in enumerate(self._episodes):  # what happens must have a seed to tell it by
            if seeds[k] is None and episode.seed is None:
                seeds[k] = int(self.np_random.integers(2**31))
        return seeds

    def _turn(self, keep: Iterable[int] = ()) -> None:
        """The next observation goes to the other half of the memory; some keep what they have."""
        self._slot = 1 - self._slot
        for k in keep:
            self._keep(int(k))

    def _keep(self, k: int) -> None:
        for array in self._arrays.values():
            array[self._slot, k] = array[1 - self._slot, k]

    def _observations(self) -> Observations:
        current = {key: array[self._slot] for key, array in self._arrays.items()}
        return {key: array.copy() for key, array in current.items()} if self.copy else current

    def _observation(self, k: int) -> Observations:
        return {key: array[self._slot, k].copy() for key, array in self._arrays.items()}

    def _merged(self, told: dict[int, dict[str, Any]]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for k, info in sorted(told.items()):
            infos = self._add_info(infos, info, k)
        return infos

    def _must_be_open(self) -> None:
        if self.closed:
            raise UsageError("This vector environment is closed: make another")


def _did_not_start(k: int, error: WorkerDied) -> S2RobotError:
    return S2RobotError(
        f"The process of environment {k} did not come up ({error}); what it printed stands above. Short of memory: ask"
        " for fewer environments. In a script: make them under `if __name__ == '__main__':`, since a spawned process"
        " imports it"
    )


def _stop(processes: list[EnvProcess], handles: list[int]) -> None:
    """A process ends where its pipe does, and memory without a name with its last user."""
    for handle in handles:
        os.close(handle)
    for process in processes:
        process.pipe.close()
    deadline = time.monotonic() + GOODBYE
    for process in processes:
        process.stop(deadline)
