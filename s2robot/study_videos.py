"""One episode of a study as every arm plays it: the start that the arms disagree about most.

    <out>/videos.json    which start, at which level and by which training seed, and who succeeded
          videos/        <arm>.mp4, all cameras side by side

A table says how often; a failure beside a success from the same start says at what.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s2robot import files, seals, video
from s2robot.progress import Told, silent
from s2robot.rollouts import load_actor, make_env_for, read_results, record_episode

if TYPE_CHECKING:
    from s2robot.study import Cell

FILE = "videos.json"


def film(cells: Sequence[Cell], shift: str, out: Path, progress: Told = silent) -> None:
    """Record, or leave what is there if it is of the same episodes. Nothing where the arms never disagree."""
    first = [cell for cell in cells if (cell.level, cell.seed) == (cells[0].level, cells[0].seed)]
    logs = {cell.arm: _log(cell, shift, out) for cell in first}
    outcomes = {arm: {each.seed: each.success for each in read_results(log)} for arm, log in logs.items()}
    seed = telling_seed(outcomes)
    if seed is None:
        (out / FILE).unlink(missing_ok=True)  # of another question
        return
    digests = {cell.arm: seals.digest(out / cell.folder / "policy" / "policy.safetensors")[:16] for cell in first}
    shown: dict[str, Any] = {"seed": seed, "level": first[0].level, "training_seed": first[0].seed, "weights": digests}
    shown |= {"shift": shift, "judged": {arm: log.stem for arm, log in logs.items()}}
    shown["success"] = {arm: found[seed] for arm, found in outcomes.items()}
    there = all((out / "videos" / f"{cell.arm}.mp4").exists() for cell in first)
    if there and (out / FILE).exists() and files.read_json(out / FILE) == files.plain(shown):
        return
    (out / FILE).unlink(missing_ok=True)  # it would tell of other videos than those there, if a kill came now
    for done, cell in enumerate(first, start=1):
        _record(cell, shift, seed, out)
        progress(done, len(first), cell.arm)
    files.write_json(out / FILE, shown)


def telling_seed(outcomes: Mapping[str, Mapping[int, bool]]) -> int | None:
    """The first of the episodes that all arms met whose successes are nearest to half of them; None if all agree."""
    common = sorted(set.intersection(*(set(found) for found in outcomes.values())))
    successes = {seed: sum(found[seed] for found in outcomes.values()) for seed in common}
    split = [seed for seed in common if 0 < successes[seed] < len(outcomes)]
    return min(split, key=lambda seed: abs(2 * successes[seed] - len(outcomes)), default=None)


def _log(cell: Cell, shift: str, out: Path) -> Path:
    return out / cell.folder / f"episodes-{dataclasses.replace(cell.config.eval, shift=shift).label}.jsonl"


def _record(cell: Cell, shift: str, seed: int, out: Path) -> None:
    policy = out / cell.folder / "policy"
    description: dict[str, Any] = files.read_json(policy / "policy.json")
    env = make_env_for(description, cell.config.eval.fidelity, shift)
    frames = record_episode(load_actor(policy, cell.config.eval), env, seed)  # (L, V, H, W, 3)
    env.close()
    wide = np.concatenate(list(frames.swapaxes(0, 1)), axis=2)
    video.write_video(out / "videos" / f"{cell.arm}.mp4", wide, env.task.control_hz)
