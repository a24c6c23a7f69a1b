"""Heads find what was planted, and nothing where nothing is; closed forms are what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from s2robot.probe_heads import (
    DenseHead,
    Linear,
    PrincipalAxes,
    Schedule,
    SpatialHead,
    drawn_from,
    fit_logistic,
    fit_ridge,
    train_by_steps,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mean_error(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).abs().mean()


@pytest.mark.parametrize(("rows", "columns"), [(60, 7), (20, 50)])  # both sides of the decomposition
@pytest.mark.parametrize("strength", [1e-3, 0.5])
def test_ridge_is_its_closed_form(rows: int, columns: int, strength: float) -> None:
    x, y = draw(rows, columns) * 3 + 5, draw(rows, 2, seed=1)
    head = fit_ridge((x, y), (x, y), mean_error, (strength,))
    spread = x.double().std(dim=0, correction=0)
    turned = (x.double() - x.double().mean(dim=0)) / spread
    penalty = strength * rows * columns / min(rows, columns)  # the mean eigenvalue of standardised columns
    expected = torch.linalg.solve(
        turned.T @ turned + penalty * torch.eye(columns).double(), turned.T @ (y - y.mean(dim=0)).double()
    )
    torch.testing.assert_close(head.weights * spread[:, None], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(head(x), (turned @ expected + y.double().mean(dim=0)).float(), rtol=1e-4, atol=1e-5)


def test_ridge_takes_the_strength_that_validation_likes() -> None:
    x, noise = draw(40, 30), draw(40, 1, seed=1)
    y = x[:, :1] + 3 * noise
    loose, tight = (fit_ridge((x, y), (x, wanted), mean_error).strength for wanted in (y, torch.zeros(40, 1)))
    assert loose < tight


def test_columns_that_do_not_vary_do_no_harm() -> None:
    x, y = torch.cat([draw(30, 3), torch.full((30, 2), 7.0)], dim=1), draw(30, 1, seed=1)
    assert torch.isfinite(fit_ridge((x, y), (x, y), mean_error)(x)).all()
    assert torch.isfinite(fit_logistic((x, (y[:, 0] > 0).long()), (x, (y[:, 0] > 0).long()), 2)(x)).all()


def test_logistic_finds_classes_and_is_at_a_minimum() -> None:
    x = draw(300, 5)
    labels = (x @ draw(5, 3, seed=1)).argmax(dim=1)
    head = fit_logistic((x[:200], labels[:200]), (x[200:250], labels[200:250]), 3)
    assert (head(x[250:]).argmax(dim=1) == labels[250:]).float().mean() > 0.85
    # At the optimum of mean loss + s/2 |W|^2 over rows scaled to length 1, the gradient vanishes.
    scale = x[:200].std(dim=0, correction=0) * 5**0.5
    rows = (x[:200] - x[:200].mean(dim=0)) / scale
    weights = (head.weights * scale[:, None]).requires_grad_()
    often = torch.bincount(labels[:200], minlength=3)
    loss = torch.nn.functional.cross_entropy(rows @ weights + head.bias, labels[:200], 200 / (3 * often.float()))
    (loss + head.strength / 2 * weights.square().sum()).backward()
    assert weights.grad is not None and weights.grad.abs().max() < 2e-3


def test_logistic_gives_rare_classes_their_weight() -> None:
    labels = torch.cat([torch.zeros(190), torch.ones(10)]).long()
    x = labels[:, None] + 0.5 * draw(200, 1)
    found = fit_logistic((x, labels), (x, labels), 2)(x).argmax(dim=1)
    assert (found[labels == 1] == 1).float().mean() > 0.6


def test_where_right_answers_count_logistic_is_no_worse_than_the_commonest_class() -> None:
    labels = torch.cat([torch.zeros(900), torch.ones(100)]).long()
    x = labels[:, None] + draw(1000, 1)
    right = [
        float((fit_logistic((x, labels), (x, labels), 2, balanced=balanced)(x).argmax(dim=1) == labels).float().mean())
        for balanced in (False, True)
    ]
    assert right[0] > 0.89 and right[1] < 0.8


def test_principal_axes_whiten_and_keep_the_strongest() -> None:
    tokens = draw(2000, 3) * torch.tensor([1.0, 10.0, 0.1]) + 4
    axes = PrincipalAxes.of(tokens)
    seen = axes(tokens.T.reshape(1, 3, 40, 50)).flatten(2)[0]  # (3, 2000)
    torch.testing.assert_close(seen.std(dim=1)[:2], torch.ones(2), atol=0.01, rtol=0)
    assert seen.mean(dim=1).abs().max() < 1e-3
    strongest = PrincipalAxes.of(tokens, 1)(tokens.T.reshape(1, 3, 40, 50)).flatten()
    assert np.corrcoef(strongest, tokens[:, 1])[0, 1] ** 2 > 0.999
    assert torch.isfinite(PrincipalAxes.of(torch.ones(10, 4)).axes).all()


def planted(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Maps (n, 6, 5, 7) of noise with one loud cell, and where it is in [-1, 1]."""
    maps = draw(count, 6, 5, 7, seed=seed) * 0.3
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(5, size=count), rng.integers(7, size=count)
    maps[torch.arange(count), 2, rows, columns] += 3
    return maps, torch.from_numpy(np.stack([columns / 3 - 1, rows / 2 - 1], axis=1)).float()


