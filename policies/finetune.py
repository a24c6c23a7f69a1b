"""The S2 encoder itself, trained along with the policy: what freezing it costs, or saves.

It begins as bc-mlp on the frozen encoder: the same map to 1e-4, the same fixed compression fitted to it, the same
read-out and head. Then the ViT learns too, at a share of the learning rate. Its position embedding does not: tiles of
another size than the ViT was trained on have theirs resampled from it. With `--encoder.random_weights true` the same
network is trained from scratch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from s2robot.catalogue import OWN
from s2robot.compression import Shapes, chosen_tokens
from s2robot.encoder import Encoder, EncoderConfig, run_tiles
from s2robot.frames import Rows, small_size
from s2robot.interface import encoder_said
from s2robot.policies.pixels import PixelConfig, PixelNetwork

if TYPE_CHECKING:
    from typing_extensions import Self

PIECE = 8  # samples encoded at once where the compression is fitted


@dataclass(frozen=True)
class FinetuneConfig(PixelConfig):
    """Hyper-parameters of `finetune`. With `size` 0 the encoder is shown what it is shown when frozen."""


class FinetuneNetwork(PixelNetwork):
    """Frames to an action chunk by an S2 encoder that learns.

    `eye` is an `Encoder` that nobody else holds. Called, it lets no gradient through, like any other; here its parts
    are called one by one, on weights that were made trainable.
    """

    config: FinetuneConfig
    eye: Encoder

    def __init__(self, config: FinetuneConfig, shapes: Shapes, eye: Encoder) -> None:
        super().__init__(config, shapes)
        self.eye = eye

    @classmethod
    def fresh(
        cls, config: FinetuneConfig, source: Any, rows: Rows, encoder: EncoderConfig, fields: Mapping[str, int]
    ) -> Self:
        views, *frame, _ = source.dataset.frame_shape
        eye = _build(encoder)
        grid = eye.grid_of(small_size((frame[0], frame[1]), config.size)) if config.tokens == "map" else (1, 1)
        shapes = Shapes(views, encoder.groups, eye.channels // encoder.groups, grid, **fields)
        network = cls(config, shapes, eye)
        pieces = np.array_split(rows, -(-len(rows) // PIECE))
        with torch.no_grad():
            network.compression.fit(torch.cat([network.encode(network.kept(source, part)) for part in pieces]))
        return network

    @classmethod
    def bare(cls, config: FinetuneConfig, shapes: Shapes, encoder: EncoderConfig | None) -> Self:
        assert encoder is not None  # `needs` says it
        if encoder.name != OWN:  # whose file also says which architecture it is; others need none
            encoder = dataclasses.replace(encoder, checkpoint=None, random_weights=True)
        return cls(config, shapes, _build(encoder))

    def encode(self, frames: Tensor) -> Tensor:
        eye, plan = self.eye, self.eye.plan((frames.shape[2], frames.shape[3]))
        vits = {scale.tile: eye.backbone.at(scale.tile) for scale in plan.scales}
        if self.training:  # every time: a backbone made for another tile, moved or loaded is frozen again
            for name, parameter in eye.backbone.model.named_parameters():
                parameter.requires_grad_(name != "pos_embed")
        answers = run_tiles(eye.cut(frames, plan), lambda size, tiles: vits[size](tiles))
        features = eye.assemble(answers, plan, frames.shape[0], frames.shape[1])
        return chosen_tokens(features.map, features.cls, self.config.tokens)

    def needs(self, source: Any, encoder: EncoderConfig) -> dict[str, Any]:
        return {"encoder": encoder_said(encoder), "encoder_fingerprint": None}  # its weights are the policy's own


def _build(encoder: EncoderConfig) -> Encoder:
    return dataclasses.replace(encoder, engine="torch", precision="fp32").build("cpu")


CONFIG, NETWORK = FinetuneConfig, FinetuneNetwork
