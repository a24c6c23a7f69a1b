"""Masked autoencoding: the mask hides, at every scale; the loss is of hidden patches; pixels survive the round trip."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from s2robot.mae import MaskedAutoencoder, cut_patches, sincos_table
from s2robot.mae_merged import MergedAutoencoder
from s2robot.multiscale import multiscale_forward
from s2robot.pretrain_state import build_model
from s2robot.recipe import PretrainConfig

TINY = PretrainConfig()
SMALL = {"width": 24, "heads": 2, "depth": 2, "decoder_width": 16, "decoder_depth": 1, "objective": "merged"}
SHAPES = {
    (1,): PretrainConfig(**SMALL, scales=(1,), image_size=64, frame_size=64),  # type: ignore[arg-type]
    (1, 2): PretrainConfig(**SMALL, scales=(1, 2), image_size=64, frame_size=128),  # type: ignore[arg-type]
    (1, 2, 3): PretrainConfig(**SMALL, scales=(1, 2, 3), image_size=192, frame_size=576),  # type: ignore[arg-type]
}


def some_noise(batch: int, cells: int) -> Tensor:
    return torch.rand(batch, cells, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=SHAPES, ids=str)
def merged(request: pytest.FixtureRequest) -> MergedAutoencoder:
    model = build_model(SHAPES[request.param]).eval()
    assert isinstance(model, MergedAutoencoder)
    return model


def test_patches_and_images_are_inverse() -> None:
    model = build_model(TINY)
    images = torch.randn(2, 3, 128, 128)
    torch.testing.assert_close(model.images(model.patches(images)), images, rtol=0, atol=0)
    assert model.patches(images).shape == (2, 64, 16 * 16 * 3)


def test_the_encoder_never_sees_a_masked_patch() -> None:
    model = build_model(TINY).eval()
    noise = some_noise(1, 64)
    images = torch.randn(1, 3, 128, 128)
    _, _, mask = model(images, noise)
    assert mask.sum() == 48
    patches = model.patches(images)
    changed = model.images(patches + 9.0 * mask[..., None])
    kept = noise.argsort(dim=1)[:, :16]
    torch.testing.assert_close(model.encode(images, kept), model.encode(changed, kept), rtol=0, atol=0)


@pytest.mark.parametrize("target", ["raw", "normalised"])
def test_the_loss_counts_masked_patches_only(target: str) -> None:
    model = build_model(PretrainConfig(target=target)).eval()
    images = torch.randn(1, 3, 128, 128)
    loss, painted, mask = model(images, some_noise(1, 64))
    assert mask.sum() == 48
    by_hand = ((painted - model.wanted(model.patches(images))) ** 2).mean(-1)[mask.bool()].mean()
    torch.testing.assert_close(loss, by_hand)


def test_normalised_targets_have_no_mean_and_unit_deviation_and_flat_ones_stay_small() -> None:
    model = build_model(PretrainConfig(target="normalised"))
    patches = 3 + 2 * torch.randn(5, 768)
    patches[4] = 1 + 1e-3 * torch.randn(768)  # a flat patch: its noise is not blown up to unit deviation
    wanted = model.wanted(patches)
    torch.testing.assert_close(wanted.mean(-1), torch.zeros(5), rtol=0, atol=1e-4)
    torch.testing.assert_close(wanted[:4].std(-1), torch.ones(4), rtol=0, atol=1e-3)
    assert wanted[4].std() < 0.2


def test_positions_differ_everywhere() -> None:
    table = sincos_table(192, 8)[0]
    distance = torch.cdist(table, table) + 1e9 * torch.eye(64)
    assert distance.min() > 0.1


def test_every_tile_of_every_scale_keeps_as_many_patches(merged: MergedAutoencoder) -> None:
    kept = merged.keep(some_noise(3, merged.grid**2))
    assert kept.shape == (3, merged.visible)
    assert all(len(set(row.tolist())) == merged.visible for row in kept)
    grid = torch.zeros(3, merged.grid**2).scatter(1, kept, 1.0).view(3, merged.grid, merged.grid)
    for scale in merged.scales:
        side = merged.grid // scale
        tiles = grid.unfold(1, side, side).unfold(2, side, side).sum(dim=(-2, -1))  # (3, s, s)
        assert (tiles == merged.visible / scale**2).all()


def test_no_scale_sees_what_another_must_paint(merged: MergedAutoencoder) -> None:
    noise, images = some_noise(2, merged.grid**2), torch.randn(2, 3, merged.size, merged.size)
    kept = merged.keep(noise)
    _, _, mask = merged(images, noise)
    cell = merged.size // merged.grid
    hidden = mask.view(2, 1, merged.grid, merged.grid).repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    changed = images + 9.0 * hidden
    # Adding noughts can round the mean of a cell's neighbours not at all: each cell is averaged by itself.
    torch.testing.assert_close(merged.merged(images, kept), merged.merged(changed, kept), rtol=0, atol=1e-6)


def test_with_nothing_hidden_merged_features_are_those_in_use(merged: MergedAutoencoder) -> None:
    """Every cell visible, the training path is the definition of S2: the same cells and scales in their place."""
    merged.visible_in_block, merged.visible = merged.block**2, merged.grid**2
    base = merged.grid * merged.patch
    images = torch.randn(2, 3, merged.size, merged.size)
    kept = merged.keep(some_noise(2, merged.grid**2))
    features = torch.zeros(2, merged.grid**2, merged.encoder.embed_dim * len(merged.scales))
    found = merged.merged(images, kept)
    features.scatter_(1, kept[..., None].expand_as(features), found[:, 1:])
    for place, scale in enumerate(merged.scales):
        at_scale = adaptive_avg_pool2d(images, scale * base)
        plain = multiscale_forward(
            merged.encoder.forward_features, at_scale, img_sizes=[scale * base], max_split_size=base,
            num_prefix_token=1,
        )  # fmt: skip
        side = scale * merged.grid
        grid = plain[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        expected = adaptive_avg_pool2d(grid, merged.grid).flatten(2).transpose(1, 2)
        width = merged.encoder.embed_dim
        torch.testing.assert_close(features[..., place * width : (place + 1) * width], expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(found[:, 0, place * width : (place + 1) * width], plain[:, 0], rtol=0, atol=1e-4)


def test_a_cell_is_the_same_place_at_every_scale(merged: MergedAutoencoder) -> None:
    """An image that says which base cell each pixel is in: every patch of a cell says that cell."""
    cell = merged.size // merged.grid
    numbers = torch.arange(merged.grid**2).float().view(1, 1, merged.grid, merged.grid)
    image = numbers.repeat_interleave(cell, 2).repeat_interleave(cell, 3).expand(1, 3, -1, -1)
    for scale in merged.scales:
        cells = merged.cells(image, scale)
        assert cells.shape == (1, merged.grid**2, scale**2, 3 * merged.patch**2)
        expected = torch.arange(merged.grid**2).float()[None, :, None, None].expand_as(cells)
        torch.testing.assert_close(cells, expected, rtol=0, atol=1e-3)


def test_the_merged_loss_is_the_mean_over_scales_of_hidden_cells(merged: MergedAutoencoder) -> None:
    images, noise = torch.randn(2, 3, merged.size, merged.size), some_noise(2, merged.grid**2)
    loss, painted, mask = merged(images, noise)
    assert mask.sum(dim=1).tolist() == [merged.grid**2 - merged.visible] * 2
    errors = []
    for scale, part in zip(merged.scales, merged.by_scale(painted), strict=True):
        cells = merged.cells(images, scale).flatten(2)
        errors.append((part - cells)[mask.bool()].square().mean())
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    torch.testing.assert_close(merged.losses(painted, images, mask), torch.stack(errors))


def test_every_part_of_a_merged_model_learns(merged: MergedAutoencoder) -> None:
    loss, _, _ = merged(torch.randn(2, 3, merged.size, merged.size), some_noise(2, merged.grid**2))
    loss.backward()
    silent = [name for name, p in merged.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []


@pytest.mark.parametrize("objective", ["views", "merged"])
def test_cls_is_learned_as_tokens_of_patches_are(objective: str) -> None:
    """The decoder paints from it too: for a policy that reads CLS it must have learned something."""
    config = dataclasses.replace(SHAPES[1, 2], objective=objective)
    model, seen = build_model(config), []
    model.encoder.norm.register_forward_hook(lambda *given: given[-1].retain_grad() or seen.append(given[-1]))
    loss, _, _ = model(torch.randn(2, 3, model.size, model.size), some_noise(2, model.grid**2))
    loss.backward()
    pull = seen[0].grad.norm(dim=-1).mean(dim=0)  # (1 + visible,)
    assert pull[0] > 0.1 * pull[1:].mean()


def test_both_models_name_the_encoder_alike() -> None:
    views, merged = build_model(TINY), build_model(PretrainConfig(objective="merged"))
    assert isinstance(views, MaskedAutoencoder)
    assert {k: v.shape for k, v in views.encoder.state_dict().items()} == {
        k: v.shape for k, v in merged.encoder.state_dict().items()
    }
    assert cut_patches(torch.zeros(1, 3, 256, 256), 16).shape == (1, 256, 768)
