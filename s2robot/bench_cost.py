"""What encoders cost, counted without a single weight: `s2robot bench cost`.

The S2 paper's rows stand here beside ours. Its figures follow two conventions: some hold both products of attention,
others one of the two; each is held against ours in its own (`Row.halved`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from s2robot.backbones import FrozenViT
from s2robot.catalogue import blueprint
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.flops import encoder_cost


@dataclass(frozen=True)
class CostConfig:
    """Of what the cost is counted."""

    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(engine="torch"))


@dataclass(frozen=True)
class Row:
    """One row of the paper: what it is of, and the GFLOPs printed there."""

    encoder: str
    sizes: tuple[int, ...]
    gflops: float
    table: str
    tile: int | None = None  # the largest tile [pixels], where it is not the smallest size
    halved: bool = True  # one of attention's two products was counted


# Left out is its ViT-H (204.9): the one there is at 224 px and patch 14 comes to 167.3.
PAPER = (
    Row("mvp-vit-base", (224,), 17.5, "robot, Table 10", halved=False),
    Row("mvp-vit-base", (224, 448), 87.9, "robot, Table 10", halved=False),
    Row("mvp-vit-large", (224,), 61.6, "robot, Table 10", halved=False),
    Row("vit-base", (224,), 17.6, "classification, Table 5", halved=False),
    Row("vit-base", (224, 448), 88.1, "classification, Table 5", halved=False),
    Row("vit-base", (224, 448, 672), 246, "classification, Table 5", halved=False),
    Row("vit-large", (224,), 61.6, "classification, Table 5", halved=False),
    Row("dinov2-vit-base", (224,), 22.6, "classification, Table 5"),
    Row("dinov2-vit-base", (224, 448), 112.8, "classification, Table 5"),
    Row("dinov2-vit-base", (224, 448, 672), 315.9, "classification, Table 5"),
    Row("dinov2-vit-large", (224,), 79.4, "classification, Table 5"),
    Row("dinov2-vit-large", (224, 448), 397, "classification, Table 5"),
    Row("vit-base", (512,), 105.7, "segmentation, Table 6", halved=False),
    Row("vit-base", (256, 512, 1024), 474.7, "segmentation, Table 6", tile=256),
    Row("vit-base", (256, 512, 1536), 926.7, "segmentation, Table 6", tile=256),
    Row("vit-large", (512,), 362, "segmentation, Table 6", halved=False),
    Row("dinov2-vit-base", (518, 1036), 671.8, "segmentation, Table 6"),
    Row("dinov2-vit-base", (518, 1036, 1554), 1881, "segmentation, Table 6"),
    Row("dinov2-vit-large", (518,), 460.9, "segmentation, Table 6"),
)


def cost(config: EncoderConfig) -> dict[str, Any]:
    """Parameters, channels, tokens, tiles and GFLOPs of one square frame; no weights are read or made."""
    encoder = hollow(config)
    plan = encoder.plan((encoder.sizes[-1], encoder.sizes[-1]))
    counted = encoder_cost(encoder)
    return {
        "encoder": config.name,
        "sizes": list(encoder.sizes),
        "parameters": sum(each.numel() for each in encoder.parameters()),
        "channels": encoder.channels,
        "grid": list(encoder.grid_of((encoder.sizes[-1], encoder.sizes[-1]))),
        "tiles": plan.tiles,
        "gflops": counted.gflops,
        "gflops_halved": counted.linear + counted.attention / 2,
    }


def against_paper(rows: Sequence[Row] = PAPER) -> list[dict[str, Any]]:
    """`cost` of every row of the paper, with its own figure in its own convention and ours less it, as a share."""
    found = []
    for row in rows:
        ours = cost(EncoderConfig(row.encoder, sizes=row.sizes, tile=row.tile, engine="torch"))
        counted = ours["gflops_halved" if row.halved else "gflops"]
        found.append({**ours, "table": row.table, "paper": row.gflops, "off": counted / row.gflops - 1})
    return found


def hollow(config: EncoderConfig) -> Encoder:
    """An encoder whose weights take no memory."""
    model, contract = blueprint(config.name)
    return Encoder(FrozenViT(model, config.name, contract), config)
