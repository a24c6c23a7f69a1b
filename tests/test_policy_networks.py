"""Networks of policies by themselves: what they read, what they decide by, what their losses notice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from s2robot import registry, samples
from s2robot.compression import Compression, Shapes, rows_to_fit
from s2robot.contribution import by_scale
from s2robot.errors import InvalidInput, S2RobotError
from s2robot.policies.acting import FeaturePolicy
from s2robot.policies.bc_mlp import BCConfig, BCNetwork
from s2robot.policies.bc_rnn import Mixture, RNNConfig
from s2robot.policies.readout import READOUTS, SpatialReadout
from s2robot.samples import Batch
from s2robot.types import Features

SHAPES = Shapes(views=2, scales=2, width=12, grid=(4, 4), proprioception=5, actions=4)


def test_readout_finds_where_a_token_lights_up() -> None:
    """One query, told what to look for, reports the position of that token: x to the right, y down."""
    readout = SpatialReadout(1, 4, (5, 5), queries=1, key_width=4, value_width=2)
    with torch.no_grad():
        readout.keys[0].weight.copy_(torch.eye(4) * 50)
        readout.keys[0].bias.zero_()
        readout.queries.copy_(torch.tensor([[[1.0, 0, 0, 0]]]))
    maps = torch.zeros(1, 1, 4, 5, 5)
    maps[0, 0, 0, 1, 4] = 1.0  # row 1, column 4
    found = readout(maps, torch.zeros(len(maps), 0))[0, -2:]
    torch.testing.assert_close(found, torch.tensor([1.0, -0.5]), atol=1e-3, rtol=0)


def test_what_a_readout_looks_for_depends_on_the_goal() -> None:
    """Two tokens light up in two ways; the goal says which of them is meant."""
    readout = SpatialReadout(1, 4, (5, 5), queries=1, key_width=4, value_width=2, goal=2)
    assert readout.wanted is not None
    with torch.no_grad():
        readout.keys[0].weight.copy_(torch.eye(4) * 50)
        readout.keys[0].bias.zero_()
        readout.queries.zero_()
        readout.wanted.weight.copy_(torch.eye(4)[:, :2])
    maps = torch.zeros(2, 1, 4, 5, 5)
    maps[:, 0, 0, 1, 4] = maps[:, 0, 1, 3, 0] = 1.0  # row 1, column 4; row 3, column 0
    found = readout(maps, torch.eye(2))[:, -2:]
    torch.testing.assert_close(found, torch.tensor([[1.0, -0.5], [-1.0, 0.5]]), atol=1e-3, rtol=0)


def test_compression_keeps_what_varies() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 2, 2, 3, 16, generator=generator)  # three directions of twelve vary
    basis = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q[:, :3]
    maps = torch.einsum("fvskn,dk->fvsdn", hidden, basis).reshape(40, 2, 24, 4, 4) + 5
    compression = Compression(SHAPES, 3)
    compression.fit(maps)
    small = compression(maps)
    assert small.shape == (40, 2, 6, 4, 4)
    assert small.reshape(40, 2, 2, 3, -1).var(dim=(0, 4)).mean() == pytest.approx(1, rel=0.05)
    again = Compression(SHAPES, 3)
    again.fit(maps.clone())
    torch.testing.assert_close(again.basis, compression.basis)


def network_of(kind: str, **settings: Any) -> Any:
    module = registry.policy_module(kind)
    torch.manual_seed(0)
    return module.NETWORK(module.CONFIG(**{"chunk": 4, "components": 6, **settings}), SHAPES)


def batch_of(network: Any, windows: int = 3) -> Batch:
    leading = (windows, network.config.context)
    return Batch(
        torch.randn(*leading, 2, 12, 4, 4),
        torch.randn(*leading, 5),
        torch.zeros(*leading, 0),
        torch.rand(*leading, 4, 4) * 2 - 1,
        torch.ones(*leading, 4),
    )


@pytest.mark.parametrize("kind", [kind for kind in registry.POLICIES if kind != "flow"])  # which reads all of a chunk
def test_loss_ignores_what_lies_beyond_the_end_of_an_episode(kind: str) -> None:
    network = network_of(kind).eval()
    batch = batch_of(network)
    batch.valid[..., 2:] = 0

    def loss(actions: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return network.batch_loss(batch._replace(actions=actions))

    actions = batch.actions.clone().requires_grad_()
    loss(actions).backward()
    noticed = actions.grad[:, -1] != 0  # of the last look, which all kinds learn from
    assert noticed[:, :2].all() and not noticed[:, 2:].any()
    beyond = batch.actions.clone()
    beyond[..., 2:, :] = 1
    assert loss(beyond) == loss(batch.actions)


@pytest.mark.parametrize("name", READOUTS)
def test_every_readout_sees_places_and_the_goal_and_keeps_views_apart(name: str) -> None:
    torch.manual_seed(0)
    readout = READOUTS[name](2, 4, (5, 6), queries=3, key_width=4, value_width=2, goal=2)
    maps, goal = torch.randn(2, 2, 4, 5, 6), torch.eye(2)
    with torch.no_grad():
        found = readout(maps, goal)
        assert found.shape == (2, readout.width) and readout.width % 2 == 0
        assert name == "flat" or readout.width == 2 * 3 * 4
        assert not torch.allclose(readout(maps.flip(-1), goal), found)  # the same tokens elsewhere
        assert torch.allclose(readout(maps, goal.flip(0)), found) == (
            name == "flat"
        )  # it leaves that to what is behind
        other = maps.clone()
        other[:, 1] = torch.randn_like(other[:, 1])  # not the same for all: attention would look where it looked
        same, changed = torch.isclose(readout(other, goal), found, atol=1e-6).unflatten(1, (2, -1)).unbind(1)
        assert same.all() and not changed.any()


@pytest.mark.parametrize("kind", registry.POLICIES)
def test_a_context_is_decided_by_and_its_order_counts(kind: str) -> None:
    network = network_of(kind, context=3).eval()
    looks, noise = torch.randn(2, 3, network.look_width), torch.Generator()

    def decided(looks: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return network.predict(looks, noise.manual_seed(0))

    for k in range(3):
        changed = looks.clone()
        changed[:, k] += 1
        assert not torch.equal(decided(changed), decided(looks))
    assert not torch.equal(decided(looks.flip(1)), decided(looks))


def test_what_act_decides_after_a_look_knows_nothing_later() -> None:
    network = network_of("act", context=3).eval()
    looks = torch.randn(2, 3, network.look_width)
    style = torch.zeros(2, 3, network.config.latent)
    later = looks.clone()
    later[:, 2] += 1
    with torch.no_grad():
        one, other = network(looks, style), network(later, style)
    torch.testing.assert_close(one[:, :2], other[:, :2], rtol=0, atol=1e-6)
    assert (one[:, 2] - other[:, 2]).abs().max() > 1e-3


def test_act_pays_for_what_its_style_says() -> None:
    """The divergence of the style from a standard normal, `kl_weight` times."""
    quiet = {"dropout": 0.0, "proprioception_noise": 0.0}
    network, std = network_of("act", latent=2, kl_weight=10.0, **quiet).train(), torch.tensor([0.5, 2.0])
    batch, mean = batch_of(network), torch.tensor([0.3, -1.0])
    with torch.no_grad():
        network.style.weight.zero_()  # so that chunks are the same whatever it says
        network.posterior[-1].weight.zero_()
        network.posterior[-1].bias.zero_()
        nothing = network.batch_loss(batch)
        network.posterior[-1].bias.copy_(torch.cat([mean, 2 * std.log()]))
        something = network.batch_loss(batch)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).sum()
    torch.testing.assert_close(something - nothing, 10 * expected, rtol=1e-4, atol=0)


def test_act_is_not_shown_what_it_is_to_predict_when_it_is_judged() -> None:
    """In training the style is read from the actions; the loss on held-out ones is the error of what it would do."""
    network = network_of("act", latent=2).eval()
    batch = batch_of(network)
    with torch.no_grad():
        network.style.weight.mul_(100)  # a style read from the actions would be seen
        judged, again = network.batch_loss(batch), network.batch_loss(batch)
        looks = torch.zeros(len(batch.actions), batch.actions.shape[1], network.look_width)
        assert torch.equal(judged, again)  # and none is drawn
        network.posterior[-1].bias.add_(5)
        assert torch.equal(network.batch_loss(batch), judged)
        assert torch.equal(network.predict(looks, torch.Generator()), network(looks, network._middle(looks))[:, -1])


def test_a_mixture_is_a_density() -> None:
    """It integrates to one, and coordinates that do not count change nothing."""
    torch.manual_seed(0)
    mixture = Mixture(3, modes=4, outputs=2, smallest_std=0.05)
    x = torch.randn(3)
    axis = torch.linspace(-9, 9, 1201)
    values = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
    density = mixture.log_density(x, values, torch.ones_like(values)).exp()
    assert float(density.detach().sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=0.01)
    first = torch.tensor([1.0, 0.0]).expand_as(values)
    alone = mixture.log_density(x, values, first)
    assert torch.equal(alone[:, 0], alone[:, -1])


@pytest.mark.parametrize("kind", ["flow", "bc-rnn"])
def test_two_ways_are_kept_apart_where_their_mean_is_neither(kind: str) -> None:
    """Where demonstrations go left or right, bc goes down the middle; these draw one way for the whole chunk."""
    torch.manual_seed(0)
    shapes = Shapes(views=1, scales=1, width=4, grid=(2, 2), proprioception=1, actions=1)
    module, small = registry.policy_module(kind), {"chunk": 2, "execute": 1, "components": 4, "queries": 1}
    network = module.NETWORK(module.CONFIG(**small, context=1, hidden=64, proprioception_noise=0.0), shapes)
    looks = torch.zeros(256, 1, network.look_width)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(300):
        side = torch.randint(0, 2, (64, 1, 1, 1)).float().expand(-1, -1, 2, -1) * 1.6 - 0.8
        optimizer.zero_grad()
        network.loss(looks[:64], side, torch.ones(64, 1, 2)).backward()
        optimizer.step()
    with torch.no_grad():
        drawn = network.eval().predict(looks, torch.Generator().manual_seed(1))
    assert ((drawn.abs() - 0.8).abs() < 0.25).float().mean() > 0.9
    assert 0.3 < (drawn[:, 0, 0] > 0).float().mean() < 0.7
    assert (drawn[:, 0].sign() == drawn[:, 1].sign()).float().mean() > 0.95  # one way for the whole chunk


def test_disturbances_of_training_are_none_in_acting() -> None:
    settings = {"feature_noise": 0.3, "token_dropout": 0.5, "proprioception_dropout": 0.5}
    network = network_of("bc-mlp", **settings)
    maps, state, goal = torch.randn(64, 2, 12, 4, 4), torch.randn(64, 5), torch.zeros(64, 0)
    network.train()
    assert not torch.equal(network.look(maps, state, goal), network.look(maps, state, goal))
    blank, noisy = network._disturbed(torch.ones_like(maps), state)
    kept = (blank != 0).all(dim=2)  # (B, V, h, w): whole tokens
    assert torch.equal(kept, (blank != 0).any(dim=2)) and 0.4 < kept.float().mean() < 0.6
    assert 0.3 < (noisy == 0).all(dim=1).float().mean() < 0.7
    network.eval()
    assert torch.equal(network.look(maps, state, goal), network.look(maps, state, goal))


def test_windows_are_looks_execute_steps_apart_and_begin_with_the_first() -> None:
    """Two episodes, every second step encoded, looks four steps apart."""
    config = RNNConfig(context=3, execute=4)
    steps = [np.arange(0, 12, 2), np.arange(0, 5, 2)]
    windows, real = samples._windows(steps, config, stride=2)
    assert windows[:6].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 3], [0, 2, 4], [1, 3, 5]]
    assert windows[6:].tolist() == [[6, 6, 6], [6, 6, 7], [6, 6, 8]]
    # Two steps before the first look nobody looked, though its neighbour's window begins with the same row.
    assert real[:6].tolist() == [[0, 0, 1], [0, 0, 1], [0, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert real[6:].tolist() == [[0, 0, 1], [0, 0, 1], [0, 1, 1]]


@pytest.mark.parametrize("kind", ["bc-rnn", "act"])
def test_looks_that_stand_in_for_others_decide_nothing(kind: str) -> None:
    """Of the first step's window all but the last are copies: they are read, and what they would do does not count."""
    network = network_of(kind, context=3).train()
    some = samples.Samples(
        torch.randn(2, 2, 12, 4, 4), torch.randn(2, 5), torch.zeros(2, 0), torch.rand(2, 4, 4), torch.ones(2, 4),
        torch.tensor([[0, 0, 0], [0, 0, 1]]), torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]]),
    )  # fmt: skip
    batch = some.take(torch.arange(2), torch.device("cpu"))
    assert batch.valid[..., 0].tolist() == [[0, 0, 1], [0, 1, 1]]
    other = batch.actions.clone()
    other[0, :2], other[1, 0] = -1, -1

    def loss(actions: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return network.batch_loss(batch._replace(actions=actions))

    torch.testing.assert_close(loss(other), loss(batch.actions))


@pytest.mark.parametrize("goal", [0, 3])
@pytest.mark.parametrize("tokens", ["map", "cls"])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("kind", registry.POLICIES)
def test_all_that_can_learn_learns(kind: str, readout: str, tokens: str, goal: int) -> None:
    """Of one place, as CLS is, attention chooses nothing: its queries would learn nothing and all read the same."""
    module = registry.policy_module(kind)
    config = module.CONFIG(chunk=4, components=6, readout=readout, tokens=tokens)
    grid = (4, 4) if tokens == "map" else (1, 1)
    torch.manual_seed(0)
    network = module.NETWORK(config, replace(SHAPES, grid=grid, goal=goal)).train()
    batch = batch_of(network)
    seen = batch.seen[..., : grid[0], : grid[1]]
    network.batch_loss(batch._replace(seen=seen, goal=torch.randn(*seen.shape[:2], goal))).backward()
    still = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.abs().max()]
    assert still == []


