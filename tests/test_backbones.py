"""Backbones: the contract they state, the files they take, and all the files they must refuse."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from s2robot import backbones
from s2robot.backbones import NAMED, FrozenViT, list_encoders, load_backbone
from s2robot.errors import CheckpointMismatch, CorruptFile, InvalidInput, S2RobotError, UnknownName


@pytest.fixture(scope="module")
def tiny() -> FrozenViT:
    return load_backbone("s2robot-tiny", random_weights=True, seed=7)


@pytest.fixture
def state(tiny: FrozenViT) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in tiny.model.state_dict().items()}


def images(backbone: FrozenViT, batch: int = 2) -> Tensor:
    size = backbone.contract.size
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


# -- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s2robot-tiny", "vit_tiny_patch16_224", "timm:vit_wee_patch16_reg1_gap_256"])
def test_shapes_are_those_of_the_contract(name: str) -> None:
    backbone = load_backbone(name, random_weights=True)
    contract = backbone.contract
    prefix, grid = backbone(images(backbone, 1))
    assert prefix.shape == (1, contract.prefix_tokens, contract.width)
    assert grid.shape == (1, contract.width, *contract.grid_size)
    assert contract.grid_size == (contract.size // contract.patch,) * 2


def test_the_grid_is_timms_tokens_row_by_row(tiny: FrozenViT) -> None:
    tokens = tiny.model.forward_features(images(tiny))  # (B, 1+64, D)
    prefix, grid = tiny(images(tiny))
    assert torch.equal(prefix[:, 0], tokens[:, 0])
    assert torch.equal(grid[:, :, 0, 1], tokens[:, 2])
    assert torch.equal(grid[:, :, 1, 0], tokens[:, 1 + 8])


@pytest.mark.parametrize("name", ["s2robot-tiny", "timm:vit_wee_patch16_reg1_gap_256"])
def test_tokens_come_after_the_final_norm(name: str) -> None:
    backbone = load_backbone(name, random_weights=True)
    _, grid = backbone(images(backbone, 1))  # (1, D, h, w)
    assert grid.mean(dim=1).abs().max() < 1e-4  # an untrained LayerNorm leaves mean 0 and deviation 1
    assert (grid.std(dim=1, correction=0) - 1).abs().max() < 1e-2


def test_an_image_of_another_size_is_refused(tiny: FrozenViT) -> None:
    with pytest.raises(InvalidInput, match=r"takes \(B, 3, 128, 128\), got \(1, 3, 224, 224\)"):
        tiny(torch.zeros(1, 3, 224, 224))


def test_the_contract_of_a_timm_model_is_timms_own() -> None:
    contract = load_backbone("timm:vit_tiny_patch16_224", random_weights=True).contract
    assert (contract.size, contract.patch, contract.width, contract.depth, contract.heads) == (224, 16, 192, 12, 3)
    assert (contract.mean, contract.std, contract.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    assert (contract.prefix_tokens, contract.class_token, contract.colour) == (1, True, "RGB")
    registers = load_backbone("vit_wee_patch16_reg1_gap_256", random_weights=True).contract
    assert (registers.prefix_tokens, registers.class_token) == (1, False)


@pytest.mark.parametrize(
    ("name", "size", "width", "depth", "heads"),
    [
        ("s2robot-tiny", 128, 192, 6, 3),
        ("mvp-vit-small", 224, 384, 12, 12),  # not timm's 6: same shapes, other features
        ("mvp-vit-base", 224, 768, 12, 12),
        ("mvp-vit-large", 256, 1024, 24, 16),
    ],
)
def test_a_named_backbone_is_built_as_its_contract_says(
    name: str, size: int, width: int, depth: int, heads: int
) -> None:
    contract = NAMED[name].contract
    assert (contract.size, contract.width, contract.depth, contract.heads) == (size, width, depth, heads)
    with torch.device("meta"):
        model: Any = NAMED[name].build()
    assert model.pos_embed.shape == (1, (size // 16) ** 2 + 1, width)
    assert len(model.blocks) == depth
    assert {block.attn.num_heads for block in model.blocks} == {heads}


# -- frozen, random --------------------------------------------------------------------------------------------------


def test_a_backbone_cannot_be_unfrozen(tiny: FrozenViT) -> None:
    assert tiny.train() is tiny
    assert tiny.requires_grad_() is tiny
    assert not any(module.training for module in tiny.modules())
    assert not any(parameter.requires_grad for parameter in tiny.parameters())


def test_random_weights_follow_the_seed_alone() -> None:
    first, second = (load_backbone(random_weights=True, seed=3).model.state_dict() for _ in range(2))
    other = load_backbone(random_weights=True, seed=4).model.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["pos_embed"], other["pos_embed"])


def test_loading_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - this is what must not move
    load_backbone(random_weights=True, seed=3)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


# -- files that fit --------------------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_weights(state: dict[str, Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"model": state, "epoch": 3}, tmp_path / "c.pth")
    torch.save({"state_dict": state}, tmp_path / "d.bin")
    for file in sorted(tmp_path.iterdir()):
        loaded = load_backbone("s2robot-tiny", checkpoint=file).model.state_dict()
        assert all(torch.equal(loaded[key], state[key]) for key in state), file


def test_half_floats_on_disk_become_fp32(state: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "half.safetensors"
    safetensors.torch.save_file({key: value.half() for key, value in state.items()}, file)
    loaded = load_backbone("s2robot-tiny", checkpoint=file).model.state_dict()
    assert all(value.dtype == torch.float32 for value in loaded.values())
    assert torch.equal(loaded["pos_embed"], state["pos_embed"].half().float())


def test_the_shipped_file_is_the_default(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(CorruptFile, match="no such file"):
        load_backbone()
    safetensors.torch.save_file(state, tmp_path / "s2robot-tiny.safetensors")
    assert torch.equal(load_backbone().model.pos_embed, state["pos_embed"])


def test_the_other_half_of_a_masked_autoencoder_is_dropped(state: dict[str, Tensor], tmp_path: Path) -> None:
    extras = {"mask_token": torch.zeros(1, 1, 8), "decoder_pred.bias": torch.zeros(3), "head.weight": torch.zeros(2, 2)}
    torch.save({"model": {**state, **extras}}, tmp_path / "mae.pth")
    loaded = load_backbone("s2robot-tiny", checkpoint=tmp_path / "mae.pth").model.state_dict()
    assert loaded.keys() == state.keys()


def test_a_file_may_hold_a_timm_model(tmp_path: Path) -> None:
    name = "timm:vit_tiny_patch16_224"
    weights = load_backbone(name, random_weights=True, seed=5).model.state_dict()
    torch.save(weights, tmp_path / "vit.pth")
    loaded = load_backbone(name, checkpoint=tmp_path / "vit.pth").model.state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


# -- files that do not -----------------------------------------------------------------------------------------------


def test_keys_that_do_not_fit_are_listed(state: dict[str, Tensor], tmp_path: Path) -> None:
    del state["norm.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["pos_embed"] = torch.zeros(1, 197, 192)
    torch.save({"model": state}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointMismatch) as caught:
        load_backbone("s2robot-tiny", checkpoint=tmp_path / "odd.pth")
    message = str(caught.value)
    assert "1 missing: norm.bias" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 of another shape: pos_embed (1, 197, 192) instead of (1, 65, 192)" in message


@pytest.mark.parametrize("name", [name for name in NAMED if name != "s2robot-tiny"])
def test_a_file_of_another_width_names_the_right_encoder(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in NAMED[name].build().state_dict().items() if "block" not in key}
    torch.save({"model": {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointMismatch, match=f"the model 192. Try name='{name}'"):
        load_backbone("s2robot-tiny", checkpoint=tmp_path / "x.pth")


def test_foreign_keys_are_told_apart(tmp_path: Path) -> None:
    torch.save({"layer1.conv.weight": torch.zeros(2)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointMismatch, match="as timm names them"):
        load_backbone("s2robot-tiny", checkpoint=tmp_path / "resnet.pth")


class Bomb:
    """Unpickled, it makes a folder: what an attacker would run instead is up to them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_file_is_refused_and_not_run(state: dict[str, Tensor], tmp_path: Path) -> None:
    crater = tmp_path / "crater"
    torch.save({"model": state, "bomb": Bomb(crater)}, tmp_path / "evil.pth")
    with pytest.raises(CorruptFile, match="never executes"):
        load_backbone("s2robot-tiny", checkpoint=tmp_path / "evil.pth")
    assert not crater.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "header only", "garbage", "empty", "missing", "folder"])
