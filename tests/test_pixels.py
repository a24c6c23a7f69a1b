"""Policies that read frames: what is theirs alone. The contracts of all policies are in test_policies.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_encoders import random_frames, small_encoder

from s2robot import cli, files, registry, training
from s2robot.compression import Shapes
from s2robot.datasets import DemoDataset, Episode, write_dataset
from s2robot.demo import DemoConfig
from s2robot.encoder import Encoder, EncoderConfig, load_encoder
from s2robot.errors import InvalidInput, UnknownName
from s2robot.flops import encoder_cost, eye_cost
from s2robot.frames import Frames, shrink
from s2robot.lesson import Lesson
from s2robot.policies.bc_mlp import BCConfig
from s2robot.policies.cnn import CNNConfig, CNNNetwork
from s2robot.policies.finetune import FinetuneConfig, FinetuneNetwork
from s2robot.policies.pixels import random_shift
from s2robot.ranks import Ranks
from s2robot.samples import Batch
from s2robot.store import encode_dataset
from s2robot.study_results import _cost_of_seeing
from s2robot.trained import load_policy
from s2robot.training import TrainConfig, train
from s2robot.types import FRAMES, PROPRIOCEPTION

TINY = EncoderConfig("timm:test_vit", random_weights=True, sizes=(32, 64))
SHORT = TrainConfig(steps=3, batch=8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    """Four episodes of 64 px, of 5 to 8 steps."""
    folder = tmp_path_factory.mktemp("pixels")
    return write_dataset(folder / "demos.hdf5", [_episode(k, 5 + k) for k in range(4)], {"task": "Lift"}, ["a", "b"])


def _episode(seed: int, length: int) -> Episode:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 255, (length, 2, 8, 8, 3)).astype(np.uint8)
    actions = rng.uniform(-1, 1, (length, 4)).astype(np.float32)
    state = rng.normal(size=(length, 5)).astype(np.float32)
    frames = blocks.repeat(8, axis=2).repeat(8, axis=3)
    return Episode(seed, True, frames, state, actions, actions.copy(), np.zeros(length, np.float32), None)


def test_random_shift_is_a_crop_of_the_padded_frame_and_each_view_has_its_own() -> None:
    torch.manual_seed(0)
    frames = torch.from_numpy(random_frames(50, 2, 12, 16, 3))
    shifted = random_shift(frames, 2)
    padded = F.pad(frames.float().permute(0, 1, 4, 2, 3).flatten(0, 1), (2, 2, 2, 2), mode="replicate")
    crops = {(y, x): padded[:, :, y : y + 12, x : x + 16].byte() for y in range(5) for x in range(5)}
    found = [
        [offset for offset, crop in crops.items() if torch.equal(crop[k].permute(1, 2, 0), view)]
        for k, view in enumerate(shifted.flatten(0, 1))
    ]
    assert all(len(offsets) == 1 for offsets in found)  # the whole frame, moved by 2 pixels at most
    assert len({offsets[0] for offsets in found}) == 25  # each way occurs
    assert any(found[2 * k] != found[2 * k + 1] for k in range(50))


def test_the_looks_of_a_window_are_moved_together() -> None:
    """What moves from one to the next is what a context is for."""
    torch.manual_seed(0)
    frames = torch.from_numpy(random_frames(8, 2, 12, 16, 3)).repeat_interleave(3, dim=0)
    moved = random_shift(frames, 2, looks=3).unflatten(0, (8, 3))
    assert torch.equal(moved[:, 0], moved[:, 1]) and torch.equal(moved[:, 0], moved[:, 2])
    assert not torch.equal(moved.flatten(0, 1), frames)


def _cnn(**settings: Any) -> CNNNetwork:
    config = CNNConfig(size=32, widths=(16, 32), blocks=1, components=8, shift=3, **settings)
    torch.manual_seed(0)
    return CNNNetwork(config, Shapes(views=2, scales=1, width=8, grid=(8, 8), proprioception=5, actions=4))


def _finetune(eye: Encoder, frame: tuple[int, int], **settings: Any) -> FinetuneNetwork:
    groups = eye.config.groups
    shapes = Shapes(2, groups, eye.channels // groups, eye.grid_of(frame), proprioception=5, actions=4)
    torch.manual_seed(0)
    return FinetuneNetwork(FinetuneConfig(**settings), shapes, eye)


@pytest.mark.parametrize("make", [_cnn, lambda: _finetune(small_encoder(), (32, 32), shift=3)])
def test_frames_are_shifted_in_training_and_never_in_acting(make: Callable[[], Any]) -> None:
    network, frames = make(), torch.from_numpy(random_frames(4, 2, 32, 32, 3))
    with torch.no_grad():
        network.train()
        torch.testing.assert_close(network.encode(frames), network.encode(frames), rtol=0, atol=0)
        assert not torch.equal(network.see(frames), network.see(frames))
        network.eval()
        assert torch.equal(network.see(frames), network.see(frames))
        assert torch.equal(network.see(frames), network.compression(network.encode(frames)))


@pytest.mark.parametrize("art", ["plain", "no prefix", "averaged"])
@pytest.mark.parametrize(
    "settings", [{}, {"scales": (1, 1.5, 2), "grid": "finest"}, {"fusion": "sum"}, {"fusion": "project", "width": 7}]
)
@pytest.mark.parametrize("frame", [(64, 64), (48, 80)])
def test_an_untouched_copy_gives_the_frozen_encoders_map(art: str, settings: Any, frame: tuple[int, int]) -> None:
    encoder, network = small_encoder(art, **settings), _finetune(small_encoder(art, **settings), frame)
    frames = torch.from_numpy(random_frames(3, 2, *frame, 3))
    expected = encoder(frames).map
    for training_mode in (True, False):
        found = network.train(training_mode).encode(frames)
        assert found.requires_grad
        torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-4)


def test_what_they_cost_is_counted_by_hand_and_as_the_frozen_encoder_is(dataset: DemoDataset, tmp_path: Path) -> None:
    """Both of the paper's ways, and a finished policy of a study: products of its own eyes, read-out and MLP apart."""
    network = _cnn()
    first, second, residual, last = 16 * 16 * 16 * 27, 8 * 8 * 32 * 144, 2 * 8 * 8 * 32 * 288, 8 * 8 * 32 * 8
    assert eye_cost(network, (2, 64, 64)).gflops == pytest.approx(2 * (first + second + residual + last) / 1e9)
    for settings in ({}, {"scales": (1, 1.5, 2)}):
        encoder = small_encoder(**settings)
        found, expected = eye_cost(_finetune(encoder, (48, 80)), (2, 48, 80)), encoder_cost(encoder, (48, 80)).times(2)
        assert (found.linear, found.attention) == pytest.approx((expected.linear, expected.attention))
    out = train(dataset, Frames(dataset, 4), TINY, network.config, SHORT, tmp_path / "run", device="cpu")
    config = DemoConfig(kind="cnn")
    told = _cost_of_seeing(config, [out / "policy.json"], (2, 64, 64))
    assert told["gflops"] == eye_cost(network, (2, 64, 64)).gflops
    assert told["encoder_parameters"] == sum(p.numel() for p in network.eye.parameters())
    assert _cost_of_seeing(config, [], (2, 64, 64))["gflops"] is None


