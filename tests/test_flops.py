"""What a forward pass costs: the figures of the S2 paper, counted without memory for a single weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_encoders import small_encoder, small_vit

from s2robot.backbones import FrozenViT
from s2robot.catalogue import blueprint
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.flops import Cost, backbone_cost, encoder_cost


def hollow(name: str, sizes: tuple[int, ...], tile: int | None = None) -> Encoder:
    """An encoder of a named architecture whose weights take no memory."""
    model, contract = blueprint(name)
    return Encoder(FrozenViT(model, name, contract), EncoderConfig(name, sizes=sizes, tile=tile, engine="torch"))


@pytest.mark.parametrize(("name", "sizes", "gflops"), [
    ("vit-base", (224,), 17.6), ("vit-base", (224, 448), 88.1), ("vit-base", (224, 448, 672), 246),
    ("vit-large", (224,), 61.6), ("vit-base", (512,), 105.7), ("vit-large", (512,), 362),
])  # fmt: skip
def test_it_is_what_the_paper_says(name: str, sizes: tuple[int, ...], gflops: float) -> None:
    assert encoder_cost(hollow(name, sizes)).gflops == pytest.approx(gflops, rel=0.02)


@pytest.mark.parametrize(("name", "sizes", "tile", "gflops"), [
    ("dinov2-vit-base", (224,), None, 22.6), ("dinov2-vit-base", (224, 448), None, 112.8),
    ("dinov2-vit-base", (224, 448, 672), None, 315.9), ("dinov2-vit-large", (224,), None, 79.4),
    ("dinov2-vit-large", (224, 448), None, 397), ("dinov2-vit-large", (518,), None, 460.9),
    ("dinov2-vit-base", (518, 1036), None, 671.8), ("dinov2-vit-base", (518, 1036, 1554), None, 1881),
    ("vit-base", (256, 512, 1024), 256, 474.7), ("vit-base", (256, 512, 1536), 256, 926.7),
])  # fmt: skip
def test_elsewhere_the_paper_counts_one_of_the_two_products_of_attention(
    name: str, sizes: tuple[int, ...], tile: int | None, gflops: float
) -> None:
    cost = encoder_cost(hollow(name, sizes, tile))
    assert cost.linear + cost.attention / 2 == pytest.approx(gflops, rel=0.003)


@pytest.mark.parametrize(("name", "millions"), [("vit-base", 86), ("vit-large", 307)])
def test_parameters_are_the_papers(name: str, millions: float) -> None:
    """ViT-L has 303.3 million without the classifier; with it and the pooler, the paper rounds to 307."""
    encoder = hollow(name, (224,))
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
    assert all(parameter.is_meta for parameter in encoder.parameters())


def by_hand(tokens: int, patches: int, width: int, depth: int, patch: int) -> Cost:
    """A plain ViT: patch embedding, then qkv, projection and two layers of an MLP of four times the width a block."""
    linear = patches * 3 * patch * patch * width + depth * tokens * 12 * width * width
    return Cost(linear / 1e9, depth * 2 * tokens * tokens * width / 1e9)


@pytest.mark.parametrize(("art", "prefix"), [("plain", 1), ("registers", 5), ("no prefix", 0)])
@pytest.mark.parametrize("tile", [(32, 32), (32, 48), (64, 24)])
def test_it_is_the_count_by_hand(art: str, prefix: int, tile: tuple[int, int]) -> None:
    patches = tile[0] // 8 * (tile[1] // 8)
    cost, expected = backbone_cost(small_vit(art), tile), by_hand(prefix + patches, patches, 16, 1, 8)
    assert cost.linear == pytest.approx(expected.linear, rel=1e-9)
    assert cost.attention == pytest.approx(expected.attention, rel=1e-9)
    assert cost.gflops == pytest.approx(expected.linear + expected.attention)


@pytest.mark.parametrize(("settings", "frame", "tiles"), [
    ({}, None, [((32, 32), 5)]), ({"scales": (1, 2, 3)}, (50, 50), [((32, 32), 14)]),
    ({"scales": (1, 1.5)}, (96, 96), [((32, 32), 1), ((24, 24), 4)]), ({}, (64, 96), [((32, 48), 5)]),
    ({"fit": "crop"}, (64, 96), [((32, 32), 5)]), ({"fit": "pad"}, (64, 96), [((32, 32), 5)]),
])  # fmt: skip
def test_an_encoder_costs_its_tiles(settings: dict[str, Any], frame: Any, tiles: list[Any]) -> None:
    cost = encoder_cost(small_encoder(**settings), frame)
    assert cost.gflops == pytest.approx(sum(count * backbone_cost(small_vit(), size).gflops for size, count in tiles))


def test_counting_leaves_the_backbone_as_it_was() -> None:
    encoder = small_encoder()
    weights = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder_cost(encoder, (64, 96))
    assert all(torch.equal(weights[key], value) for key, value in encoder.state_dict().items())
    assert encoder(torch.zeros(64, 96, 3, dtype=torch.uint8)).map.isfinite().all()
