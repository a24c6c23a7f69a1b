"""The encoder: numbers against a slow, obvious writing of them; frozen; and clear about what it does not take."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import s2robot
from s2robot import encoder as encoder_module
from s2robot.backbones import FrozenViT, ImageContract, load_backbone
from s2robot.encoder import Encoder, EncoderConfig, check_frames, load_encoder, resize_frames
from s2robot.errors import S2RobotError
from s2robot.multiscale import multiscale_forward
from s2robot.types import Features

Frames = NDArray[np.uint8]
TOLERANCE = 1e-4  # the one the encoder states


def random_frames(*shape: int) -> Frames:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(random_weights=True, device="cpu")


def wrap(encoder: Encoder, **changes: Any) -> Encoder:
    """The same backbone under another configuration."""
    return Encoder(encoder.backbone, dataclasses.replace(encoder.config, **changes))


class Eye(nn.Module):
    """A 'ViT' of one feature that sees the mean of each patch, and a CLS that sees the tile's maximum."""

    def __init__(self, see: Callable[[Tensor], Tensor] = lambda images: images.mean(dim=1, keepdim=True)) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(1)
        self.see = see

    def forward_features(self, images: Tensor) -> Tensor:
        tokens = F.avg_pool2d(self.see(images), 4).flatten(2).transpose(1, 2)
        return torch.cat([tokens.amax(dim=1, keepdim=True), tokens], dim=1)


def eye(scales: tuple[float, ...] = (1, 2), see: Callable[[Tensor], Tensor] | None = None, **changes: Any) -> Encoder:
    settings: dict[str, Any] = {
        "size": 16, "patch": 4, "width": 1, "prefix_tokens": 1, "class_token": True, "heads": 1, "depth": 1,
        "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "area", "antialias": True,
    }  # fmt: skip
    grid = changes.pop("grid", "base")
    model = Eye() if see is None else Eye(see)
    return Encoder(
        FrozenViT(model, "eye", ImageContract(**settings | changes)), EncoderConfig(scales=scales, grid=grid)
    )


# -- numbers ---------------------------------------------------------------------------------------------------------