def test_gradients_reach_the_copy_through_tiles_of_every_size_and_after_loading() -> None:
    """Scales 1 and 1.5 have tiles of two sizes: making, moving or loading a backbone freezes it again."""
    frames = torch.from_numpy(random_frames(2, 2, 32, 32, 3))
    network = _finetune(small_encoder(scales=(1, 1.5)), (32, 32))

    def learning() -> set[str]:
        network.zero_grad()
        network.train().see(frames).square().sum().backward()
        return {name for name, value in network.eye.backbone.model.named_parameters() if value.grad is not None}

    with torch.no_grad():
        network.compression.fit(network.encode(frames))
    expected = {name for name, _ in network.eye.backbone.model.named_parameters()} - {"pos_embed"}
    assert learning() == expected
    network.load_state_dict(network.state_dict())
    network.to("cpu", torch.float32)
    assert learning() == expected


def test_finetuning_changes_its_own_encoder_and_leaves_the_librarys_alone(dataset: DemoDataset, tmp_path: Path) -> None:
    known, frames = EncoderConfig(scales=(1,)), random_frames(1, 1, 128, 128, 3)
    library = load_encoder(scales=(1,))
    before, fingerprint = library(frames).map.clone(), library.fingerprint
    vit = library.backbone.model.state_dict()
    for share in (0.0, 0.5):
        config = FinetuneConfig(lr_eye=share)
        out = train(dataset, Frames(dataset, 4), known, config, SHORT, tmp_path / str(share), device="cpu")
        trained = load_policy(out, "cpu").network.eye.backbone.model.state_dict()  # type: ignore[attr-defined]
        assert trained.keys() == vit.keys()
        changed = {name for name, value in trained.items() if not torch.equal(value, vit[name])}
        assert changed == (vit.keys() - {"pos_embed"} if share else set())
        assert torch.equal(library(frames).map, before)
        assert library.fingerprint == fingerprint == load_encoder(scales=(1,)).fingerprint


