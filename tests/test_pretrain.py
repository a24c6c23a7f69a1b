"""Pre-training: a killed run ends as an unbroken one, to the bit; what is wrong stops it and harms nothing."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_runs import TINY, folder_with_frames, some_frames

from s2robot import files, pretrain, pretrain_state
from s2robot.backbones import load_backbone
from s2robot.errors import CorruptFile, OutOfSpace, S2RobotError
from s2robot.footage import Footage
from s2robot.recipe import PretrainConfig
from s2robot.schedule import learning_rate

CPU = torch.device("cpu")
MERGED = replace(TINY, objective="merged", accumulate=2, target="normalised", flip=True)
RUNS = {
    "plain": replace(TINY, ema=0.0),
    "average": TINY,
    "merged, in parts": MERGED,
    "resized, three scales": replace(TINY, scales=(1, 2, 3), frame_size=96, resized_share=0.5, accumulate=4),
    "base scale, bf16": replace(TINY, scales=(1,), precision="bf16"),
}


class Killed(Exception):
    pass


def kill_at(step: int) -> Any:
    def kill(done: int, total: int, note: str) -> None:
        if done == step:
            raise Killed

    return kill


def steps_of(state: pretrain_state.State, config: PretrainConfig, frames: np.ndarray, count: int) -> list[torch.Tensor]:
    return [
        pretrain.take_step(state, config, pretrain.draw_batch(frames, config, state.step), CPU) for _ in range(count)
    ]


@pytest.mark.parametrize("config", RUNS.values(), ids=RUNS)
def test_a_killed_run_ends_with_the_same_weights(config: PretrainConfig, tmp_path: Path) -> None:
    whole_folder, killed_folder = (folder_with_frames(tmp_path / name, config.frame_size) for name in ("a", "b"))
    whole = pretrain.pretrain(config, whole_folder)
    with pytest.raises(Killed):
        pretrain.pretrain(config, killed_folder, kill_at(8))
    resumed = pretrain.pretrain(config, killed_folder)
    assert resumed.read_bytes() == whole.read_bytes()
    states = [torch.load(folder / "state.pt", weights_only=True) for folder in (whole_folder, killed_folder)]
    for part in ("model", "average") if config.ema else ("model",):
        for key, value in states[0][part].items():
            torch.testing.assert_close(value, states[1][part][key], rtol=0, atol=0)
    logs = [files.read_jsonl(folder / "metrics.jsonl") for folder in (whole_folder, killed_folder)]
    assert [row for row in logs[0] if "valid_base" in row] == [row for row in logs[1] if "valid_base" in row]


def test_the_number_of_parts_does_not_change_the_step() -> None:
    frames = some_frames()
    whole, parts = replace(TINY, objective="merged", batch=8), replace(TINY, objective="merged", batch=8, accumulate=4)
    a, b = pretrain_state.begin(whole, CPU), pretrain_state.begin(parts, CPU)
    torch.testing.assert_close(steps_of(a, whole, frames, 3), steps_of(b, parts, frames, 3), rtol=1e-4, atol=1e-5)


def test_a_step_lowers_the_loss_of_its_own_batch() -> None:
    for recipe in RUNS.values():
        frames, config = some_frames(size=recipe.frame_size), replace(recipe, lr=1e-3, warmup=0.0, weight_decay=0.0)
        state = pretrain_state.begin(config, CPU)
        batch = pretrain.draw_batch(frames, config, 0)
        losses = [pretrain.take_step(state, config, batch, CPU)[0].item() for _ in range(6)]
        assert losses[-1] < losses[0]


def test_clipping_limits_the_gradient_and_nought_lifts_the_limit() -> None:
    """AdamW hides the length of a gradient, so plain descent shows what came through."""
    moved = {}
    for clip in (1e-3, 0.0):
        config = replace(TINY, clip=clip, ema=0.0)
        state = pretrain_state.begin(config, CPU)
        weights = list(state.model.parameters())
        state.optimizer = torch.optim.SGD([p for p in weights if p.requires_grad], lr=1.0)
        before = [p.detach().clone() for p in weights]
        norm = steps_of(state, config, some_frames(), 1)[0][1].item()
        squared = sum((a - b).square().sum() for a, b in zip(weights, before, strict=True))
        moved[clip] = (torch.as_tensor(squared).sqrt().item() / learning_rate(config, 0), norm)
    assert moved[1e-3][0] == pytest.approx(1e-3, rel=0.02)
    assert moved[0.0][0] == pytest.approx(moved[0.0][1], rel=1e-3)


def test_the_average_follows_the_weights_with_a_warm_up() -> None:
    frames, state = some_frames(), pretrain_state.begin(replace(TINY, ema=0.5), CPU)
    assert state.average is not None
    expected = None
    for count in range(12):
        steps_of(state, TINY, frames, 1)
        now = state.model.to_pixels.weight.detach().clone()
        decay = min(0.5, (1 + count) / (10 + count))
        expected = now if expected is None else decay * expected + (1 - decay) * now
        torch.testing.assert_close(state.best.to_pixels.weight, expected)
    assert not torch.equal(state.best.to_pixels.weight, state.model.to_pixels.weight)


def test_the_exported_weights_are_the_average(tmp_path: Path) -> None:
    weights = load_file(pretrain.pretrain(replace(TINY, ema=0.9), folder_with_frames(tmp_path)))
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    key = "blocks.0.attn.qkv.weight"
    torch.testing.assert_close(weights[key], saved["average"][f"module.encoder.{key}"].half(), rtol=0, atol=0)
    assert not torch.equal(weights[key], saved["model"][f"encoder.{key}"].half())


def test_validation_is_the_same_whatever_the_step_and_parts() -> None:
    frames, config = some_frames(), replace(TINY, batch=8)
    model = pretrain_state.build_model(config)
    scores = pretrain.validate(model, config, frames, CPU)
    assert list(scores) == ["base", "tile"]
    assert pretrain.validate(model, replace(config, accumulate=4), frames, CPU) == pytest.approx(scores, rel=1e-5)
    merged = replace(config, objective="merged")
    assert list(pretrain.validate(pretrain_state.build_model(merged), merged, frames, CPU)) == ["x1", "x2"]
    base = replace(config, scales=(1,))
    assert list(pretrain.validate(model, base, frames, CPU)) == ["base"]


def test_the_exported_file_loads_as_the_encoder_it_is(tmp_path: Path) -> None:
    config = PretrainConfig(name="s2robot-tiny", steps=1, batch=2, depth=6, threads=1)
    weights = pretrain.pretrain(config, folder_with_frames(tmp_path, size=256))
    backbone = load_backbone("s2robot-tiny", checkpoint=weights)
    with safe_open(weights, "pt") as file:
        about = json.loads(file.metadata()["s2robot"])
        half = file.get_tensor("blocks.0.attn.qkv.weight")
    assert about["licence"] == "MIT"
    assert about["recipe"]["steps"] == 1
    assert half.dtype == torch.float16
    _, grid = backbone(torch.randn(1, 3, 128, 128))
    assert grid.shape == (1, 192, 8, 8)


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    pretrain.pretrain(TINY, folder_with_frames(tmp_path))
    with pytest.raises(S2RobotError, match="width 24 -> 32"):
        pretrain.pretrain(replace(TINY, width=32), tmp_path)
    (tmp_path / "recipe.json").unlink()  # the state remembers it as well
    with pytest.raises(S2RobotError, match="steps 12 -> 13"):
        pretrain.pretrain(replace(TINY, steps=13), tmp_path)


def test_a_damaged_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    pretrain.pretrain(TINY, folder_with_frames(tmp_path))
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CorruptFile, match="Delete"):
        pretrain.pretrain(TINY, tmp_path)


@pytest.mark.parametrize("spoiled", ["loss", "gradient", "average"])
def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_last_good_state(
    spoiled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 9 goes wrong: the tenth, after which a state would be kept."""
    take_step, folder = pretrain.take_step, folder_with_frames(tmp_path)

    def spoil(state: pretrain_state.State, *rest: Any) -> torch.Tensor:
        numbers = take_step(state, *rest)
        if state.step == 10 and spoiled == "average":
            assert state.average is not None
            next(state.average.parameters()).data.fill_(torch.nan)
        elif state.step == 10:
            numbers[["loss", "gradient"].index(spoiled)] = torch.nan
        return numbers

    monkeypatch.setattr(pretrain, "take_step", spoil)
    with pytest.raises(S2RobotError, match="nan at step 9; the last good state"):
        pretrain.pretrain(TINY, folder)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 5
    monkeypatch.undo()
    whole = pretrain.pretrain(TINY, folder_with_frames(tmp_path / "whole"))
    assert pretrain.pretrain(TINY, folder).read_bytes() == whole.read_bytes()