def fitted_error(maps: Tensor, places: Tensor, seed: int = 0) -> tuple[float, SpatialHead]:
    with drawn_from(seed):
        head = SpatialHead(6, (5, 7), 2)
    train_by_steps(
        head,
        lambda rows: (head(maps[rows]) - places[rows]).square().mean(),
        lambda: float(mean_error(head(maps[300:400]), places[300:400])),
        300, Schedule(steps=150, batch=64, lr=1e-2, every=25), seed,
    )  # fmt: skip
    return float(mean_error(head(maps[400:]), places[400:]).detach()), head


def test_spatial_softmax_finds_a_planted_place_and_nothing_in_shuffled_features() -> None:
    maps, places = planted(600)
    found, _ = fitted_error(maps, places)
    lost, _ = fitted_error(maps[torch.randperm(600, generator=torch.Generator().manual_seed(1))], places)
    blind = float(mean_error(places[:300].mean(dim=0), places[400:]))
    assert found < 0.1 * blind  # without the places themselves, a fifth
    assert lost > 0.9 * blind


def test_same_seed_same_head_and_the_global_state_is_left_alone() -> None:
    maps, places = planted(600)
    before = torch.random.get_rng_state()
    (first, one), (second, two), (_, other) = (fitted_error(maps, places, seed) for seed in (3, 3, 4))
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.queries, other.queries)
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_stops_where_validation_was_best() -> None:
    head = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(head.weight)
    seen: list[float] = []

    def valid_error() -> float:
        seen.append(head.weight.item())
        return abs(head.weight.item() - 0.5)

    step = train_by_steps(
        head, lambda _: (head.weight - 2).square().sum(), valid_error, 8, Schedule(40, 4, 0.1, every=1), 0
    )
    assert len(seen) == 40 and seen[-1] > 1
    assert head.weight.item() == seen[step - 1] == min(seen, key=lambda weight: abs(weight - 0.5))


def test_dense_head_is_one_linear_layer_whatever_its_axes() -> None:
    maps = draw(2, 6, 4, 4)
    axes = PrincipalAxes.of(draw(500, 6, seed=2) * torch.arange(1.0, 7))
    head = DenseHead(axes, 3, 8)
    with torch.no_grad():
        head.weight.normal_()
        head.bias.normal_()
        tokens = maps.flatten(2).transpose(1, 2)  # (2, 16, 6)
        each = ((tokens - axes.mean) @ axes.axes @ head.weight + head.bias).transpose(1, 2).unflatten(2, (4, 4))
        expected = torch.nn.functional.interpolate(each, size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(maps), expected, atol=1e-4, rtol=1e-4)


def test_linear_speaks_float32() -> None:
    head = Linear(torch.zeros(2).double(), torch.eye(2).double(), torch.ones(2).double(), 0.1)
    assert head(torch.ones(1, 2)).dtype == torch.float32
    torch.testing.assert_close(head(torch.ones(1, 2)), torch.full((1, 2), 2.0))
