"""SIGKILL at random moments of every long verb; then it finishes, with the bits of a run that nobody disturbed.

Killed are, by turns of the same dice: all of its processes at once, its first process alone (the others must end by
themselves), or one of those that it started.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from materials import Materials
from processes import PATIENCE, ended, kill, members, run_verb, start_verb, wait_until_gone, workers_of
from verbs import VERBS, Verb

pytestmark = [pytest.mark.faults, pytest.mark.sim]

KILLS = {"collect": 14, "encode": 24, "train": 28, "pretrain": 20, "eval": 14, "study": 10, "rl": 12}
SCALE = float(os.environ.get("S2ROBOT_FAULTS_SCALE", "1"))  # a share of them, to try the suite itself
A_RUN = 7  # kills, then it may finish


@pytest.mark.parametrize("name", list(VERBS))
def test_a_killed_verb_ends_with_the_same_bits(
    name: str, made: Materials, tmp_path: Path, count: Callable[..., None]
) -> None:
    count("SIGKILL", name)  # lost, until it is known better
    verb, log = VERBS[name], tmp_path / "log"
    expected, seconds = _undisturbed(verb, made, tmp_path / "whole", log)
    rng, wanted = np.random.default_rng(len(name)), max(2, round(SCALE * KILLS[name]))
    outcomes: Counter[str] = Counter()
    killed = lost = runs = 0
    while killed < wanted:
        out = tmp_path / f"run-{runs}"
        out.mkdir()
        verb.prepare(made, out)
        kills: Counter[str] = Counter()
        while sum(kills.values()) < A_RUN and killed + sum(kills.values()) < wanted:
            who = _kill_once(verb.words(made, out), log, rng, seconds)
            if who is None:
                break  # it was quicker
            kills[who] += 1
        code = run_verb(verb.words(made, out), log)
        same = code == 0 and verb.result(out) == expected
        killed, runs = killed + sum(kills.values()), runs + 1
        outcomes += kills
        lost += 0 if same else sum(kills.values())
        if not same:
            count("SIGKILL", name, outcomes, lost)
        assert same, f"after {dict(kills)}: exit code {code}\n{log.read_text()[-3000:]}"
    count("SIGKILL", name, outcomes, lost)


def _undisturbed(verb: Verb, made: Materials, out: Path, log: Path) -> tuple[dict[str, Any], float]:
    """What a run leaves that nobody disturbs, and how long it takes [s]; a second one shows that it can be compared."""
    found = []
    seconds = 0.0
    for folder in (out, out.with_name("again")):
        folder.mkdir()
        verb.prepare(made, folder)
        began = time.monotonic()
        assert run_verb(verb.words(made, folder), log) == 0, log.read_text()[-3000:]
        seconds = time.monotonic() - began
        found.append(verb.result(folder))
    assert found[0] == found[1], "two runs that nobody disturbed differ"
    return found[0], seconds


def _kill_once(words: list[str], log: Path, rng: np.random.Generator, seconds: float) -> str | None:
    """Start it and kill at a moment of the first `seconds`; who was killed, or None if there was nobody any more."""
    with ended(start_verb(words, log)) as process:
        process.join(float(rng.uniform(0.02, 0.95)) * seconds)
        if process.exitcode is not None:
            assert process.exitcode == 0, log.read_text()[-3000:]
            return None
        workers, dice = workers_of(process.pid), rng.random()
        if dice < 0.4:
            who, chosen = "all at once", members(process.pid)
        elif dice < 0.7 or not workers:
            who, chosen = "the first process", [process.pid]
        else:
            who, chosen = "a worker", [workers[int(rng.integers(len(workers)))]]
        killed = kill(chosen)
        process.join(PATIENCE)
        assert process.exitcode is not None, f"it hangs after {who} was killed: {log.read_text()[-2000:]}"
        left = wait_until_gone(process.pid)
        assert not left, f"{len(left)} processes outlived {who}"
        if killed and (process.exitcode != 0 or who == "a worker"):
            return who
        assert process.exitcode == 0, log.read_text()[-3000:]  # it ended just before
        return None