def test_a_trained_encoder_needs_no_weights_file_to_act(dataset: DemoDataset, tmp_path: Path) -> None:
    """The checkpoint holds it: the file it began with may be gone."""
    from safetensors.torch import save_file

    weights = tmp_path / "begin.safetensors"
    save_file(load_encoder(random_weights=True, seed=5).backbone.model.state_dict(), str(weights))
    known = EncoderConfig(scales=(1,), checkpoint=str(weights))
    out = train(dataset, Frames(dataset, 4), known, FinetuneConfig(), SHORT, tmp_path / "run", device="cpu")
    seen = {FRAMES: _episode(0, 5).frames[0], PROPRIOCEPTION: _episode(0, 5).proprioception[0]}
    expected = load_policy(out, "cpu").act(seen)
    weights.unlink()
    np.testing.assert_array_equal(load_policy(out, "cpu").act(seen), expected)


def test_finetuning_begins_as_the_policy_on_frozen_features(dataset: DemoDataset, tmp_path: Path) -> None:
    """The same compression, read-out and head at the same seed: only where the map comes from differs."""
    store = encode_dataset(dataset.path, TINY, tmp_path, workers=1)
    networks = []
    for config, source in ((BCConfig(), store), (FinetuneConfig(), Frames(dataset))):
        torch.manual_seed(0)
        networks.append(Lesson(dataset, source, TINY, config, TrainConfig()).network().eval())
    rows = np.arange(len(store))
    state, goal = torch.randn(len(rows), 5), torch.zeros(len(rows), 0)
    with torch.no_grad():
        one, other = (
            network.look(network.see(network.kept(source, rows)), state, goal)
            for network, source in zip(networks, (store, Frames(dataset)), strict=True)
        )
    torch.testing.assert_close(other, one, rtol=0, atol=2e-2)  # a store is float16
    for name, value in networks[0].head.state_dict().items():
        assert torch.equal(networks[1].head.state_dict()[name], value)


def test_eyes_learn_at_their_own_rate(dataset: DemoDataset, tmp_path: Path) -> None:
    network = _cnn(lr_eye=0.25)
    state = training._TrainState(network, TrainConfig(warmup=0.0, lr=1e-3))
    assert [len(group["params"]) for group in state.optimizer.param_groups] == [
        len(list(network.parameters())) - len(list(network.eye.parameters())),
        len(list(network.eye.parameters())),
    ]
    samples = training.gather(dataset, Frames(dataset), network, range(4), tmp_path)
    training._step(state, samples, torch.arange(8), TrainConfig(warmup=0.0, lr=1e-3), Ranks())
    assert [group["lr"] for group in state.optimizer.param_groups] == pytest.approx([1e-3, 2.5e-4])


