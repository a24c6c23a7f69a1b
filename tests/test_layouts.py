"""Other people's names for the same weights: against open_clip itself, and against layouts written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from weight_files import State, check, drawn, hollow, refusal, shapes_of

from s2robot.backbones import load_backbone
from s2robot.catalogue import NamedEncoder, blueprint, find_encoder
from s2robot.checkpoints import load_weights
from s2robot.layouts import to_timm


def renamed(state: State, *pairs: tuple[str, str]) -> State:
    result: State = {}
    for key, value in state.items():
        name = key
        for old, new in pairs:
            name = name.replace(old, new)
        result[name] = value
    return result


# -- open_clip -------------------------------------------------------------------------------------------------------


def small_clip() -> Any:
    """open_clip's own model: a visual tower as timm's vit_xsmall_patch16_clip_224, and next to no text tower."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(2)
    vision = open_clip.CLIPVisionCfg(layers=10, width=256, head_width=64, patch_size=16, image_size=224)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=64, width=32, heads=2, layers=1)
    model = open_clip.CLIP(512, vision, text).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)  # its biases begin at zero, its norms at one
    model.visual.output_tokens = True
    return model


@pytest.mark.parametrize("kind", ["whole", "checkpoint", "distributed", "visual"])
def test_an_open_clip_file_gives_open_clips_tokens(kind: str, tmp_path: Path) -> None:
    clip = small_clip()
    whole = clip.state_dict()
    content = {
        "whole": whole,
        "checkpoint": {"epoch": 3, "name": "run", "state_dict": {f"module.{key}": whole[key] for key in whole}},
        "distributed": {f"module.{key}": whole[key] for key in whole},
        "visual": clip.visual.state_dict(),
    }[kind]
    torch.save(content, tmp_path / "clip.pt")
    backbone = load_backbone("timm:vit_xsmall_patch16_clip_224", checkpoint=tmp_path / "clip.pt")
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled, tokens = clip.visual(images)  # after ln_post; pooled is the projected CLS
    prefix, grid = backbone(images)
    assert tokens.std() > 0.01
    torch.testing.assert_close(grid.flatten(2).transpose(1, 2), tokens, atol=1e-4, rtol=0)
    torch.testing.assert_close(prefix[:, 0] @ clip.visual.proj, pooled, atol=1e-4, rtol=0)