def test_acting_gives_its_network_the_windows_of_training() -> None:
    """Asked every `execute` steps, or oftener: the looks are as far apart as they were."""
    seen: list[list[float]] = []

    class Listening(BCNetwork):
        def look(self, compressed: Any, proprioception: torch.Tensor, goal: Any) -> torch.Tensor:
            return proprioception[:, :1]

        def predict(self, looks: torch.Tensor, noise: Any) -> torch.Tensor:
            seen.append(looks[0, :, 0].tolist())
            return torch.zeros(1, 8, 4)

    policy = FeaturePolicy(None, Listening(BCConfig(context=3, execute=4), SHAPES))  # type: ignore[arg-type]
    features = Features(torch.zeros(1, 2, 24, 4, 4), torch.zeros(1, 2, 16, 24), torch.zeros(1, 2, 24))
    for t in range(0, 20, 4):
        policy.decide(features, np.full(5, t, np.float32))
    assert seen == [[0, 0, 0], [0, 0, 4], [0, 4, 8], [4, 8, 12], [8, 12, 16]]
    policy.execute = 2
    seen.clear()
    for t in range(0, 14, 2):
        policy.decide(features, np.full(5, t, np.float32))
    assert seen == [[0, 0, 0], [0, 0, 2], [0, 0, 4], [0, 2, 6], [0, 4, 8], [2, 6, 10], [4, 8, 12]]
    with pytest.raises(InvalidInput, match="must divide 4"):
        policy.execute = 3
    with pytest.raises(InvalidInput, match="chunks have 8 actions"):
        policy.execute = 9


