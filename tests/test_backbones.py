"""Backbones: what comes out of them, that they stay frozen, and other image sizes over the same weights."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import timm
import timm.models.eva
import timm.models.vision_transformer
import torch
from small_encoders import random_frames
from torch import Tensor, nn

from s2robot.backbones import FrozenViT, load_backbone
from s2robot.catalogue import find_encoder
from s2robot.encoder import load_encoder
from s2robot.errors import InvalidInput

SMALL = {"embed_dim": 96, "depth": 2, "num_heads": 3}
KINDS: dict[str, tuple[str, dict[str, int]]] = {  # timm's flags, fewer weights
    "class token": ("vit_tiny_patch16_224", {"depth": 2}),
    "registers": ("vit_small_patch14_reg4_dinov2", SMALL),  # no positions for CLS and registers; 518 px
    "no prefix": ("vit_base_patch16_siglip_gap_224", SMALL),
    "rotary": ("vit_small_patch16_dinov3", SMALL),
    "norm before": ("vit_base_patch16_clip_224", SMALL),
    "averaged": ("vit_wee_patch16_reg1_gap_256", {"depth": 2}),
}


@pytest.fixture(scope="module")
def tiny() -> FrozenViT:
    return load_backbone("s2robot-tiny", random_weights=True, seed=7)


def small(kind: str, seed: int = 0) -> FrozenViT:
    """A small backbone of a kind, with positions that matter."""
    name, arguments = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = timm.create_model(name, num_classes=0, **arguments)
        for key, parameter in model.named_parameters():
            if "pos" in key or "token" in key:
                nn.init.normal_(parameter)
    return FrozenViT(model, name, find_encoder(name).contract(model))


def images(backbone: FrozenViT, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *backbone.tile, generator=torch.Generator().manual_seed(0))


# -- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s2robot-tiny", "vit_tiny_patch16_224", "timm:vit_wee_patch16_reg1_gap_256"])
def test_shapes_are_those_of_the_contract(name: str) -> None:
    backbone = load_backbone(name, random_weights=True)
    contract = backbone.contract
    prefix, grid = backbone(images(backbone, 1))
    assert backbone.tile == (contract.size, contract.size)
    assert backbone.grid_size == contract.grid_size == (contract.size // contract.patch,) * 2
    assert prefix.shape == (1, contract.prefix_tokens, contract.width)
    assert grid.shape == (1, contract.width, *contract.grid_size)


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


# -- frozen, random --------------------------------------------------------------------------------------------------


def test_a_backbone_cannot_be_unfrozen(tiny: FrozenViT) -> None:
    for backbone in (tiny, tiny.at((64, 96))):
        assert backbone.train() is backbone
        assert backbone.requires_grad_() is backbone
        before = {name: value.clone() for name, value in backbone.state_dict().items()}
        holder = nn.Sequential(backbone, nn.Linear(3, 3))
        holder.apply(lambda module: nn.init.ones_(module.weight) if isinstance(module, nn.Linear) else None)
        assert holder[1].weight.eq(1).all()  # a policy may initialise its own layers
        assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
        assert not any(module.training for module in backbone.modules())
        assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("how", ["in place", "from a vector", "a table of positions"])
def test_weights_written_to_behind_its_back_are_noticed(how: str) -> None:
    backbone = load_backbone(random_weights=True)
    other, before = backbone.at((64, 96)), backbone.generation
    assert backbone.generation == before
    with torch.no_grad():
        if how == "in place":
            next(backbone.model.blocks.parameters()).mul_(1.5)
        elif how == "from a vector":
            whole = nn.utils.parameters_to_vector(backbone.parameters())
            nn.utils.vector_to_parameters(1.5 * whole, backbone.parameters())
        else:
            backbone.model.pos_embed.mul_(0.0)
            assert other.model.pos_embed.any()
    assert backbone.generation != before
    if how != "in place":  # what was made from the trained positions is made anew
        again = load_backbone(random_weights=True)
        again.load_state_dict(backbone.state_dict())
        torch.testing.assert_close(backbone.at((64, 96)).model.pos_embed, again.at((64, 96)).model.pos_embed)


def test_the_callers_default_type_is_not_that_of_the_weights() -> None:
    known = load_encoder(fusion="project", width=8)
    torch.set_default_dtype(torch.float64)
    try:
        encoder = load_encoder(fusion="project", width=8)
        assert encoder.dtype == torch.float32 and encoder.fingerprint == known.fingerprint
        frames = random_frames(1, 1, 64, 64, 3)
        torch.testing.assert_close(encoder(frames).map, known(frames).map)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


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


def test_a_file_and_random_weights_exclude_each_other() -> None:
    with pytest.raises(InvalidInput, match="leave one out"):
        load_backbone(checkpoint="x.pth", random_weights=True)


# -- other sizes -----------------------------------------------------------------------------------------------------


def timms_own(kind: str, backbone: FrozenViT, tile: tuple[int, int]) -> Any:
    """What timm makes of the same weights for another size: built for it, loaded through its own filter."""
    name, arguments = KINDS[kind]
    model: Any = timm.create_model(name, num_classes=0, img_size=tile, **arguments)
    module = timm.models.eva if kind == "rotary" else timm.models.vision_transformer
    filtered = module.checkpoint_filter_fn(dict(backbone.model.state_dict()), model)
    model.load_state_dict(filtered)
    return model.eval()


@pytest.mark.parametrize("sides", [(10, 10), (7, 11), (16, 16)])
@pytest.mark.parametrize("kind", KINDS)
def test_another_size_gives_timms_own_numbers(kind: str, sides: tuple[int, int]) -> None:
    backbone = small(kind)
    tile = (sides[0] * backbone.contract.patch, sides[1] * backbone.contract.patch)
    twin = backbone.at(tile)
    reference = timms_own(kind, backbone, tile)
    pixels = images(twin)  # (B, 3, *tile)
    prefix, grid = twin(pixels)
    with torch.no_grad():
        tokens = reference.fc_norm(reference.forward_features(pixels))  # fc_norm is the identity but for "averaged"
    assert (twin.tile, twin.grid_size, tuple(grid.shape[2:])) == (tile, sides, sides)
    assert torch.equal(prefix, tokens[:, : backbone.contract.prefix_tokens])
    assert torch.equal(grid.flatten(2).transpose(1, 2), tokens[:, backbone.contract.prefix_tokens :])


def test_dinov2_at_224_is_timms_dinov2_for_224() -> None:
    backbone = load_backbone("dinov2-vit-small-reg", random_weights=True)
    reference: Any = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, img_size=224).eval()
    filtered = timm.models.vision_transformer.checkpoint_filter_fn(backbone.model.state_dict(), reference)
    reference.load_state_dict(filtered)
    twin = backbone.at((224, 224))
    prefix, grid = twin(images(twin, 1))
    with torch.no_grad():
        tokens = reference.forward_features(images(twin, 1))  # (1, 5+256, D)
    assert backbone.contract.size == 518
    assert torch.equal(prefix, tokens[:, :5])
    assert torch.equal(grid.flatten(2).transpose(1, 2), tokens[:, 5:])


@pytest.mark.parametrize("kind", KINDS)
def test_another_size_shares_the_weights_and_leaves_the_original_as_it_was(kind: str) -> None:
    backbone = small(kind)
    side = 8 * backbone.contract.patch
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    names, answer = dict(backbone.named_modules()).keys(), backbone(images(backbone, 1))
    twin = backbone.at((side, side))
    twin(images(twin, 1))
    mine, others = dict(backbone.model.named_parameters()), dict(twin.model.named_parameters())
    own = {key for key in mine if mine[key].data_ptr() != others[key].data_ptr()}
    assert own == (set() if kind == "rotary" else {"pos_embed"})
    after = backbone.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert dict(backbone.named_modules()).keys() == dict(twin.named_modules()).keys() == names  # none holds the other
    assert all(torch.equal(old, new) for old, new in zip(answer, backbone(images(backbone, 1)), strict=True))


def test_asking_twice_gives_the_same_backbone(tiny: FrozenViT) -> None:
    twin = tiny.at((64, 96))
    assert twin is tiny.at([64, 96]) is tiny.at((128, 64)).at((64, 96))
    assert tiny.at((96, 64)) is not twin
    assert tiny.at(tiny.tile) is tiny is twin.at(tiny.tile)


def test_a_size_made_from_another_comes_from_the_trained_positions() -> None:
    backbone = small("class token")
    expected = backbone.at((96, 160)).model.pos_embed
    again = small("class token").at((32, 32)).at((96, 160)).model.pos_embed
    assert torch.equal(again, expected)


@pytest.mark.parametrize("kind", ["class token", "rotary"])
@pytest.mark.parametrize("who", ["original", "twin"])
def test_a_backbone_and_its_other_sizes_move_together(kind: str, who: str) -> None:
    backbone = small(kind)
    twin = backbone.at((80, 48))
    (backbone if who == "original" else twin).double()
    assert {value.dtype for each in (backbone, twin) for value in each.parameters()} == {torch.float64}
    assert twin is backbone.at((80, 48))
    assert twin.model.blocks[0].attn.qkv.weight.data_ptr() == backbone.model.blocks[0].attn.qkv.weight.data_ptr()
    fresh = copy.deepcopy(backbone).double().at((80, 48))
    for got, expected in zip(twin(images(twin).double()), fresh(images(twin).double()), strict=True):
        assert torch.equal(got, expected)


def test_the_cast_of_a_half_backbone_is_the_same_before_and_after() -> None:
    first, second = small("class token"), small("class token")
    before = first.at((80, 48))
    first.half()
    after = second.half().at((80, 48))
    assert torch.equal(before.model.pos_embed, after.model.pos_embed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_other_sizes_follow_to_the_gpu() -> None:
    backbone = small("class token")
    twin = backbone.at((80, 48))
    backbone.to("cuda")
    assert twin(images(twin).cuda())[1].is_cuda
    twin.to("cpu")
    assert not backbone(images(backbone))[1].is_cuda


def test_other_sizes_follow_new_weights() -> None:
    backbone, other = small("class token"), small("class token", seed=1)
    twin = backbone.at((80, 48))
    nn.ModuleDict({"encoder": backbone}).load_state_dict(nn.ModuleDict({"encoder": other}).state_dict())
    assert torch.equal(twin.model.pos_embed, other.at((80, 48)).model.pos_embed)
    assert torch.equal(twin(images(twin))[1], other.at((80, 48))(images(twin))[1])


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda backbone: pickle.loads(pickle.dumps(backbone))])
def test_a_copy_is_whole(copier: Any) -> None:
    backbone = small("class token")
    twin = backbone.at((80, 48))
    for another in (copier(backbone), copier(twin)):
        assert another.at((80, 48)).at(backbone.tile) is another.at(backbone.tile)
        assert torch.equal(another.at((80, 48))(images(twin))[1], twin(images(twin))[1])
        assert another.at((80, 48)).model.norm.weight.data_ptr() != twin.model.norm.weight.data_ptr()
        another.double()
        assert twin.model.norm.weight.dtype == torch.float32


def test_a_size_first_asked_for_in_inference_mode_can_be_differentiated_through() -> None:
    backbone = small("class token")
    with torch.inference_mode():
        twin = backbone.at((80, 48))
    pixels = images(twin).requires_grad_()
    twin(pixels)[1].sum().backward()
    assert pixels.grad is not None
    assert not any(parameter.is_inference() for parameter in twin.parameters())


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        ((230, 64), "of 230x64: both sides must be multiples of its patch, 16 px. The nearest are 224x64 and 240x64"),
        ((5, 50), "The nearest are 16x48 and 16x64"),
        ((64,), "expected (height, width)"),
        ((0, 64), "expected (height, width)"),
        ((-16, 64), "expected (height, width)"),
        ((64.5, 64), "expected (height, width)"),
    ],
)
def test_a_size_that_is_no_multiple_of_the_patch_is_refused(tiny: FrozenViT, tile: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        tiny.at(tile)
    assert message in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # timm's own, on the way to resizing BEiT's tables
def test_a_model_with_more_to_resize_than_positions_is_refused(
    tiny: FrozenViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = timm.create_model("beit_base_patch16_224", num_classes=0, **SMALL)
    beit = FrozenViT(model, "beit", find_encoder("beit_base_patch16_224").contract(model))
    with pytest.raises(InvalidInput, match="beit cannot take another size"):
        beit.at((192, 192))
    monkeypatch.delattr(type(tiny.model), "set_input_size")
    with pytest.raises(InvalidInput, match="s2robot-tiny cannot take another size"):
        tiny.at((192, 192))