def test_open_clips_own_towers_fit_the_names_made_for_them(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    timm_model = pytest.importorskip("open_clip.timm_model")
    for name, model in (
        ("openclip-vit-base", "ViT-B-16"),
        ("openclip-vit-large", "ViT-L-14"),
        ("openclip-vit-huge", "ViT-H-14"),
    ):
        config = open_clip.get_model_config(model)
        with torch.device("meta"):
            tower = open_clip.CLIP(**config).visual
        fits({f"visual.{key}": value for key, value in tower.state_dict().items()}, name)
        assert tower.transformer.resblocks[0].attn.num_heads == blueprint(name)[1].heads
    config = open_clip.get_model_config("ViT-B-16-SigLIP2")["vision_cfg"]
    with torch.device("meta"):
        tower = timm_model.TimmModel(
            config["timm_model_name"], 768, pool=config["timm_pool"], proj=config["timm_proj"], pretrained=False
        )
    state = {f"visual.{key}": value for key, value in tower.state_dict().items()}
    fits({**state, "text.token_embedding.weight": torch.zeros(1), "logit_bias": torch.zeros(())}, "siglip2-vit-base")


@pytest.mark.parametrize(("model", "tag", "name"), [
    ("ViT-B-16", "laion2b_s34b_b88k", "openclip-vit-base"),
    ("ViT-L-14", "laion2b_s32b_b82k", "openclip-vit-large"),
    ("ViT-H-14", "laion2b_s32b_b79k", "openclip-vit-huge"),
    ("ViT-B-16-SigLIP2", "webli", "siglip2-vit-base"),
])  # fmt: skip
def test_open_clip_wants_its_images_as_the_contract_says(model: str, tag: str, name: str) -> None:
    pretrained = pytest.importorskip("open_clip.pretrained").get_pretrained_cfg(model, tag)
    contract = blueprint(name)[1]
    assert (contract.mean, contract.std) == (pytest.approx(pretrained["mean"]), pytest.approx(pretrained["std"]))
    assert contract.interpolation == pretrained["interpolation"]


def fits(state: State, name: str) -> None:
    """Every key converted, in its shape; the rest known to be no part of the encoder."""
    converted = to_timm(state)
    assert converted is not None
    given = {key: value.shape for key, value in converted.state.items() if not converted.is_spare(key)}
    assert given == {key: value.shape for key, value in blueprint(name)[0].state_dict().items()}


def clip_state(**more: Tensor) -> State:
    return {**hollow(small_clip().state_dict()), **more}


def test_a_clip_file_under_another_name_says_what_it_is(tmp_path: Path) -> None:
    message = refusal("dinov2-vit-base", clip_state(), tmp_path)
    assert "does not fit dinov2-vit-base" in message
    assert "blocks.0.ls1.gamma" in message  # missing
    assert "norm_pre.weight" in message  # unexpected
    assert "These weights are 256 wide, with 10 blocks and patches of 16" in message


def test_a_part_of_the_visual_tower_that_is_not_known_is_not_taken_for_text(tmp_path: Path) -> None:
    for key in ("visual.transformer.resblocks.0.ls_1.gamma", "visual.attn_pool.query", "momentum"):
        message = refusal("timm:vit_xsmall_patch16_clip_224", clip_state(**{key: torch.zeros(2)}), tmp_path)
        assert f"1 unexpected: {key}" in message


def test_openais_own_files_need_its_activation(tmp_path: Path) -> None:
    marks = {key: torch.zeros(()) for key in ("input_resolution", "context_length", "vocab_size")}
    assert "QuickGELU" in refusal("timm:vit_xsmall_patch16_clip_224", clip_state(**marks), tmp_path)
    quick = NamedEncoder("quick", "vit_xsmall_patch16_clip_quickgelu_224", "none", "none")
    model = timm.create_model("vit_xsmall_patch16_clip_224", num_classes=0)
    theirs = small_clip().state_dict()
    torch.save({**theirs, **marks}, tmp_path / "openai.pt")
    load_weights(model, tmp_path / "openai.pt", quick, find_encoder("vit_xsmall_patch16_clip_224").contract(model))
    assert torch.equal(model.norm.bias, theirs["visual.ln_post.bias"])


# -- DINOv2 ----------------------------------------------------------------------------------------------------------


def test_dinov2s_own_file_without_registers(tmp_path: Path) -> None:
    weights = drawn("dinov2-vit-small")
    assert weights["pos_embed"].shape == (1, 1370, 384)
    torch.save({**weights, "mask_token": torch.zeros(1, 384)}, tmp_path / "dinov2_vits14_pretrain.pth")
    check("dinov2-vit-small", weights, tmp_path / "dinov2_vits14_pretrain.pth")


def test_dinov2s_own_file_with_registers_puts_the_same_tokens_in(tmp_path: Path) -> None:
    weights = drawn("dinov2-vit-small-reg")
    theirs = renamed(weights, ("reg_token", "register_tokens"))
    theirs["pos_embed"] = torch.randn(1, 1370, 384, generator=torch.Generator().manual_seed(1))  # one for the CLS
    torch.save({**theirs, "mask_token": torch.zeros(1, 384)}, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    model = load_backbone("dinov2-vit-small-reg", checkpoint=tmp_path / "dinov2_vits14_reg4_pretrain.pth").model
    patches = torch.randn(1, 1369, 384, generator=torch.Generator().manual_seed(2))
    # As the original puts its tokens together: CLS and patches get positions, then registers go in between.
    placed = torch.cat([theirs["cls_token"], patches], dim=1) + theirs["pos_embed"]
    expected = torch.cat([placed[:, :1], theirs["register_tokens"], placed[:, 1:]], dim=1)
    torch.testing.assert_close(model._pos_embed(patches), expected, atol=1e-6, rtol=0)
    state = model.state_dict()
    untouched = weights.keys() - {"cls_token", "pos_embed"}
    assert all(torch.equal(state[key], weights[key]) for key in untouched)


def test_the_gated_layers_of_dinov2s_giant_are_put_the_right_way_round() -> None:
    model: Any = timm.create_model("vit_giant_patch14_reg4_dinov2", num_classes=0, embed_dim=48, depth=2, num_heads=3)
    mine = model.state_dict()
    theirs = renamed(mine, ("reg_token", "register_tokens"), ("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3"))
    theirs["pos_embed"] = torch.zeros(1, 1370, 48)
    converted = to_timm({**theirs, "mask_token": torch.zeros(1, 48)})
    assert converted is not None
    assert {key for key in converted.state if not converted.is_spare(key)} == mine.keys()
    model.load_state_dict({key: converted.state[key] for key in mine})
    tokens = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0))
    # As the original gates: silu of the first half times the second.
    hidden = F.linear(tokens, theirs["blocks.0.mlp.w12.weight"], theirs["blocks.0.mlp.w12.bias"])
    first, second = hidden.chunk(2, dim=-1)
    gated = F.silu(first) * second
    expected = F.linear(gated, theirs["blocks.0.mlp.w3.weight"], theirs["blocks.0.mlp.w3.bias"])
    torch.testing.assert_close(model.blocks[0].mlp(tokens), expected)