def test_a_damaged_file_is_a_corrupt_file(state: dict[str, Tensor], tmp_path: Path, suffix: str, damage: str) -> None:
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": state}, file)
    else:
        safetensors.torch.save_file(state, file)
    whole = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "missing":
        kept = {"truncated": whole[:-1000], "header only": whole[:100], "garbage": b"<html>404</html>", "empty": b""}
        file.write_bytes(kept[damage])
    with pytest.raises(CorruptFile, match=r"weights\.") as caught:
        load_backbone("s2robot-tiny", checkpoint=file)
    assert caught.value.path == file


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": {}}, {"epoch": 3}, torch.zeros(3)])
def test_a_file_without_weights_is_a_corrupt_file(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CorruptFile, match="no state dict"):
        load_backbone("s2robot-tiny", checkpoint=tmp_path / "x.pth")


def test_weights_that_are_not_numbers_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["norm.bias"][3] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(CorruptFile, match=r"NaN or infinity in norm\.bias"):
        load_backbone("s2robot-tiny", checkpoint=tmp_path / "nan.pth")


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("s2robot-tiney", "s2robot-tiny"),
        ("mvp-vit-bse", "mvp-vit-base"),
        ("vit_tinny_patch16_224", "vit_tiny_patch16_224"),
        ("timm:vit_tinny_patch16_224", "timm:vit_tiny_patch16_224"),
        ("timm:vit_small_patch14_dinov2.lvd142", "timm:vit_small_patch14_dinov2.lvd142m"),
        ("timm:", None),
        ("", None),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(name: str, nearest: str | None) -> None:
    with pytest.raises(UnknownName) as caught:
        load_backbone(name, random_weights=True)
    assert caught.value.nearest == nearest


