"""Comparisons: paired by seed, symmetric, careful with few runs, and honest about what they cannot say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from s2robot import bootstrap, seals
from s2robot.cli import main
from s2robot.compare import Arm, compare, rate, versus
from s2robot.errors import InvalidInput
from s2robot.statistics import episodes_to_resolve, paired_difference, student, wilson


def write_run(folder: Path, outcomes: Sequence[bool], first: int = 100, log: str = "episodes-exact.jsonl") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"seed": first + k, "success": bool(won), "steps": 5, "reward": 0.0, "ms": {}} for k, won in enumerate(outcomes)
    ]
    (folder / log).write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))  # any order
    return str(folder)


def test_one_run_an_arm_is_the_paired_test(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(60) < 0.6, rng.random(60) < 0.9
    result = compare([write_run(tmp_path / "a", a), f"better={write_run(tmp_path / 'b', b)}"])
    expected = paired_difference(b, a)
    (found,) = result["against_first"]
    assert found["name"] == "better" and found["p_value"] == expected.p_value
    assert (found["difference"], found["low"], found["high"]) == (expected.difference, expected.low, expected.high)
    assert found["resolved"] == expected.resolved
    assert (result["arms"][0]["low"], result["arms"][0]["high"]) == wilson(int(a.sum()), 60)


def test_logs_of_other_physics_are_not_mixed(tmp_path: Path) -> None:
    exact, other = np.ones(10, bool), np.zeros(20, bool)
    run = write_run(tmp_path / "a", exact, log="episodes-exact.jsonl")
    write_run(tmp_path / "a", other, log="episodes.jsonl")
    (arm,) = compare([run])["arms"]
    assert (arm["successes"], arm["episodes"]) == (10, 10)


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, [True] * 5) for name in ("lr=1e-3", "a,b")]
    assert [arm["name"] for arm in compare(runs)["arms"]] == runs


def test_runs_of_different_tasks_are_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, [True] * 5) for name in ("a", "b")]
    for run, task in zip(runs, ("Lift", "Stack"), strict=True):
        (Path(run) / "policy").mkdir()
        (Path(run) / "policy" / "policy.json").write_text(json.dumps({"task": task}))
    with pytest.raises(InvalidInput, match=r"Lift in .*Stack in"):
        compare(runs)
    assert compare(runs[:1])["n"] == 5


def test_a_log_of_two_policies_is_no_ones(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [True] * 4)
    log = Path(run) / "episodes-exact.jsonl"
    lines = [
        json.loads(line) | {"weights": name} for line, name in zip(log.read_text().splitlines(), "xxyy", strict=True)
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InvalidInput, match=r"episodes of 2 policies \(x, y\)"):
        compare([run])


def test_a_log_of_weights_that_are_no_more_is_refused(tmp_path: Path) -> None:
    run = Path(write_run(tmp_path / "a", [True] * 4))
    log = run / "episodes-exact.jsonl"
    (run / "policy").mkdir()
    (run / "policy" / "policy.safetensors").write_bytes(b"then")
    weights = seals.digest(run / "policy" / "policy.safetensors")[:16]
    rows = [json.loads(line) | {"weights": weights} for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert compare([str(run)])["n"] == 4
    (run / "policy" / "policy.safetensors").write_bytes(b"trained again")
    with pytest.raises(InvalidInput, match=rf"of other weights \({weights}\) than .*s2robot eval"):
        compare([str(run)])


def test_only_seeds_that_all_met_count(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [True] * 10, first=100)
    b = write_run(tmp_path / "b", [False] * 5 + [True] * 5, first=105)
    result = compare([a, b])
    assert result["n"] == 5 and result["left_out"] == 10 and result["seeds"] == [105, 109]
    assert result["against_first"][0]["difference"] == -1.0


def test_seeds_that_choices_were_made_on_count_only_where_there_are_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    for run, won in zip(runs, (False, True), strict=True):
        write_run(run, [True] * 50, first=100_000)
        rows = (run / "episodes-exact.jsonl").read_text()
        write_run(run, [won] * 40, first=500_000)
        (run / "episodes-exact.jsonl").write_text(rows + (run / "episodes-exact.jsonl").read_text())
    result = compare(list(map(str, runs)))
    assert (result["n"], result["left_out"], result["seeds_of"]) == (50, 40, "evaluation")
    assert result["against_first"][0]["difference"] == 0
    for run, won in zip(runs, (False, True), strict=True):
        write_run(run, [won] * 40, first=500_000)
    assert main(["compare", *map(str, runs)]) == 0
    assert "seeds of validation: no result to report" in capsys.readouterr().out


def test_the_other_way_round_is_the_same_with_the_other_sign() -> None:
    rng = np.random.default_rng(1)
    a, b = (Arm("", rng.random((3, 50)) < p) for p in (0.5, 0.8))
    one, two = versus(a, b), versus(b, a)
    assert one.difference == -two.difference and one.resolved == two.resolved
    assert one.low == pytest.approx(-two.high, abs=0.01) and one.high == pytest.approx(-two.low, abs=0.01)


def test_a_sample_of_runs_is_less_sure_than_its_episodes_pooled() -> None:
    """Runs of one arm that differ a lot: 300 episodes are not 300 independent ones."""
    spread = Arm("", np.repeat([[True], [False], [True]], 100, axis=1))
    low, high = wilson(200, 300)
    found = rate(spread)
    assert found.low < low and found.high > high
    steady = Arm("", np.tile(np.arange(100) % 3 > 0, (3, 1)))
    assert not versus(spread, steady).resolved


def test_no_failure_in_sight_is_not_certainty() -> None:
    sure = Arm("", np.ones((3, 40), bool))
    assert rate(sure).low < 0.98 and rate(sure).high == 1.0
    assert versus(sure, sure).low < 0 < versus(sure, sure).high


def test_more_episodes_are_asked_for_where_outcomes_differ_and_fewer_where_there_are_many() -> None:
    rng = np.random.default_rng(2)
    few, many = (
        versus(Arm("", rng.random((1, n)) < 0.5), Arm("", rng.random((1, n)) < 0.5)).more_episodes for n in (40, 2000)
    )
    assert few > 200 and many == 0
    calm = Arm("", np.ones((1, 40), bool))
    assert versus(calm, calm).more_episodes < few


def test_that_many_episodes_resolve_it_four_times_in_five() -> None:
    difference, differing = 0.1, 0.3
    n = episodes_to_resolve(difference, differing)
    rng, found = np.random.default_rng(3), 0
    for _ in range(400):
        draw = rng.random(n)
        a = draw < (differing + difference) / 2  # only a; b the next share; else both
        b = (draw >= (differing + difference) / 2) & (draw < differing)
        both = draw >= differing
        found += paired_difference(a | both, b | both).p_value < 0.05
    assert 0.72 < found / 400 < 0.88


@pytest.mark.parametrize("runs", [5, 10])
def test_that_many_of_five_runs_and_more_do_so_by_the_intervals_that_decide(runs: int) -> None:
    difference, differing = 0.1, 0.3
    n = episodes_to_resolve(difference, differing, runs=runs)
    rng, found = np.random.default_rng(5), 0
    for _ in range(150):
        draw = rng.random((runs, n))
        only_a, only_b = draw < (differing + difference) / 2, draw > 1 - (differing - difference) / 2
        both = rng.random((runs, n)) < 0.5
        a, b = (np.stack([one | (both & ~other), np.ones_like(one)], -1).astype(float) for one, other in
                ((only_a, only_b), (only_b, only_a)))  # fmt: skip
        found += bootstrap.paired_difference(a, b, bootstrap.ratio, draws=500).low > 0
    assert 0.68 < found / 150 < 0.9


@pytest.mark.parametrize("runs", [2, 3])
def test_that_many_of_several_runs_do_so_too(runs: int) -> None:
    """By Student's interval, which of few runs is seldom not the widest."""
    difference, differing = 0.1, 0.3
    n = episodes_to_resolve(difference, differing, runs=runs)
    rng = np.random.default_rng(4)
    draw = rng.random((1000, runs, min(n, 4000)))
    assert n < 4000
    only_a, only_b = draw < (differing + difference) / 2, draw > 1 - (differing - difference) / 2
    by_run = (only_a.mean(axis=2) - only_b.mean(axis=2)).astype(float)
    found = [student(row)[0] > 0 for row in by_run]
    assert 0.75 < np.mean(found) < 0.85
    assert n > episodes_to_resolve(difference, differing) // runs  # fewer runs know less