@pytest.mark.parametrize("name", ["dinov2-vit-giant", "dinov2-vit-giant-reg"])
def test_the_giants_keys_are_all_found(name: str) -> None:
    theirs = renamed(
        shapes_of(name), ("reg_token", "register_tokens"), ("mlp.fc1", "mlp.w12"),
        ("mlp.fc2", "mlp.w3"),
    )  # fmt: skip
    theirs["pos_embed"] = torch.zeros(1, 1370, 1536, device="meta")
    fits({**theirs, "mask_token": torch.zeros(1, 1536)}, name)


# -- DINOv3 ----------------------------------------------------------------------------------------------------------


def as_dinov3(weights: State, bias: float) -> State:
    theirs = renamed(weights, ("reg_token", "storage_tokens"), ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"))
    width = weights["cls_token"].shape[-1]
    for block in range(12):
        keys = f"blocks.{block}.attn.qkv."
        theirs[f"{keys}bias"] = torch.cat([torch.full((width,), value) for value in (bias, 7.0, bias)])  # 7 is masked
        theirs[f"{keys}bias_mask"] = torch.cat([torch.full((width,), value) for value in (1.0, 0.0, 1.0)])
    return {**theirs, "mask_token": torch.zeros(1, width), "rope_embed.periods": torch.zeros(16)}


def test_dinov3s_own_file(tmp_path: Path) -> None:
    weights = drawn("dinov3-vit-small")
    torch.save(as_dinov3(weights, 0.0), tmp_path / "dinov3_vits16_pretrain.pth")
    check("dinov3-vit-small", weights, tmp_path / "dinov3_vits16_pretrain.pth")


def test_a_bias_that_dinov3s_model_has_no_place_for_is_not_dropped(tmp_path: Path) -> None:
    theirs = as_dinov3(hollow(shapes_of("dinov3-vit-small")), 0.5)
    message = refusal("dinov3-vit-small", theirs, tmp_path)
    assert "24 unexpected: blocks.0.attn.q_bias, blocks.0.attn.v_bias" in message
    converted = to_timm(theirs)
    assert converted is not None
    kept = {key for key in converted.state if not converted.is_spare(key)}
    assert kept == shapes_of("timm:vit_small_patch16_dinov3_qkvb").keys()


# -- Voltron ---------------------------------------------------------------------------------------------------------

VOLTRON = (
    ("blocks.", "encoder_blocks."), ("pos_embed", "encoder_pe"), ("patch_embed", "patch2embed"),
    ("norm1", "pre_norm_attn"), ("norm2", "pre_norm_mlp"), ("mlp.fc1", "mlp.0.0"), ("mlp.fc2", "mlp.2"),
)  # fmt: skip


def as_voltron(weights: State) -> State:
    theirs = renamed(weights, *VOLTRON)
    for kind in ("weight", "bias"):
        theirs[f"encoder_norm.{kind}"] = theirs.pop(f"norm.{kind}")
    spare = (
        "mask_token",
        "encoder2decoder.weight",
        "decoder_pe",
        "decoder_blocks.0.mlp.2.bias",
        "decoder_prediction.bias",
    )
    return {**theirs, **{key: torch.zeros(2) for key in spare}}


def test_voltrons_own_file_is_a_pair(tmp_path: Path) -> None:
    weights = drawn("voltron-r-mvp-small")
    optimiser = {"state": {}, "param_groups": [{"lr": 1e-4}]}
    torch.save((as_voltron(weights), optimiser), tmp_path / "r-mvp.pt")
    check("voltron-r-mvp-small", weights, tmp_path / "r-mvp.pt")


@pytest.mark.parametrize("name", ["mvp-vit-small", "vit-small"])
def test_voltrons_file_goes_under_no_other_name(name: str, tmp_path: Path) -> None:
    """The same shapes, but MVP's 12 heads, or another mean: nothing else would tell."""
    content = as_voltron(hollow(shapes_of("voltron-r-mvp-small")))
    if name.startswith("mvp-"):
        with pytest.warns(UserWarning, match="none of MVP"):
            message = refusal(name, content, tmp_path)
    else:
        message = refusal(name, content, tmp_path)
    assert "name='voltron-r-mvp-small'" in message
