"""Studies: every arm on the same demonstrations and seeds, resumable, one table and one page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from s2robot import cli, compare, files, study_page, study_videos
from s2robot import config as configuration
from s2robot.config import merged
from s2robot.datasets import DemoDataset, Episode, write_dataset
from s2robot.errors import CorruptFile, InvalidInput, S2RobotError, UnknownName
from s2robot.rollouts import read_results
from s2robot.study import StudyConfig, _hold, cells, read_study, run_study
from s2robot.study_page import write_page
from s2robot.study_videos import film, telling_seed

RUN = {
    "collect": {"task": "Reach", "demos": 3, "frame_size": 64, "workers": 1},
    "encode": {"workers": 1},
    "train": {"steps": 4, "batch": 8},
    "eval": {"episodes": 2, "fidelity": "fast", "workers": 1},
}
ARMS: dict[str, dict[str, Any]] = {"s2": {}, "base": {"encoder": {"scales": [1]}}}


def written(path: Path, **other: Any) -> str:
    tree = {"title": "Small <b>", "question": "Is it so?", "run": RUN, "arms": ARMS, "seeds": [0, 1], **other}
    path.write_text(configuration.as_yaml(tree))
    return str(path)


@pytest.mark.sim
@pytest.mark.usefixtures("in_this_process")
def test_a_study_trains_and_judges_every_arm_on_the_same_seeds_and_goes_on_where_it_was(tmp_path: Path) -> None:
    source, out = written(tmp_path / "small.yaml", vary="train.demos", levels=[2, 3]), tmp_path / "out"
    words = ["study", source, "--out", str(out)]
    assert cli.main([*words, "--seeds", "0", "--arms", "s2"]) == 0
    first = files.read_json(out / "results.json")
    assert [(row["arm"], row["level"], row["episodes"]) for row in first["rows"]] == [("s2", 2, 2), ("s2", 3, 2)]
    made = {path: path.stat().st_mtime_ns for path in out.rglob("policy.safetensors")}
    words += ["--levels", "2"]
    assert cli.main(words) == 0
    assert len(made) == 2 and all(path.stat().st_mtime_ns == then for path, then in made.items())
    results = files.read_json(out / "results.json")
    assert [(row["arm"], row["level"], row["episodes"]) for row in results["rows"]] == [
        ("s2", 2, 4),
        ("base", 2, 4),
    ]
    # What the table says is what `compare` says of the same folders.
    theirs = compare.compare([f"s2={out / 's2-2'}", f"base={out / 'base-2'}"], "episodes-fast.jsonl")
    row = results["rows"][1]
    assert {key: row[key] for key in ("successes", "rate", "low", "high")} == {
        key: theirs["arms"][1][key] for key in ("successes", "rate", "low", "high")
    }
    assert row["less_first"] == theirs["against_first"][0]
    assert results["rows"][0]["less_first"] is None
    # Both arms met the same episodes, and learned from the same demonstrations.
    seeds = [[each.seed for each in read_results(path)] for path in sorted(out.rglob("episodes-fast.jsonl"))]
    assert len(seeds) == 5 and all(each == seeds[0] for each in seeds)
    assert results["arms"]["s2"]["channels"] == 2 * results["arms"]["base"]["channels"]
    assert results["arms"]["s2"]["gflops"] == pytest.approx(5 * results["arms"]["base"]["gflops"])
    html = (out / "report.html").read_text()
    assert "Small &lt;b&gt;" in html and "<svg" in html and "not resolved" in html
    # The same study with more episodes goes on; with other steps it is refused.
    assert cli.main([*words, "--seeds", "0", "--arms", "s2", "--eval.episodes", "3"]) == 0
    assert files.read_json(out / "results.json")["rows"][0]["episodes"] == 3
    assert cli.main([*words, "--train.steps", "5"]) == 2
    # Where the arms disagree about a start, the page plays it; here neither arm can do anything, so one is made to.
    assert not (out / "videos.json").exists()
    log = out / "base-2" / "seed-0" / "episodes-fast.jsonl"
    told = [{**row, "success": row["seed"] == 100_001} for row in files.read_jsonl(log)]
    log.write_text("".join(json.dumps(row) + "\n" for row in told))
    every = list(cells(read_study(source, levels=[2], seeds=[0])))
    film(every, "", out)
    write_page(out)
    shown = files.read_json(out / "videos.json")
    assert (shown["seed"], shown["success"]) == (100_001, {"s2": False, "base": True})
    assert (out / "report.html").read_text().count("<video") == 2
    filmed = (out / "videos" / "s2.mp4").stat().st_mtime_ns
    film(every, "", out)
    assert (out / "videos" / "s2.mp4").stat().st_mtime_ns == filmed


def test_settings_of_an_arm_reach_its_runs_and_no_other(tmp_path: Path) -> None:
    arms = {"a": {"kind": "flow", "policy": {"chunk": 4}}, "b": {"kind": "cnn", "encode": {"stride": 4}}}
    study = read_study(
        written(tmp_path / "a.yaml", arms=arms, vary="train.demos", levels=[1, 2]), ["--train.lr", "1e-3"]
    )
    every = list(cells(study))
    assert len(every) == 8 and len({cell.folder for cell in every}) == 8
    assert [(cell.arm, cell.level, cell.seed) for cell in every[:3]] == [("a", 1, 0), ("b", 1, 0), ("a", 2, 0)]
    for cell in every:
        config: Any = cell.config
        assert (config.train.seed, config.train.demos, config.train.lr) == (cell.seed, cell.level, 1e-3)
        assert (config.kind, config.encode.stride) == {"a": ("flow", 2), "b": ("cnn", 4)}[cell.arm]
        assert cell.arm == "b" or config.policy.chunk == 4


@pytest.mark.parametrize(
    ("other", "error", "words"),
    [
        ({"arm": {}}, UnknownName, "Did you mean 'arms'"),
        ({"arms": {}}, InvalidInput, "needs arms"),
        ({"arms": {"a": {"encodr": {}, "x": 1}}}, UnknownName, "arm a"),
        ({"arms": {"a": {"encoder": {"scales": "two"}}}}, InvalidInput, "Configuration"),
        ({"vary": "train.demos"}, InvalidInput, "both or neither"),
        ({"arms": {"../../home": {}}}, InvalidInput, "an arm '../../home'"),
        ({"arms": ["a", "b"]}, InvalidInput, r"arms in .* expected keys and their values"),
        ({"arms": {"a": 3}}, InvalidInput, r"arms\.a in .* is 3"),
        ({"run": 5}, InvalidInput, "run in .* is 5"),
        ({"seeds": 3}, InvalidInput, "seeds in .* is 3; expected a list"),
        ({"seeds": [0, 0]}, InvalidInput, "each of it once"),
        ({"shifts": "all/test"}, InvalidInput, "shifts in .* expected a list"),
        ({"vary": "train.dmos", "levels": [1]}, UnknownName, "train.demos"),
        ({"arms": {"a": {}, "b": {"collect": {"demos": 9}}}}, InvalidInput, "learn from the same"),
        ({"arms": {"a": {}, "b": {"eval": {"seed": 9}}}}, InvalidInput, "judged on the same"),
        ({"arms": {"a": {}, "b": {"encoder": {"name": "s2robot", "checkpoint": "gone.pt"}}}}, S2RobotError, "gone.pt"),
        ({"vary": "policy.tokens", "levels": ["map", "cls"]}, InvalidInput, "expected numbers"),
        ({"arms": {"a": {"encoder": "tiny"}}, "run": {"encoder": {"scales": [1]}}}, UnknownName, "arm a 'encoder'"),
        ({"run": {"eval": {"shift": "all/test"}}}, InvalidInput, "eval.shift in run"),
        ({"arms": {"a": {"train": {"seed": 3}}}}, InvalidInput, "train.seed in a"),
        ({"vary": "train", "levels": [1], "run": {"train": {"steps": 4}}}, UnknownName, "'train'"),
        (
            {"arms": {"a": {}, "b": {"eval": {"fidelity": "exact"}}}},
            InvalidInput,
            "or physics: all are judged on the same",
        ),
        ({"shifts": ["none", "al/test"]}, UnknownName, "'al'"),
        ({"run": {"eval": {"fidelity": "fsat"}}}, UnknownName, "fsat"),
        ({"run": {"eval": {"episodes": 0}}}, InvalidInput, "--episodes is 0"),
        ({"vary": "train.seed", "levels": [1, 2]}, InvalidInput, "vary is train.seed, which is the study's own"),
        (
            {"vary": "train.demos", "levels": [1], "arms": {"a": {"train": {"demos": 2}}}},
            InvalidInput,
            "--levels 15,30",
        ),
        ({"title": 2026}, InvalidInput, "title in .* is 2026, which is no text"),
        ({"vary": 3, "levels": [1]}, InvalidInput, "vary in .* is 3, which is no text"),
        ({"vary": "kind", "levels": [1]}, InvalidInput, "name them as arms"),
        ({"arms": {"a": {"kind": 5}}}, InvalidInput, r"kind in arms\.a of .* is 5; expected the name"),
        ({"shifts": [None, "none"]}, InvalidInput, "own look .none. twice"),
        ({"arms": {"a": {}, "b": {"kind": "cnn"}}, "run": {"encode.versions": 1}}, InvalidInput, "versions are featur"),
        ({"arms": {"a": {"kind": "act", "policy": {"execute": 3}}}}, InvalidInput, "multiple of the second"),
        ({"run": {"eval": {"execute": 9}}}, InvalidInput, "chunks have 8 actions"),
    ],
)
def test_a_study_that_cannot_be_is_refused_before_anything_is_done(
    other: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    source = written(tmp_path / "a.yaml", **other)
    with pytest.raises(error, match=words):
        run_study(read_study(source), tmp_path / "out", Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_keys_written_as_options_are_taken_as_nested(tmp_path: Path) -> None:
    dotted = {"a": {"encoder.scales": [1], "encoder": {"grid": "base"}}, "b.5": {}}
    source = written(tmp_path / "a.yaml", arms=dotted, run={**RUN, "train.lr": 0.5}, given={"train.batch": 4})
    study = read_study(source, ["--train.batch", "6"])  # the command line has the last word
    assert next(cells(study)).config.train.batch == 6
    assert study.arms == {"a": {"encoder": {"scales": [1], "grid": "base"}}, "b.5": {}}
    assert [cell.config.encoder.scales for cell in cells(study)][:2] == [(1,), (1, 2)]
    assert study.run["train"] == {**RUN["train"], "lr": 0.5}


def test_networks_whose_cost_is_not_counted_are_not_drawn_at_none() -> None:
    arms = {"s2": {"gflops": 1.9, "hz": 9.0}, "cnn": {"gflops": None, "hz": 90.0}}
    rows = [{"arm": arm, "rate": 0.5, "low": 0.4, "high": 0.6} for arm in arms]
    cost, rate = study_page._charts({"vary": "", "arms": arms}, rows)
    assert "cnn" not in cost and "s2" in cost and "cnn" in rate


def test_what_a_study_was_told_beside_its_file_is_in_the_one_it_leaves(tmp_path: Path) -> None:
    study = read_study(written(tmp_path / "a.yaml"), ["--train.steps", "7", "--eval.episodes", "9"])
    (tmp_path / "study.yaml").write_text(configuration.as_yaml(dataclasses.asdict(study)))
    (cell, *_) = cells(read_study(str(tmp_path / "study.yaml"), ["--eval.episodes", "8"]))
    assert (cell.config.train.steps, cell.config.eval.episodes) == (7, 8)


def test_keys_of_a_kind_of_policy_are_options_where_all_arms_are_of_it(tmp_path: Path) -> None:
    arms = {"a": {"kind": "flow"}, "b": {"kind": "flow", "encoder": {"scales": [1]}}}
    policies: list[Any] = [
        cell.config.policy
        for cell in cells(read_study(written(tmp_path / "a.yaml", arms=arms), ["--policy.times", "3"]))
    ]
    assert {policy.times for policy in policies} == {3}
    with pytest.raises(UnknownName, match=r"policy\.times"):
        read_study(written(tmp_path / "b.yaml"), ["--policy.times", "3"])


def test_a_finished_run_of_other_demonstrations_or_weights_is_not_taken_for_this_studys(tmp_path: Path) -> None:
    (cell, *_) = cells(read_study(written(tmp_path / "a.yaml")))
    dataset: Any = SimpleNamespace(fingerprint="d" * 64)
    known = {"dataset": "d" * 16, "encoder": cell.config.encoder.build("cpu").fingerprint[:16]}
    files.write_json(tmp_path / "settings.json", known)
    _hold(tmp_path, dataset, cell.config)
    for name in known:
        files.write_json(tmp_path / "settings.json", {**known, name: "0" * 16})
        with pytest.raises(InvalidInput, match=f"{name}: 0+ -> .*Choose another --out"):
            _hold(tmp_path, dataset, cell.config)


def test_more_demonstrations_than_there_are_are_refused_before_the_first_run(tmp_path: Path) -> None:
    actions, frames = np.zeros((5, 3), np.float32), np.zeros((5, 2, 64, 64, 3), np.uint8)
    episode = Episode(0, True, frames, np.zeros((5, 2), np.float32), actions, actions, np.zeros(5, np.float32), None)
    write_dataset(tmp_path / "demos.hdf5", [episode], {"task": "Reach"}, ["a", "b"])
    study = read_study(written(tmp_path / "a.yaml", vary="train.demos", levels=[1, 99]))
    with pytest.raises(InvalidInput, match="learns from up to 99"):
        run_study(study, tmp_path / "out", Console(quiet=True), tmp_path / "demos.hdf5")
    assert not list((tmp_path / "out").glob("s2*"))
    with pytest.raises(InvalidInput, match=r"collect\.demos is 3, and this study learns from up to 99"):
        run_study(study, tmp_path / "new", Console(quiet=True))
    assert not (tmp_path / "new").exists()


def test_a_page_without_the_videos_it_had_is_a_page(tmp_path: Path) -> None:
    files.write_json(tmp_path / "videos.json", {"success": {"a": True, "b": False}})
    assert study_page._videos(tmp_path) is None


@pytest.mark.parametrize("name", ["16", "on"])
def test_an_arm_that_yaml_takes_for_no_text_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"arms:\n  {name}: {{}}\n")
    with pytest.raises(InvalidInput, match="put its name in quotes"):
        read_study(str(path))


@pytest.mark.sim
@pytest.mark.slow
def test_an_arm_with_other_cameras_sees_the_same_episodes_drawn_again(tmp_path: Path) -> None:
    arms: dict[str, dict[str, Any]] = {
        "far": {"collect": {"frame_size": 32}, "encoder": {"scales": [1]}},
        "near": {"encoder": {"scales": [1]}},
    }
    order = {"near": arms["near"], "far": arms["far"]}
    out = tmp_path / "out"
    words = ["study", written(tmp_path / "a.yaml", arms=order, seeds=[0]), "--out", str(out)]
    assert cli.main([*words, "--arms", "near"]) == 0
    assert cli.main([*words, "--arms", "far,near"]) == 0  # whichever comes first, the file is of 64 px
    near, far = DemoDataset(out / "demos.hdf5"), DemoDataset(out / "demos-32px.hdf5")
    assert near.frame_shape[1:3] == (64, 64) and far.frame_shape[1:3] == (32, 32)
    for k in range(len(near)):
        assert near.attribute(k, "seed") == far.attribute(k, "seed")
        np.testing.assert_array_equal(near.field(k, "actions"), far.field(k, "actions"))
    described = {arm: files.read_json(out / arm / "seed-0" / "policy" / "policy.json") for arm in arms}
    assert (described["near"]["frame_size"], described["far"]["frame_size"]) == (64, 32)


def test_the_telling_start_is_one_that_all_arms_met_and_half_of_them_fail() -> None:
    assert telling_seed({"a": {1: True, 2: True}, "b": {1: True, 2: True}}) is None
    outcomes = {"a": {1: True, 2: True, 3: True}, "b": {1: True, 2: False, 3: False}, "c": {1: True, 2: True, 3: False}}
    outcomes["d"] = {1: True, 2: True, 3: False, 4: True}
    assert telling_seed(outcomes) == 2
    outcomes["c"][3] = True
    assert telling_seed(outcomes) == 3


def test_a_kill_while_filming_leaves_no_word_of_other_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = list(cells(read_study(written(tmp_path / "a.yaml"), seeds=[0])))
    for k, cell in enumerate(every):
        (tmp_path / cell.folder / "policy").mkdir(parents=True)
        (tmp_path / cell.folder / "policy" / "policy.safetensors").write_bytes(b"weights")
        for label in ("fast", "fast-light"):
            with files.JsonLines(tmp_path / cell.folder / f"episodes-{label}.jsonl") as log:
                log.write({"seed": 1, "success": bool(k), "steps": 1, "reward": 0.0, "ms": {}})
    filmed: list[str] = []

    def record(cell: Any, *_: Any) -> None:
        if filmed == ["killed"]:
            raise KeyboardInterrupt
        filmed.append(cell.arm)
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "videos" / f"{cell.arm}.mp4").touch()

    monkeypatch.setattr(study_videos, "_record", record)
    for _ in range(2):
        film(every, "", tmp_path)
    assert filmed == ["s2", "base"]
    film(every, "light", tmp_path)  # the same start and successes, but another picture
    assert filmed == 2 * ["s2", "base"]
    filmed[:] = ["killed"]
    with pytest.raises(KeyboardInterrupt):
        film(every, "", tmp_path)
    assert not (tmp_path / "videos.json").exists()
    filmed.clear()
    film(every, "", tmp_path)
    film(every[:1], "", tmp_path)  # alone it agrees with itself: there is nothing to tell
    assert not (tmp_path / "videos.json").exists()


def test_an_unknown_arm_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'base'"):
        read_study(written(tmp_path / "a.yaml"), arms=["bas"])


@pytest.mark.parametrize("name", [name for name in configuration.names() if name.startswith("study-")])
def test_studies_that_ship_are_whole(name: str) -> None:
    study = read_study(name)
    assert study.question.endswith("?") and len(study.seeds) >= 3
    assert all(cell.config.eval.episodes >= 100 and cell.config.eval.fidelity == "exact" for cell in cells(study))


def test_merging_changes_neither_side() -> None:
    one, other = {"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": 4}
    assert merged(one, other) == {"a": {"b": 1, "c": 3}, "d": 4}
    assert (one, other) == ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": 4})


def test_a_page_needs_results(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(CorruptFile, match="Run the study again"):
        write_page(tmp_path)


def test_study_files_are_readable_yaml(tmp_path: Path) -> None:
    tree = {"a": (1, 2), "b": {"c": 0.5, "d": Path("x")}}
    assert yaml.safe_load(configuration.as_yaml(tree)) == json.loads(json.dumps(files.plain(tree)))


def test_a_study_without_levels_has_one_cell_an_arm_and_seed() -> None:
    study = StudyConfig(arms={"a": {}, "b": {}}, seeds=(4,))
    assert [cell.folder for cell in cells(study)] == ["a/seed-4", "b/seed-4"]