def test_a_model_without_a_token_grid_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'resnet10t' is not a ViT with a square token grid"):
        load_backbone("timm:resnet10t", random_weights=True)


def test_a_download_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(S2RobotError, match=r"no route to host.*give checkpoint='FILE.safetensors'"):
        load_backbone("vit_tiny_patch16_224")


def test_an_encoder_without_its_file_says_what_to_do() -> None:
    with pytest.raises(InvalidInput, match=r"mvp-vit-small needs a weights file.*checkpoint='FILE.pth'"):
        load_backbone("mvp-vit-small")


def test_a_file_and_random_weights_exclude_each_other() -> None:
    with pytest.raises(InvalidInput, match="leave one out"):
        load_backbone(checkpoint="x.pth", random_weights=True)


def test_the_list_agrees_with_what_is_built(tiny: FrozenViT) -> None:
    rows = {row.name: row for row in list_encoders()}
    assert rows.keys() >= NAMED.keys()
    assert rows["s2robot-tiny"].params == sum(parameter.numel() for parameter in tiny.parameters())
    assert rows["timm:vit_small_patch14_reg4_dinov2.lvd142m"].prefix_tokens == 5
    for row in rows.values():
        assert row.name in NAMED or timm.is_model(row.name.removeprefix("timm:"))
        assert row.licence
        assert row.source
        assert row.size % row.patch == 0
