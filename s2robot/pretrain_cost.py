"""What a training step costs, by formula: multiply-adds of the masked forward and backward pass of one view.

Of a transformer block of width D over T tokens, forward (queries, keys and values 3 D^2, projection D^2, perceptron
8 D^2 a token; two products of attention of T^2 D each):

    block(T, D) = 12 T D^2 + 2 T^2 D

The encoder sees the visible patches and a CLS token, the decoder every cell and that token. Every product has two of
the same cost in the backward pass, by its weights and by what came in; the patch embedding has one, since nothing
learns the pixels.
Counted as in `s2robot.flops`: not norms, activations, softmax, the loss, or the optimiser.
"""

from __future__ import annotations

import math

from s2robot.recipe import PretrainConfig


def multiply_adds(config: PretrainConfig) -> int:
    """Of one view, or one frame when merged, forward and backward."""
    cells, patch_pixels = config.grid**2, 3 * config.patch**2
    merged = config.objective == "merged"
    areas = [scale**2 for scale in config.scales] if merged else [1]  # tiles of each scale
    visible = round(cells * (1 - config.mask_ratio))
    if merged:
        blocks = math.lcm(*config.scales) ** 2
        visible = blocks * round(cells // blocks * (1 - config.mask_ratio))
    embedding = sum(areas) * cells * patch_pixels * config.width
    encoder = sum(areas) * config.depth * _block(visible + 1, config.width)
    entering = (visible + 1) * len(areas) * config.width * config.decoder_width
    decoder = config.decoder_depth * _block(cells + 1, config.decoder_width)
    leaving = cells * config.decoder_width * patch_pixels * sum(areas)
    return 2 * embedding + 3 * (encoder + entering + decoder + leaving)


def _block(tokens: int, width: int) -> int:
    return 12 * tokens * width**2 + 2 * tokens**2 * width
