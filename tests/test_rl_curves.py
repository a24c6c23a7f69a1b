"""Learning curves as a picture, and what a control step of learning costs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from s2robot import cli, files
from s2robot.charts import as_file
from s2robot.errors import InvalidInput
from s2robot.rl_curves import _series, curves_svg, points


def run(folder: Path, name: str, wins: list[int], n: int = 20) -> Path:
    out = folder / name
    with files.JsonLines(out / "metrics.jsonl") as lines:
        for k, count in enumerate(wins):
            lines.write({"step": 500 * (2 * k + 1), "loss": 0.1})  # no point of the curve
            row = {"validation_success": count / n, "validation_episodes": n, "validation_steps": 30.0}
            lines.write({"step": 1000 * (k + 1), "loss": 0.1, **row, "seconds": 1.0})
    return out


def test_seeds_of_an_arm_are_one_line_as_far_as_all_have_come(tmp_path: Path) -> None:
    one, two, other = (run(tmp_path, *each) for each in (("s2-0", [0, 10, 20]), ("s2-1", [10, 20]), ("base-0", [5])))
    svg, kept = tmp_path / "curves.svg", tmp_path / "kept"
    words = [str(each) for each in (one, two, other)]
    assert cli.main(["rl", "curves", *words, "--svg", str(svg), "--title", "Reach", "--keep", str(kept)]) == 0
    text = svg.read_text(encoding="utf-8")
    assert "s2 (2 seeds)" in text and ">base<" in text and ">Reach<" in text
    lines = re.findall(r'<polyline points="([^"]+)"', text)
    assert [len(line.split()) for line in lines] == [2, 1]
    heights = [float(point.split(",")[1]) for point in lines[0].split()]
    base = float(lines[1].split(",")[1])
    assert heights[0] == pytest.approx(base, abs=0.1)  # 10 of 40 and 5 of 20
    assert heights[1] < heights[0]  # 30 of 40: higher up
    again_kept = [str(kept), *map(str, sorted(kept.iterdir()))]  # into the place they are read from
    assert (
        cli.main(["rl", "curves", *again_kept[1:], "--svg", str(svg), "--title", "Reach", "--keep", again_kept[0]]) == 0
    )
    again = {path.stem: points(path) for path in sorted(kept.iterdir())}
    assert list(again) == ["base-0", "s2-0", "s2-1"] and again["s2-0"] == points(one)
    assert as_file(curves_svg({name: again[name] for name in ("s2-0", "s2-1", "base-0")}, "Reach")) == text
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"  # or no browser shows it


def test_seeds_that_differ_make_intervals_wider_than_their_rollouts_would() -> None:
    def seed(rate: float) -> list[dict[str, Any]]:
        return [{"step": 1, "validation_success": rate, "validation_episodes": 100}]

    def spread(*rates: float) -> float:
        series = _series("s2", [seed(rate) for rate in rates])
        assert series.low is not None and series.high is not None
        return series.high[0] - series.low[0]

    assert spread(0.2, 0.8, 0.5) > 1.5 * spread(0.5, 0.5, 0.5)
    with pytest.raises(InvalidInput, match="one --validate for all"):
        _series("s2", [seed(0.5), [{"step": 1, "validation_success": 0.5, "validation_episodes": 20}]])


def test_runs_without_a_curve_are_refused(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["rl", "curves", str(tmp_path), "--svg", "x.svg"]) == 2
    assert "No metrics in" in capsys.readouterr().err
    assert cli.main(["rl", "curves", str(run(tmp_path, "young", [])), "--svg", "x.svg"]) == 2
    assert "no point of its curve yet" in capsys.readouterr().err


def test_steps_that_would_be_counted_and_not_taken_are_refused(capsys: Any) -> None:
    assert cli.main(["bench", "rl", "--steps", "6"]) == 2
    assert "a multiple of 4" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.sim
def test_what_a_step_of_learning_costs(capsys: Any) -> None:
    pytest.importorskip("stable_baselines3")
    words = ["bench", "rl", "--task", "Reach", "--rounds", "1", "--steps", "8", "--batch", "8", "--json"]
    assert cli.main(words) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[-1]["ratio"] == 1 and all(row["rate"] > 0 for row in rows)
    features, state, images = rows[0], rows[4], rows[-1]
    assert features["ms"]["see"] > 0 and features["ms"]["render"] > 0
    assert (
        state["ms"]["see"] == 0 and state["ms"]["render"] < 0.05 * features["ms"]["render"]
    )  # it asks, nothing is drawn
    assert all(row["ms"]["update"] + row["ms"]["physics"] > 0 for row in rows)
    assert images["replay_mb"] > 20 * features["replay_mb"]
