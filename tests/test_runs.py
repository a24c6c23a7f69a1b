"""Run folders: what fits the tables is read, what does not is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from s2robot.errors import CorruptFile, InvalidInput
from s2robot.runs import read_run


def write(folder: Path, summary: Any) -> Path:
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_only_the_summary_must_be_there(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, {"title": "x"}))
    assert (run.summary, run.metrics, run.episodes, run.config) == ({"title": "x"}, [], [], "")


def test_what_holds_runs_and_is_none_says_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "many" / "seed-0").mkdir(parents=True)
    with pytest.raises(InvalidInput, match=r"runs of --seeds.* eval .*/many/seed-0 --report"):
        read_run(tmp_path / "many")
    (tmp_path / "study.yaml").touch()
    with pytest.raises(InvalidInput, match="It is a study"):
        read_run(tmp_path)


def test_nulls_and_nans_count_as_missing(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, {"git": None, "latency_ms": {"act": {"p50": float("nan"), "n": 3}}}))
    assert run.summary == {"latency_ms": {"act": {"n": 3}}}


def test_a_folder_without_a_summary_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="s2robot demo"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        ([], "the content is"),
        ({"stages": [{"seconds": 1}, {"seconds": "soon"}]}, r"stages\[1\]\.seconds is 'soon', expected a number"),
        ({"latency_ms": {"act": 3}}, r"latency_ms\.act is '3', expected an object"),
        ({"interval": 0.5}, "interval is '0.5', expected a list"),
        ({"title": 5}, "title is '5', expected text"),
        ({"successes": True, "episodes": 1}, "expected a number"),
        ({"baselines": [{"paired": {"resolved": 1}}]}, "expected true or false"),
        ({"successes": 51, "episodes": 50}, "51 successes in 50 episodes"),
        ({"baselines": [{"successes": -1, "episodes": 50}]}, "-1 successes in 50 episodes"),
        ({"successes": 0, "episodes": 0}, "0 successes in 0 episodes"),
    ],
)
def test_a_summary_that_does_not_fit_names_the_place(tmp_path: Path, summary: Any, words: str) -> None:
    with pytest.raises(CorruptFile, match=words) as caught:
        read_run(write(tmp_path, summary))
    assert caught.value.path == tmp_path / "summary.json"


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "episodes.jsonl"])
def test_garbage_is_a_corrupt_file(tmp_path: Path, name: str) -> None:
    write(tmp_path, {})
    (tmp_path / name).write_bytes(b"\x00\xff not json\n")
    with pytest.raises(CorruptFile, match=name):
        read_run(tmp_path)


def test_a_line_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    write(tmp_path, {})
    (tmp_path / "episodes.jsonl").write_text('{"seed":1,"success":true,"steps":9}\n{"seed":"two"}\n')
    with pytest.raises(CorruptFile, match=r"\[1\]\.seed is 'two'"):
        read_run(tmp_path)