def test_processes_learn_from_parts_of_one_batch_with_noise_of_their_own(
    dataset: DemoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, config = _cnn(), TrainConfig(batch=8)
    samples = training.gather(dataset, Frames(dataset), network, range(4), tmp_path)
    rows: list[list[int]] = []
    noise: list[torch.Tensor] = []

    real_take, real_loss = type(samples).take, network.batch_loss

    def take(self: Any, batch: torch.Tensor, *more: Any) -> Any:
        rows.append(batch.tolist())
        return real_take(self, batch, *more)

    def loss(batch: Batch) -> torch.Tensor:
        noise.append(torch.rand(4))
        return real_loss(batch)

    class Unheard(Ranks):
        def combine(self, parameters: Any, loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return loss.detach()

    monkeypatch.setattr(type(samples), "take", take)
    monkeypatch.setattr(network, "batch_loss", loss)
    for here in (Unheard(), Unheard(0, 2), Unheard(1, 2)):
        state = training._TrainState(network, config)
        training._step(state, samples, torch.arange(8), config, here)
    assert rows[1] + rows[2] == rows[0] and len(rows[1]) == len(rows[2]) == 4
    assert torch.equal(noise[1], noise[0]) and not torch.equal(noise[2], noise[0])


def test_a_goal_and_a_context_work_from_pixels() -> None:
    config = CNNConfig(size=32, widths=(16, 32), context=2, chunk=4)
    shapes = Shapes(views=2, scales=1, width=64, grid=(8, 8), proprioception=5, actions=4, goal=3)
    network = CNNNetwork(config, shapes)
    frames = torch.from_numpy(random_frames(3, 2, 2, 32, 32, 3).reshape(3, 2, 2, 32, 32, 3))
    state, goal, actions = torch.randn(3, 2, 5), torch.randn(3, 2, 3), torch.rand(3, 2, 4, 4)
    loss = network.batch_loss(Batch(frames, state, goal, actions, torch.ones(3, 2, 4)))
    loss.backward()
    assert all(value.grad is not None for value in network.parameters())


@pytest.mark.parametrize("stride", [1, 3])
def test_rows_are_those_of_a_feature_store_and_frames_those_of_the_dataset(
    dataset: DemoDataset, tmp_path: Path, stride: int
) -> None:
    store, frames = encode_dataset(dataset.path, TINY, tmp_path, stride=stride, workers=1), Frames(dataset, stride)
    assert len(frames) == len(store)
    for k in range(len(dataset)):
        for mine, theirs in zip(frames.rows(k), store.rows(k), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    some = np.arange(1, len(frames), 2)
    expected = [dataset.frames(store.episodes[row], [store.steps[row]])[0] for row in some]
    np.testing.assert_array_equal(frames.read(some, 0), np.stack(expected))
    np.testing.assert_array_equal(frames.read(some, 32), shrink(torch.from_numpy(np.stack(expected)), 32))
    with pytest.raises(InvalidInput, match="stride is 0"):
        Frames(dataset, 0)


def test_frames_shrink_to_what_they_show_and_never_grow() -> None:
    flat = torch.randint(0, 255, (2, 2, 4, 6, 3), dtype=torch.uint8)
    large = flat.repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
    small = shrink(large, 32)
    assert small.shape == (2, 2, 32, 48, 3) and small.dtype == torch.uint8
    inside = small.unflatten(2, (4, 8)).unflatten(4, (6, 8))[:, :, :, 2:6, :, 2:6]
    torch.testing.assert_close(inside, flat[:, :, :, None, :, None].expand_as(inside), rtol=0, atol=1)
    assert torch.equal(shrink(flat, 32), flat) and torch.equal(shrink(large, 0), large)


def test_what_cannot_be_trained_is_refused(dataset: DemoDataset, tmp_path: Path) -> None:
    store, small = encode_dataset(dataset.path, TINY, tmp_path, workers=1), CNNConfig(size=32, widths=(16,))
    with pytest.raises(InvalidInput, match=r"cnn was given a FeatureStore .* expected s2robot.frames.Frames"):
        train(dataset, store, TINY, small, SHORT, tmp_path / "a")
    with pytest.raises(InvalidInput, match=r"bc-mlp was given a Frames .* expected a feature store"):
        train(dataset, Frames(dataset), TINY, BCConfig(), SHORT, tmp_path / "b")
    for wrong in ({"size": -1}, {"shift": -1}, {"lr_eye": -1.0}, {"widths": ()}, {"tokens": "cls"}, {"execute": 9}):
        with pytest.raises(InvalidInput):
            CNNConfig(**wrong)
    with pytest.raises(UnknownName, match="Did you mean 'finetune'"):
        registry.policy_module("fine-tune")


def test_the_command_line_trains_without_a_feature_store(dataset: DemoDataset, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "demos.hdf5"
    path.write_bytes(dataset.path.read_bytes())
    sizes = ["--policy.size", "32", "--policy.widths", "16,32", "--steps", "3", "--train.batch", "8"]
    assert cli.main(["train", str(path), "--kind", "cnn", "--out", str(tmp_path / "run"), *sizes]) == 0
    assert not (tmp_path / "features").exists()
    description = files.read_json(tmp_path / "run" / "policy" / "policy.json")
    assert description["kind"] == "cnn" and description["encoder"] is None
    policy = load_policy(tmp_path / "run", "cpu")
    for frames, message in (((2, 96, 32, 3), "trained on frames that gave"), ((3, 64, 64, 3), "trained with 2 views")):
        with pytest.raises(InvalidInput, match=message):
            policy.act({FRAMES: random_frames(*frames), PROPRIOCEPTION: np.zeros(5, np.float32)})
    for wrong in ({"engine": "onnxruntime"}, {"precision": "int8"}):
        with pytest.raises(InvalidInput, match="only torch in fp32"):
            load_policy(tmp_path / "run", "cpu", **wrong)  # type: ignore[arg-type]
    capsys.readouterr()
    assert cli.main(["list", "policies"]) == 0
    listed = capsys.readouterr().out
    assert "cnn" in listed and "finetune" in listed and "frames" in listed
    assert cli.main(["demo", "--kind", "cnn", "--out", str(tmp_path / "demo"), "--no-install"]) == 2
    assert not (tmp_path / "demo").exists()
