"""Run a policy in an environment and count.

One episode is a function of (policy, seed): the same bits alone or among others, in one process or many. Order
of one control cycle: render, encode, act, then `policy.execute` control steps.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from s2robot import engines, files, locks, registry, seals
from s2robot.errors import CorruptFile, InvalidInput, UnknownName
from s2robot.launchers import LOCAL, Launcher, as_in_a_worker
from s2robot.parcels import Parcel
from s2robot.progress import Told, silent
from s2robot.seeds import EVALUATION
from s2robot.types import FRAMES, Policy, check_execute

if TYPE_CHECKING:
    from s2robot.envs.bridge import RobosuiteEnv

STAGES = ("render", "encode", "act", "step")
POLICY_FILES = ("policy.json", "policy.safetensors")


@dataclass(frozen=True)
class EpisodeResult:
    """One evaluated episode. `ms` holds every measured duration by stage, in milliseconds."""

    seed: int
    success: bool
    steps: int
    reward: float
    ms: dict[str, list[float]]
    weights: str = ""  # digest of the policy's file; logs written before this was kept have none


@dataclass(frozen=True)
class EvalConfig:
    """How to judge a policy."""

    episodes: int = 50
    seed: int = EVALUATION  # of the first episode; the others follow
    fidelity: str = "exact"
    shift: str = ""  # other looks than the demonstrations': "light,table:0.5/test", "all/test"; see `envs.shifts`
    workers: int = 0  # processes; 0 takes every core
    engine: str = "auto"  # who computes the features, see `s2robot.engines`
    precision: str | None = None  # default: what the policy was trained on
    execute: int = 0  # actions of a chunk before looking again; 0: as the policy was trained
    ensemble: bool = False  # look at every step and average what all chunks say of it (ACT's temporal ensembling)

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise InvalidInput(f"--workers is {self.workers}; expected a whole number, 0 for every core")
        if self.episodes < 1:
            raise InvalidInput(f"--episodes is {self.episodes}; ask for at least 1")
        if self.seed < 0:
            raise InvalidInput(f"--seed is {self.seed}; expected a whole number from 0 on")
        for name, known in (("engine", engines.ENGINES), ("precision", (None, *engines.PRECISIONS))):
            if getattr(self, name) not in known:
                raise UnknownName(name, str(getattr(self, name)), filter(None, known))
        if self.ensemble and self.execute > 1:
            raise InvalidInput("--ensemble looks at every step: leave --execute out")

    @property
    def label(self) -> str:
        """What names a log: all that changes results but the seeds; engines agree to rounding."""
        looks = re.sub("[:,/]", "-", self.shift)
        acting = "ensemble" if self.ensemble else f"execute{self.execute}" if self.execute else ""
        return "-".join(filter(None, (self.fidelity, self.precision, looks, acting)))


def rollout(
    policy: Policy, env: gymnasium.Env[Any, Any], episodes: int = 50, seed: int = EVALUATION
) -> list[EpisodeResult]:
    """Run `episodes` episodes in this process, the k-th from `seed + k`."""
    if episodes < 1:
        raise InvalidInput(f"episodes is {episodes}; ask for at least 1")
    if not hasattr(policy, "act"):
        raise InvalidInput(f"The policy is a {type(policy).__name__}; expected one: s2robot.load_policy(RUN)")
    return [run_episode(policy, env, seed + k) for k in range(episodes)]


def run_episode(policy: Policy, env: gymnasium.Env[Any, Any], seed: int) -> EpisodeResult:
    """One episode from reset to success or time limit."""
    ms: dict[str, list[float]] = {stage: [] for stage in STAGES}
    observation, _ = env.reset(seed=seed)
    policy.reset()
    steps, total, over, success = 0, 0.0, False, False
    while not over:
        chunk = _chunk(policy, observation)
        _note(ms, getattr(env.unwrapped, "seconds", {}), "render")
        observation, reward, terminated, truncated, info = _execute(env, chunk[: policy.execute])
        steps, total = steps + info["steps"], total + reward
        success, over = bool(_success(info, over=terminated or truncated)), terminated or truncated
        _note(ms, policy.seconds, "encode", "act")
        _note(ms, getattr(env.unwrapped, "seconds", {}), "step")
    return EpisodeResult(seed, success, steps, total, ms)


def _success(info: dict[str, Any], *, over: bool) -> Any:
    """Raises InvalidInput at the end of an episode of which nobody says whether it succeeded: that is no failure."""
    success = info.get("success", info.get("is_success"))
    if over and success is None:
        raise InvalidInput(
            'The environment does not say whether the episode succeeded: its last step\'s info has no "success" (or'
            f' "is_success"). It has: {", ".join(map(str, info)) or "nothing"}'
        )
    return success


def record_episode(policy: Policy, env: gymnasium.Env[Any, Any], seed: int) -> NDArray[np.uint8]:
    """Run one episode again and keep every frame of it, (L, V, H, W, 3): the same episode `evaluate` counted."""
    with as_in_a_worker():  # else a sum may end in another bit, and a grasp in a miss
        observation, _ = env.reset(seed=seed)
        policy.reset()
        frames, over = [observation[FRAMES]], False
        while not over:
            for action in _chunk(policy, observation)[: policy.execute]:
                observation, _, terminated, truncated, _ = env.step(action)
                frames.append(observation[FRAMES])
                over = terminated or truncated
                if over:
                    break
        return np.stack(frames)


def evaluate(
    policy_folder: Path,
    config: EvalConfig,
    log: Path,
    progress: Told = silent,
    launcher: Launcher = LOCAL,
) -> list[EpisodeResult]:
    """Evaluate a trained policy over workers, appending every finished episode to `log` (JSON lines).

    Episodes already in the log are not run again, so a killed evaluation goes on where it was.

    Raises:
        InvalidInput: no episodes are asked for, or the log holds episodes of other weights.
        Occupied: another process is writing this log.
    """
    registry.check_manner(config.fidelity, config.shift)
    known = files.read_json(policy_folder / "policy.json").get("config", {})
    if config.execute and "chunk" in known:  # said before workers start
        trained = known.get("execute", known["chunk"])
        check_execute(config.execute, chunk=known["chunk"], trained=trained, context=known.get("context", 1))
    with locks.alone(log.with_name(f".{log.name}.lock"), str(log)):
        return _evaluate(policy_folder, config, log, progress, launcher)


def _evaluate(
    policy_folder: Path, config: EvalConfig, log: Path, progress: Told, launcher: Launcher
) -> list[EpisodeResult]:
    description = files.read_json(policy_folder / "policy.json")
    seeds = range(config.seed, config.seed + config.episodes)
    if not (policy_folder / "policy.safetensors").exists():
        raise CorruptFile(policy_folder, "policy.safetensors is missing", "Copy it too, or train again.")
    weights = seals.digest(policy_folder / "policy.safetensors")[:16]
    logged = read_results(log)
    results = {r.seed: r for r in logged if r.seed in seeds}
    if strange := {r.weights for r in logged} - {"", weights}:  # a log is of one policy, whatever the seeds
        raise InvalidInput(
            f"{log} holds episodes of other weights ({', '.join(sorted(strange))}; these are {weights}): the policy was"
            f" trained again. Move the log away, or: rm {log}"
        )
    todo = [seed for seed in seeds if seed not in results]
    make = partial(_make, Parcel.of(policy_folder, POLICY_FILES), description, config)
    answers = launcher.work(make, _run, todo, config.workers)
    with contextlib.closing(answers), contextlib.ExitStack() as stack:
        lines: files.JsonLines | None = None  # made with the first episode: one that cannot begin leaves no log
        for seed, result in answers if todo else ():
            lines = lines or stack.enter_context(files.JsonLines(log, durable=True))
            results[seed] = replace(result, weights=weights)
            lines.write(vars(results[seed]))
            wins = sum(r.success for r in results.values())
            progress(len(results), config.episodes, f"{wins} of {len(results)} succeeded")
    return [results[seed] for seed in seeds]


def read_results(log: Path) -> list[EpisodeResult]:
    """The episodes of a log, in the order they finished."""
    try:
        return [EpisodeResult(**row) for row in files.read_jsonl(log)] if log.exists() else []
    except TypeError as error:
        raise CorruptFile(log, f"a line is no episode ({error})", f"Move it away, or: rm {log}") from error


def make_env_for(
    description: dict[str, Any], fidelity: str, shift: str = "", *, render_frames: bool = True
) -> RobosuiteEnv:
    """The environment a policy was trained for, from its `policy.json`.

    Raises:
        InvalidInput: its demonstrations did not say in which of our tasks they were made.
    """
    if not description.get("task"):
        raise InvalidInput(
            "This policy learned from demonstrations that name no task of s2robot's, so there is nothing to roll it out"
            " in. Roll it out in your own: s2robot.rollout(s2robot.load_policy(RUN), env)"
        )
    return registry.make_env(
        description["task"],
        robot=description.get("robot"),  # policies written before robots could be chosen name none
        fidelity=fidelity,
        shift=shift,
        cameras=tuple(description["cameras"]),
        frame_size=description["frame_size"],
        extras=("privileged",) if description.get("privileged") else (),
        render_frames=render_frames,
    )


def load_actor(folder: Path, config: EvalConfig) -> Policy:
    """The policy in `folder`, acting as the config asks."""
    policy = registry.load_policy(folder, engine=config.engine, precision=config.precision)
    if config.execute:
        policy.execute = config.execute
    if config.ensemble:
        policy = registry.wrappers().TemporalEnsemble(policy)
    return policy


class _Stage(NamedTuple):
    """What a worker plays with."""

    policy: Policy
    env: RobosuiteEnv

    def close(self) -> None:
        self.env.close()


def _make(policy: Parcel, description: dict[str, Any], config: EvalConfig) -> _Stage:
    blind = bool(description.get("privileged"))  # it looks at no frame, and drawing takes most of the time
    env = make_env_for(description, config.fidelity, config.shift, render_frames=not blind)
    with policy.unpacked() as folder:
        return _Stage(load_actor(folder, config), env)


def _run(stage: _Stage, seed: int) -> EpisodeResult:
    return run_episode(stage.policy, stage.env, seed)


def _execute(
    env: gymnasium.Env[Any, Any], actions: NDArray[np.float32]
) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    """Execute a piece of a chunk: at once where the environment can, else step by step."""
    if hasattr(env.unwrapped, "step_chunk") and env is env.unwrapped:
        result: tuple[Any, float, bool, bool, dict[str, Any]] = env.unwrapped.step_chunk(actions)
        return result
    total = 0.0
    for count, action in enumerate(actions, start=1):
        observation, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        if terminated or truncated or count == len(actions):
            return observation, total, terminated, truncated, {**info, "steps": count}
    raise InvalidInput("No action to execute; expected (A, M) with A of at least 1")


def _chunk(policy: Policy, observation: Any) -> NDArray[np.float32]:
    """(A, M), A at least 1: of nothing no episode would ever end."""
    chunk = policy.act(observation)
    if not len(chunk[: policy.execute]):
        raise InvalidInput(
            f"The policy gave a chunk of {len(chunk)} actions, to execute {policy.execute} of; expected 1 or more"
        )
    return chunk


def _note(ms: dict[str, list[float]], seconds: dict[str, float], *stages: str) -> None:
    for stage in stages:
        if stage in seconds:
            ms[stage].append(1e3 * seconds[stage])
