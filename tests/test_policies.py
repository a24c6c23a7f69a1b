"""Contracts of every policy, and what behaviour cloning must be able to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s2robot import files, registry
from s2robot.encoder import EncoderConfig
from s2robot.errors import CheckpointMismatch, CorruptFile, InvalidInput, S2RobotError, UnknownName
from s2robot.policies.bc import BCConfig, BCNetwork
from s2robot.policies.flow import FlowConfig, FlowNetwork
from s2robot.policies.neck import Compression, Shapes
from s2robot.policies.readout import SpatialReadout
from s2robot.store import FeatureStore, encode_dataset
from s2robot.training import TrainConfig, load_policy, train
from s2robot.types import FRAMES, GOAL, PROPRIOCEPTION, Policy

ENCODER = EncoderConfig(random_weights=True, scales=(1, 2))
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


@pytest.mark.parametrize("kind", registry.POLICIES)
def test_loss_ignores_what_lies_beyond_the_end_of_an_episode(kind: str) -> None:
    module = registry.policy_module(kind)
    network = module.NETWORK(module.CONFIG(chunk=4, components=6), SHAPES).eval()
    maps, state = torch.randn(3, 2, 12, 4, 4), torch.randn(3, 5)
    valid = torch.ones(3, 4)
    valid[:, 2:] = 0

    def gradient(actions: torch.Tensor) -> torch.Tensor:
        """Of the loss by the actions: what it takes notice of."""
        torch.manual_seed(0)
        actions = actions.requires_grad_()
        network.loss(maps, state, torch.zeros(len(maps), 0), actions, valid).backward()
        return actions.grad

    if kind == "bc":  # a flow sees the whole chunk at once: what is beyond is an input, never an answer
        noticed = gradient(torch.zeros(3, 4, 4))
        assert (noticed[:, :2] != 0).all() and (noticed[:, 2:] == 0).all()
    torch.manual_seed(0)
    with torch.no_grad():
        first = network.loss(maps, state, torch.zeros(len(maps), 0), torch.zeros(3, 4, 4), valid)
        valid[:, :2], valid[:, 2:] = 0, 1
        torch.manual_seed(0)
        assert network.loss(maps, state, torch.zeros(len(maps), 0), torch.zeros(3, 4, 4), valid) != first


def test_a_flow_draws_each_of_two_ways_and_nothing_between() -> None:
    """Where demonstrations go left or right, bc goes down the middle and a flow does not."""
    torch.manual_seed(0)
    shapes = Shapes(views=1, scales=1, width=4, grid=(2, 2), proprioception=1, actions=1)
    config = FlowConfig(chunk=2, components=4, queries=1, hidden=64, dropout=0.0, proprioception_noise=0.0, steps=10)
    flow = FlowNetwork(config, shapes)
    middle = BCNetwork(BCConfig(chunk=2, components=4, queries=1, hidden=64, dropout=0.0), shapes)
    maps, state, goal = torch.zeros(256, 1, 4, 2, 2), torch.zeros(256, 1), torch.zeros(256, 0)
    for network in (flow, middle):
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(300):
            side = torch.randint(0, 2, (64, 1, 1)).float().expand(-1, 2, -1) * 1.6 - 0.8
            optimizer.zero_grad()
            network.loss(maps[:64], state[:64], goal[:64], side, torch.ones(64, 2)).backward()
            optimizer.step()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        drawn = flow.eval().predict(maps, state, goal, noise)
    assert ((drawn.abs() - 0.8).abs() < 0.25).float().mean() > 0.9
    assert 0.3 < (drawn[:, 0, 0] > 0).float().mean() < 0.7
    assert (drawn[:, 0].sign() == drawn[:, 1].sign()).float().mean() > 0.95  # one way for the whole chunk


def test_noise_is_the_same_in_every_episode(trained: tuple[Path, Path]) -> None:
    policy = load_policy(trained[0])
    seen = {FRAMES: episode(0).frames[0], PROPRIOCEPTION: episode(0).proprioception[0]}
    policy.reset()
    first = [policy.act(seen) for _ in range(2)]
    policy.reset()
    for before in first:
        np.testing.assert_array_equal(policy.act(seen), before)
    assert np.array_equal(*first) == (kind_of(trained) != "flow")


@pytest.fixture(scope="module", params=registry.POLICIES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A policy of each kind, trained for a few steps on a tiny set whose answer is in the frames: (folder, dataset)."""
    from s2robot.datasets import write_dataset

    folder = tmp_path_factory.mktemp("policy")
    write_dataset(folder / "demos.hdf5", [episode(seed) for seed in range(6)], {"task": "Lift"}, ["agentview", "wrist"])
    store = encode_dataset(folder / "demos.hdf5", ENCODER, folder / "features", workers=1)
    run(folder, store, folder / "run", request.param, steps=30)
    return folder / "run", folder / "demos.hdf5"


