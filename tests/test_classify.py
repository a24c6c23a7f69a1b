"""Classifiers on folders of images: what is divided, what is found, what is left out, and the verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_scenes import Averager, quiet, subject

from s2robot import classify as classifying
from s2robot import cli, files, image_vectors
from s2robot.classify import ClassifyConfig, classify
from s2robot.errors import CorruptFile, InvalidInput
from s2robot.labelled import find_labelled
from s2robot.statistics import wilson

COLOURS = {"green": (40, 200, 40), "grey": (120, 120, 120), "red": (200, 40, 40)}
EACH = 20  # images of a class
SUBJECTS = {
    "see": (Averager(4), Averager(8)),
    "blind": (Averager(4, blind=True), Averager(8, blind=True)),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifying, "find_subject", lambda name, config: subject(name, *SUBJECTS[name]))
    monkeypatch.setattr(image_vectors, "PIECE", 16)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Sixty of three colours, of various sizes and modes, divided by class alone."""
    for name in COLOURS:
        fill(tmp_path / "photos" / name, name, EACH)
    return tmp_path / "photos"


def fill(folder: Path, colour: str, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((len(colour), count))
    for k in range(count):
        height, width = rng.integers(20, 60, 2)
        noisy = np.array(COLOURS[colour]) + rng.normal(0, 30, (height, width, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{k}.{('png', 'jpg')[k % 2]}")


def run(photos: Path, out: Path, *encoders: str, **settings: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"encoders": encoders or ("see",), "frame_size": 32, "test": 0.25, **settings}
    return classify(ClassifyConfig(source=str(photos), **asked), out, lambda label: quiet)


def accuracy(result: dict[str, Any], head: str = "mean") -> dict[tuple[str, str], float]:
    return {(row["encoder"], row["readout"]): row["scores"][head]["value"] for row in result["rows"]}


# -- what it finds ---------------------------------------------------------------------------------------------------


def test_colours_are_found_by_who_sees_and_not_by_who_does_not(photos: Path, tmp_path: Path) -> None:
    result = run(photos, tmp_path / "out", "see", "blind")
    assert result["classes"] == ["green", "grey", "red"] and result["n"] == {"train": 45, "test": 15}
    for head in ("mean", "cls"):
        found = accuracy(result, head)
        assert found["see", "base"] == found["see", "s2"] == 1 and found["blind", "s2"] < 0.7
    score = result["rows"][0]["scores"]["mean"]  # 15 of 15 right is no certainty
    assert (score["low"], score["high"]) == pytest.approx(wilson(15, 15)) and score["low"] < 0.8
    assert result["commonest"] == pytest.approx(1 / 3)
    (less,) = [each for each in result["differences"] if each["a"] == ["blind", "s2"] and each["b"] == ["see", "s2"]
               and each["measure"] == "mean"]  # fmt: skip
    assert less["resolved"] and less["difference"] == pytest.approx(accuracy(result)["blind", "s2"] - 1)
    blind = result["rows"][-1]
    wrong = sum(each["times"] for each in blind["mistaken"])
    assert 0 < wrong <= round(3 * 15 * (1 - blind["scores"]["mean"]["value"])) and not result["rows"][0]["mistaken"]


def test_what_is_right_in_the_test_decides_the_score_and_nothing_else(photos: Path, tmp_path: Path) -> None:
    for name in COLOURS:
        fill(tmp_path / "divided" / "train" / name, name, 12)
        fill(tmp_path / "divided" / "test" / name, name, 5)
    right = run(tmp_path / "divided", tmp_path / "out")
    moved = tmp_path / "divided" / "test"
    (moved / "red").rename(moved / "other")
    (moved / "green").rename(moved / "red")
    (moved / "other").rename(moved / "green")
    wrong = run(tmp_path / "divided", tmp_path / "out")
    assert accuracy(right)["see", "s2"] == 1
    assert accuracy(wrong)["see", "s2"] == pytest.approx(1 / 3)  # grey is where it was
    named = {(each["true"], each["answered"]) for each in wrong["rows"][0]["mistaken"]}
    assert named == {("red", "green"), ("green", "red")}


def test_s2_has_the_channels_of_both_scales(photos: Path, tmp_path: Path) -> None:
    base, s2 = run(photos, tmp_path / "out")["rows"]
    assert s2["channels"] == {head: 2 * n for head, n in base["channels"].items()}
    assert (len(base["sizes"]), len(s2["sizes"])) == (1, 2)


# -- how images are divided ------------------------------------------------------------------------------------------


def test_every_class_is_in_both_parts_and_no_image_is(photos: Path) -> None:
    found = find_labelled(photos, 0.25, seed=0)
    train, test = found.labels[: found.train], found.labels[found.train :]
    assert np.bincount(train).tolist() == [15, 15, 15] and np.bincount(test).tolist() == [5, 5, 5]
    assert len(set(found.paths)) == len(found.paths) == 60
    assert all(path.parts[0] == found.classes[label] for path, label in zip(found.paths, found.labels, strict=True))
    again, other = find_labelled(photos, 0.25, seed=0), find_labelled(photos, 0.25, seed=1)
    assert again.paths == found.paths and set(other.paths[45:]) != set(found.paths[45:])


def test_however_many_are_tested_on_one_of_each_class_is_left(tmp_path: Path) -> None:
    for name in COLOURS:
        fill(tmp_path / name, name, 2)
    found = find_labelled(tmp_path, 0.99, seed=0)
    assert np.bincount(found.labels[: found.train]).tolist() == [1, 1, 1] and len(found.paths) == 6


@pytest.mark.parametrize("test", ["test", "val", "valid"])
def test_a_folder_that_is_divided_stays_so(test: str, tmp_path: Path) -> None:
    fill(tmp_path / "train" / "red", "red", 4)
    fill(tmp_path / "train" / "grey" / "of many", "grey", 3)
    fill(tmp_path / test / "grey", "grey", 2)
    found = find_labelled(tmp_path, 0.9, seed=0)
    assert found.classes == ("grey", "red") and found.train == 7
    assert {path.parts[0] for path in found.paths[7:]} == {test} and len(found.paths) == 9


def _none(root: Path) -> None:
    root.rmdir()


def _one_class(root: Path) -> None:
    fill(root / "red", "red", 4)


def _no_test(root: Path) -> None:
    fill(root / "train" / "red", "red", 2)
    fill(root / "train" / "grey", "grey", 2)


def _strange(root: Path) -> None:
    _no_test(root)
    fill(root / "test" / "green", "green", 2)


def _two_tests(root: Path) -> None:
    _no_test(root)
    fill(root / "test" / "red", "red", 2)
    fill(root / "val" / "red", "red", 2)


def _single(root: Path) -> None:
    fill(root / "red", "red", 4)
    fill(root / "grey", "grey", 1)


def _empty_test(root: Path) -> None:
    _no_test(root)
    (root / "test" / "red").mkdir(parents=True)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_none, "No folder"),
        (_one_class, "1 of"),
        (_no_test, "a folder of images for each class"),
        (_strange, "classes that train has not: green"),
        (_two_tests, r"2 parts to test on \(test, val\)"),
        (_single, "grey has one image"),
        (_empty_test, "2 of 4 and 0 images"),
    ],
)
def test_folders_that_cannot_be_examined_are_refused(make: Any, says: str, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    make(root)
    with pytest.raises(InvalidInput, match=says):
        find_labelled(root, 0.25, seed=0)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seeds": 0}, {"frame_size": -1}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=f"{next(iter(wrong))} {'is ' if 'seeds' in wrong else ''}-?[01]"):
        ClassifyConfig(source="somewhere", **wrong)


# -- what is damaged or changed --------------------------------------------------------------------------------------


def test_a_class_may_be_called_valid(tmp_path: Path) -> None:
    fill(tmp_path / "valid", "red", 3)
    fill(tmp_path / "invalid", "grey", 3)
    assert find_labelled(tmp_path, 0.3, 0).classes == ("invalid", "valid")


def test_what_cannot_be_read_is_left_out_and_named(photos: Path, tmp_path: Path) -> None:
    whole = run(photos, tmp_path / "whole")
    bad = find_labelled(photos, 0.25, seed=0).paths[0]
    (photos / bad).write_bytes((photos / bad).read_bytes()[:60])
    result = run(photos, tmp_path / "out")
    assert result["skipped"] == [str(bad)] and not whole["skipped"]
    assert result["n"] == {"train": 44, "test": 15} and accuracy(result)["see", "s2"] == 1


def test_what_is_mended_is_read_again_and_nobody_is_scored_on_what_another_could_not_read(
    photos: Path, tmp_path: Path
) -> None:
    bad = photos / find_labelled(photos, 0.25, seed=0).paths[-1]
    beside = bad.with_name(f"{bad.name}.sha256")
    beside.write_text(f"{'0' * 64}  {bad.name}\n")
    first = run(photos, tmp_path / "out", "blind")
    assert first["n"]["test"] == 14 and len(first["skipped"]) == 1
    beside.unlink()
    both = run(photos, tmp_path / "out", "see", "blind")
    assert both["n"]["test"] == 15 and not both["skipped"] and accuracy(both)["see", "s2"] == 1
    assert all(row["scores"]["mean"]["n"] == 15 for row in both["rows"])


def test_an_image_lost_on_the_way_counts_for_nobody(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, read = photos / find_labelled(photos, 0.25, seed=0).paths[-1], image_vectors._read
    before = SUBJECTS["see"][1].frames_seen

    def until_the_second_encoder(path: Path) -> Any:
        return None if path == lost and SUBJECTS["see"][1].frames_seen - before == 60 else read(path)

    monkeypatch.setattr(image_vectors, "_read", until_the_second_encoder)
    result = run(photos, tmp_path / "out", "see", "blind")
    assert {row["scores"]["mean"]["n"] for row in result["rows"]} == {14} and len(result["skipped"]) == 1


def test_what_stays_unreadable_is_not_encoded_again_and_again(photos: Path, tmp_path: Path) -> None:
    (photos / "red" / "torn.png").write_bytes(b"torn")
    first, seen = run(photos, tmp_path / "out"), SUBJECTS["see"][0].frames_seen
    assert run(photos, tmp_path / "out") == first and SUBJECTS["see"][0].frames_seen == seen


def test_a_class_of_which_nothing_can_be_read_is_refused(photos: Path, tmp_path: Path) -> None:
    for path in (photos / "red").iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(InvalidInput, match="No image of red can be read"):
        run(photos, tmp_path / "out")


def test_a_run_goes_on_where_it_was_and_takes_nothing_stale(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, saved = image_vectors.save_records, []

    def die_at_the_third(path: Path, records: Any) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        kept(path, records)

    monkeypatch.setattr(image_vectors, "save_records", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "out")
    monkeypatch.setattr(image_vectors, "save_records", kept)
    before = SUBJECTS["see"][0].frames_seen
    first = run(photos, tmp_path / "out")
    assert SUBJECTS["see"][0].frames_seen - before == 60 - 2 * 16
    assert run(photos, tmp_path / "out") == first
    assert SUBJECTS["see"][0].frames_seen - before == 60 - 2 * 16
    swapped = find_labelled(photos, 0.25, seed=0).paths[-1]
    Image.new("RGB", (32, 32), COLOURS["green"]).save(photos / swapped)
    changed = run(photos, tmp_path / "out")
    assert SUBJECTS["see"][0].frames_seen - before == 2 * 60 - 2 * 16
    assert accuracy(changed)["see", "s2"] == pytest.approx(14 / 15)


def test_a_damaged_piece_is_said_and_not_read(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out")
    piece = sorted((tmp_path / "out" / "features").rglob("*.npy"))[0]
    piece.write_bytes(piece.read_bytes()[:-40])
    with pytest.raises(CorruptFile, match="Delete it"):
        run(photos, tmp_path / "out")


# -- the verb --------------------------------------------------------------------------------------------------------


def test_the_verb_tells_people_in_a_table_and_programs_in_json(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["probe", "classify", "--source", str(photos), "--encoders", "see,blind", "--out", str(tmp_path / "out")]
    words += ["--frame_size", "32", "--seeds", "2"]
    (photos / "red" / "bad.png").write_bytes(b"")
    assert cli.main(words) == 0
    told = " ".join(capsys.readouterr().out.split())
    for part in ("3 classes", "see base 1.000", "against see", "the commonest class", "2 seeds", "resolved",
                 "see with s2 less blind with base: +", "1 images could not be read, the first: red/bad"):  # fmt: skip
        assert part in told, (part, told)
    assert cli.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == files.read_json(tmp_path / "out" / "classify.json")
    assert result["command"].startswith("s2robot probe classify --source")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--source FOLDER"),
        (["--source", "nowhere"], "No folder 'nowhere'"),
        (["--source", "x", "--test", "1.5"], "between 0 and 1"),
        (["--source", "x", "--encoders", "see,see"], "each once"),
        (["--source", "x", "--scales", "2,1"], "scales"),
    ],
)
def test_the_verb_says_what_is_wrong(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe", "classify", *words]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
