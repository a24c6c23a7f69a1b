"""`s2robot bench env`: what it says of its rounds is so, and its arms are what they are called."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2robot import bench_env, cli, machine
from s2robot.bench_env import ARMS, BLIND, DRAWN, EnvBenchConfig
from s2robot.errors import InvalidInput, UnknownName

ROOT = Path(__file__).resolve().parents[1]
SECONDS = {DRAWN: [0.4, 0.6, 0.5], BLIND: [0.02, 0.02, 0.03], "exact": [0.01, 0.02, 0.01], "fast": [0.005] * 3}
SECONDS |= {"exact, drawn": [0.1] * 3, "fast, drawn": [0.05] * 3, "N=1": [0.1, 0.2, 0.1], "N=2": [0.1, 0.2, 0.2]}


def made_up(*_: Any) -> dict[str, Any]:
    return {
        "machine": {"cpu": "a test's", "cores": 2},
        "versions": {},
        "rows": [bench_env._row(name, SECONDS) for name in (DRAWN, BLIND, *ARMS)],
        "vector": bench_env._vector_rows(SECONDS, {1: [100.0], 2: [100.0, None]}),
    }


def test_ratios_are_of_rounds_that_stood_side_by_side() -> None:
    row = bench_env._row("exact", SECONDS)
    assert row["against"] == BLIND and row["ms"] == 10 and row["ms_range"] == [10, 20] and row["rounds"] == 3
    assert row["ratio"] == 2 and row["ratio_range"] == [1, 3]
    assert "ratio" not in bench_env._row(BLIND, SECONDS)


def test_many_are_held_against_the_first_and_unknown_memory_is_not_made_up() -> None:
    one, two = bench_env._vector_rows(SECONDS, {1: [100.0], 2: [100.0, None]})
    assert (one["hz"], one["ratio"], one["memory_mb"]) == (10, 1, 100)
    assert (two["hz"], two["hz_range"], two["ratio"], two["ratio_range"]) == (10, [10, 20], 2, [1, 2])
    assert two["memory_mb"] is None


def test_tables_and_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_env, "bench_env", made_up)
    assert cli.main(["bench", "env", "Lift"]) == 0
    printed = capsys.readouterr().out
    assert (
        "robosuite, drawn: 5.00 (4.00 to 6.00)" in printed and "10.0 (10.0 to 20.0)" in printed and "unknown" in printed
    )
    assert cli.main(["bench", "env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vector"][0]["n"] == 1


def test_wrong_settings_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ({"rounds": 1}, {"steps": 0}, {"steps": 10_000}, {"vector": (0,)}):
        with pytest.raises(InvalidInput, match="rounds must be 2 or more"):
            EnvBenchConfig(**wrong)
    with pytest.raises(UnknownName, match="Did you mean 'Lift'"):
        EnvBenchConfig(task="Lfit")
    assert cli.main(["bench", "env", "Lfit"]) == 2
    assert "Did you mean 'Lift'" in capsys.readouterr().err


def test_all_arms_get_the_same_actions_and_every_round_its_own() -> None:
    config = EnvBenchConfig(steps=4)
    first, again, other = (bench_env._actions(config, k) for k in (0, 0, 1))
    assert first.shape == (4, 4) and np.array_equal(first, again) and not np.array_equal(first, other)


def test_memory_of_this_process() -> None:
    resident = machine.resident_mb(os.getpid())
    assert resident is None or 10 < resident < 1e5


@pytest.mark.sim
@pytest.mark.slow
def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "env", "Lift", "--rounds", "2", "--steps", "3", "--size", "32", "--vector", "1,2", "--json"]
    assert cli.main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["arm"] for row in result["rows"]] == [DRAWN, BLIND, *ARMS]
    assert all(math.isfinite(row["ms"]) and row["ms"] > 0 for row in result["rows"])
    assert [row["n"] for row in result["vector"]] == [1, 2]


DRAWS = """
import numpy as np
from s2robot.envs.plain import PlainRobosuite
plain = PlainRobosuite("Lift", 64)
plain.reset(seed=0)
observation = plain.step(np.zeros(4, np.float32))
pictures = [observation[f"{camera}_image"] for camera in plain.task.cameras]
print(*[picture.shape == (64, 64, 3) and picture.std() > 10 for picture in pictures])
"""


@pytest.mark.sim
def test_robosuites_own_drawing_is_what_it_is_measured_with() -> None:
    """In a process of its own: what it frees, it frees from whichever context is current."""
    done = subprocess.run([sys.executable, "-c", DRAWS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "True"], done.stderr
