"""Contracts of every policy, and what behaviour cloning must be able to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s2robot import files, registry, samples
from s2robot.contribution import by_scale
from s2robot.encoder import EncoderConfig
from s2robot.errors import CheckpointMismatch, CorruptFile, InvalidInput, S2RobotError, UnknownName
from s2robot.policies.acting import FeaturePolicy
from s2robot.policies.bc_mlp import BCConfig, BCNetwork
from s2robot.policies.bc_rnn import Mixture, RNNConfig
from s2robot.policies.neck import Batch, Compression, Shapes
from s2robot.policies.readout import SpatialReadout
from s2robot.store import FeatureStore, encode_dataset
from s2robot.training import TrainConfig, load_policy, train
from s2robot.types import FRAMES, GOAL, PROPRIOCEPTION, Features, Policy

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


@pytest.mark.parametrize("kind", registry.POLICIES)
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
    assert noticed[:, :2].all()
    if kind != "flow":  # a flow sees the whole chunk at once: what is beyond is an input, never an answer
        assert not noticed[:, 2:].any()
        beyond = batch.actions.clone()
        beyond[..., 2:, :] = 1
        assert loss(beyond) == loss(batch.actions)


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
    windows = samples._windows(steps, config, stride=2)
    assert windows[:6].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 3], [0, 2, 4], [1, 3, 5]]
    assert windows[6:].tolist() == [[6, 6, 6], [6, 6, 7], [6, 6, 8]]


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


@pytest.mark.parametrize("tokens", ["cls", "mean"])
def test_cls_and_mean_train_and_act(trained: tuple[Path, Path], tokens: str) -> None:
    if kind_of(trained) != "bc-mlp":
        pytest.skip("the same for all kinds")
    _, dataset = trained
    store = encode_dataset(dataset, ENCODER, dataset.parent / "features", workers=1)
    from s2robot.datasets import DemoDataset

    config = TrainConfig(steps=5, batch=16)
    out = train(DemoDataset(dataset), store, ENCODER, BCConfig(tokens=tokens), config, dataset.parent / tokens)
    policy = load_policy(out)
    assert policy.network.shapes.grid == (1, 1)
    assert policy.act({FRAMES: episode(0).frames[0], PROPRIOCEPTION: episode(0).proprioception[0]}).shape == (8, 4)


def test_a_context_between_encoded_steps_is_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    from s2robot.datasets import DemoDataset

    _, dataset = trained
    store = encode_dataset(dataset, ENCODER, dataset.parent / "features", workers=1, stride=3)
    with pytest.raises(InvalidInput, match=r"every 4 steps .* every 3th is encoded"):
        train(DemoDataset(dataset), store, ENCODER, RNNConfig(), TrainConfig(steps=5), tmp_path)


def test_only_so_many_demonstrations_are_learned_from(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """A file of the first three gives the same policy as three of six, but for the dataset's name."""
    from s2robot.datasets import DemoDataset, write_dataset

    _, dataset = trained
    three = write_dataset(tmp_path / "three.hdf5", [episode(k) for k in range(3)], {"task": "Lift"}, ["a", "b"])
    results = []
    for data, demos in ((DemoDataset(dataset), 3), (three, 0)):
        store = encode_dataset(data.path, ENCODER, tmp_path / "features", workers=1)
        out = tmp_path / f"run-{demos}"
        train(data, store, ENCODER, BCConfig(), TrainConfig(steps=5, batch=16, demos=demos), out)
        results.append((out / "policy.safetensors").read_bytes())
    assert results[0] == results[1]
    with pytest.raises(InvalidInput, match="has 6 demonstrations"):
        train(DemoDataset(dataset), store, ENCODER, BCConfig(), TrainConfig(demos=7), tmp_path / "run-7")


def test_hyper_parameters_that_cannot_be_are_refused() -> None:
    for wrong in ({"execute": 9}, {"context": 0}, {"token_dropout": 1.0}, {"tokens": "clss"}):
        with pytest.raises(S2RobotError):
            BCConfig(**wrong)
    with pytest.raises(InvalidInput, match="multiple of the heads"):
        registry.policy_module("act").CONFIG(width=100, heads=3)


