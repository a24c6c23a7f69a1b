"""Weights of one's own: the file says what encoder it is, whatever its size; a file that lies is a clear error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import TINY

import s2robot
from s2robot import pretrain_state
from s2robot.backbones import WEIGHTS_FOLDER, load_backbone
from s2robot.errors import CheckpointMismatch, CorruptFile, InvalidInput


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = pretrain_state.begin(TINY, torch.device("cpu"))
    return pretrain_state.export(state, TINY, tmp_path_factory.mktemp("own"))


def with_recipe(weights: Path, path: Path, about: Any) -> Path:
    save_file(load_file(weights), path, {"s2robot": about if isinstance(about, str) else json.dumps(about)})
    return path


def test_a_file_of_any_recipe_loads_by_what_it_says(weights: Path) -> None:
    encoder = s2robot.load_encoder("s2robot", checkpoint=weights, engine="torch", device="cpu")
    contract = encoder.contract
    assert (contract.size, contract.patch, contract.width, contract.heads, contract.depth) == (32, 8, 24, 2, 2)
    assert contract.interpolation == "area"
    features = encoder(np.zeros((64, 64, 3), np.uint8))
    assert features.map.shape == (1, 1, 48, 4, 4)


def test_it_computes_what_was_trained(weights: Path) -> None:
    state = pretrain_state.begin(TINY, torch.device("cpu"))
    images = torch.randn(2, 3, 32, 32)
    everything = torch.arange(16).expand(2, 16)
    with torch.no_grad():
        trained = state.model.eval().encode(images, everything)[:, 1:]
    _, grid = load_backbone("s2robot", checkpoint=weights)(images)
    torch.testing.assert_close(grid.flatten(2).transpose(1, 2), trained, rtol=0, atol=5e-3)  # half floats on disk


def test_the_shipped_file_is_one_of_them() -> None:
    shipped = WEIGHTS_FOLDER / "s2robot-tiny.safetensors"
    own, named = load_backbone("s2robot", checkpoint=shipped), load_backbone("s2robot-tiny")
    assert own.contract == named.contract
    for key, value in named.state_dict().items():
        torch.testing.assert_close(own.state_dict()[key], value, rtol=0, atol=0)


def test_another_name_says_which_one_to_take(weights: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="name='s2robot'"):
        load_backbone("s2robot-tiny", checkpoint=weights)


def test_the_name_alone_asks_for_the_file() -> None:
    with pytest.raises(InvalidInput, match=r"checkpoint='FILE\.safetensors'"):
        load_backbone("s2robot")


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ("{not json", "Make or fetch it again"),
        ([1, 2], "no recipe"),
        ({"recipe": {"width": 24}}, "not whole"),
        ({"recipe": {"image_size": 32, "patch": 8, "width": "wide", "depth": 2, "heads": 2}}, "not whole"),
        ({"recipe": {"image_size": 32, "patch": 8, "width": 25, "depth": 2, "heads": 2}}, "describes no encoder"),
    ],
)
def test_a_file_without_a_sound_recipe_is_named(about: Any, said: str, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match=said):
        load_backbone("s2robot", checkpoint=with_recipe(weights, tmp_path / "w.safetensors", about))


def test_a_recipe_that_is_not_the_weights_own_is_a_mismatch(weights: Path, tmp_path: Path) -> None:
    lying = {"recipe": vars(replace(TINY, depth=3))}
    with pytest.raises(CheckpointMismatch, match=r"blocks\.2"):
        load_backbone("s2robot", checkpoint=with_recipe(weights, tmp_path / "w.safetensors", lying))


def test_other_weights_are_no_file_of_ours(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(CorruptFile, match="no recipe of s2robot pretrain"):
        load_backbone("s2robot", checkpoint=tmp_path / "w.safetensors")
    with pytest.raises(CorruptFile, match="no such file"):
        load_backbone("s2robot", checkpoint=tmp_path / "missing.safetensors")