def test_where_looking_costs_a_wait_no_state_is_kept_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step = pretrain.take_step

    class Patient(pretrain.Watch):
        def __init__(self, out: Path, device: torch.device) -> None:
            super().__init__(out, torch.device("cuda"))

    def spoil(state: pretrain_state.State, *rest: Any) -> torch.Tensor:
        return take_step(state, *rest) * (torch.nan if state.step == 8 else 1.0)

    monkeypatch.setattr(pretrain, "Watch", Patient)
    monkeypatch.setattr(pretrain, "take_step", spoil)
    with pytest.raises(S2RobotError, match="nan at step 7"):
        pretrain.pretrain(TINY, folder_with_frames(tmp_path))
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 5


def test_where_looking_costs_a_wait_the_step_that_went_wrong_is_still_named(tmp_path: Path) -> None:
    watch = pretrain.Watch(tmp_path, torch.device("cuda"))
    good, bad = torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.inf])
    watch(3, good, now=False)
    watch(4, bad, now=False)
    watch(5, good, now=False)
    with pytest.raises(S2RobotError, match="inf at step 4"):
        watch(6, good, now=True)


def test_a_full_disk_leaves_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, folder = torch.save, folder_with_frames(tmp_path)

    def full(saved: dict[str, Any], path: Path) -> None:
        if saved["step"] > 5:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(saved, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutOfSpace, match="run the same command again"):
        pretrain.pretrain(TINY, folder)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 5
    assert list(tmp_path.glob("*.tmp-*")) == []
    monkeypatch.undo()
    assert pretrain.pretrain(TINY, folder).exists()


def test_metrics_of_a_resumed_run_hold_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "LOG_EVERY", 2)
    folder = folder_with_frames(tmp_path)
    with pytest.raises(Killed):
        pretrain.pretrain(TINY, folder, kill_at(9))
    pretrain.pretrain(TINY, folder)
    steps = [row["step"] for row in files.read_jsonl(tmp_path / "metrics.jsonl") if "loss" in row]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_held_out_frames_are_never_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = some_frames()
    frames[:7] = 255
    monkeypatch.setattr(pretrain, "gather", lambda config, out, progress: Footage(frames, 7))
    seen: list[pretrain.Part] = []
    take_step = pretrain.take_step

    def look(state: pretrain_state.State, config: PretrainConfig, parts: list[pretrain.Part], *rest: Any) -> Any:
        seen.extend(parts)
        return take_step(state, config, parts, *rest)

    monkeypatch.setattr(pretrain, "take_step", look)
    pretrain.pretrain(TINY, tmp_path)
    brightest = max(int(pixels.flatten(1).min(1).values.max()) for squares, _ in seen for _, pixels in squares.groups)
    assert brightest < 255
