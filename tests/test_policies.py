"""Contracts of every policy, and what behaviour cloning must be able to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from s2robot import files, registry
from s2robot.encoder import EncoderConfig
from s2robot.errors import CheckpointMismatch, CorruptFile, InvalidInput, S2RobotError, UnknownName
from s2robot.policies.bc import BCConfig, BCNetwork, Compression, Shapes
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


def test_loss_ignores_what_lies_beyond_the_end_of_an_episode() -> None:
    network = BCNetwork(BCConfig(chunk=4, components=6), SHAPES).eval()
    maps, state = torch.randn(3, 2, 12, 4, 4), torch.randn(3, 5)
    actions, valid = torch.zeros(3, 4, 4), torch.ones(3, 4)
    valid[:, 2:] = 0
    loss = network.loss(maps, state, torch.zeros(len(maps), 0), actions, valid)
    actions[:, 2:] = 100.0
    assert network.loss(maps, state, torch.zeros(len(maps), 0), actions, valid) == loss
    actions[:, :2] = 100.0
    assert network.loss(maps, state, torch.zeros(len(maps), 0), actions, valid) > loss


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A policy trained for a few steps on a tiny set whose answer is in the frames: (folder, dataset)."""
    from s2robot.datasets import write_dataset

    folder = tmp_path_factory.mktemp("policy")
    write_dataset(folder / "demos.hdf5", [episode(seed) for seed in range(6)], {"task": "Lift"}, ["agentview", "wrist"])
    store = encode_dataset(folder / "demos.hdf5", ENCODER, folder / "features", workers=1)
    run(folder, store, folder / "run", steps=30)
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


def run(folder: Path, store: FeatureStore, out: Path, **settings: int) -> Path:
    from s2robot.datasets import DemoDataset

    config = TrainConfig(**{"batch": 16, "checkpoint_every": 10, "valid_fraction": 0.2, **settings})
    return train(DemoDataset(folder / "demos.hdf5"), store, ENCODER, BCConfig(), config, out)


def test_every_policy_keeps_the_contract(trained: tuple[Path, Path]) -> None:
    assert set(registry.POLICIES) == {"bc"}, "a new policy needs a trained example in this test"
    policy = load_policy(trained[0])
    assert isinstance(policy, Policy)
    observation = {FRAMES: episode(0).frames[0], PROPRIOCEPTION: episode(0).proprioception[0]}
    chunk = policy.act(observation)
    assert chunk.shape == (8, 4) and chunk.dtype == np.float32 and np.abs(chunk).max() <= 1
    assert 1 <= policy.execute <= len(chunk)
    policy.reset()
    np.testing.assert_array_equal(policy.act(observation), chunk)
    assert set(policy.seconds) == {"encode", "act"}
    with pytest.raises(InvalidInput, match="proprioception"):
        policy.act({FRAMES: observation[FRAMES]})
    with pytest.raises(InvalidInput, match=r"The goal is \(3,\); this policy was trained with \(0,\)"):
        policy.act({**observation, GOAL: np.ones(3, np.float32)})
    with pytest.raises(InvalidInput, match="NaN"):
        policy.act({**observation, PROPRIOCEPTION: np.full(5, np.nan, np.float32)})


def test_training_lowers_the_loss(trained: tuple[Path, Path]) -> None:
    _, dataset = trained
    store = encode_dataset(dataset, ENCODER, dataset.parent / "features", workers=1)
    run(dataset.parent, store, dataset.parent / "longer", steps=150)
    rows = files.read_jsonl(dataset.parent / "longer" / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


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
        train(DemoDataset(path), store, ENCODER, BCConfig(), config, out, progress=kill)
    train(DemoDataset(path), store, ENCODER, BCConfig(), config, out)
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
    policy.network(policy.network.compression(features.map), torch.zeros(1, 5), torch.zeros(1, 0)).sum().backward()
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
        train(DemoDataset(trained[1]), store, ENCODER, BCConfig(), config, tmp_path / "run")


def copied(folder: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, to / "copy"))
