"""Datasets drawn again from their simulator states, at any size, from any camera: `s2robot render`.

robomimic and MimicGen publish states without images; our own files may be wanted larger, or from another camera.
Every finished episode is a file of its own until all are there, as in collecting: a killed run goes on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from s2robot import locks, registry, remote, workers
from s2robot.datasets import DemoDataset, Episode, EpisodeParts, merge
from s2robot.errors import InvalidInput, MissingExtra, OutOfSpace, RenderingUnavailable, S2RobotError, UnknownName
from s2robot.machine import versions
from s2robot.progress import Told, silent
from s2robot.sources import StateDataset, control_hz, version_differences

MODELS = ("file", "suite")
ELSEWHERE = "starts_elsewhere"  # an attribute of episodes whose seed starts another one here


@dataclass(frozen=True)
class RenderConfig:
    """How to draw."""

    frame_size: int = 256  # pixels
    cameras: tuple[str, ...] = ()  # default: the dataset's own, or agentview and robot0_eye_in_hand
    quality: str = "fast"  # or "robosuite", see s2robot.envs.renderer
    model: str = "file"  # "file": each episode's own XML, where there is one; "suite": robosuite's task as it is here
    workers: int = 0  # processes; 0 takes every core

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UnknownName("model", self.model, MODELS)
        registry.check_drawing(self.frame_size, self.quality)


@dataclass(frozen=True)
class Rendered:
    """A dataset with frames, and what there is to say of it."""

    dataset: DemoDataset
    failed: dict[str, str]  # episode: why it was left out
    notes: list[str]


def render(source: str | Path, path: str | Path, config: RenderConfig, progress: Told = silent) -> Rendered:
    """Draw every episode of `source` into `path`, or go on where a killed run stopped.

    A file of ours gets the same bits it was recorded with, where size, cameras, quality and versions are the same.

    Raises:
        S2RobotError: not one episode could be drawn.
        Occupied: another process draws it.
    """
    path = Path(path)
    with locks.alone(path.with_name(f".{path.name}.lock"), str(path)):
        return _render(source, path, config, progress)


def _render(source: str | Path, path: Path, config: RenderConfig, progress: Told) -> Rendered:
    dataset = StateDataset(source)
    if path.exists():
        raise InvalidInput(f"{path} is there already. Draw into another file, or remove it: rm {path}")
    ours = "task" in dataset.env_args and dataset.attribute(0, "seed") is not None
    keys = [int(dataset.attribute(k, "seed")) if ours else k for k in range(len(dataset))]
    if len(set(keys)) != len(keys):
        raise InvalidInput(f"{remote.shown(str(source))} has two episodes of one seed; seeds must differ")
    config = _with_cameras(config, dataset)
    dataset.close()
    settings = {name: value for name, value in vars(config).items() if name != "workers"}
    parts = EpisodeParts(path.with_name(path.name + ".parts"), settings | {"source": dataset.fingerprint})
    with parts.none_left_empty():
        failed = _draw_all(dataset, keys, parts, config, progress)
        done = [key for key in keys if key in set(parts.seeds_done())]
        if not done:
            reasons = " / ".join(list(dict.fromkeys(failed.values()))[:2])
            raise S2RobotError(
                f"None of the {len(keys)} episodes of {remote.shown(str(source))} could be drawn: {reasons}"
            )
    notes = _notes(dataset, ours=ours, elsewhere=sum(ELSEWHERE in parts.texts(key) for key in done))
    env_args = _env_args(dataset, config, ours=ours)
    return Rendered(merge(parts, path, env_args, config.cameras, done), failed, notes)


def _draw_all(
    dataset: StateDataset, keys: list[int], parts: EpisodeParts, config: RenderConfig, progress: Told
) -> dict[str, str]:
    """Draw what is missing. What failed and why."""
    present = set(parts.seeds_done())
    todo = [k for k, key in enumerate(keys) if key not in present]
    failed: dict[str, str] = {}
    total = len(keys)
    answer = partial(_draw, dataset, keys, parts.folder)
    results = workers.work(partial(registry.replay, dataset.env_args, config), answer, todo, config.workers)
    try:
        for done, (k, problem) in enumerate(results, start=total - len(todo) + 1):
            if problem:
                failed[dataset.name(k)] = problem
            progress(done, total, f"{len(failed)} failed" if failed else "")
    finally:
        results.close()
    return failed


def _draw(dataset: StateDataset, keys: list[int], folder: Path, replay: Any, k: int) -> str:
    """Draw episode `k` and put it on disk; why not, or "". What starts elsewhere than its seed does says so."""
    try:
        stored, model_file = dataset.episode(k), dataset.model_file(k)
        if stored.states is None:
            return "it has no simulator states to draw from"
        drawn = replay.draw(stored.states, keys[k], model_file)
        episode = Episode(
            seed=keys[k],
            success=bool(stored.success),
            frames=drawn.frames,
            proprioception=stored.proprioception if dataset.has_proprioception(k) else drawn.proprioception,
            actions=stored.actions,
            executed_actions=stored.executed_actions,
            rewards=stored.rewards,
            states=stored.states,
            goal=stored.goal,
        )
        texts = {"model_file": model_file} if model_file else {}
        EpisodeParts(folder).write(episode, texts if drawn.starts_alike else {**texts, ELSEWHERE: "yes"})
    except (OutOfSpace, UnknownName, RenderingUnavailable, MissingExtra):  # as it would be for every other episode
        raise
    except S2RobotError as error:
        return str(error)
    return ""


def _with_cameras(config: RenderConfig, dataset: StateDataset) -> RenderConfig:
    fallback = ("agentview", "robot0_eye_in_hand")
    return replace(config, cameras=tuple(config.cameras or dataset.cameras or fallback))


def _env_args(dataset: StateDataset, config: RenderConfig, *, ours: bool) -> dict[str, Any]:
    """Those of the source; and how it was drawn, unless that is how a recording draws."""
    if ours and config.quality == "fast" and not version_differences(dataset.env_args):
        return dict(dataset.env_args)
    how = {"source": dataset.path.name, "quality": config.quality, "model": config.model, "versions": versions()}
    if not ours:
        how["seeds"] = "numbers of the source's episodes: it does not say its seeds"
    return {**dataset.env_args, "control_hz": control_hz(dataset.env_args), "rendered": how}


def _notes(dataset: StateDataset, *, ours: bool, elsewhere: int) -> list[str]:
    notes = version_differences(dataset.env_args)
    if elsewhere:
        notes.append(
            f"{elsewhere} of {len(dataset)} episodes start elsewhere than their seeds do here: what no state holds"
            " (where a task put fixed things) may be drawn wrong"
        )
    if not ours and not dataset.model_file(dataset.first):
        notes.append(
            "no model_file in it: drawn in this robosuite's own model, with object sizes and fixed things of its own"
        )
    return notes
