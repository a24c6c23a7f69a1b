"""The recipe: wrong numbers are named, a run goes on with its own recipe only, the shipped one is kept."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from s2robot import config, files
from s2robot.errors import InvalidInput, S2RobotError, UnknownName
from s2robot.recipe import PretrainConfig, check_same, keep_recipe
from s2robot.schedule import learning_rate


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"objective": "mergd"}, "Did you mean 'merged'"),
        ({"target": "normalized"}, "Did you mean 'normalised'"),
        ({"precision": "fp16"}, "fp32"),
        ({"scales": (2, 1)}, "1 first"),
        ({"scales": (1, 2, 3)}, "e.g. 384"),
        ({"frame_size": 128}, "e.g. 256"),
        ({"image_size": 120}, "not a multiple of --patch 16"),
        ({"width": 100}, "multiple of --heads 3"),
        ({"decoder_width": 42}, "--decoder_width 42"),
        ({"mask_ratio": 1.0}, "less than 1"),
        ({"mask_ratio": 0.999}, "hides all 64"),
        ({"mask_ratio": 0.001}, "or none"),
        ({"objective": "merged", "image_size": 64, "mask_ratio": 0.1}, "visible and hidden ones"),
        ({"clip": -1.0}, "--clip -1"),
        ({"warmup": 2.0}, "--warmup 2"),
        ({"seed": -1}, "--seed -1"),
        ({"lr": 0.0}, "--lr 0"),
        ({"ema": 1.0}, "below 1"),
        ({"accumulate": 3}, "3 equal parts"),
        ({"steps": 0}, "at least 1"),
        ({"frames": 1}, "--frames is 1; expected 2"),
        ({"whole_share": -1.0}, "shares"),
        ({"objective": "merged", "scales": (1, 3), "frame_size": 384}, "3x3 blocks"),
    ],
)
def test_a_wrong_number_is_named(wrong: dict[str, object], said: str) -> None:
    with pytest.raises((InvalidInput, UnknownName)) as error:
        PretrainConfig(**wrong)  # type: ignore[arg-type]
    assert said in str(error.value)


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine_to_zero() -> None:
    recipe = PretrainConfig(steps=100, warmup=0.1, lr=1.0)
    rates = [learning_rate(recipe, step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("change", [{"steps": 24}, {"width": 96}, {"scales": (1,)}, {"ema": 0.0}, {"lr": 1e-3}])
def test_another_recipe_is_refused_with_what_differs(change: dict[str, object], tmp_path: Path) -> None:
    recipe = PretrainConfig(steps=12)
    keep_recipe(replace(recipe, source="a folder that is not there"), tmp_path)
    keep_recipe(recipe, tmp_path)  # nothing was made yet: the mistake is mended
    (tmp_path / "frames.parts").mkdir()
    keep_recipe(recipe, tmp_path)
    (key,) = change
    with pytest.raises(S2RobotError, match=f"{key} .* -> "):
        keep_recipe(replace(recipe, **change), tmp_path)  # type: ignore[arg-type]


def test_how_a_run_is_carried_out_may_change(tmp_path: Path) -> None:
    recipe = PretrainConfig()
    keep_recipe(recipe, tmp_path)
    (tmp_path / "state.pt").touch()
    keep_recipe(replace(recipe, workers=3, device="cpu", threads=2, accumulate=2, checkpoint_every=7), tmp_path)


def test_an_option_younger_than_the_run_had_its_default(tmp_path: Path) -> None:
    before = files.plain(asdict(PretrainConfig()))
    del before["flip"]
    check_same(PretrainConfig(), before, tmp_path)
    with pytest.raises(S2RobotError, match="flip False -> True"):
        check_same(PretrainConfig(flip=True), before, tmp_path)


def test_the_shipped_recipe_is_what_made_the_weights() -> None:
    recipe = config.load(PretrainConfig, "pretrain-tiny")
    assert (recipe.name, recipe.steps, recipe.ema, recipe.threads) == ("s2robot-tiny", 4000, 0.0, 1)
    assert (recipe.objective, recipe.target, recipe.scales) == ("views", "raw", (1, 2))
    assert (recipe.frames, recipe.frame_size, recipe.batch, recipe.seed) == (12_000, 256, 64, 0)
    assert (recipe.whole_share, recipe.tile_share, recipe.crop_share, recipe.flip) == (0.4, 0.4, 0.2, False)


def test_scales_from_the_command_line() -> None:
    words = ["--scales", "1,2,3", "--frame_size", "384", "--ema", "0"]
    assert config.load(PretrainConfig, None, words).scales == (1, 2, 3)


def test_unknown_scenes_are_said_before_anything_is_rendered() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'workspace'"):
        PretrainConfig(scenes="workspce")
