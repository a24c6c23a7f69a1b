"""Contracts of every policy, and what behaviour cloning must be able to learn."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from s2robot import files, registry
from s2robot.datasets import DemoDataset, Episode, write_dataset
from s2robot.encoder import EncoderConfig, load_encoder
from s2robot.errors import CheckpointMismatch, CorruptFile, InvalidInput, S2RobotError, UnknownName
from s2robot.frames import Frames
from s2robot.policies.bc_mlp import BCConfig
from s2robot.policies.bc_rnn import RNNConfig
from s2robot.samples import Source
from s2robot.store import FeatureStore, encode_dataset
from s2robot.trained import load_policy, save_policy
from s2robot.training import TrainConfig, train
from s2robot.types import FRAMES, GOAL, PROPRIOCEPTION, Policy

ENCODER = EncoderConfig(random_weights=True, scales=(1, 2))
SMALL = {  # what reads frames trains as fast as what reads features
    "cnn": {"size": 32, "shift": 1, "widths": (16, 32, 32), "blocks": 1},
    "finetune": {"size": 64, "shift": 1, "lr_eye": 0.3},
}
ON_FEATURES = pytest.mark.parametrize("trained", list(registry.POLICIES), indirect=True)


@pytest.mark.parametrize("tokens", ["cls", "mean"])
def test_cls_and_mean_train_and_act(dataset: DemoDataset, store: FeatureStore, tokens: str, tmp_path: Path) -> None:
    config = TrainConfig(steps=5, batch=16)
    policy = load_policy(train(dataset, store, ENCODER, BCConfig(tokens=tokens), config, tmp_path / tokens))
    assert policy.network.shapes.grid == (1, 1)
    assert policy.act({FRAMES: episode(0).frames[0], PROPRIOCEPTION: episode(0).proprioception[0]}).shape == (8, 4)


def test_a_context_between_encoded_steps_is_refused(dataset: DemoDataset, tmp_path: Path) -> None:
    store = encode_dataset(dataset.path, ENCODER, tmp_path / "features", workers=1, stride=3)
    with pytest.raises(InvalidInput, match=r"every 4 steps .* one of 3 steps is encoded"):
        train(dataset, store, ENCODER, RNNConfig(), TrainConfig(steps=5), tmp_path)


def test_only_so_many_demonstrations_are_learned_from(
    dataset: DemoDataset, store: FeatureStore, tmp_path: Path
) -> None:
    """A file of the first three gives the same policy as three of six."""
    three = write_dataset(tmp_path / "three.hdf5", [episode(k) for k in range(3)], {"task": "Lift"}, ["a", "b"])
    alone = encode_dataset(three.path, ENCODER, tmp_path / "features", workers=1)
    results = []
    for data, features, demos in ((dataset, store, 3), (three, alone, 0)):
        out = tmp_path / f"run-{demos}"
        train(data, features, ENCODER, BCConfig(), TrainConfig(steps=5, batch=16, demos=demos), out)
        results.append((out / "policy.safetensors").read_bytes())
    assert results[0] == results[1]
    with pytest.raises(InvalidInput, match="has 6 demonstrations"):
        train(dataset, store, ENCODER, BCConfig(), TrainConfig(demos=7), tmp_path / "run-7")


def test_noise_is_the_same_in_every_episode(trained: Path) -> None:
    policy = load_policy(trained)
    seen = {FRAMES: episode(0).frames[0], PROPRIOCEPTION: episode(0).proprioception[0]}
    policy.reset()
    first = [policy.act(seen) for _ in range(2)]
    policy.reset()
    for before in first:
        np.testing.assert_array_equal(policy.act(seen), before)
    if kind_of(trained) == "flow":  # and not the same at every step of it
        assert not np.array_equal(*first)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    """A tiny set whose answer is in the frames."""
    path = tmp_path_factory.mktemp("policy") / "demos.hdf5"
    return write_dataset(path, [episode(seed) for seed in range(6)], {"task": "Lift"}, ["agentview", "wrist"])


@pytest.fixture(scope="module")
def store(dataset: DemoDataset) -> FeatureStore:
    return encode_dataset(dataset.path, ENCODER, dataset.path.parent / "features", workers=1)


@pytest.fixture(scope="module", params=registry.KINDS)
def trained(request: pytest.FixtureRequest, dataset: DemoDataset) -> Path:
    """A policy of each kind, trained for a few steps."""
    return run(dataset, dataset.path.parent / request.param, request.param, steps=30)


@pytest.fixture(scope="module")
def simple(dataset: DemoDataset) -> Path:
    """One kind, for what is the same for all."""
    return run(dataset, dataset.path.parent / "simple", "bc-mlp", steps=30)


def episode(seed: int) -> Episode:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 60, (9, 2, 256, 256, 3)).astype(np.uint8)
    x = rng.integers(0, 8)
    frames[:, :, 100:132, 32 * x : 32 * x + 32] = 255
    actions = np.zeros((9, 4), np.float32)
    actions[:, 0] = (x - 3.5) / 3.5
    state = rng.normal(size=(9, 5)).astype(np.float32)
    return Episode(seed, True, frames, state, actions, actions.copy(), np.zeros(9, np.float32), None)


def run(dataset: DemoDataset, out: Path, kind: str, progress: Any = lambda *_: None, **settings: Any) -> Path:
    config = TrainConfig(**{"batch": 16, "checkpoint_every": 10, "valid_fraction": 0.2, **settings})
    encoder = EncoderConfig("timm:test_vit", random_weights=True, sizes=(32, 64)) if kind == "finetune" else ENCODER
    return train(dataset, source(dataset, kind), encoder, hyper(kind), config, out, progress=progress, device="cpu")


def source(dataset: DemoDataset, kind: str) -> Source:
    if kind in registry.PIXEL_POLICIES:
        return Frames(dataset)
    return encode_dataset(dataset.path, ENCODER, dataset.path.parent / "features", workers=1)


def hyper(kind: str) -> Any:
    return registry.policy_module(kind).CONFIG(**SMALL.get(kind, {}))


def kind_of(folder: Path) -> str:
    return str(files.read_json(folder / "policy.json")["kind"])


def test_every_policy_keeps_the_contract(trained: Path) -> None:
    policy = load_policy(trained)
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
    with pytest.raises(InvalidInput, match=r"Proprioception is \(6,\); this policy was trained with \(5,\)"):
        policy.act({**observation, PROPRIOCEPTION: np.zeros(6, np.float32)})
    with pytest.raises(InvalidInput, match="NaN"):
        policy.act({**observation, PROPRIOCEPTION: np.full(5, np.nan, np.float32)})


def test_training_leads_to_the_actions_shown(trained: Path, dataset: DemoDataset) -> None:
    kind = kind_of(trained)
    longer = run(dataset, trained.with_name(f"{kind}-longer"), kind, steps=200, batch=16 * hyper(kind).context)
    policy = load_policy(longer)
    wanted, found = [], []
    for seed in range(6):
        shown = episode(seed)
        policy.reset()
        wanted.append(shown.actions[0, 0])
        found.append(policy.act({FRAMES: shown.frames[0], PROPRIOCEPTION: shown.proprioception[0]})[0, 0])
    # one of the six is held out, and six are too few to know where it is
    assert np.median(np.abs(np.subtract(found, wanted))) < 0.5 * np.std(wanted)


def test_a_resumed_run_ends_with_the_same_weights(trained: Path, dataset: DemoDataset) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, total: int, note: str) -> None:
        if done == 17:
            raise Killed

    out, kind = trained.with_name(f"{trained.name}-resumed"), kind_of(trained)
    with pytest.raises(Killed):
        run(dataset, out, kind, progress=kill, steps=30)
    run(dataset, out, kind, steps=30)
    assert (out / "policy.safetensors").read_bytes() == (trained / "policy.safetensors").read_bytes()
    steps = [row["step"] for row in files.read_jsonl(out / "metrics.jsonl")]
    assert steps == sorted(set(steps))


def test_snapshots_are_policies_of_the_second_half(simple: Path, dataset: DemoDataset, tmp_path: Path) -> None:
    out = run(dataset, tmp_path / "run", "bc-mlp", steps=30, snapshots=2)
    assert sorted(each.name for each in (out / "snapshots").iterdir()) == ["000020", "000025"]
    assert (out / "policy.safetensors").read_bytes() == (simple / "policy.safetensors").read_bytes()
    seen = {FRAMES: episode(0).frames[0], PROPRIOCEPTION: episode(0).proprioception[0]}
    acted = [load_policy(each).act(seen) for each in (out / "snapshots" / "000020", out / "snapshots" / "000025", out)]
    assert not np.array_equal(acted[0], acted[1]) and not np.array_equal(acted[1], acted[2])


@ON_FEATURES
def test_training_leaves_the_encoder_as_it_was(trained: Path) -> None:
    """Frozen: the bits before and after a training run, seen through a policy that holds the encoder."""
    frame = episode(1).frames[:1]  # (1, V, H, W, 3)
    before = ENCODER.build()
    policy = load_policy(trained)
    optimizer = torch.optim.SGD([*policy.network.parameters(), *policy.encoder.parameters()], lr=1.0)
    policy.network.train()
    policy.encoder.train()
    features = policy.encoder(frame)
    network, chunk = policy.network, policy.network.config.chunk
    look = network.look(network.compression(features.map), torch.zeros(1, 5), torch.zeros(1, 0))
    looks = look[:, None].expand(-1, network.config.context, -1)
    actions = torch.ones(*looks.shape[:2], chunk, 4)
    network.loss(looks, actions, torch.ones(*looks.shape[:2], chunk)).backward()
    optimizer.step()
    torch.testing.assert_close(policy.encoder(frame).map, before(frame).map, rtol=0, atol=0)
    assert policy.encoder.fingerprint == before.fingerprint


@ON_FEATURES
def test_other_frames_than_it_was_trained_on_are_refused(trained: Path) -> None:
    policy, state = load_policy(trained), episode(0).proprioception[0]
    for frames in (episode(0).frames[0][:1], episode(0).frames[0][:, :128]):
        with pytest.raises(InvalidInput, match="as many cameras"):
            policy.act({FRAMES: frames, PROPRIOCEPTION: state})


@ON_FEATURES
def test_a_policy_acts_on_int8_features_much_as_on_its_own(trained: Path) -> None:
    pytest.importorskip("onnxruntime")
    observation = {FRAMES: episode(0).frames[0], PROPRIOCEPTION: episode(0).proprioception[0]}
    usual, integer = load_policy(trained), load_policy(trained, precision="int8")
    assert (usual.encoder.config.precision, integer.encoder.config.precision) == ("fp32", "int8")
    difference = np.abs(integer.act(observation) - usual.act(observation)).max()
    assert 0 < difference < 0.2  # not the same numbers, so it was used; near enough to be the same action


@ON_FEATURES
def test_a_policy_refuses_an_encoder_it_was_not_trained_on(trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path)
    description = files.read_json(folder / "policy.json")
    description["encoder"]["seed"] = 1
    files.write_json(folder / "policy.json", description)
    with pytest.raises(CheckpointMismatch, match="trained on features"):
        load_policy(folder)


def test_a_policy_on_weights_of_ones_own_acts_wherever_it_is_loaded_and_they_lie(
    dataset: DemoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = load_encoder(random_weights=True, seed=5, scales=(1,)).backbone.model.state_dict()
    save_file(weights, "mine.safetensors")
    encoder = EncoderConfig(scales=(1,), checkpoint="mine.safetensors")
    store = encode_dataset(dataset.path, encoder, tmp_path / "features", workers=1)
    folder = train(dataset, store, encoder, BCConfig(), TrainConfig(steps=2, batch=8), tmp_path / "run")
    seen = {FRAMES: episode(0).frames[0], PROPRIOCEPTION: episode(0).proprioception[0]}
    expected = load_policy(folder).act(seen)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(load_policy(folder).act(seen), expected)
    moved = (tmp_path / "mine.safetensors").rename(tmp_path / "elsewhere" / "theirs.safetensors")
    with pytest.raises(InvalidInput, match=r"sees by the weights .*mine\.safetensors, and there is no such file"):
        load_policy(folder)
    np.testing.assert_array_equal(load_policy(folder, checkpoint=moved).act(seen), expected)


def test_an_engine_that_is_not_there_is_said_when_a_policy_is_loaded(simple: Path) -> None:
    with pytest.raises(InvalidInput, match="not bf16"):
        load_policy(simple, engine="onnxruntime", precision="bf16")
    with pytest.raises(ValueError, match="warmup is 100"):
        TrainConfig(warmup=100)


def test_a_policy_of_an_older_version_still_acts(simple: Path, tmp_path: Path) -> None:
    """Before there were others, bc-mlp was called bc, and had neither a context nor a choice of tokens."""
    folder = copied(simple, tmp_path)
    description = files.read_json(folder / "policy.json")
    for name in ("context", "tokens", "readout", "feature_noise", "token_dropout", "proprioception_dropout"):
        del description["config"][name]
    files.write_json(folder / "policy.json", {**description, "kind": "bc"})
    seen = {FRAMES: episode(0).frames[0], PROPRIOCEPTION: episode(0).proprioception[0]}
    np.testing.assert_array_equal(load_policy(folder).act(seen), load_policy(simple).act(seen))


@pytest.mark.parametrize("name", ["policy.safetensors", "policy.json"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
def test_a_damaged_policy_is_a_clear_error(trained: Path, tmp_path: Path, name: str, keep: float) -> None:
    folder = copied(trained, tmp_path)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CorruptFile, match="Cannot read"):
        load_policy(folder)


@pytest.mark.parametrize("name", ["policy.safetensors", "policy.json"])
def test_a_policy_of_which_one_bit_flipped_is_a_clear_error(simple: Path, tmp_path: Path, name: str) -> None:
    folder = copied(simple, tmp_path)
    data = bytearray((folder / name).read_bytes())
    place = len(data) - 5 if name.endswith("safetensors") else data.index(b'"chunk": ') + len(b'"chunk": ')
    data[place] ^= 1  # the last number; another chunk
    (folder / name).write_bytes(data)
    with pytest.raises(CorruptFile, match="not what was written"):
        load_policy(folder)


def test_features_that_changed_on_disk_are_not_trained_on(dataset: DemoDataset, tmp_path: Path) -> None:
    store = encode_dataset(dataset.path, ENCODER, tmp_path / "features", workers=1)
    with (store.folder / "map.npy").open("r+b") as file:
        file.seek(-3, 2)
        file.write(bytes([file.read(1)[0] ^ 1]))
    with pytest.raises(CorruptFile, match="map features of episode 5 changed on disk"):
        train(dataset, FeatureStore(store.folder), ENCODER, BCConfig(), TrainConfig(steps=5), tmp_path / "run")


def test_a_missing_policy_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="s2robot train"):
        load_policy(tmp_path)
    with pytest.raises(UnknownName, match="Did you mean 'bc-mlp'"):
        registry.policy_module("bc-mpl")


def test_nan_in_the_loss_stops_training_and_names_the_step(trained: Path, dataset: DemoDataset, tmp_path: Path) -> None:
    with pytest.raises(S2RobotError, match="at step"):
        run(dataset, tmp_path / "run", kind_of(trained), steps=50, lr=1e30, warmup=0.0)


def test_weights_that_the_last_step_made_infinite_are_not_kept(simple: Path, tmp_path: Path) -> None:
    network = load_policy(simple).network
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = float("inf")
    with pytest.raises(S2RobotError, match="NaN or infinite"):
        save_policy(network, {}, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))
