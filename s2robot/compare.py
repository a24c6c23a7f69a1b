"""Is one policy better than another? Success on the same seeds, side by side.

    s2robot compare runs/a runs/b                                    one run an arm
    s2robot compare s2=runs/a0,runs/a1,runs/a2 base=runs/b0,runs/b1,runs/b2     three training seeds an arm
    s2robot compare runs/s2 runs/base                                the same, of `train --seeds`
    s2robot compare runs/s2                                          its rate over training seeds, with the interval

What an arm does on a seed is compared with what the others do on that seed, so that a hard start counts for no one.
With one run an arm, difference and verdict are `statistics.paired_difference`'s. With several, the runs are a sample
too. The interval is then the widest of three: a bootstrap over runs and episodes and Student's over the runs
(`s2robot.bootstrap`), of which the second knows how few runs there are, and that of the pooled episodes, as successes
alone know no failure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot import bootstrap, files, seals, statistics
from s2robot.errors import InvalidInput
from s2robot.rollouts import read_results
from s2robot.runs import seed_folders
from s2robot.seeds import SEED_USES, seed_uses

LOGS = ("episodes-exact.jsonl", "episodes.jsonl")  # what is read of a run: of `eval` at exact fidelity, and of `demo`
POINTS = 0.10  # the difference that is asked about: how many episodes would resolve it


@dataclass(frozen=True)
class Arm:
    """Runs that differ by training seed alone, and their outcomes (K, n) on the common seeds."""

    name: str
    outcomes: NDArray[np.bool_]


@dataclass(frozen=True)
class Rate:
    """An arm's success rate, with its 95 % interval."""

    name: str
    successes: int
    episodes: int
    rate: float
    low: float
    high: float
    by_run: tuple[float, ...]


@dataclass(frozen=True)
class Versus:
    """An arm less the first one."""

    name: str
    difference: float
    low: float
    high: float
    resolved: bool
    p_value: float | None  # McNemar's, with one run an arm
    more_episodes: int  # a run, to resolve POINTS four times in five if the runs of an arm did not differ; 0: enough


def compare(words: Sequence[str], log: str = "") -> dict[str, Any]:
    """Read the arms' logs and hold all against the first; of one alone, how often it succeeds.

    Raises:
        InvalidInput: no arm, a run that was never evaluated, no seeds in common, arms of unequal size.
    """
    if not words:
        raise InvalidInput("No arm given; expected one or more: s2robot compare runs/a runs/b")
    arms_of = [_parse(word) for word in words]
    _each_once("Arms of one name are", [name for name, _ in arms_of])
    for name, runs in arms_of:
        _each_once(f"Runs of {name} are", [str(Path(run).resolve()) for run in runs])
    _same_task([run for _, runs in arms_of for run in runs])
    logs = [(name, [_read(Path(run), log) for run in runs]) for name, runs in arms_of]
    if len({len(runs) for _, runs in logs}) > 1:
        sizes = ", ".join(f"{name}: {len(runs)}" for name, runs in logs)
        raise InvalidInput(f"Arms have different numbers of runs ({sizes}); give each as many training seeds")
    every = [set(found) for _, runs in logs for found in runs]
    common = sorted(set.intersection(*every))
    if not common:
        raise InvalidInput("These runs have no evaluation seed in common: evaluate them with the same --seed")
    use, seeds = _of_one_use(common)
    arms = [Arm(name, np.array([[found[seed] for seed in seeds] for found in runs], bool)) for name, runs in logs]
    return {
        "seeds": [seeds[0], seeds[-1]],
        "seeds_of": use,
        "n": len(seeds),
        "left_out": len(set.union(*every)) - len(seeds),
        "arms": [asdict(rate(arm)) for arm in arms],
        "against_first": [asdict(versus(arm, arms[0])) for arm in arms[1:]],
    }


def rate(arm: Arm) -> Rate:
    """How often it succeeded."""
    successes, episodes = int(arm.outcomes.sum()), arm.outcomes.size
    low, high = statistics.wilson(successes, episodes)
    if len(arm.outcomes) > 1:
        found = bootstrap.estimate(_counts(arm), bootstrap.ratio)
        low, high = min(low, max(0.0, found.low)), max(high, min(1.0, found.high))
    by_run = tuple(float(run.mean()) for run in arm.outcomes)
    return Rate(arm.name, successes, episodes, successes / episodes, low, high, by_run)


