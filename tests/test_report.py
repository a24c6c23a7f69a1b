"""The report: whole, self-contained, escaped, honest, and content with less than everything."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s2robot.errors import CorruptFile, InvalidInput
from s2robot.page import VOID
from s2robot.report import write_report

HOSTILE = "</pre></title><script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>"

LATENCY = {"p50": 10.0, "p99": 20.0, "mean": 11.0, "n": 4000}
PAIRED = {"difference": 0.56, "low": 0.395, "high": 0.694, "p_value": 1e-6, "resolved": True}
SUMMARY: dict[str, Any] = {
    "title": "Lift, behaviour cloning on frozen S2 features",
    "task": "Lift",
    "success_rate": 0.96,
    "successes": 48,
    "episodes": 50,
    "interval": [0.8654, 0.9890],
    "seed": 0,
    "evaluation_seeds": [100000, 100049],
    "encoder": {"name": "s2robot-tiny", "scales": [1, 2], "grid": [14, 14], "parameters": 5486208},
    "policy": {"kind": "bc", "parameters": 812345},
    "demos": 200,
    "stages": [
        {"name": "collect", "seconds": 71.2, "detail": "200 demonstrations, 2 workers"},
        {"name": "evaluate", "seconds": 203.0, "detail": "50 rollouts"},
    ],
    "latency_ms": dict.fromkeys(("render", "encode", "act", "step"), LATENCY),
    "steps_to_success": {"p50": 57},
    "baselines": [
        {"name": "no vision", "scales": [1], "successes": 20, "episodes": 50, "interval": [0.28, 0.54],
         "paired": PAIRED},
        {"name": "base scale only", "scales": [1], "successes": 45, "episodes": 50, "interval": [0.79, 0.96],
         "paired": {"difference": 0.06, "low": -0.038, "high": 0.173, "p_value": 0.375, "resolved": False}},
    ],
    "fidelity": {"collect": "fast", "evaluate": "exact"},
    "command": "s2robot demo",
    "machine": {"cpu": "EPYC", "cores": 2, "memory_gib": 7.8, "gpu": None},
    "versions": {"torch": "2.15.0"},
    "git": "abc123",
}  # fmt: skip


class Page(HTMLParser):
    """Parses a page strictly: every end tag must close the element that is open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words = ""
        self.tips: dict[str, str] = {}  # what a mark of a chart says when pointed at -> its shape
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-2:-1] in (["circle"], ["path"]):
            self.tips[data] = self.open[-2]
        if "style" not in self.open:
            self.words += data.replace("\u00a0", " ").replace("\u2060", "").replace("\u2013", "-")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A whole run folder, as `s2robot demo` leaves it."""
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    metrics = [{"step": s, "loss": 1 / (1 + s), "lr": 3e-4, "seconds": s / 50} for s in range(0, 200, 10)]
    metrics[-1]["valid_loss"] = 0.0125
    lines(tmp_path / "metrics.jsonl", metrics)
    lines(tmp_path / "episodes.jsonl", [{"seed": 100000 + i, "success": i != 7, "steps": 50 + i} for i in range(50)])
    (tmp_path / "config.yaml").write_text("task: Lift\ndemos: 200\n")
    for name in ("videos", "pictures"):
        (tmp_path / name).mkdir()
    for name in ("success", "failure"):  # the report embeds them, it does not look inside
        (tmp_path / f"videos/{name}.mp4").write_bytes(f"{name} video".encode())
    for name in ("features", "strip"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"pictures/{name}.png")
    return tmp_path


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def report(folder: Path, **changes: Any) -> Page:
    """The page of a run folder whose summary was changed; a change to None takes the key out."""
    if changes:
        kept = {key: value for key, value in (SUMMARY | changes).items() if value is not None}
        (folder / "summary.json").write_text(json.dumps(kept))
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_verdict_is_one_plain_sentence(run_folder: Path) -> None:
    sentence = "The robot lifted the cube in 48 of 50 unseen placements (96 %, 95 % interval 86.5-98.9 %)."
    assert sentence in report(run_folder).words


def test_an_unknown_task_still_gets_a_sentence(run_folder: Path) -> None:
    page = report(run_folder, task="Door")
    assert "The robot solved Door in 48 of 50 unseen starts" in page.words
    assert "Lift does not discriminate" not in page.words


def test_sections_stand_in_the_order_of_the_story(run_folder: Path) -> None:
    page = report(run_folder)
    places = [page.words.index(f"{heading}") for heading in (
        "What the robot does", "What the encoder sees", "How often it succeeds", "no vision", "How it learned",
        "How fast it runs", "Where the time went", "Every rollout", "How to get this again",
    )]  # fmt: skip
    assert places == sorted(places)


def test_nothing_is_fetched_and_nothing_is_run(run_folder: Path) -> None:
    page = report(run_folder)
    sources = [value for _, name, value in page.attributes if name in {"src", "href", "poster", "srcset", "data"}]
    assert len(sources) == 4  # two videos, two pictures
    assert all(source.startswith(("data:image/png;base64,", "data:video/mp4;base64,")) for source in sources)
    text = (run_folder / "report.html").read_text()
    assert not re.search(r"url\(|@import|https?://", text)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_hostile_strings_stay_text(run_folder: Path) -> None:
    hostile = copy.deepcopy(SUMMARY)
    hostile |= {"title": HOSTILE, "command": HOSTILE, "git": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    hostile["stages"][0] |= {"name": HOSTILE, "detail": HOSTILE}
    hostile["baselines"][0]["name"] = hostile["encoder"]["name"] = HOSTILE
    hostile["latency_ms"] = {HOSTILE: LATENCY}
    hostile["machine"] = {"cpu": [HOSTILE]}
    hostile["fidelity"] = {HOSTILE: HOSTILE}
    (run_folder / "config.yaml").write_text(HOSTILE)
    for task in ("Lift", HOSTILE):
        page = report(run_folder, **hostile | {"task": task})
        assert "script" not in page.tags
        assert page.tags.count("img") == 2
        assert page.words.count(HOSTILE) >= 12


def test_media_are_embedded_byte_for_byte(run_folder: Path) -> None:
    page = report(run_folder)
    videos = [value for tag, name, value in page.attributes if (tag, name) == ("video", "src")]
    assert videos == ["data:video/mp4;base64,c3VjY2VzcyB2aWRlbw==", "data:video/mp4;base64,ZmFpbHVyZSB2aWRlbw=="]


def test_the_caution_stands_there_with_and_without_baselines(run_folder: Path) -> None:
    caution = "Lift does not discriminate between encoders: a random ViT solves it too."
    assert caution in report(run_folder).words
    without = report(run_folder, baselines=None).words
    assert caution in without
    assert "--baselines" in without


def test_baselines_say_whether_the_difference_is_resolved(run_folder: Path) -> None:
    words = report(run_folder).words
    assert "+56.0 (+39.5 to +69.4)" in words
    assert "resolved, this run is better (p < 0.001)" in words
    assert "+6.0 (\u22123.8 to +17.3)not resolved (p = 0.375)" in words


def test_a_baseline_that_beats_this_run_is_said_to(run_folder: Path) -> None:
    beaten = PAIRED | {"difference": -0.56, "low": -0.694, "high": -0.395}
    words = report(run_folder, baselines=[SUMMARY["baselines"][0] | {"paired": beaten}]).words
    assert "\u221256.0 (\u221269.4 to \u221239.5)resolved, this run is worse" in words


def test_latencies_imply_control_rates(run_folder: Path) -> None:
    words = report(run_folder).words
    assert "One control step takes about 40 ms: 25 control steps a second in simulation." in words
    assert "20 ms from frame to action, up to 50 looks a second" in words
    chunks = report(run_folder, policy=SUMMARY["policy"] | {"execute": 4}).words
    assert "A look and the 4 control steps played on it take about 70 ms: 57.1 control steps a second" in chunks


def test_stage_times_add_up(run_folder: Path) -> None:
    words = report(run_folder).words
    assert "1 min 11 s" in words
    assert "4 min 34 s of wall time in all" in words


def test_every_rollout_is_there_and_failures_are_named(run_folder: Path) -> None:
    page = report(run_folder)
    assert "Failed on seed 100007." in page.words
    assert page.tips["seed 100007: failure after 57 steps"] == "path"  # a cross, not a disc
    assert page.tips["seed 100049: success after 99 steps"] == "circle"
    assert len(page.tips) == 50


def test_rollouts_of_other_evaluations_in_the_log_are_not_this_pages(run_folder: Path) -> None:
    page = report(run_folder, episodes=5, successes=5, evaluation_seeds=[100000, 100004])
    assert len(page.tips) == 5 and "None failed." in page.words and "100007" not in page.words


def test_the_verdict_says_of_which_starts_and_looks_it_is(run_folder: Path) -> None:
    assert "48 of 50 unseen placements" in report(run_folder).words
    seen = report(run_folder, evaluation_seeds=[500000, 500049]).words
    assert "in 48 of 50 placements (96" in seen and "seeds of validation: no result" in seen and "unseen" not in seen
    shifted = report(run_folder, evaluation={"shift": "all/test", "execute": 2, "precision": None}).words
    assert "other looks than it learned from: all/test" in shifted and "shift all/test; execute 2" in shifted


def test_steps_are_seconds_at_the_runs_own_rate(run_folder: Path) -> None:
    assert "57 steps (2.9 s at 20 Hz)" in report(run_folder).words
    assert "57 steps (5.7 s at 10 Hz)" in report(run_folder, control_hz=10).words


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("videos/success.mp4", "No video of a success was written."),
        ("videos/failure.mp4", "No video of a failure was written."),
        ("pictures/features.png", "No feature picture was written."),
        ("pictures/strip.png", "What the robot does"),
        ("metrics.jsonl", "No training metrics were written."),
        ("episodes.jsonl", "No episodes were written."),
        ("config.yaml", "How to get this again"),
    ],
)
@pytest.mark.parametrize("how", ["gone", "empty"])
def test_a_missing_file_is_a_plain_sentence(run_folder: Path, missing: str, sentence: str, how: str) -> None:
    (run_folder / missing).unlink()
    if how == "empty":
        (run_folder / missing).touch()
    assert sentence in report(run_folder).words


@pytest.mark.parametrize("key", sorted(SUMMARY))
def test_a_missing_key_is_tolerated(run_folder: Path, key: str) -> None:
    words = report(run_folder, **{key: None}).words
    assert "None" not in words.replace("None failed", "")
    assert "How to get this again" in words


def test_a_bare_summary_gives_a_page_of_plain_sentences(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    words = report(tmp_path).words
    assert f"s2robot run {tmp_path.name}" in words
    assert "has not been evaluated yet" in words


def test_a_policy_that_was_trained_alone_says_what_it_learned_from_and_not_how_others_are_collected(
    run_folder: Path,
) -> None:
    (run_folder / "config.yaml").write_text("collect: {demos: 777}\ntrain: {steps: 5}\neval: {episodes: 888}\n")
    learned = {"name": "lift.hdf5", "fingerprint": "0123abcd"}
    words = report(run_folder, stages=None, demos=6, dataset=learned, evaluation={"episodes": 3}).words
    assert (
        "6, lift.hdf5, 0123abcd" in words and "scripted" not in words and "episodes: 3" in words and "steps: 5" in words
    )
    assert "777" not in words and "888" not in words and "Where the time went" not in words and "`" not in words
    assert "777" in report(run_folder, stages=SUMMARY["stages"]).words  # a demo collects


@pytest.mark.parametrize(("encoder", "tiles"), [({"sizes": [128]}, False), ({"scales": [1]}, False), ({}, True)])
def test_tiles_are_told_of_where_there_are_several_scales(run_folder: Path, encoder: Any, tiles: bool) -> None:
    words = report(run_folder, encoder=encoder or SUMMARY["encoder"]).words
    assert ("once as a whole" in words) == tiles and "describes every patch" in words


def test_no_failure_is_good_news_not_a_gap(run_folder: Path) -> None:
    (run_folder / "videos/failure.mp4").unlink()
    assert "No failure in 50 rollouts." in report(run_folder, successes=50, interval=[0.93, 1.0]).words


def test_without_an_interval_wilson_is_used(run_folder: Path) -> None:
    assert "86.5-98.9 %" in report(run_folder, interval=None).words


@pytest.mark.parametrize("garbage", ["", "{", "[1, 2]", '{"latency_ms": "fast"}', '{"successes": 9, "episodes": 3}'])
def test_a_corrupt_summary_is_refused_and_the_old_report_stays(run_folder: Path, garbage: str) -> None:
    report(run_folder)
    before = (run_folder / "report.html").read_bytes()
    (run_folder / "summary.json").write_text(garbage)
    with pytest.raises(CorruptFile, match=r"summary\.json"):
        write_report(run_folder)
    assert (run_folder / "report.html").read_bytes() == before


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no summary"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_same_folder_gives_the_same_page(run_folder: Path) -> None:
    first = write_report(run_folder).read_bytes()
    assert write_report(run_folder).read_bytes() == first