def by_the_book(encoder: Encoder, frame: Frames) -> tuple[Tensor, Tensor]:
    """One frame, one tile at a time, for frames of the largest scale's size: map (D*S, h, w), cls (D*S)."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (encoder.contract.mean, encoder.contract.std))
    image = torch.from_numpy(frame).permute(2, 0, 1).float()
    size, (h, w) = encoder.contract.size, encoder.contract.grid_size
    maps, summaries = [], []
    for scale in map(int, encoder.scales):
        pixels = F.avg_pool2d(image, frame.shape[0] // (scale * size)) / 255
        whole = torch.empty(encoder.contract.width, scale * h, scale * w)
        cls = []
        for row in range(scale):
            for col in range(scale):
                tile = pixels[:, row * size : (row + 1) * size, col * size : (col + 1) * size]
                with torch.no_grad():
                    prefix, grid = encoder.backbone(((tile - mean) / std)[None])
                whole[:, row * h : (row + 1) * h, col * w : (col + 1) * w] = grid[0]
                cls.append(prefix[0, 0])
        factor = encoder.grid_size[0] / (scale * h)
        if factor > 1:
            whole = whole.repeat_interleave(int(factor), 1).repeat_interleave(int(factor), 2)
        maps.append(F.avg_pool2d(whole, int(1 / factor)) if factor < 1 else whole)
        summaries.append(torch.stack(cls).mean(dim=0))
    return torch.cat(maps), torch.cat(summaries)


@pytest.mark.parametrize("grid", ["base", "finest"])
@pytest.mark.parametrize("scales", [(1,), (2,), (1, 2), (1, 3)])
def test_features_are_those_of_the_definition(encoder: Encoder, scales: tuple[float, ...], grid: str) -> None:
    other = wrap(encoder, scales=scales, grid=grid)
    side = int(scales[-1]) * 128
    frames = random_frames(1, 2, side, side, 3)
    features = other(frames)
    for view in range(2):
        expected_map, expected_cls = by_the_book(other, frames[0, view])
        torch.testing.assert_close(features.map[0, view], expected_map, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(features.cls[0, view], expected_cls, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("grid", ["base", "finest"])
def test_where_the_resize_agrees_it_is_multiscale_forward(encoder: Encoder, grid: str) -> None:
    ramp = np.linspace(60, 190, 128)
    smooth = (ramp[:, None, None] + ramp[None, :, None] * [0.1, 0.2, 0.3]).astype(np.uint8)[None]  # no overshoot

    def vit(images: Tensor) -> Tensor:
        prefix, tokens = encoder.backbone(images)
        return torch.cat([prefix, tokens.flatten(2).transpose(1, 2)], dim=1)

    images = (torch.from_numpy(smooth).permute(0, 3, 1, 2) / 255 - encoder.mean) / encoder.std
    target = {"base": 0, "finest": -1}[grid]
    expected = multiscale_forward(vit, images, (1, 2), num_prefix_token=1, resize_output_to_idx=target)
    features = wrap(encoder, grid=grid)(smooth)
    torch.testing.assert_close(features.tokens[:, 0], expected[:, 1:], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(features.cls[:, 0], expected[:, 0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("grid", "side"), [("base", 8), ("finest", 16)])
def test_shapes_are_those_it_announces(encoder: Encoder, grid: str, side: int) -> None:
    other = wrap(encoder, grid=grid)
    assert other.grid_size == (side, side)
    assert other.channels == 384
    for shape, (b, v) in {(3, 2): (3, 2), (3,): (3, 1), (): (1, 1)}.items():
        features = other(random_frames(*shape, 256, 256, 3))
        assert isinstance(features, Features)
        assert features.map.shape == (b, v, 384, side, side)
        assert features.tokens.shape == (b, v, side * side, 384)
        assert features.cls.shape == (b, v, 384)
        assert {each.dtype for each in vars(features).values()} == {torch.float32}


def test_tokens_are_the_map_row_by_row(encoder: Encoder) -> None:
    features = encoder(random_frames(256, 256, 3))
    assert torch.equal(features.tokens[0, 0, 8 * 2 + 5], features.map[0, 0, :, 2, 5])


def test_numpy_and_torch_frames_are_the_same(encoder: Encoder) -> None:
    frames = random_frames(2, 256, 256, 3)
    assert torch.equal(encoder(frames).map, encoder(torch.from_numpy(frames)).map)


def test_mirrored_and_read_only_frames_are_taken(encoder: Encoder) -> None:
    frames = random_frames(1, 256, 256, 3)
    upright = frames[:, ::-1].copy()
    frames.flags.writeable = False
    assert torch.equal(encoder(frames[:, ::-1]).map, encoder(upright).map)


def test_a_frame_alone_and_in_a_batch_is_the_same(encoder: Encoder) -> None:
    frames = random_frames(5, 2, 256, 256, 3)
    together = encoder(frames)
    for b in range(5):
        alone = encoder(frames[b : b + 1, 1:])
        torch.testing.assert_close(alone.map[0, 0], together.map[b, 1], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(alone.cls[0, 0], together.cls[b, 1], atol=TOLERANCE, rtol=0)


def test_a_vit_without_cls_is_summed_up_by_its_mean_token() -> None:
    frames = random_frames(3, 32, 32, 3)
    features = eye(class_token=False)(frames)
    torch.testing.assert_close(features.cls, features.map.mean(dim=(3, 4)))
    assert not torch.allclose(eye()(frames).cls, features.cls)


# -- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["base", "finest"])
@pytest.mark.parametrize("side", [16, 32, 48, 50, 96])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0)])
def test_a_bright_corner_stays_in_its_corner_at_each_scale(corner: tuple[int, int], side: int, grid: str) -> None:
    half = side // 2
    frame = np.zeros((side, side, 3), dtype=np.uint8)
    frame[corner[0] * half : (corner[0] + 1) * half, corner[1] * half : (corner[1] + 1) * half] = 255
    for each in eye((1, 2, 3), grid=grid)(frame).map[0, 0]:  # (h, w), one a scale
        quarters = F.adaptive_avg_pool2d(each[None], 2)[0]
        assert quarters[corner] > 0.9
        assert quarters.sum() < 1.2


def test_red_is_the_first_channel() -> None:
    red = np.zeros((32, 32, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert eye(see=lambda images: images[:, :1])(red).map.min() == 1
    assert eye(see=lambda images: images[:, 1:2])(red).map.max() == 0


def test_the_order_of_colours_matters(encoder: Encoder) -> None:
    frames = random_frames(1, 256, 256, 3)
    assert not torch.allclose(encoder(frames).map, encoder(frames[..., ::-1]).map, atol=0.01)


def test_frames_are_normalised_by_the_contract() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    tiles = eye(mean=mean, std=std).preprocess(check_frames(np.full((32, 32, 3), 51, dtype=np.uint8)))  # 51 / 255 = 0.2
    assert tiles.shape == (5, 3, 16, 16)
    for channel, expected in enumerate((0.2, 0.0, -0.05)):
        torch.testing.assert_close(tiles[:, channel], torch.full((5, 16, 16), expected))


def test_a_frame_that_has_the_size_is_never_resampled() -> None:
    frame = random_frames(32, 32, 3)
    tiles = eye((2,)).preprocess(check_frames(frame))
    assert torch.equal(tiles[1], torch.from_numpy(frame[:16, 16:]).permute(2, 0, 1).float() / 255)


def test_each_scale_is_made_from_the_true_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[tuple[int, int]] = []

    def spy(images: Tensor, size: int, contract: ImageContract) -> Tensor:
        sides.append((images.shape[-1], size))
        return resize_frames(images, size, contract)

    monkeypatch.setattr(encoder_module, "resize_frames", spy)
    eye((1, 2, 3))(random_frames(60, 60, 3))
    assert sides == [(60, 16), (60, 32), (60, 48)]


def test_area_is_the_mean_of_the_pixels() -> None:
    images = torch.rand(1, 3, 64, 64) * 255
    torch.testing.assert_close(resize_frames(images, 16, eye().contract), F.avg_pool2d(images, 4))


@pytest.mark.parametrize(("interpolation", "antialias", "fades"), [
    ("area", True, True), ("bicubic", True, True), ("bilinear", True, True), ("bicubic", False, False),
])  # fmt: skip
def test_fine_stripes_fade_instead_of_aliasing(interpolation: str, antialias: bool, fades: bool) -> None:
    stripes = torch.zeros(1, 3, 70, 70)
    stripes[..., ::2] = 255
    contract = eye(interpolation=interpolation, antialias=antialias).contract
    assert (resize_frames(stripes, 16, contract).std() < 40) == fades


@pytest.mark.parametrize("interpolation", ["area", "bicubic", "bilinear"])
@pytest.mark.parametrize("side", [11, 25, 64])
def test_resizing_keeps_flat_frames_flat_and_pixels_in_range(interpolation: str, side: int) -> None:
    contract = eye(interpolation=interpolation).contract
    flat = resize_frames(torch.full((1, 3, side, side), 77.0), 16, contract)
    torch.testing.assert_close(flat, torch.full((1, 3, 16, 16), 77.0))
    edges = resize_frames((torch.rand(1, 3, side, side) > 0.5) * 255.0, 16, contract)
    assert edges.min() >= 0
    assert edges.max() <= 255


# -- frozen ----------------------------------------------------------------------------------------------------------


def test_training_beside_it_leaves_every_bit_as_it_was(encoder: Encoder) -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.head = nn.Linear(encoder.channels, 2)

        def forward(self, frames: Frames) -> Tensor:
            return self.head(self.encoder(frames).cls[:, 0])

    frames = random_frames(2, 128, 128, 3)
    weights = {key: value.clone() for key, value in encoder.state_dict().items()}
    before = encoder(frames)
    policy = Policy().train()
    policy.requires_grad_(True)  # reaches the parameters behind the encoder's back; still no gradient may come
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.5)
    losses: list[float] = []
    for _ in range(3):
        loss = (policy(frames) - 1).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    encoder.freeze()
    assert losses[-1] < losses[0]
    assert all(torch.equal(weights[key], value) for key, value in encoder.state_dict().items())
    after = encoder(frames)
    assert all(torch.equal(a, b) for a, b in zip(vars(before).values(), vars(after).values(), strict=True))


def test_it_cannot_be_unfrozen(encoder: Encoder) -> None:
    assert encoder.train() is encoder
    assert encoder.requires_grad_() is encoder
    nn.ModuleList([encoder]).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_features_can_enter_a_later_training(encoder: Encoder) -> None:
    features = encoder(random_frames(128, 128, 3))
    for each in vars(features).values():
        assert not each.requires_grad
        assert not each.is_inference()
        nn.Linear(each.shape[-1], 1)(each).sum().backward()


def test_autocast_around_it_changes_no_bit(encoder: Encoder) -> None:
    frames = random_frames(128, 128, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = encoder(frames)
    assert torch.equal(inside.map, encoder(frames).map)


def test_it_survives_copy_and_pickle(encoder: Encoder) -> None:
    frames = random_frames(128, 128, 3)
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(twin(frames).map, encoder(frames).map)
        assert twin.fingerprint == encoder.fingerprint
        assert not twin.train().training


# -- fingerprint -----------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_weights_not_of_the_file(encoder: Encoder, tmp_path: Path) -> None:
    state = encoder.backbone.model.state_dict()
    half = {key: value.half() for key, value in state.items()}
    safetensors.torch.save_file(half, tmp_path / "a.safetensors")
    torch.save({"model": {key: value.float() for key, value in reversed(half.items())}}, tmp_path / "b.pth")
    one, two = (load_encoder(checkpoint=tmp_path / name, device="cpu") for name in ("a.safetensors", "b.pth"))
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != encoder.fingerprint  # rounded to half


def test_the_fingerprint_is_stable_and_hex(encoder: Encoder) -> None:
    same = load_encoder(random_weights=True, device="cpu")
    assert same.fingerprint == encoder.fingerprint == encoder.fingerprint
    assert len(bytes.fromhex(encoder.fingerprint)) == 32
    encoder.train().requires_grad_()
    encoder(random_frames(128, 128, 3))
    assert wrap(encoder).fingerprint == same.fingerprint


def test_the_fingerprint_changes_with_all_that_makes_features(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints = [
        encoder.fingerprint,
        wrap(encoder, scales=(1,)).fingerprint,
        wrap(encoder, scales=(1, 3)).fingerprint,
        wrap(encoder, grid="finest").fingerprint,
        load_encoder(random_weights=True, seed=1, device="cpu").fingerprint,
        copy.deepcopy(encoder).half().fingerprint,
    ]
    for change in ({"mean": (0.5, 0.5, 0.5)}, {"heads": 6}, {"interpolation": "bicubic"}, {"antialias": False}):
        contract = dataclasses.replace(encoder.contract, **change)
        prints.append(Encoder(FrozenViT(encoder.backbone.model, "s2robot-tiny", contract), encoder.config).fingerprint)
    prints.append(Encoder(FrozenViT(encoder.backbone.model, "another", encoder.contract), encoder.config).fingerprint)
    monkeypatch.setattr(encoder_module, "PREPROCESSING_VERSION", -1)
    prints.append(wrap(encoder).fingerprint)
    assert len(set(prints)) == len(prints)


def test_loading_other_weights_renews_the_fingerprint(encoder: Encoder) -> None:
    twin = copy.deepcopy(encoder)
    assert twin.fingerprint == encoder.fingerprint
    holder = nn.ModuleList([twin])
    holder.load_state_dict({key: value + 1 for key, value in holder.state_dict().items()})
    assert twin.fingerprint != encoder.fingerprint


def test_out_of_memory_names_batch_and_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(images: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(S2RobotError, match=r"6 x 2 frames at scales \(1.0, 2.0\): 60 tiles of 16 px.*frames\[:3\]"):
        eye(see=full)(random_frames(6, 2, 32, 32, 3))


# -- the front door --------------------------------------------------------------------------------------------------


def test_the_config_builds_what_load_encoder_loads(encoder: Encoder) -> None:
    config = EncoderConfig(random_weights=True)
    assert config.scales == (1.0, 2.0)
    assert config.build("cpu").fingerprint == encoder.fingerprint
    assert encoder.config == config
    assert encoder.contract == load_backbone(random_weights=True).contract
    assert s2robot.load_encoder is load_encoder


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_features_of_the_cpu(encoder: Encoder) -> None:
    there = load_encoder(random_weights=True)
    assert there.device.type == "cuda"
    assert there.fingerprint == encoder.fingerprint
    frames = random_frames(2, 2, 256, 256, 3)
    torch.testing.assert_close(there(frames).map.cpu(), encoder(frames).map, atol=1e-3, rtol=0)