@pytest.mark.parametrize("bad", [(0.0, 0.5), (0.3, 0.2), (0.1, 1.2), (-0.1, 0.5)])
def test_impossible_differences_are_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(InvalidInput, match="expected 0 < difference"):
        episodes_to_resolve(*bad)


def test_one_arm_alone_says_how_often_it_succeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / "arm" / f"seed-{k}", [True] * (9 - k) + [False] * (1 + k)) for k in range(3)]
    found = compare([str(tmp_path / "arm")])
    assert found["arms"][0]["by_run"] == (0.9, 0.8, 0.7) and found["against_first"] == []
    assert main(["compare", ",".join(map(str, runs))]) == 0
    assert "24 of 30" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused_with_what_to_do(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", [True] * 5), write_run(tmp_path / "b", [True] * 5, first=900)
    for words, said in (
        ([], "one or more"),
        ([a, b], "same --seed"),
        ([f"{a},{b}", b], "different numbers of runs"),
        ([f"x={a}", f"x={b}"], "Arms of one name are given twice: x"),
        ([f"x={a},{a}", f"y={b},{b}"], f"Runs of x are given twice: {a}"),
        ([a, "x="], "names no run"),
        ([a, str(tmp_path)], "s2robot eval"),
    ):
        with pytest.raises(InvalidInput, match=said):
            compare(words)
    with pytest.raises(InvalidInput, match=r"logs there: episodes-exact\.jsonl"):
        compare([a, b], "episodes-fast.jsonl")


def test_the_verb_prints_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(tmp_path / "a", [True, False] * 10), write_run(tmp_path / "b", [True] * 20, log="episodes.jsonl")
    assert main(["compare", f"old={a}", f"new={b}"]) == 0
    said = capsys.readouterr().out
    assert "10 of 20" in said and "+50.0 points" in said and "resolved" in said
    assert main(["compare", f"old={a}", f"new={b}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arms"][1]["name"] == "new"
    assert main(["compare", a, a + "nowhere"]) == 2