def episode(seed: int):  # noqa: ANN201
    from s2robot.datasets import Episode

    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 60, (9, 2, 256, 256, 3)).astype(np.uint8)
    x = rng.integers(0, 8)
    frames[:, :, 100:132, 32 * x : 32 * x + 32] = 255
    actions = np.zeros((9, 4), np.float32)
    actions[:, 0] = (x - 3.5) / 3.5
    state = rng.normal(size=(9, 5)).astype(np.float32)
    return Episode(seed, True, frames, state, actions, actions.copy(), np.zeros(9, np.float32), None)


def run(folder: Path, store: FeatureStore, out: Path, kind: str, **settings: int) -> Path:
    from s2robot.datasets import DemoDataset

    config = TrainConfig(**{"batch": 16, "checkpoint_every": 10, "valid_fraction": 0.2, **settings})
    return train(DemoDataset(folder / "demos.hdf5"), store, ENCODER, hyper(kind), config, out)


def hyper(kind: str) -> Any:
    return registry.policy_module(kind).CONFIG()


def kind_of(trained: tuple[Path, Path]) -> str:
    return str(files.read_json(trained[0] / "policy.json")["kind"])


def test_every_policy_keeps_the_contract(trained: tuple[Path, Path]) -> None:
    policy = load_policy(trained[0])
    assert isinstance(policy, Policy)
    observation = {FRAMES: episode(0).frames[0], PROPRIOCEPTION: episode(0).proprioception[0]}
    chunk = policy.act(observation)
    assert chunk.shape == (8, 4) and chunk.dtype == np.float32 and np.abs(chunk).max() <= 1
    assert 1 <= policy.execute <= len(chunk)
    policy.reset()
    again = policy.act(observation)
    policy.reset()
    np.testing.assert_array_equal(policy.act(observation), again)
    assert set(policy.seconds) == {"encode", "act"}
    with pytest.raises(InvalidInput, match="proprioception"):
        policy.act({FRAMES: observation[FRAMES]})
    with pytest.raises(InvalidInput, match=r"The goal is \(3,\); this policy was trained with \(0,\)"):
        policy.act({**observation, GOAL: np.ones(3, np.float32)})
    with pytest.raises(InvalidInput, match="NaN"):
        policy.act({**observation, PROPRIOCEPTION: np.full(5, np.nan, np.float32)})


def test_training_leads_to_the_actions_shown(trained: tuple[Path, Path]) -> None:
    _, dataset = trained
    store = encode_dataset(dataset, ENCODER, dataset.parent / "features", workers=1)
    run(dataset.parent, store, dataset.parent / "longer", kind_of(trained), steps=200)
    policy = load_policy(dataset.parent / "longer")
    wanted, found = [], []
    for seed in range(6):
        shown = episode(seed)
        policy.reset()
        wanted.append(shown.actions[0, 0])
        found.append(policy.act({FRAMES: shown.frames[0], PROPRIOCEPTION: shown.proprioception[0]})[0, 0])
    # one of the six is held out, and six are too few to know where it is
    assert np.median(np.abs(np.subtract(found, wanted))) < 0.5 * np.std(wanted)