def test_noise_is_the_same_in_every_episode(trained: tuple[Path, Path]) -> None:
    policy = load_policy(trained[0])
    seen = {FRAMES: episode(0).frames[0], PROPRIOCEPTION: episode(0).proprioception[0]}
    policy.reset()
    first = [policy.act(seen) for _ in range(2)]
    policy.reset()
    for before in first:
        np.testing.assert_array_equal(policy.act(seen), before)
    if kind_of(trained) == "flow":  # and not the same at every step of it
        assert not np.array_equal(*first)


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
    kind = kind_of(trained)
    run(dataset.parent, store, dataset.parent / "longer", kind, steps=200, batch=16 * hyper(kind).context)
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


def test_snapshots_are_policies_of_the_second_half(trained: tuple[Path, Path], tmp_path: Path) -> None:
    if kind_of(trained) != "bc-mlp":
        pytest.skip("the same for all kinds")
    folder, path = trained
    store = encode_dataset(path, ENCODER, path.parent / "features", workers=1)
    out = run(path.parent, store, tmp_path / "run", "bc-mlp", steps=30, snapshots=2)
    kept = sorted(each.name for each in (out / "snapshots").iterdir())
    assert kept == ["000020", "000025"]
    assert (out / "policy.safetensors").read_bytes() == (folder / "policy.safetensors").read_bytes()
    seen = {FRAMES: episode(0).frames[0], PROPRIOCEPTION: episode(0).proprioception[0]}
    acted = [load_policy(each).act(seen) for each in (out / "snapshots" / "000020", out / "snapshots" / "000025", out)]
    assert not np.array_equal(acted[0], acted[1]) and not np.array_equal(acted[1], acted[2])


def test_training_leaves_the_encoder_as_it_was(trained: tuple[Path, Path]) -> None:
    """Frozen: the bits before and after a training run, seen through a policy that holds the encoder."""
    frame = episode(1).frames[:1]  # (1, V, H, W, 3)
    before = ENCODER.build()
    policy = load_policy(trained[0])
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


def test_a_policy_of_an_older_version_still_acts(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """Before there were others, bc-mlp was called bc, and had neither a context nor a choice of tokens."""
    if kind_of(trained) != "bc-mlp":
        pytest.skip("others did not exist")
    folder = copied(trained[0], tmp_path)
    description = files.read_json(folder / "policy.json")
    for name in ("context", "tokens", "feature_noise", "token_dropout", "proprioception_dropout"):
        del description["config"][name]
    files.write_json(folder / "policy.json", {**description, "kind": "bc"})
    seen = {FRAMES: episode(0).frames[0], PROPRIOCEPTION: episode(0).proprioception[0]}
    np.testing.assert_array_equal(load_policy(folder).act(seen), load_policy(trained[0]).act(seen))


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
    with pytest.raises(UnknownName, match="Did you mean 'bc-mlp'"):
        registry.policy_module("bc-mpl")


def test_nan_in_the_loss_stops_training_and_names_the_step(trained: tuple[Path, Path], tmp_path: Path) -> None:
    from s2robot.datasets import DemoDataset

    store = encode_dataset(trained[1], ENCODER, trained[1].parent / "features", workers=1)
    config = TrainConfig(steps=50, batch=16, lr=1e30, warmup=0.0, valid_fraction=0.2)
    with pytest.raises(S2RobotError, match="at step"):
        train(DemoDataset(trained[1]), store, ENCODER, hyper(kind_of(trained)), config, tmp_path / "run")


def copied(folder: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, to / "copy"))


def test_what_a_scale_contributes_is_what_is_lost_without_it() -> None:
    """A network that reads one scale only loses by that one, and nothing by the other."""
    network = network_of("bc-mlp").eval()
    with torch.no_grad():
        for layer in [*network.readout.keys, *network.readout.values]:
            layer.weight[:, 6:] = 0  # the finer scale's channels
    some = samples.Samples(
        torch.randn(8, 2, 12, 4, 4).half(), torch.randn(8, 5), torch.zeros(8, 0), torch.rand(8, 4, 4), torch.ones(8, 4),
        torch.arange(8)[:, None],
    )  # fmt: skip
    found = by_scale(network, some, torch.arange(8), ["1", "2"])
    assert found is not None
    assert found["without"]["2"] == found["all"] and abs(found["without"]["1"] - found["all"]) > 1e-4
    assert by_scale(network, some, torch.arange(0), ["1", "2"]) is None
    assert by_scale(network, some, torch.arange(8), ["1", "2", "3"]) is None  # fused: there is nothing to leave out
