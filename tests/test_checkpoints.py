"""Weights files: those that fit whatever wrote them, and all those that must be refused."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from weight_files import State, check, drawn, hollow, refusal, shapes_of

from s2robot import backbones, catalogue
from s2robot.backbones import FrozenViT, load_backbone
from s2robot.catalogue import NAMED, blueprint
from s2robot.checkpoints import load_weights
from s2robot.errors import CheckpointMismatch, CorruptFile

PLAIN = "timm:vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def tiny() -> FrozenViT:
    return load_backbone("s2robot-tiny", random_weights=True, seed=7)


@pytest.fixture
def state(tiny: FrozenViT) -> State:
    return {key: value.clone() for key, value in tiny.model.state_dict().items()}


# -- files that fit --------------------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_weights(state: State, tmp_path: Path) -> None:
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"model": state, "epoch": 3}, tmp_path / "c.pth")
    torch.save({"state_dict": state}, tmp_path / "d.bin")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "e.pt")
    torch.save({f"_orig_mod.{key}": value for key, value in state.items()}, tmp_path / "f.pt")
    for file in sorted(tmp_path.iterdir()):
        check("s2robot-tiny", state, file)


def test_half_floats_on_disk_become_fp32(state: State, tmp_path: Path) -> None:
    file = tmp_path / "half.safetensors"
    safetensors.torch.save_file({key: value.half() for key, value in state.items()}, file)
    loaded = load_backbone("s2robot-tiny", checkpoint=file).model.state_dict()
    assert all(value.dtype == torch.float32 for value in loaded.values())
    assert torch.equal(loaded["pos_embed"], state["pos_embed"].half().float())


def test_the_shipped_file_is_the_default(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(CorruptFile, match="no such file"):
        load_backbone()
    safetensors.torch.save_file(state, tmp_path / "s2robot-tiny.safetensors")
    with pytest.raises(CorruptFile, match="not the file that s2robot-tiny stands for"):
        load_backbone()
    monkeypatch.undo()
    shipped = safetensors.torch.load_file(backbones.WEIGHTS_FOLDER / "s2robot-tiny.safetensors")
    assert torch.equal(load_backbone().model.pos_embed, shipped["pos_embed"].float())


def test_a_path_may_begin_at_home(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    check("s2robot-tiny", state, Path("~/a.safetensors"))


def test_what_pretraining_and_classifying_leave_behind_is_dropped(state: State, tmp_path: Path) -> None:
    """As facebookresearch/mae saves while it trains: decoder, optimiser, options."""
    extras = {"mask_token": torch.zeros(1, 1, 8), "decoder_pred.bias": torch.zeros(3), "head.weight": torch.zeros(2, 2)}
    content = {
        "model": {**state, **extras},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]},
        "args": argparse.Namespace(lr=1e-3, output_dir="runs"),
    }
    torch.save(content, tmp_path / "mae.pth")
    check("s2robot-tiny", state, tmp_path / "mae.pth")


def test_a_file_may_hold_a_timm_model_with_its_classifier(tmp_path: Path) -> None:
    weights = drawn(PLAIN)
    torch.save({**weights, "head.weight": torch.zeros(10, 192), "head.bias": torch.zeros(10)}, tmp_path / "vit.pth")
    check(PLAIN, weights, tmp_path / "vit.pth")


# -- files that do not -----------------------------------------------------------------------------------------------


def test_keys_that_do_not_fit_are_listed(state: State, tmp_path: Path) -> None:
    del state["norm.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["pos_embed"] = torch.zeros(1, 197, 192)
    message = refusal("s2robot-tiny", {"model": state}, tmp_path)
    assert "1 missing: norm.bias" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 of another shape: pos_embed (1, 197, 192) instead of (1, 65, 192)" in message


@pytest.mark.parametrize("name", [name for name in NAMED if name != "s2robot-tiny"])
def test_a_file_of_another_encoder_names_the_right_one(name: str, tmp_path: Path) -> None:
    message = refusal("s2robot-tiny", {"model": hollow(shapes_of(name))}, tmp_path)
    contract = blueprint(name)[1]
    what = f"These weights are {contract.width} wide, with {contract.depth} blocks and patches of {contract.patch}: "
    guesses = message.partition(what)[2].removesuffix("?").split(" or ")
    assert name in guesses
    shapes = [{key: value.shape for key, value in shapes_of(guess).items()} for guess in (name, *guesses)]
    assert all(each == shapes[0] for each in shapes)


def test_a_width_that_has_no_name_says_so(tmp_path: Path) -> None:
    odd = {"patch_embed.proj.weight": torch.zeros(100, 3, 16, 16), "blocks.0.norm1.weight": torch.zeros(100)}
    assert "100 wide, with 1 blocks and patches of 16. No named encoder" in refusal("s2robot-tiny", odd, tmp_path)


@pytest.mark.parametrize(
    ("name", "tokens", "trained", "takes"),
    [("mvp-vit-large", 1 + 14 * 14, 224, 256), ("mvp-vit-base", 1 + 16 * 16, 256, 224),
     ("dinov2-vit-base-reg", 16 * 16, 224, 518), ("siglip2-vit-base", 16 * 16, 256, 224)],
)  # fmt: skip
def test_a_file_made_for_another_size_is_not_resized(
    name: str, tokens: int, trained: int, takes: int, tmp_path: Path
) -> None:
    resized = hollow(shapes_of(name), pos_embed=(1, tokens, blueprint(name)[1].width))
    with pytest.warns(UserWarning, match="none of MVP") if name.startswith("mvp") else contextlib.nullcontext():
        message = refusal(name, resized, tmp_path)
    side = trained // blueprint(name)[1].patch
    assert f"trained at {trained} px ({side}x{side} patches), {name} takes {takes} px" in message
    assert "never resized in silence" in message


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        (["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight"], "a ResNet"),
        (["layer1.conv.weight"], "a ResNet"),
        (["embeddings.cls_token", "encoder.layer.0.attention.attention.query.weight"], "the transformers library"),
        (["vision_model.encoder.layers.0.self_attn.q_proj.weight"], "the transformers library"),
        (["stages.0.blocks.0.conv_dw.weight", "stem.0.weight"], "a convolutional network"),
        (["layers.0.blocks.0.norm1.weight"], "a Swin transformer"),
        (["backbone.cls_token", "backbone.patch_embed.proj.weight"], "inside a training checkpoint"),
        (["q.weight"], "another kind of model: q.weight"),
    ],
)
def test_another_family_is_told_apart(keys: list[str], family: str, tmp_path: Path) -> None:
    message = refusal("vit-small", {key: torch.zeros(2) for key in keys}, tmp_path)
    assert family in message
    assert keys[0] in message


# -- files that look right and are not ---------------------------------------------------------------------------------


def known_as(file: Path, key: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have MVP publish this file."""
    md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(catalogue.MVP_FILES, md5, (key, name))


