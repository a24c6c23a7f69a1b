"""Masked autoencoding: the mask hides, pixels survive the round trip, a killed run ends as an unbroken one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from s2robot import files, pretrain
from s2robot.backbones import load_backbone
from s2robot.errors import CorruptFile, S2RobotError
from s2robot.mae import sincos_table
from s2robot.pretrain import PretrainConfig, views

TINY = PretrainConfig(steps=12, batch=4, depth=6, checkpoint_every=5, threads=1)


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A hundred frames of smooth colour, in place of rendered ones."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (100, 8, 8, 3)).astype(np.uint8)
    made = small.repeat(32, axis=1).repeat(32, axis=2)
    monkeypatch.setattr(pretrain, "render_frames", lambda config, path, progress: made)
    return made


def test_patches_and_images_are_inverse() -> None:
    model = pretrain._build(TINY)
    images = torch.randn(2, 3, 128, 128)
    torch.testing.assert_close(model.images(model.patches(images)), images, rtol=0, atol=0)
    assert model.patches(images).shape == (2, 64, 16 * 16 * 3)


def test_the_encoder_never_sees_a_masked_patch() -> None:
    model = pretrain._build(TINY).eval()
    noise = torch.rand(1, 64, generator=torch.Generator().manual_seed(0))
    images = torch.randn(1, 3, 128, 128)
    _, _, mask = model(images, noise)
    assert mask.sum() == 48
    patches = model.patches(images)
    changed = model.images(patches + 9.0 * mask[..., None])
    kept = noise.argsort(dim=1)[:, :16]
    torch.testing.assert_close(model.encode(images, kept), model.encode(changed, kept), rtol=0, atol=0)


def test_the_loss_counts_masked_patches_only() -> None:
    model = pretrain._build(TINY).eval()
    noise = torch.rand(1, 64, generator=torch.Generator().manual_seed(0))
    images = torch.randn(1, 3, 128, 128)
    loss, painted, mask = model(images, noise)
    assert mask.sum() == 48
    by_hand = ((painted - model.patches(images)) ** 2).mean(-1)[mask.bool()].mean()
    torch.testing.assert_close(loss, by_hand)


def test_positions_differ_everywhere() -> None:
    table = sincos_table(192, 8)[0]
    distance = torch.cdist(table, table) + 1e9 * torch.eye(64)
    assert distance.min() > 0.1


def test_views_are_whole_frames_and_exact_tiles(frames: np.ndarray) -> None:
    mean, std = torch.tensor(pretrain.MEAN).view(3, 1, 1), torch.tensor(pretrain.STD).view(3, 1, 1)
    rng = np.random.default_rng(0)
    tile = (views(frames, TINY, rng, "tile")[0] * std + mean) * 255
    index = np.random.default_rng(0).integers(len(frames), size=8)[0]
    corners = [frames[index, r : r + 128, c : c + 128] for r in (0, 128) for c in (0, 128)]
    assert any(np.allclose(tile.permute(1, 2, 0).numpy(), corner, atol=0.01) for corner in corners)


def test_a_killed_run_ends_with_the_same_weights(frames: np.ndarray, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, total: int, note: str) -> None:
        if done == 8:
            raise Killed

    whole = pretrain.pretrain(TINY, tmp_path / "whole")
    with pytest.raises(Killed):
        pretrain.pretrain(TINY, tmp_path / "killed", kill)
    resumed = pretrain.pretrain(TINY, tmp_path / "killed")
    assert resumed.read_bytes() == whole.read_bytes()


def test_the_exported_file_loads_as_the_encoder_it_is(frames: np.ndarray, tmp_path: Path) -> None:
    weights = pretrain.pretrain(TINY, tmp_path)
    backbone = load_backbone("s2robot-tiny", checkpoint=weights)
    with safe_open(weights, "pt") as file:
        about = json.loads(file.metadata()["s2robot"])
        half = file.get_tensor("blocks.0.attn.qkv.weight")
    assert about["licence"] == "MIT" and about["recipe"]["steps"] == 12
    assert half.dtype == torch.float16
    images = torch.randn(1, 3, 128, 128)
    _, grid = backbone(images)
    assert grid.shape == (1, 192, 8, 8)


def test_another_recipe_in_the_same_folder_is_refused(frames: np.ndarray, tmp_path: Path) -> None:
    pretrain.pretrain(TINY, tmp_path)
    with pytest.raises(S2RobotError, match="width 192 -> 96"):
        pretrain.pretrain(replace(TINY, width=96), tmp_path)


def test_a_damaged_checkpoint_is_a_clear_error(frames: np.ndarray, tmp_path: Path) -> None:
    pretrain.pretrain(TINY, tmp_path)
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CorruptFile, match="Delete"):
        pretrain.pretrain(TINY, tmp_path)


@pytest.mark.sim
def test_scenes_are_functions_of_their_seed() -> None:
    from s2robot.registry import scene_sampler

    sampler = scene_sampler(64, seed=3)
    first = [sampler.episode(k) for k in range(3)]
    again = sampler.episode(1)
    sampler.close()
    np.testing.assert_array_equal(first[1], again)
    assert first[0].shape[1:] == (64, 64, 3) and (first[0] != first[1][: len(first[0])]).any()


def test_metrics_of_a_resumed_run_hold_every_step_once(
    frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "LOG_EVERY", 2)

    def kill(done: int, total: int, note: str) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(TINY, tmp_path, kill)
    pretrain.pretrain(TINY, tmp_path)
    steps = [row["step"] for row in files.read_jsonl(tmp_path / "metrics.jsonl") if "loss" in row]
    assert steps == [2, 4, 6, 8, 10, 12]
