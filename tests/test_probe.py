"""Probing as a whole: honest about test scenes, the same for the same seed, resumable; and its verb."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_scenes import Averager, SquareScenes, quiet, subject

from s2robot import cli, files, probe_tables, probe_tasks, registry
from s2robot import probe as probing
from s2robot.errors import CorruptFile, InvalidInput, S2RobotError, UnknownName
from s2robot.files import read_jsonl
from s2robot.probe import ProbeConfig, probe
from s2robot.probe_data import ProbeData, ProbeDataConfig, Truth, load_data
from s2robot.probe_features import ReadOut, encode_part
from s2robot.probe_heads import Schedule
from s2robot.probe_scores import MEASURES
from s2robot.probe_tasks import PROBES, Evidence, divide

SCENES = ProbeDataConfig(train=120, test=40, frame_size=64)
CONFIG = ProbeConfig(encoders=("see", "blind"), seeds=2, scenes=SCENES, engine="torch")
SUBJECTS = {
    "see": lambda: subject("see", Averager(8), Averager(16)),
    "blind": lambda: subject("blind", Averager(8, blind=True), Averager(16, blind=True)),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares, averages of colours, and few steps."""
    monkeypatch.setattr(registry, "probe_scenes", SquareScenes)
    monkeypatch.setattr(SquareScenes, "drawn", [])
    monkeypatch.setattr(probing, "find_subject", lambda name, config: SUBJECTS[name]())
    monkeypatch.setattr(probe_tasks, "SPATIAL", Schedule(steps=150, batch=64, lr=2e-2, every=25))
    monkeypatch.setattr(probe_tasks, "RECOGNISE", Schedule(steps=20, batch=64, lr=3e-3, every=10))
    monkeypatch.setattr(probe_tasks, "DENSE", Schedule(steps=40, batch=16, lr=1e-1, every=20))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


def evidence_of(name: str, data: ProbeData, truth: Truth | None = None) -> Evidence:
    parts = [encode_part(looker, data, quiet) for looker in SUBJECTS[name]().lookers]
    readout = ReadOut("s2", parts, {"train": data.train.count, "test": data.test.count})
    return Evidence(readout, truth or data.train.truth, data.odd, torch.device("cpu"))


def run(config: ProbeConfig, scenes: Path, out: Path) -> dict[str, Any]:
    return probe(config, scenes, out, lambda label: quiet, 1)


def scores_of(result: dict[str, Any], measure: str) -> dict[tuple[str, str], float]:
    return {(row["encoder"], row["readout"]): row["scores"][measure]["value"] for row in result["rows"]}


# -- what it finds ---------------------------------------------------------------------------------------------------


def test_finds_what_features_hold_and_nothing_in_those_of_other_scenes(scenes: Path, tmp_path: Path) -> None:
    probes = ("position", "segmentation", "depth", "contact")
    result = run(dataclasses.replace(CONFIG, readouts=("base", "finest"), probes=probes), scenes, tmp_path)
    least = dict.fromkeys(("position/softmax", "position/map", "segmentation/miou", "contact/map"), 0.2)
    least["depth/rmse"] = 0.04  # squares do not sit on the grid
    for measure, share in least.items():
        blind, higher = result["blind"][measure], MEASURES[measure].higher_is_better
        for (name, readout), value in scores_of(result, measure).items():
            better = (value - blind if higher else blind - value) / blind
            assert (better > share) == (name == "see"), (measure, name, readout, value, blind)
    differences = [found for found in result["differences"] if found["b"] == ["see", "base"]]
    against = {(*found["a"], found["measure"]): found for found in differences}
    for measure in least:
        found = against["blind", "base", measure]
        assert found["resolved"] and (found["difference"] < 0) == MEASURES[measure].higher_is_better
    assert not against["see", "finest", "contact/map"]["resolved"]  # either knows all
    across = [
        found for found in result["differences"] if (found["a"], found["b"]) == (["see", "finest"], ["blind", "base"])
    ]
    assert {found["measure"] for found in across} > set(least) and all(
        (found["difference"] > 0) == MEASURES[found["measure"]].higher_is_better
        for found in across
        if found["measure"] in least
    )
    row = result["rows"][1]
    assert (row["readout"], row["channels"], row["grid"], row["sizes"]) == ("finest", 14, [16, 16], [64, 128])
    assert row["iou"]["table"] > 0.5 and row["iou"]["arm"] is None
    score = row["scores"]["position/softmax"]
    assert score["low"] < score["value"] < score["high"] and (score["n"], score["seeds"]) == (40, 2)
    assert json.loads((tmp_path / "probe.json").read_text())["data_fingerprint"] == result["data_fingerprint"]