def test_mvps_file_fits_its_name_and_needs_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = drawn("mvp-vit-small")
    extras = {"mask_token": torch.zeros(1, 1, 8), "decoder_norm.bias": torch.zeros(8)}
    file = tmp_path / "mae_pretrain_hoi_vit_small.pth"
    torch.save({"model": {**weights, **extras}}, file)
    with pytest.warns(UserWarning, match=r"none of MVP's files \(md5 \w{32}\).*vits-mae-hoi fe6e30"):
        check("mvp-vit-small", weights, file)
    known_as(file, "vits-mae-hoi", "mvp-vit-small", monkeypatch)
    check("mvp-vit-small", weights, file)  # a warning is an error here


@pytest.mark.parametrize("name", ["timm:vit_small_patch16_224", "vit-small", "voltron-r-mvp-small", "mvp-vit-base"])
def test_mvps_file_under_another_name_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"model": hollow(shapes_of("mvp-vit-small"))}
    torch.save(content, tmp_path / "given.pth")
    known_as(tmp_path / "given.pth", "vits-mae-hoi", "mvp-vit-small", monkeypatch)
    message = refusal(name, content, tmp_path)
    assert "MVP's vits-mae-hoi by its md5" in message
    assert "Use name='mvp-vit-small'" in message


class Bomb:
    """Unpickled, it makes a folder: what an attacker would run instead is up to them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_file_is_refused_and_not_run(state: State, tmp_path: Path) -> None:
    crater = tmp_path / "crater"
    for bomb in (Bomb(crater), argparse.Namespace(hidden=Bomb(crater))):
        torch.save({"model": state, "bomb": bomb}, tmp_path / "evil.pth")
        with pytest.raises(CorruptFile, match="never executes"):
            load_backbone("s2robot-tiny", checkpoint=tmp_path / "evil.pth")
        assert not crater.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "header only", "garbage", "empty", "missing", "folder"])
def test_a_damaged_file_is_a_corrupt_file(state: State, tmp_path: Path, suffix: str, damage: str) -> None:
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


@pytest.mark.parametrize(
    "content", [[1, 2], ({}, {}), {}, {"model": {}}, {"epoch": 3}, {0: torch.zeros(3)}, torch.zeros(3), torch.zeros(2)]
)
def test_a_file_without_weights_is_a_corrupt_file(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CorruptFile, match="no state dict"):
        load_backbone("s2robot-tiny", checkpoint=tmp_path / "x.pth")


def test_weights_that_are_not_numbers_are_refused(state: State, tmp_path: Path) -> None:
    state["norm.bias"][3] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(CorruptFile, match=r"NaN or infinity in norm\.bias"):
        load_backbone("s2robot-tiny", checkpoint=tmp_path / "nan.pth")


def test_a_refused_file_leaves_the_model_as_it_was(state: State, tmp_path: Path) -> None:
    model = NAMED["s2robot-tiny"].build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    del state["norm.bias"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(CheckpointMismatch):
        load_weights(model, tmp_path / "part.pth", NAMED["s2robot-tiny"], NAMED["s2robot-tiny"].contract(model))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