def test_a_resumed_run_ends_with_the_same_weights(trained: tuple[Path, Path]) -> None:
    class Killed(Exception):
        pass

    from s2robot.datasets import DemoDataset

    folder, path = trained
    store = encode_dataset(path, ENCODER, path.parent / "features", workers=1)
    out = path.parent / "resumed"

    def kill(done: int, total: int, note: str) -> None:
        if done == 17:
            raise Killed

    config = TrainConfig(steps=30, batch=16, checkpoint_every=10, valid_fraction=0.2)
    with pytest.raises(Killed):
        train(DemoDataset(path), store, ENCODER, hyper(kind_of(trained)), config, out, progress=kill)
    train(DemoDataset(path), store, ENCODER, hyper(kind_of(trained)), config, out)
    assert (out / "policy.safetensors").read_bytes() == (folder / "policy.safetensors").read_bytes()
    steps = [row["step"] for row in files.read_jsonl(out / "metrics.jsonl")]
    assert steps == sorted(set(steps))


def test_training_leaves_the_encoder_as_it_was(trained: tuple[Path, Path]) -> None:
    """Frozen: the bits before and after a training run, seen through a policy that holds the encoder."""
    frame = episode(1).frames[:1]  # (1, V, H, W, 3)
    before = ENCODER.build()
    policy = load_policy(trained[0])
    optimizer = torch.optim.SGD([*policy.network.parameters(), *policy.encoder.parameters()], lr=1.0)
    policy.network.train()
    policy.encoder.train()
    features = policy.encoder(frame)
    network, state = policy.network, torch.zeros(1, 5)
    actions, valid = torch.ones(1, network.config.chunk, 4), torch.ones(1, network.config.chunk)
    network.loss(network.compression(features.map), state, torch.zeros(1, 0), actions, valid).backward()
    optimizer.step()
    torch.testing.assert_close(policy.encoder(frame).map, before(frame).map, rtol=0, atol=0)
    assert policy.encoder.fingerprint == before.fingerprint


def test_a_policy_acts_on_int8_features_much_as_on_its_own(trained: tuple[Path, Path]) -> None:
    pytest.importorskip("onnxruntime")
    observation = {FRAMES: episode(0).frames[0], PROPRIOCEPTION: episode(0).proprioception[0]}
    usual, integer = load_policy(trained[0]), load_policy(trained[0], precision="int8")
    assert (usual.encoder.config.precision, integer.encoder.config.precision) == ("fp32", "int8")
    difference = np.abs(integer.act(observation) - usual.act(observation)).max()
    assert 0 < difference < 0.2  # not the same numbers, so it was used; near enough to be the same action


def test_a_policy_refuses_an_encoder_it_was_not_trained_on(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder = copied(trained[0], tmp_path)
    description = files.read_json(folder / "policy.json")
    description["encoder"]["seed"] = 1
    files.write_json(folder / "policy.json", description)
    with pytest.raises(CheckpointMismatch, match="trained on features"):
        load_policy(folder)


@pytest.mark.parametrize("name", ["policy.safetensors", "policy.json"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
def test_a_damaged_policy_is_a_clear_error(trained: tuple[Path, Path], tmp_path: Path, name: str, keep: float) -> None:
    folder = copied(trained[0], tmp_path)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CorruptFile, match="Cannot read"):
        load_policy(folder)


def test_a_missing_policy_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="s2robot train"):
        load_policy(tmp_path)
    with pytest.raises(UnknownName, match="Did you mean 'bc'"):
        registry.policy_module("cb")


def test_nan_in_the_loss_stops_training_and_names_the_step(trained: tuple[Path, Path], tmp_path: Path) -> None:
    from s2robot.datasets import DemoDataset

    store = encode_dataset(trained[1], ENCODER, trained[1].parent / "features", workers=1)
    config = TrainConfig(steps=50, batch=16, lr=1e30, warmup=0.0, valid_fraction=0.2)
    with pytest.raises(S2RobotError, match="at step"):
        train(DemoDataset(trained[1]), store, ENCODER, hyper(kind_of(trained)), config, tmp_path / "run")


def copied(folder: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, to / "copy"))
