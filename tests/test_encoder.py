"""The encoder: numbers against a slow, obvious writing of them; frozen; known by its fingerprint."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from small_encoders import TOLERANCE, Frames, close, eye, random_frames, small_encoder, wrap
from torch import Tensor, nn

import s2robot
from s2robot import encoder as encoder_module
from s2robot.backbones import FrozenViT, load_backbone
from s2robot.encoder import Encoder, EncoderConfig, load_encoder
from s2robot.errors import S2RobotError
from s2robot.multiscale import multiscale_forward
from s2robot.types import Features


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(random_weights=True, engine="torch", device="cpu")


# -- numbers ---------------------------------------------------------------------------------------------------------


def averaged(grid: Tensor, target: tuple[int, int]) -> Tensor:
    """Every new cell is the mean of the old cells that it touches: (D, h, w) -> (D, *target)."""
    result = torch.empty(grid.shape[0], *target)
    (h, w), (rows, columns) = grid.shape[1:], target
    for row in range(rows):
        for column in range(columns):
            up, down = int(row * h / rows), int(np.ceil((row + 1) * h / rows))
            left, right = int(column * w / columns), int(np.ceil((column + 1) * w / columns))
            result[:, row, column] = grid[:, up:down, left:right].mean(dim=(1, 2))
    return result


def by_the_book(encoder: Encoder, frame: Frames) -> tuple[Tensor, Tensor]:
    """One frame, one tile at a time, for frames whose shorter side is a multiple of every size: map, cls."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (encoder.contract.mean, encoder.contract.std))
    image, patch, width = torch.from_numpy(frame).permute(2, 0, 1).float(), encoder.contract.patch, encoder.config.width
    wholes, summaries = [], []
    for size in encoder.sizes:
        pixels = F.avg_pool2d(image, min(frame.shape[:2]) // size) / 255
        count = -(-size // encoder.largest_tile)
        height, columns = pixels.shape[1] // count, pixels.shape[2] // count
        h, w = height // patch, columns // patch
        whole, cls = torch.empty(encoder.contract.width, count * h, count * w), []
        for row in range(count):
            for col in range(count):
                tile = pixels[:, row * height : (row + 1) * height, col * columns : (col + 1) * columns]
                with torch.no_grad():
                    prefix, grid = encoder.backbone.at((height, columns))(((tile - mean) / std)[None])
                whole[:, row * h : (row + 1) * h, col * w : (col + 1) * w] = grid[0]
                cls.append(prefix[0, 0] if encoder.contract.class_token else grid[0].mean(dim=(1, 2)))
        wholes.append(whole)
        summaries.append(torch.stack(cls).mean(dim=0))
    named = {"base": 0, "finest": -1}
    chosen = wholes[named[encoder.config.grid] if encoder.config.grid in named else int(encoder.config.grid)]
    maps = [averaged(whole, (chosen.shape[1], chosen.shape[2])) for whole in wholes]
    if encoder.config.fusion == "sum":
        return sum(maps[1:], maps[0]), sum(summaries[1:], summaries[0])
    if width is None:
        return torch.cat(maps), torch.cat(summaries)
    matrix = encoder.projection
    tokens = torch.cat(maps).flatten(1).T @ matrix  # (h*w, width)
    return tokens.T.reshape(width, *chosen.shape[1:]), torch.cat(summaries) @ matrix


BOOK: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"scales": (1,)}, (32, 32)),
    ({"scales": (2,)}, (64, 64)),
    ({"scales": (1, 2)}, (64, 64)),
    ({"scales": (1, 3)}, (96, 96)),
    ({"scales": (1, 2), "grid": "finest"}, (64, 64)),
    ({"scales": (1, 2, 3), "grid": "1"}, (192, 192)),
    ({"scales": (1, 2, 3), "grid": "-2"}, (192, 192)),
    ({"scales": (1, 1.5)}, (96, 96)),  # tiles of 32 and of 24
    ({"scales": (1, 1.5, 2), "grid": "1"}, (192, 192)),
    ({"scales": (0.5, 1)}, (32, 32)),
    ({"sizes": (24, 48)}, (48, 48)),
    ({"sizes": (16, 48), "tile": 24}, (48, 48)),
    ({"sizes": (64, 128), "tile": 64}, (128, 128)),
    ({"scales": (1, 2), "tile": 16}, (64, 64)),
    ({"scales": (1, 2), "fusion": "sum"}, (64, 64)),
    ({"scales": (1, 1.5), "fusion": "sum", "grid": "finest"}, (96, 96)),
    ({"scales": (1, 2), "fusion": "project", "width": 5}, (64, 64)),
    ({"scales": (1, 3), "fusion": "project", "width": 40, "grid": "finest"}, (96, 96)),
    ({"scales": (1, 2)}, (64, 96)),
    ({"scales": (1, 2), "grid": "finest"}, (96, 64)),
    ({"sizes": (16, 32, 64), "tile": 32, "grid": "1"}, (64, 128)),
]


