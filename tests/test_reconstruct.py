"""The linear map between two encoders' features, against numpy's own least squares and against what must hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_runs import some_frames

from s2robot import cli
from s2robot.errors import InvalidInput, UnknownName
from s2robot.footage import save_frames
from s2robot.linear_map import TokenSums, errors, information
from s2robot.reconstruct import ReconstructConfig, _frames, reconstruct

RNG = np.random.default_rng(0)
X, NOISE = RNG.normal(size=(400, 5)), RNG.normal(size=(400, 3))
Y = X @ RNG.normal(size=(5, 3)) + 2 + 0.3 * NOISE


def sums(x: np.ndarray, y: np.ndarray, batch: int = 400) -> TokenSums:
    found = TokenSums(x.shape[1], y.shape[1])
    for start in range(0, len(x), batch):
        found.add(x[start : start + batch], y[start : start + batch])
    return found


def test_it_is_least_squares_whatever_the_batches() -> None:
    with_one = np.concatenate([X, np.ones((400, 1))], axis=1)
    theirs = np.linalg.lstsq(with_one, Y, rcond=None)[0]
    for batch in (7, 400):
        mine = sums(X, Y, batch)
        assert np.allclose(mine.solve(), theirs, atol=1e-5)
        assert mine.loss(theirs) == pytest.approx(((Y - with_one @ theirs) ** 2).mean())
    assert errors(theirs, X, Y).mean() == pytest.approx(mine.loss(theirs))


def test_the_constant_is_the_mean_and_knows_nothing() -> None:
    found = sums(X, Y)
    assert found.loss(found.constant()) == pytest.approx(Y.var(axis=0).mean())
    assert information(found.loss(found.constant()), found.loss(found.constant())) == 0
    assert information(found.loss(found.solve()), found.loss(found.constant())) > 1


def test_noise_is_explained_by_nothing_and_more_channels_never_fit_worse() -> None:
    noise = sums(NOISE, RNG.normal(size=(400, 3)))
    assert information(noise.loss(noise.solve()), noise.loss(noise.constant())) < 0.05
    few, many = sums(X[:, :2], Y), sums(X, Y)
    assert many.loss(many.solve()) < few.loss(few.solve())


def test_channels_that_say_the_same_twice_are_no_trouble() -> None:
    twice = sums(np.concatenate([X, X], axis=1), Y)
    once = sums(X, Y)
    assert twice.loss(twice.solve()) == pytest.approx(once.loss(once.solve()), rel=1e-4)


@pytest.mark.parametrize("x", [X[:3], X[0], np.full((400, 5), np.nan)])
def test_what_are_no_pairs_of_tokens_is_refused(x: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match="Features"):
        TokenSums(5, 3).add(x, Y)


def test_the_verb_compares_scales_and_a_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_frames(tmp_path / "frames.npy", [some_frames(40, 256)], 40, 256)
    words = ["probe", "reconstruct", "--source", str(tmp_path / "frames.npy"), "--out", str(tmp_path / "out")]
    words += ["--large", "s2robot-tiny:random", "--bound", "s2robot-tiny:random", "--engine", "torch", "--json"]
    assert cli.main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "reconstruct.json").read_text())["rows"] == result["rows"]
    base, s2, bound = result["rows"]
    assert (base["channels"], s2["channels"]) == (192, 384) and result["frames"] == {"train": 32, "test": 8}
    assert s2["train"]["loss"] <= base["train"]["loss"]  # base's channels are among S2's
    # The bound is the target itself here: it explains all of it.
    assert bound["train"]["information"] > 2 * s2["train"]["information"] and bound["test"]["ratio"] == 1
    assert 0 < base["train"]["ratio"] < s2["train"]["ratio"] < 1
    assert base["test"]["low"] <= base["test"]["information"] <= base["test"]["high"]


def test_frames_of_another_source_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    found = []
    for shade in (10, 200):
        folder = tmp_path / f"of {shade}"
        folder.mkdir()
        for k in range(30):
            Image.new("RGB", (32, 32), (shade,) * 3).save(folder / f"{k}.png")
        config = ReconstructConfig(large="s2robot-tiny", source=str(folder), frames=30, frame_size=256, test=0.99)
        frames, held_out = _frames(config, tmp_path / "out", lambda done, total, note: None)
        found.append(frames.mean())
        assert held_out == len(frames) - 1  # one is left to fit
    assert found == [10, 200]


def test_frames_of_any_size_are_looked_at_at_the_base_scale(tmp_path: Path) -> None:
    save_frames(tmp_path / "frames.npy", [some_frames(40, 128)], 40, 128)
    settings: dict[str, Any] = {"frame_size": 128, "scales": (1.0,), "engine": "torch"}
    config = ReconstructConfig(large="s2robot-tiny:random", source=str(tmp_path / "frames.npy"), **settings)
    found = reconstruct(config, tmp_path / "out", lambda done, total, note: None)
    assert [row["channels"] for row in found["rows"]] == [192]


@pytest.mark.parametrize(("wrong", "says"), [({"large": "vit-bsae"}, "vit-base"), ({"scales": (2.0, 1.0)}, "coarse")])
def test_what_is_not_there_is_said_before_frames_are_gathered(wrong: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for k in range(20):
        Image.new("RGB", (32, 32), (k,) * 3).save(tmp_path / "in" / f"{k}.png")
    config = ReconstructConfig(**{"large": "s2robot-tiny:random", "source": str(tmp_path / "in"), **wrong})
    with pytest.raises((InvalidInput, UnknownName), match=says):
        reconstruct(config, tmp_path / "out", lambda done, total, note: None)
    assert not (tmp_path / "out").exists()


def test_frames_that_came_later_are_looked_at(tmp_path: Path) -> None:
    config = ReconstructConfig(large="s2robot-tiny", source=str(tmp_path / "in"), frames=60, frame_size=256)
    (tmp_path / "in").mkdir()
    counts = []
    for part in range(2):
        for k in range(25):
            Image.new("RGB", (32, 32), (k,) * 3).save(tmp_path / "in" / f"{part}-{k}.png")
        frames, _ = _frames(config, tmp_path / "out", lambda done, total, note: None)
        counts.append(len(frames))
    assert counts == [25, 50]


def test_the_verb_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe", "reconstruct", "--small", "s2robot-tiny"]) == 2
    assert "--large" in capsys.readouterr().err
    assert cli.main(["probe", "reconstruct", "--large", "vit-bsae", "--source", "nowhere"]) == 2
