"""What a forward pass costs: the figures of the S2 paper, counted without memory for a single weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_encoders import small_encoder, small_vit

from s2robot.bench_cost import PAPER, Row, against_paper, hollow
from s2robot.encoder import EncoderConfig
from s2robot.flops import Cost, backbone_cost, encoder_cost


@pytest.mark.parametrize("row", PAPER, ids=lambda row: f"{row.encoder}-{row.sizes}")
def test_it_is_what_the_paper_says(row: Row) -> None:
    (found,) = against_paper([row])
    assert abs(found["off"]) < 0.015
    assert found["sizes"] == list(row.sizes) and found["channels"] % len(row.sizes) == 0


def test_elsewhere_the_paper_counts_one_of_the_two_products_of_attention() -> None:
    halved = [row for row in PAPER if row.halved]
    other = [found["gflops"] / row.gflops - 1 for row, found in zip(halved, against_paper(halved), strict=True)]
    assert min(other) > 0.02  # no figure fits both conventions


@pytest.mark.parametrize(("name", "millions"), [("vit-base", 86), ("vit-large", 307)])
def test_parameters_are_the_papers(name: str, millions: float) -> None:
    """ViT-L has 303.3 million without the classifier; with it and the pooler, the paper rounds to 307."""
    encoder = hollow(EncoderConfig(name, sizes=(224,), engine="torch"))
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