def test_hyper_parameters_that_cannot_be_are_refused() -> None:
    for wrong in (
        {"execute": 9},
        {"context": 0},
        {"token_dropout": 1.0},
        {"tokens": "clss"},
        {"readout": "cnov"},
    ):
        with pytest.raises(S2RobotError):
            BCConfig(**wrong)
    with pytest.raises(InvalidInput, match="multiple of the heads"):
        registry.policy_module("act").CONFIG(width=100, heads=3)


def test_what_a_compression_is_fitted_to_fits_into_memory() -> None:
    rows = rows_to_fit((10_000, 2, 3072, 28, 28), 10_000)
    assert 8 <= len(rows) < 100 and rows[0] == 0 and rows[-1] == 9_999
    assert len(rows) * 2 * 3072 * 28 * 28 * 4 < 1 << 30
    assert len(rows_to_fit((10_000, 2, 384, 8, 8), 10_000)) == 400
    assert rows_to_fit((), 3).tolist() == [0, 1, 2]  # of frames, of which there are no maps


def test_what_a_scale_contributes_is_what_is_lost_without_it() -> None:
    """A network that reads one scale only loses by that one, and nothing by the other."""
    network = network_of("bc-mlp").eval()
    with torch.no_grad():
        for layer in [*network.readout.keys, *network.readout.values]:
            layer.weight[:, 6:] = 0  # the finer scale's channels
    some = samples.Samples(
        torch.randn(8, 2, 12, 4, 4).half(), torch.randn(8, 5), torch.zeros(8, 0), torch.rand(8, 4, 4), torch.ones(8, 4),
        torch.arange(8)[:, None], torch.ones(8, 1),
    )  # fmt: skip
    found = by_scale(network, some, torch.arange(8), ["1", "2"])
    assert found is not None
    assert found["without"]["2"] == found["all"] and abs(found["without"]["1"] - found["all"]) > 1e-4
    assert by_scale(network, some, torch.arange(0), ["1", "2"]) is None
    assert by_scale(network, some, torch.arange(8), ["1", "2", "3"]) is None  # fused: there is nothing to leave out