@pytest.mark.parametrize("art", ["plain", "registers", "no prefix", "averaged"])
@pytest.mark.parametrize(("settings", "frame"), BOOK, ids=str)
def test_features_are_those_of_the_definition(art: str, settings: dict[str, Any], frame: tuple[int, int]) -> None:
    other = small_encoder(art, **settings)
    frames = random_frames(2, 2, *frame, 3)
    features = other(frames)
    for b, view in ((0, 0), (1, 1)):
        expected_map, expected_cls = by_the_book(other, frames[b, view])
        torch.testing.assert_close(features.map[b, view], expected_map, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(features.cls[b, view], expected_cls, atol=TOLERANCE, rtol=0)
    assert features.map.shape[2:] == (other.channels, *other.grid_of(frame))


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


@pytest.mark.parametrize(("grid", "side"), [("base", 8), ("finest", 16), (1, 16)])
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


@pytest.mark.parametrize(("frame", "fit", "grid"), [
    ((480, 640), "whole", (4, 5)), ((640, 480), "whole", (5, 4)), ((480, 640), "crop", (4, 4)),
    ((480, 640), "pad", (4, 4)), ((720, 1280), "whole", (4, 7)), ((31, 31), "whole", (4, 4)),
])  # fmt: skip
def test_frames_of_any_shape_are_taken(frame: tuple[int, int], fit: str, grid: tuple[int, int]) -> None:
    other = small_encoder(fit=fit)
    features = other(random_frames(1, 2, *frame, 3))
    assert features.map.shape == (1, 2, 32, *grid) and other.grid_of(frame) == grid


def test_tokens_are_the_map_row_by_row(encoder: Encoder) -> None:
    features = encoder(random_frames(128, 200, 3))
    width = features.map.shape[-1]
    assert width > 8
    assert torch.equal(features.tokens[0, 0, width * 2 + 5], features.map[0, 0, :, 2, 5])


def test_numpy_and_torch_frames_are_the_same(encoder: Encoder) -> None:
    frames = random_frames(2, 256, 256, 3)
    assert torch.equal(encoder(frames).map, encoder(torch.from_numpy(frames)).map)


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


def test_the_order_of_colours_matters(encoder: Encoder) -> None:
    frames = random_frames(1, 256, 256, 3)
    assert not torch.allclose(encoder(frames).map, encoder(frames[..., ::-1]).map, atol=0.01)


def test_the_projection_is_drawn_from_its_seed_and_keeps_lengths() -> None:
    frames = random_frames(4, 64, 64, 3)
    encoder = small_encoder()
    one, same, other = (wrap(encoder, fusion="project", width=400, seed=seed)(frames) for seed in (3, 3, 4))
    assert torch.equal(one.map, same.map)
    assert not torch.allclose(one.map, other.map)
    ratio = (one.tokens.norm(dim=-1) / encoder(frames).tokens.norm(dim=-1)).mean()
    assert 0.9 < ratio < 1.1


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
    encoder(random_frames(128, 192, 3))  # now it has a backbone for tiles of another shape, too
    assert encoder.train() is encoder
    assert encoder.requires_grad_() is encoder
    nn.ModuleList([encoder]).train()
    twin = encoder.backbone.at((128, 192))
    assert not any(module.training for each in (encoder, twin) for module in each.modules())
    assert not any(parameter.requires_grad for each in (encoder, twin) for parameter in each.parameters())


def test_features_can_enter_a_later_training(encoder: Encoder) -> None:
    for changes in ({}, {"fusion": "sum"}, {"fusion": "project", "width": 7}):
        features = wrap(encoder, **changes)(random_frames(128, 192, 3))
        for each in vars(features).values():
            assert not each.requires_grad
            assert not each.is_inference()
            nn.Linear(each.shape[-1], 1)(each).sum().backward()


def test_autocast_around_it_changes_no_bit(encoder: Encoder) -> None:
    frames = random_frames(128, 128, 3)
    for each in (encoder, wrap(encoder, fusion="project", width=50)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside, streamed = each(frames), each.stream("front")(frames)
        assert torch.equal(inside.map, each(frames).map) and torch.equal(inside.map, streamed.map)


def test_a_lower_precision_is_close_and_gives_float32(encoder: Encoder) -> None:
    frames = random_frames(128, 128, 3)
    features, exact = wrap(encoder, precision="bf16")(frames), encoder(frames)
    assert features.map.dtype == torch.float32
    assert 1e-3 < (features.map - exact.map).abs().max() < 0.2
    assert torch.equal(encoder(frames).map, exact.map)


def test_it_survives_copy_and_pickle(encoder: Encoder) -> None:
    frames = random_frames(128, 192, 3)
    expected = encoder(frames)
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(twin(frames).map, expected.map)
        assert twin.fingerprint == encoder.fingerprint
        assert not twin.train().training


def test_other_weights_and_types_give_other_features_at_once() -> None:
    one, two = small_encoder(), small_encoder(seed=1)
    frames = random_frames(2, 64, 96, 3)
    assert not torch.allclose(one(frames).map, two(frames).map, atol=0.1)
    one.load_state_dict(two.state_dict())
    close(one(frames), two(frames))
    assert not torch.equal(one.half()(frames).map, two(frames).map)
    assert one(frames).map.dtype == torch.float32


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
    encoder(random_frames(128, 160, 3))
    assert wrap(encoder).fingerprint == same.fingerprint


def test_the_fingerprint_is_of_numbers_not_of_how_they_were_asked_for(encoder: Encoder) -> None:
    for changes in (
        {"engine": "onnxruntime"}, {"engine": "inductor"}, {"sizes": (128, 256)}, {"tile": 128}, {"grid": 0},
        {"grid": "-2"}, {"seed": 9}, {"checkpoint": "x"},
    ):  # fmt: skip
        assert wrap(encoder, **changes).fingerprint == encoder.fingerprint


def test_the_fingerprint_changes_with_all_that_makes_features(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    projected: dict[str, Any] = {"fusion": "project", "width": 8}
    prints = [
        encoder.fingerprint,
        load_encoder(random_weights=True, seed=1, device="cpu").fingerprint,
        copy.deepcopy(encoder).half().fingerprint,
    ]
    settings: tuple[dict[str, Any], ...] = (
        {"scales": (1,)}, {"scales": (1, 3)}, {"sizes": (64, 256)}, {"tile": 64}, {"grid": "finest"}, {"fit": "crop"},
        {"fit": "pad"}, {"fusion": "sum"}, projected, {**projected, "width": 9}, {**projected, "seed": 1},
        {"precision": "bf16"}, {"precision": "fp16"}, {"precision": "int8"},
    )  # fmt: skip
    prints += [wrap(encoder, **changes).fingerprint for changes in settings]
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


def test_out_of_memory_names_batch_and_sizes() -> None:
    def full(images: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(S2RobotError, match=r"6 x 2 frames at sizes \(16, 32\) px: 60 tiles of 16 px.*frames\[:3\]"):
        eye(see=full)(random_frames(6, 2, 32, 32, 3))


# -- the front door --------------------------------------------------------------------------------------------------


def test_the_config_builds_what_load_encoder_loads(encoder: Encoder) -> None:
    config = EncoderConfig(random_weights=True, engine="torch")
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


def test_weights_changed_behind_its_back_are_noticed(encoder: Encoder) -> None:
    twin, frames = copy.deepcopy(encoder), random_frames(1, 256, 256, 3)
    other = wrap(twin, grid="finest")  # shares the backbone
    before, runner = (twin.fingerprint, other.fingerprint), other._runner((128, 128))
    other(frames)
    other.backbone.load_state_dict({key: value + 0.01 for key, value in other.backbone.state_dict().items()})
    assert twin.fingerprint != before[0] and other.fingerprint != before[1]
    assert other._runner((128, 128)) is not runner
