"""The formula of a training step's cost counts what torch counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_runs import TINY
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s2robot.pretrain_cost import multiply_adds
from s2robot.pretrain_state import build_model
from s2robot.recipe import PretrainConfig

RECIPES = {
    "views": TINY,
    "default": PretrainConfig(),
    "merged": replace(TINY, objective="merged"),
    "merged, three scales": replace(
        TINY, objective="merged", scales=(1, 2, 3), image_size=96, frame_size=288, mask_ratio=0.5
    ),
}


@pytest.mark.parametrize("config", RECIPES.values(), ids=RECIPES)
def test_the_formula_counts_what_torch_counts(config: PretrainConfig) -> None:
    model = build_model(config)
    images, noise = torch.randn(2, 3, model.size, model.size), torch.rand(2, config.grid**2)
    # The plain products of attention: what fused kernels compute again in the backward pass is no useful work.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images, noise)[0].backward()
    assert 2 * 2 * multiply_adds(config) == pytest.approx(counter.get_total_flops(), rel=1e-6)
