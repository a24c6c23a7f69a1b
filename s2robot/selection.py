"""Keep the best of a training run as well as the last: snapshots, judged by rollouts on validation seeds.

The loss does not tell which weights act best; rollouts do, and their seeds must be neither the demonstrations' nor
those that the result will be reported on.

    <run>/policy/                  the last weights
    <run>/policy/snapshots/000300  earlier ones, `train.snapshots` of them, each with its validation.jsonl
    <run>/best/policy/             the best: `s2robot eval <run>/best`
    <run>/validation.json          the table
"""

from __future__ import annotations

import filecmp
import shutil
from dataclasses import dataclass
from pathlib import Path

from s2robot import files
from s2robot.launchers import LOCAL, Launcher
from s2robot.progress import Told, silent
from s2robot.rollouts import EvalConfig, evaluate
from s2robot.seeds import VALIDATION


@dataclass(frozen=True)
class ValidationConfig:
    """How snapshots are judged."""

    episodes: int = 0  # each; 0: not at all
    seed: int = VALIDATION
    fidelity: str = "fast"
    workers: int = 0  # processes; 0 takes every core


def select(
    run: Path,
    config: ValidationConfig,
    progress: Told = silent,
    launcher: Launcher = LOCAL,
) -> Path:
    """Judge every snapshot and the last weights; copy the best to `<run>/best` (of equals the latest).

    A killed selection goes on where it was.
    """
    candidates = [*sorted((run / "policy" / "snapshots").glob("[0-9]*")), run / "policy"]
    settings = EvalConfig(config.episodes, config.seed, config.fidelity, workers=config.workers)
    log = "validation.jsonl" if settings.label == "fast" else f"validation-{settings.label}.jsonl"
    rows = []
    for k, folder in enumerate(candidates):

        def report(done: int, total: int, note: str, before: int = k) -> None:
            progress(before * total + done, len(candidates) * total, note)

        results = evaluate(folder, settings, folder / log, report, launcher)
        name = "last" if folder == candidates[-1] else folder.name
        rows.append({"snapshot": name, "successes": sum(r.success for r in results), "episodes": len(results)})
    best = max(range(len(rows)), key=lambda k: (rows[k]["successes"], k))
    target = run / "best" / "policy"
    former, weights = (folder / "policy.safetensors" for folder in (target, candidates[best]))
    if (run / "best").exists() and not (former.exists() and filecmp.cmp(former, weights, shallow=False)):
        shutil.rmtree(run / "best")  # episodes of a former best are not this one's; a kill may have left them
    target.mkdir(parents=True, exist_ok=True)
    for name in ("policy.safetensors", "policy.json"):  # json last: without it there is no policy
        with files.atomic(target / name) as temporary:
            shutil.copyfile(candidates[best] / name, temporary)
    files.write_json(run / "validation.json", {"seed": config.seed, "fidelity": config.fidelity, "snapshots": rows,
                                               "best": rows[best]["snapshot"]})  # fmt: skip
    return run / "best"
