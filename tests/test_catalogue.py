"""The table of names: what each stands for, pinned from the papers and model cards, and names it does not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from s2robot import catalogue
from s2robot.backbones import list_encoders, load_backbone
from s2robot.catalogue import MVP_FILES, NAMED, blueprint, find_encoder
from s2robot.errors import InvalidInput, S2RobotError, UnknownName

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

# size, patch, width, depth, heads, prefix tokens, mean and std
CONTRACTS: dict[str, tuple[Any, ...]] = {
    "s2robot-tiny": (128, 16, 192, 6, 3, 1, IMAGENET),
    "mvp-vit-small": (224, 16, 384, 12, 12, 1, IMAGENET),  # not timm's 6 heads: same shapes, other features
    "mvp-vit-base": (224, 16, 768, 12, 12, 1, IMAGENET),
    "mvp-vit-large": (256, 16, 1024, 24, 16, 1, IMAGENET),
    "vc1-vit-base": (224, 16, 768, 12, 12, 1, IMAGENET),
    "vc1-vit-large": (224, 16, 1024, 24, 16, 1, IMAGENET),
    "voltron-r-mvp-small": (224, 16, 384, 12, 6, 1, IMAGENET),
    "mae-vit-base": (224, 16, 768, 12, 12, 1, IMAGENET),
    "mae-vit-large": (224, 16, 1024, 24, 16, 1, IMAGENET),
    "vit-small": (224, 16, 384, 12, 6, 1, HALF),
    "vit-base": (224, 16, 768, 12, 12, 1, HALF),
    "vit-large": (224, 16, 1024, 24, 16, 1, HALF),
    "vit-huge": (224, 14, 1280, 32, 16, 1, HALF),
    "dinov2-vit-small": (518, 14, 384, 12, 6, 1, IMAGENET),
    "dinov2-vit-base": (518, 14, 768, 12, 12, 1, IMAGENET),
    "dinov2-vit-large": (518, 14, 1024, 24, 16, 1, IMAGENET),
    "dinov2-vit-giant": (518, 14, 1536, 40, 24, 1, IMAGENET),
    "dinov2-vit-small-reg": (518, 14, 384, 12, 6, 5, IMAGENET),
    "dinov2-vit-base-reg": (518, 14, 768, 12, 12, 5, IMAGENET),
    "dinov2-vit-large-reg": (518, 14, 1024, 24, 16, 5, IMAGENET),
    "dinov2-vit-giant-reg": (518, 14, 1536, 40, 24, 5, IMAGENET),
    "dinov3-vit-small": (256, 16, 384, 12, 6, 5, IMAGENET),
    "dinov3-vit-base": (256, 16, 768, 12, 12, 5, IMAGENET),
    "openclip-vit-base": (224, 16, 768, 12, 12, 1, CLIP),
    "openclip-vit-large": (224, 14, 1024, 24, 16, 1, HALF),  # open_clip's own entry of laion2b_s32b_b82k
    "openclip-vit-huge": (224, 14, 1280, 32, 16, 1, CLIP),
    "siglip2-vit-base": (224, 16, 768, 12, 12, 0, HALF),
}
INTERPOLATION = {"s2robot-tiny": "area", "voltron-r-mvp-small": "bilinear"}  # all others are bicubic


def test_every_name_is_pinned() -> None:
    assert NAMED.keys() == CONTRACTS.keys()


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_name_stands_for_its_contract_and_is_built_so(name: str) -> None:
    model: Any
    model, contract = blueprint(name)
    size, patch, width, depth, heads, prefix, (mean, std) = CONTRACTS[name]
    assert (contract.size, contract.patch, contract.width, contract.depth) == (size, patch, width, depth)
    assert (contract.heads, contract.prefix_tokens, contract.class_token) == (heads, prefix, prefix > 0)
    assert (contract.mean, contract.std) == (pytest.approx(mean), pytest.approx(std))
    assert contract.interpolation == INTERPOLATION.get(name, "bicubic")
    assert (contract.antialias, contract.colour) == (True, "RGB")
    assert model.patch_embed.proj.weight.shape == (width, 3, patch, patch)
    assert len(model.blocks) == depth
    assert {block.attn.num_heads for block in model.blocks} == {heads}
    assert model.num_prefix_tokens == prefix


def test_a_blueprint_has_the_shapes_of_the_real_thing_and_no_memory() -> None:
    for name in ("s2robot-tiny", "dinov3-vit-small"):
        drawn, real = blueprint(name)[0].state_dict(), load_backbone(name, random_weights=True).model.state_dict()
        assert {key: value.shape for key, value in drawn.items()} == {key: value.shape for key, value in real.items()}
    for name in NAMED:
        assert all(value.is_meta for value in blueprint(name)[0].state_dict().values())


def test_the_list_agrees_with_what_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue.own_rows.cache_clear()
    catalogue.blueprint.cache_clear()
    monkeypatch.setattr(torch, "load", None)  # nothing is read
    rows = {row.name: row for row in list_encoders() if row.distribution == "s2robot"}
    assert list(rows) == list(NAMED)
    tiny = load_backbone("s2robot-tiny", random_weights=True)
    assert rows["s2robot-tiny"].params == sum(parameter.numel() for parameter in tiny.parameters())
    assert round(rows["dinov2-vit-giant"].params / 1e9, 1) == 1.1
    for row in rows.values():
        assert (row.size, row.patch, row.width) == CONTRACTS[row.name][:3]
        assert row.prefix_tokens == CONTRACTS[row.name][5]
        assert row.licence
        assert row.source


def test_every_download_is_one_timm_has() -> None:
    for entry in NAMED.values():
        if isinstance(entry.architecture, str):
            assert "." in entry.architecture, "a name must mean one set of weights"
            assert timm.list_pretrained(entry.architecture) == [entry.architecture]
            licence = blueprint(entry.name)[0].pretrained_cfg["license"]
            assert entry.name.startswith("openclip") or entry.licence.lower().replace(" ", "-") == licence


def test_mvps_sums_begin_as_its_readme_says() -> None:
    sums = {key: md5 for md5, (key, _) in MVP_FILES.items()}
    assert sums["vits-mae-hoi"].startswith("fe6e30")
    assert sums["vits-mae-in"].startswith("29a004")
    assert sums["vits-sup-in"].startswith("f8f23b")
    assert all(len(md5) == 32 and name in NAMED for md5, (_, name) in MVP_FILES.items())


def test_the_page_lists_every_name_with_its_licence() -> None:
    page = (Path(__file__).parent.parent / "docs" / "encoders.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    for entry in NAMED.values():
        (line,) = [line for line in lines if f"`{entry.name}`" in line]
        assert entry.licence in line
        contract = blueprint(entry.name)[1]
        assert f"| {contract.size} | {contract.patch} | {contract.width} | {contract.prefix_tokens} |" in line


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("s2robot-tiney", "s2robot-tiny"),
        ("mvp-vit-bse", "mvp-vit-base"),
        ("dinov2-vit-small-regs", "dinov2-vit-small-reg"),
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


def test_any_timm_vit_goes_by_its_own_name() -> None:
    for name in ("timm:vit_tiny_patch16_224", "vit_tiny_patch16_224"):
        encoder = find_encoder(name)
        assert encoder.name == "vit_tiny_patch16_224"
        contract = encoder.contract(encoder.build())
        assert (contract.size, contract.patch, contract.width, contract.depth, contract.heads) == (224, 16, 192, 12, 3)
        assert (contract.mean, contract.std, contract.interpolation) == (*HALF, "bicubic")
    registers = find_encoder("vit_wee_patch16_reg1_gap_256")
    contract = registers.contract(registers.build())
    assert (contract.prefix_tokens, contract.class_token) == (1, False)


def test_a_model_without_a_token_grid_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'resnet10t' is not a ViT with a square token grid"):
        load_backbone("timm:resnet10t", random_weights=True)


def test_a_download_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", no_network)
    for name in ("vit_tiny_patch16_224", "dinov2-vit-small"):
        with pytest.raises(S2RobotError, match=r"no route to host.*give checkpoint='FILE.safetensors'"):
            load_backbone(name)


@pytest.mark.parametrize("name", [name for name, entry in NAMED.items() if not entry.downloads and not entry.shipped])
def test_an_encoder_that_only_comes_as_a_file_says_what_to_do(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"{name} needs a weights file.*checkpoint='FILE.pth'") as caught:
        load_backbone(name)
    message = str(caught.value)
    if name.startswith("mvp-"):
        assert "ir413/mvp/issues/18" in message
        for substitute in ("vc1-vit-base", "mae-vit-base", "dinov2-vit-base", "voltron-r-mvp-small", "s2robot-tiny"):
            assert substitute in message
            assert substitute in NAMED
    else:
        assert "https://dl.fbaipublicfiles.com/eai-vc/vc1_vit" in message or "pip install voltron" in message
