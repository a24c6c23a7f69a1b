"""The whole way in miniature, on real physics: it ends in a page, resumes, and refuses to mix settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from s2robot import config, demo, files
from s2robot.demo import DemoConfig
from s2robot.errors import InvalidInput, UsageError

pytestmark = pytest.mark.sim

WORDS = ["--collect.demos", "2", "--train.steps", "4", "--eval.episodes", "2", "--eval.fidelity", "fast"]
WORDS += ["--encoder.random_weights", "--train.batch", "8", "--encode.stride", "4"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DemoConfig:
    """A demo of seconds, run once."""
    out = tmp_path_factory.mktemp("demo") / "run"
    made = config.load(DemoConfig, "demo-quick", ["--out", str(out), *WORDS])
    demo.demo(made, Console(quiet=True))
    return made


def test_it_ends_in_a_page_with_everything_on_it(tiny: DemoConfig) -> None:
    out = Path(tiny.out)
    summary = files.read_json(out / "summary.json")
    assert summary["episodes"] == 2 and 0 <= summary["success_rate"] <= 1
    low, high = summary["interval"]
    assert 0 <= low <= summary["success_rate"] <= high <= 1
    assert [stage["name"] for stage in summary["stages"]][:4] == ["collect", "encode", "train", "evaluate"]
    for stage in ("render", "encode", "act", "step"):
        assert 0 < summary["latency_ms"][stage]["p50"] <= summary["latency_ms"][stage]["p99"]
    assert summary["fidelity"] == {"collect": "fast", "evaluate": "fast"}
    assert summary["versions"]["mujoco"] and summary["machine"]["cores"]
    page = (out / "report.html").read_text()
    assert "data:video/mp4" in page and "data:image/png" in page and "95" in page
    assert (out / "policy" / "policy.safetensors").stat().st_size > 1000
    assert not list(out.rglob("*.tmp-*")) and not list(out.rglob("*.parts"))


def test_run_again_it_does_nothing_twice(tiny: DemoConfig) -> None:
    out = Path(tiny.out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} | {
        path: path.stat().st_mtime_ns for path in out.glob("demos.hdf5")
    }
    episodes = (out / "episodes-fast.jsonl").read_bytes()
    demo.demo(tiny, Console(quiet=True))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "episodes-fast.jsonl").read_bytes() == episodes


def test_other_settings_in_the_same_folder_are_refused_by_name(tiny: DemoConfig) -> None:
    other = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, lr=1.0))
    with pytest.raises(InvalidInput, match=r"train\.lr: 0\.0015 -> 1\.0"):
        demo.demo(other, Console(quiet=True))


def test_the_seed_reaches_demonstrations_and_training_but_not_evaluation(tiny: DemoConfig) -> None:
    seeded = demo._seeded(dataclasses.replace(tiny, seed=7))
    assert seeded.collect.seed == seeded.train.seed == 7
    assert seeded.eval.seed == tiny.eval.seed


@pytest.mark.parametrize("part", ["collect", "train"])
def test_a_seed_of_a_part_alone_is_refused_not_lost(tiny: DemoConfig, part: str) -> None:
    asked = dataclasses.replace(tiny, **{part: dataclasses.replace(getattr(tiny, part), seed=5)})
    with pytest.raises(InvalidInput, match=rf"--{part}.seed is 5, --seed 0"):
        demo._seeded(asked)
    assert demo._seeded(dataclasses.replace(asked, seed=5)).collect.seed == 5


@pytest.mark.parametrize(
    ("section", "wrong", "says"),
    [
        ("eval", {"shift": "al/test"}, "'al'"),
        ("eval", {"fidelity": "fsat"}, "fsat"),
        ("train", {"demos": 999}, "--train.demos is 999"),
        ("encode", {"stride": 0}, "--encode.stride is 0"),
        ("collect", {"task": "Nope"}, "'Nope'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_done_and_binds_nobody(
    section: str, wrong: dict[str, Any], says: str, tmp_path: Path
) -> None:
    part = dataclasses.replace(getattr(DemoConfig(), section), **wrong)
    asked = dataclasses.replace(DemoConfig(out=str(tmp_path / "run")), **{section: part})
    with pytest.raises(UsageError, match=says):
        demo.demo(asked, Console(quiet=True))
    assert not (tmp_path / "run" / "config.yaml").exists() and not (tmp_path / "run" / "demos.hdf5").exists()