def versus(arm: Arm, other: Arm) -> Versus:
    """Arm less other, run by run and seed by seed."""
    pooled = statistics.paired_difference(arm.outcomes.ravel(), other.outcomes.ravel())
    n, low, high, resolved = arm.outcomes.shape[1], pooled.low, pooled.high, pooled.resolved
    p_value: float | None = pooled.p_value
    if len(arm.outcomes) > 1:
        found = bootstrap.paired_difference(_counts(arm), _counts(other), bootstrap.ratio)
        low, high, p_value = min(low, found.low), max(high, found.high), None
        resolved = not low <= 0 <= high
    differing = (pooled.only_a + pooled.only_b + 1) / (pooled.n + 2)  # never surely none
    more = max(0, statistics.episodes_to_resolve(POINTS, max(differing, POINTS), runs=len(arm.outcomes)) - n)
    return Versus(arm.name, pooled.difference, low, high, resolved, p_value, more)


def _of_one_use(seeds: Sequence[int]) -> tuple[str, list[int]]:
    """Those that no choice was made on; where there are none, those of one other use, which the caller has to say."""
    uses: dict[str, list[int]] = {use: [] for use in SEED_USES.values()}  # evaluation first
    for seed in seeds:
        uses[seed_uses(range(seed, seed + 1))[0]].append(seed)
    return next((use, found) for use, found in uses.items() if found)


def _parse(word: str) -> tuple[str, list[str]]:
    """NAME=RUN,RUN or RUN,RUN to the name and the runs."""
    if Path(word).is_dir():  # whatever its name has in it
        name, equals, found = word, "", [word]
    else:
        name, equals, runs = word.partition("=")
        found = [run for run in (runs if equals else name).split(",") if run]
    if not found:
        raise InvalidInput(f"{word!r} names no run; expected RUN, RUN,RUN or NAME=RUN,RUN")
    each = [str(folder) for run in found for folder in seed_folders(Path(run)) or [Path(run)]]
    return (name if equals else found[0].rstrip("/")), each


def _each_once(what: str, names: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InvalidInput(f"{what} given twice: {twice[0]}")


def _same_task(runs: Sequence[str]) -> None:
    """The same seed is another start in another task. Runs that do not say theirs are believed."""
    said = {run: Path(run) / "policy" / "policy.json" for run in runs}
    tasks = {run: files.read_json(path).get("task") for run, path in said.items() if path.is_file()}
    named = {task: run for run, task in tasks.items() if task}
    if len(named) > 1:
        told = ", ".join(f"{task} in {run}" for task, run in named.items())
        raise InvalidInput(f"These runs are of different tasks ({told}); what they did on a seed cannot be compared")


def _read(run: Path, log: str) -> dict[int, bool]:
    """Success by seed."""
    if not run.is_dir():
        raise InvalidInput(f"No folder {run}; expected a run that was evaluated: s2robot eval RUN")
    names = (log,) if log else LOGS
    for name in names:  # the first there is: they may be of different physics
        results = read_results(run / name)
        if len(weights := {each.weights for each in results} - {""}) > 1:
            raise InvalidInput(
                f"{run / name} holds episodes of {len(weights)} policies ({', '.join(sorted(weights))}). Remove it, and"
                f" evaluate the one that is there: s2robot eval {run}"
            )
        policy = run / "policy" / "policy.safetensors"
        if weights and policy.is_file() and weights != {now := seals.digest_once(policy)[:16]}:
            raise InvalidInput(
                f"{run / name} holds episodes of other weights ({', '.join(weights)}) than those that are there now"
                f" ({now}). Remove it, and evaluate these: s2robot eval {run}"
            )
        if found := {each.seed: each.success for each in results}:
            return found
    there = ", ".join(sorted(path.name for path in run.glob("episodes*.jsonl"))) or "none"
    raise InvalidInput(f"No {' or '.join(names)} in {run} (logs there: {there}). Evaluate it: s2robot eval {run}")


def _counts(arm: Arm) -> NDArray[np.float64]:
    counts: NDArray[np.float64] = np.stack([arm.outcomes, np.ones_like(arm.outcomes)], axis=-1).astype(np.float64)
    return counts  # (K, n, 2)