def test_blind_answers_are_the_best_without_an_image(scenes: Path) -> None:
    data = load_data(SCENES, scenes, quiet, 1)
    answers = probe_tasks.blind(data.train.truth, 40)
    assert answers.keys() == PROBES.keys()
    np.testing.assert_allclose(answers["position"]["cls"][5], data.train.truth.cubes.mean(axis=0))
    assert answers["segmentation"]["labels"].shape == (40, 2, 64, 64)
    assert (answers["segmentation"]["labels"][:, 1] == 0).all()
    assert answers["depth"]["depth"][0, 0, 0, 63] == 2.0
    assert (answers["shape"]["map"] == np.bincount(data.train.truth.shape).argmax()).all()


# -- honesty ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBES)
def test_test_truth_is_never_used_to_fit(
    name: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are the same whatever the test scenes' truth is; and they do follow the training scenes' truth."""
    data = load_data(SCENES, scenes, quiet, 1)
    plain = PROBES[name](evidence_of("see", data), 0)
    poisoned = load_data(SCENES, scenes, quiet, 1)
    turned = {key: value[::-1].copy() for key, value in vars(poisoned.test.truth).items()}
    monkeypatch.setitem(poisoned.test.__dict__, "truth", dataclasses.replace(poisoned.test.truth, **turned))
    monkeypatch.setattr(probing, "load_data", lambda *_: poisoned)
    judged, scored = probing._judged, []

    def spy(fitted: probe_tasks.Fitted, *more: Any) -> dict[str, Any]:
        scored.append(fitted)
        return judged(fitted, *more)

    monkeypatch.setattr(probing, "_judged", spy)
    asked = dataclasses.replace(CONFIG, encoders=("see",), probes=(name,), readouts=("s2",), seeds=1)
    run(asked, scenes, tmp_path)  # the whole of it, not the probe alone
    (found,) = scored
    assert found.chosen == plain.chosen
    for kind, answer in plain.answers.items():
        np.testing.assert_array_equal(answer, found.answers[kind])
    other = dataclasses.replace(
        data.train.truth, **{key: value[::-1].copy() for key, value in vars(data.train.truth).items()}
    )
    changed = PROBES[name](evidence_of("see", data, other), 0)
    assert any((answer != changed.answers[kind]).any() for kind, answer in plain.answers.items())


@pytest.mark.parametrize("name", ["position", "segmentation"])
def test_test_features_are_never_used_to_fit(name: str, scenes: Path, tmp_path: Path) -> None:
    """The first ten test scenes are answered alike whichever scenes come after them."""
    few = load_data(dataclasses.replace(SCENES, test=10), scenes, quiet, 1)
    many = load_data(SCENES, scenes, quiet, 1)
    one, two = (PROBES[name](evidence_of("see", data), 1) for data in (few, many))
    assert one.chosen == two.chosen
    for kind, answer in one.answers.items():
        np.testing.assert_allclose(answer, two.answers[kind][:10], atol=1e-5)


@pytest.mark.parametrize("count", [10, 15, 1400])
def test_validation_is_a_tenth_of_the_training_scenes_and_the_seed_draws_it(count: int) -> None:
    fit, valid = divide(count, 0)
    assert sorted([*fit.tolist(), *valid.tolist()]) == list(range(count))
    assert len(valid) == max(1, count // 10)
    assert torch.equal(divide(count, 0)[1], valid)
    assert any(not torch.equal(divide(count, seed)[1], valid) for seed in (1, 2, 3))


def test_what_validation_chooses_by_is_not_fitted_on(scenes: Path) -> None:
    """Poisoned validation truth changes what is chosen, not what ridge of one strength is fitted to."""
    data = load_data(SCENES, scenes, quiet, 1)
    _, valid = divide(120, 0)
    cubes = data.train.truth.cubes.copy()
    cubes[valid.numpy()] = 5.0
    poisoned = dataclasses.replace(data.train.truth, cubes=cubes)
    found = PROBES["position"](evidence_of("see", data, poisoned), 0).answers["map"]
    assert np.abs(found).max() < 1.0


# -- the same again --------------------------------------------------------------------------------------------------


def test_same_seed_same_numbers_and_seeds_differ(scenes: Path) -> None:
    data = load_data(SCENES, scenes, quiet, 1)
    for name in ("position", "segmentation"):
        one, two, other = (PROBES[name](evidence_of("see", data), seed) for seed in (0, 0, 1))
        for kind, answer in one.answers.items():
            np.testing.assert_array_equal(answer, two.answers[kind])
        assert any((answer != other.answers[kind]).any() for kind, answer in one.answers.items())


def test_a_killed_run_goes_on_with_the_same_journal(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, probes=("position", "contact"), readouts=("base", "s2"))
    whole = run(config, scenes, tmp_path / "whole")
    calls: list[str] = []
    real = PROBES["contact"]

    def fails_at_last(evidence: Evidence, seed: int) -> Any:
        calls.append(evidence.readout.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(evidence, seed)

    monkeypatch.setitem(PROBES, "contact", fails_at_last)
    with pytest.raises(KeyboardInterrupt):
        run(config, scenes, tmp_path / "killed")
    killed = read_jsonl(tmp_path / "killed" / "scores.jsonl")
    assert 0 < len(killed) < 16 and len(calls) == 4
    resumed = run(config, scenes, tmp_path / "killed")
    assert len(calls) == 4 + 5  # four of the other encoder, and the one that was stopped
    assert (tmp_path / "killed" / "scores.jsonl").read_bytes() == (tmp_path / "whole" / "scores.jsonl").read_bytes()
    assert [row["scores"] for row in resumed["rows"]] == [row["scores"] for row in whole["rows"]]
    run(config, scenes, tmp_path / "killed")
    assert len(calls) == 9


def test_the_journal_knows_an_encoder_by_its_features_not_by_its_name(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, encoders=("see",), probes=("contact",), readouts=("base",), seeds=1)
    run(config, scenes, tmp_path)
    lines = len(read_jsonl(tmp_path / "scores.jsonl"))
    monkeypatch.setitem(SUBJECTS, "alias", lambda: dataclasses.replace(SUBJECTS["see"](), label="alias"))
    result = run(dataclasses.replace(config, encoders=("alias",)), scenes, tmp_path)
    assert len(read_jsonl(tmp_path / "scores.jsonl")) == lines == 1
    assert result["rows"][0]["encoder"] == "alias"
    monkeypatch.setitem(SUBJECTS, "other", lambda: subject("other", Averager(8, version="2")))
    for change in ({"encoders": ("other",)}, {"seeds": 2}, {"scenes": dataclasses.replace(SCENES, test=30)}):
        before = len(read_jsonl(tmp_path / "scores.jsonl"))
        run(dataclasses.replace(config, **change), scenes, tmp_path)
        assert len(read_jsonl(tmp_path / "scores.jsonl")) == before + 1


# -- wrong usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"probes": ("positoin",)}, UnknownName, "Did you mean 'position'"),
        ({"readouts": ("bsae",)}, UnknownName, "Did you mean 'base'"),
        ({"encoders": ("random", "random")}, InvalidInput, "each once"),
        ({"probes": ()}, InvalidInput, "one or more"),
        ({"seeds": 0}, InvalidInput, "1 or more"),
        ({"scales": (2.0, 1.0)}, InvalidInput, "coarse first"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(settings: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ProbeConfig(**settings)


def test_a_torn_journal_is_mended_and_a_foreign_one_named(scenes: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, encoders=("see",), probes=("contact",), readouts=("base",), seeds=1)
    run(config, scenes, tmp_path)
    journal = tmp_path / "scores.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[: len(whole) // 2])
    run(config, scenes, tmp_path)
    assert journal.read_bytes() == whole
    journal.write_text("not a journal\n")
    with pytest.raises(CorruptFile, match="line 1 is not a JSON object"):
        run(config, scenes, tmp_path)


# -- the verb --------------------------------------------------------------------------------------------------------

WORDS = ["probe", "--encoders", "see,blind", "--train", "120", "--test", "40", "--scenes.frame_size", "64",
         "--seeds", "1", "--readouts", "base,finest", "--workers", "1"]  # fmt: skip


def test_verb_tells_people_in_tables_and_programs_in_json(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "--data", str(scenes), "--out", str(tmp_path), "--probes", "position,segmentation"]
    assert cli.main(words) == 0
    told = " ".join(capsys.readouterr().out.split())
    for part in ("position of four cubes", "segmentation of both views", "see", "finest", "without an image",
                 "resolved", "against see", "see with finest less blind with base: -", "scored on 40 others",
                 "1 seeds"):  # fmt: skip
        assert part in told
    assert (tmp_path / "probe.svg").read_text().startswith("<svg")
    assert cli.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == files.read_json(tmp_path / "probe.json")
    about = {"command", "config", "n", "data_fingerprint", "machine", "versions", "git"}
    assert result.keys() == about | {"rows", "blind", "differences"}
    assert result["command"].startswith("s2robot probe --encoders see,blind --train 120")


def test_a_count_that_is_no_number_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = SimpleNamespace(name="depth/rmse", answer="a", count=lambda *_: np.array([[1.0, np.nan]]))
    monkeypatch.setattr(probing, "measures_of", lambda name: [measure])
    fitted, data = SimpleNamespace(answers={"a": 0}, chosen=None), SimpleNamespace(test=SimpleNamespace(truth=None))
    with pytest.raises(S2RobotError, match="no number for depth/rmse"):
        probing._judged(fitted, "depth", data)  # type: ignore[arg-type]


def test_weights_are_called_by_name_unless_that_is_anothers_too() -> None:
    result = {"config": {"encoders": ["mine=a.safetensors", "s2robot-tiny", "s2robot-tiny=b.safetensors"]}}
    called = [probe_tables.called(each, result) for each in result["config"]["encoders"]]
    assert called == ["mine", "s2robot-tiny", "s2robot-tiny=b.safetensors"]


def test_quick_asks_less_but_for_what_is_said_besides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[ProbeConfig] = []

    def spy(config: ProbeConfig, *_: object) -> Any:
        asked.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("s2robot.probe_verb.probe", spy)
    assert cli.main(["probe", "--quick"]) == 1
    assert cli.main(["probe", "--quick", "--test", "50", "--probes", "depth"]) == 1
    assert cli.main(["probe"]) == 1
    quick, changed, plain = asked
    assert (quick.probes, quick.scenes.train, quick.scenes.test) == (("position", "segmentation"), 300, 100)
    assert (changed.probes, changed.scenes.train, changed.scenes.test) == (("depth",), 300, 50)
    assert plain == ProbeConfig() and (plain.scenes.train, plain.scenes.test, plain.seeds) == (1400, 400, 3)


@pytest.mark.parametrize(("words", "says"), [
    (["clasify"], "Did you mean 'classify'"),
    (["--probes", "positoin"], "Did you mean 'position'"),
    (["--encoders", "s2robot-tyni"], "Did you mean 's2robot-tiny'"),
    (["--encoders", "mine=nowhere.pth"], "No weights file"),
    (["--train", "5"], "10 or more"),
    (["--sceens.seed", "1"], "Did you mean '--scenes.seed'"),
    (["--scales", "0.3"], "Scale 0.3 of 128 px"),
], ids=str)  # fmt: skip
def test_wrong_usage_is_one_line_and_nothing_is_rendered(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["probe", *words]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.strip().count("\n") == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sim
def test_real_scenes_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("robosuite")
    monkeypatch.undo()
    for name, steps in (("SPATIAL", 4), ("RECOGNISE", 4), ("DENSE", 2)):
        monkeypatch.setattr(probe_tasks, name, Schedule(steps=steps, batch=4, lr=1e-2, every=2))
    words = ["probe", "--encoders", "s2robot-tiny,random", "--train", "10", "--test", "4", "--seeds", "2", "--json"]
    words += ["--engine", "torch", "--data", str(tmp_path / "scenes"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert cli.main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["encoder"], row["readout"]) for row in result["rows"]] == [
        (name, readout) for name in ("s2robot-tiny", "random") for readout in ("base", "s2", "finest")
    ]
    assert [row["grid"] for row in result["rows"][:3]] == [[8, 8], [8, 8], [16, 16]]
    for row in result["rows"]:
        assert all(np.isfinite([score["value"], score["low"], score["high"]]).all() for score in row["scores"].values())
        assert 0 < row["scores"]["position/softmax"]["value"] < 60
