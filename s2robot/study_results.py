"""What a study found, as a table: rates with intervals, differences on the same seeds, and what each arm costs."""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from s2robot import compare, files, machine, registry, remote, statistics
from s2robot.datasets import DemoDataset
from s2robot.encoder import EncoderConfig
from s2robot.rollouts import EpisodeResult, read_results

if TYPE_CHECKING:
    from s2robot.demo import DemoConfig
    from s2robot.policies.acting import PixelPolicy
    from s2robot.study import Cell, StudyConfig

Outcomes = dict[int, dict[int, EpisodeResult]]
"""Training seed -> episode seed -> what happened."""


def tabulate(study: StudyConfig, cells: Sequence[Cell], dataset: DemoDataset, out: Path) -> dict[str, Any]:
    """All that is finished of these cells in the folder `out`, as JSON may hold it.

    rows: one an arm, level and shift: `compare.Rate`, and less the first arm (`compare.Versus`) over the training and
        episode seeds that both have.
    arms: what each is, and costs.
    """
    rows: list[dict[str, Any]] = []
    for shift in study.shifts:
        for level in dict.fromkeys(cell.level for cell in cells):
            first: Outcomes | None = None
            for name in study.arms:
                here = [cell for cell in cells if (cell.arm, cell.level) == (name, level)]
                found = _outcomes(here, shift, out)
                first = found if first is None else first
                if found:
                    where = {"arm": name, "level": level, "shift": shift}
                    rows.append({**where, **_rate(name, found), "less_first": _versus(name, found, first)})
    return {
        **{name: getattr(study, name) for name in ("title", "question", "vary", "seeds")},
        "dataset": {
            "demonstrations": len(dataset),
            "task": dataset.env_args.get("task"),
            "fingerprint": dataset.fingerprint[:16],
        },
        "evaluation": dataclasses.asdict(cells[0].config.eval),
        "arms": {name: _arm(name, study, cells, dataset, out) for name in study.arms},
        "rows": rows,
        "command": shlex.join(["s2robot", *map(remote.shown, sys.argv[1:])]),
        **machine.provenance(),
    }


def _outcomes(cells: Sequence[Cell], shift: str, out: Path) -> Outcomes:
    """What the finished runs among these did."""
    found = {}
    for cell in cells:
        judging = dataclasses.replace(cell.config.eval, shift=shift)
        seeds = range(judging.seed, judging.seed + judging.episodes)
        results = {each.seed: each for each in read_results(out / cell.folder / f"episodes-{judging.label}.jsonl")}
        if all(seed in results for seed in seeds):
            found[cell.seed] = {seed: results[seed] for seed in seeds}
    return found


def _arm_of(name: str, found: Outcomes, seeds: Sequence[int]) -> compare.Arm:
    return compare.Arm(name, np.array([[each.success for each in found[seed].values()] for seed in seeds], bool))


def _rate(name: str, found: Outcomes) -> dict[str, Any]:
    steps = [each.steps for run in found.values() for each in run.values() if each.success]
    rate = dataclasses.asdict(compare.rate(_arm_of(name, found, sorted(found))))
    return {**rate, "training_seeds": sorted(found), "steps_to_success": float(np.median(steps)) if steps else None}


def _versus(name: str, found: Outcomes, first: Outcomes) -> dict[str, Any] | None:
    """This arm less the first, on what both have done."""
    both = sorted(found.keys() & first.keys())
    if found is first or not both:
        return None
    return dataclasses.asdict(compare.versus(_arm_of(name, found, both), _arm_of("", first, both)))


def _arm(name: str, study: StudyConfig, cells: Sequence[Cell], dataset: DemoDataset, out: Path) -> dict[str, Any]:
    """What differs in an arm, and what a decision of its policy costs; where levels vary, at the first of them."""
    mine = [cell for cell in cells if (cell.arm, cell.level) == (name, cells[0].level)]
    config = mine[0].config
    done = [each for cell in mine for run in _outcomes([cell], study.shifts[0], out).values() for each in run.values()]
    decide = [encode + act for each in done for encode, act in zip(each.ms["encode"], each.ms["act"], strict=True)]
    latency = statistics.quantiles(decide) if decide else None
    policies = [path for cell in mine if (path := out / cell.folder / "policy" / "policy.json").exists()]
    return {
        "differs": study.arms[name],
        "kind": config.kind,
        "policy_parameters": files.read_json(policies[0])["parameters"] if policies else None,
        **_cost_of_seeing(config, policies, dataset.frame_shape[:3]),
        "decision_ms": latency,
        "hz": 1e3 / latency["p50"] if latency else None,
    }


def _cost_of_seeing(config: DemoConfig, policies: Sequence[Path], frames: tuple[int, ...]) -> dict[str, Any]:
    """Parameters, channels, and GFLOPs of all frames (V, H, W) of one moment; `policies`: the finished ones."""
    if not registry.reads_frames(config.kind):
        return _encoder_cost(config.encoder, frames)
    if not policies:  # it is a policy's own eyes that see
        return {"encoder_parameters": None, "channels": None, "gflops": None}
    return _eye_cost(policies[0].parent, frames)


@functools.cache  # asked after every run
def _eye_cost(policy: Path, frames: tuple[int, ...]) -> dict[str, Any]:
    from s2robot.flops import eye_cost
    from s2robot.trained import load_policy

    network = cast("PixelPolicy", load_policy(policy, device="cpu")).network
    return {
        "encoder_parameters": sum(p.numel() for p in network.eye.parameters()),
        "channels": network.shapes.scales * network.shapes.width,
        "gflops": eye_cost(network, frames).gflops,
    }


@functools.cache
def _encoder_cost(encoder: EncoderConfig, frames: tuple[int, ...]) -> dict[str, Any]:
    from s2robot.flops import encoder_cost

    views, height, width = frames
    built = encoder.build()
    return {
        "encoder_parameters": sum(p.numel() for p in built.parameters()),
        "channels": built.channels,
        "grid": list(built.grid_of((height, width))),
        "gflops": views * encoder_cost(built, (height, width)).gflops,
    }
