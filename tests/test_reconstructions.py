"""The pictures of a run: what is visible stays as it is, what is hidden is painted, in its place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import TINY
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from s2robot.mae import MaskedAutoencoder
from s2robot.mae_merged import MergedAutoencoder
from s2robot.pretrain_state import build_model
from s2robot.recipe import PretrainConfig
from s2robot.reconstructions import reconstruct, sheet

MERGED = replace(TINY, objective="merged")


def perfect(model: MaskedAutoencoder, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the decoder paint what is wanted."""
    if isinstance(model, MergedAutoencoder):
        answer = torch.cat([model.wanted(model.cells(images, scale)).flatten(2) for scale in model.scales], dim=-1)
    else:
        answer = model.wanted(model.patches(images))
    monkeypatch.setattr(model, "paint", lambda cls, tokens: answer)


@pytest.mark.parametrize("target", ["raw", "normalised"])
@pytest.mark.parametrize("config", [TINY, MERGED], ids=["views", "merged"])
def test_a_perfect_painter_gives_the_view_back(
    config: PretrainConfig, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(replace(config, target=target)).eval()
    images = torch.randn(2, 3, model.size, model.size)
    perfect(model, images, monkeypatch)
    triples = reconstruct(model, images, torch.rand(2, 16))
    sizes = [whole.shape[-1] for whole, _, _ in triples]
    assert sizes == ([32, 64] if config is MERGED else [32])
    for (whole, _, painted), size in zip(triples, sizes, strict=True):
        torch.testing.assert_close(whole, adaptive_avg_pool2d(images, size))
        torch.testing.assert_close(painted, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [TINY, MERGED], ids=["views", "merged"])
def test_only_hidden_cells_are_blank_and_painted(config: PretrainConfig) -> None:
    model = build_model(config).eval()
    images, noise = torch.randn(2, 3, model.size, model.size), torch.rand(2, 16)
    _, _, mask = model(images, noise)
    for whole, seen, painted in reconstruct(model, images, noise):
        cell = whole.shape[-1] // 4
        hidden = mask.view(2, 1, 4, 4).repeat_interleave(cell, 2).repeat_interleave(cell, 3).bool().expand_as(whole)
        for view in (seen, painted):
            torch.testing.assert_close(view[~hidden], whole[~hidden], rtol=0, atol=0)
            assert (view[hidden] != whole[hidden]).float().mean() > 0.99


def test_the_sheet_has_a_row_a_view_and_scale_and_keeps_colours() -> None:
    model = build_model(MERGED).eval()
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    mean, std = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    images = ((red - mean) / std).expand(2, 3, 64, 64)
    picture = sheet(reconstruct(model, images, torch.rand(2, 16)))
    assert picture.size == (3 * 64 + 2 * 4, 4 * 64 + 3 * 4)
    assert np.asarray(picture)[32, 32].tolist() == [255, 0, 0]
