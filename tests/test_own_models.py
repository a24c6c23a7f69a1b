"""Models of anybody's own as backbones: the same numbers, the same promises, and a contract they are held to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from small_encoders import CONTRACT, close, random_frames
from torch import Tensor, nn

from s2robot import export, multiscale_forward
from s2robot.backbones import load_backbone
from s2robot.catalogue import NamedEncoder
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.errors import CheckpointMismatch, CorruptFile, InvalidInput, S2RobotError
from s2robot.own_models import OwnModel

MAPS = dataclasses.replace(CONTRACT, prefix_tokens=0, class_token=False, heads=0, depth=0)


class Conv(nn.Module):
    """(B, 3, H, W) -> (B, 16, H/8, W/8), by way of running statistics that must not run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.BatchNorm2d(16), nn.GELU())

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layers(images)
        return out


class Tokens(Conv):
    """The same as tokens behind a CLS, (B, 1+N, 16)."""

    def forward(self, images: Tensor) -> Tensor:
        tokens = super().forward(images).flatten(2).transpose(1, 2)
        return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)


class Counted(Conv):
    """With a table of whole numbers among its weights, as relative positions have."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(16))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, self.order]


class OneSize(Tokens):
    """With learned positions of its own size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 17, 16))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.positions


class Resized(OneSize):
    """That has to be told of another size, as timm's."""

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        h, w = img_size[0] // 8, img_size[1] // 8
        grid = self.positions[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        grid = F.interpolate(grid, size=(h, w), mode="bilinear").flatten(2).transpose(1, 2)
        self.pos_embed = nn.Parameter(torch.cat([self.positions[:, :1], grid], dim=1))

    def forward(self, images: Tensor) -> Tensor:
        return Tokens.forward(self, images) + self.pos_embed


def named(make: Callable[[], Any], contract: Any = MAPS, **settings: Any) -> NamedEncoder:
    return NamedEncoder("mine", OwnModel(lambda pretrained: make(), contract), "MIT", "here", **settings)


def encoder(make: Callable[[], Any], contract: Any = MAPS, **settings: Any) -> Encoder:
    return Encoder(load_backbone(named(make, contract), random_weights=True), EncoderConfig(**settings))


@pytest.mark.parametrize(("make", "contract"), [(Conv, MAPS), (Tokens, CONTRACT)])
def test_features_are_multiscale_forwards(make: Any, contract: Any) -> None:
    """On frames of the base size the two differ in how the large scale is made; at the base scale, in nothing."""
    frames = random_frames(2, 32, 32, 3)
    mine = encoder(make, contract, scales=(1,))
    images = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    images = (images - torch.tensor(CONTRACT.mean)[:, None, None]) / torch.tensor(CONTRACT.std)[:, None, None]
    shape = "bchw" if make is Conv else "bnc"
    model = mine.backbone.model.own
    expected = multiscale_forward(model, images, (1,), num_prefix_token=contract.prefix_tokens, output_shape=shape)
    tokens = expected.flatten(2).transpose(1, 2) if shape == "bchw" else expected[:, 1:]
    torch.testing.assert_close(mine(frames).tokens[:, 0], tokens, atol=1e-5, rtol=0)


def test_frames_of_any_shape_and_the_same_bits_before_and_after_training() -> None:
    mine = encoder(Conv, scales=(1, 2), grid="finest")
    frames = random_frames(3, 2, 48, 80, 3)
    before = {key: value.clone() for key, value in mine.backbone.weights().items()}
    first = mine(frames)
    assert first.map.shape == (3, 2, 32, 8, 14)
    nn.ModuleList([mine, nn.Linear(2, 2)]).train()
    close(mine.train().requires_grad_(True)(frames), first)
    assert not any(parameter.requires_grad for parameter in mine.parameters())
    for key, value in mine.backbone.weights().items():
        assert torch.equal(value, before[key])
    close(mine(frames[:1]), type(first)(first.map[:1], first.tokens[:1], first.cls[:1]))


def test_one_size_alone_goes_with_squares_and_says_so() -> None:
    assert encoder(OneSize, CONTRACT, fit="crop")(random_frames(48, 64, 3)).map.shape == (1, 1, 32, 4, 4)
    with pytest.raises(InvalidInput, match=r"mine does not take images of 32x40: RuntimeError.*fit='crop'"):
        encoder(OneSize, CONTRACT)(random_frames(48, 64, 3))


def test_one_that_has_to_be_told_is_told() -> None:
    mine = encoder(Resized, CONTRACT)
    assert mine(random_frames(48, 64, 3)).map.shape == (1, 1, 32, 4, 5)
    assert mine.backbone.at((32, 40)).model.own.layers[0].weight is mine.backbone.model.own.layers[0].weight


def no_module() -> Any:
    return lambda images: images


def fails() -> Any:
    raise OSError("the file is gone")


@pytest.mark.parametrize(
    ("make", "contract", "says"),
    [
        (
            Conv,
            dataclasses.replace(MAPS, patch=16),
            r"makes \(1, 16, 4, 4\) .* expected \(1, 4, 16\) or \(1, 16, 2, 2\)",
        ),
        (Conv, dataclasses.replace(MAPS, width=32), r"width 32"),
        (Conv, CONTRACT, r"makes \(1, 16, 4, 4\) .* 1 prefix tokens\) expected \(1, 17, 16\)"),
        (Tokens, MAPS, r"makes \(1, 17, 16\)"),
        (lambda: nn.Sequential(Conv(), nn.LSTM(4, 4)), MAPS, r"mine does not take images of 32x32: "),
        (lambda: nn.LSTM(32, 32), MAPS, r"does not take|makes"),
        (no_module, MAPS, "made a function; expected an nn.Module"),
        (nn.Identity, MAPS, "made a Identity; expected an nn.Module that holds its weights"),
        (fails, MAPS, "mine's own code could not make it: OSError: the file is gone"),
    ],
)
def test_what_breaks_its_contract_is_refused_when_it_is_loaded(make: Any, contract: Any, says: str) -> None:
    with pytest.raises(S2RobotError, match=says):
        load_backbone(named(make, contract))


def test_weights_come_from_a_file_to_the_last_key(tmp_path: Path) -> None:
    state = Conv().state_dict()
    save_file(state, tmp_path / "mine.safetensors")
    loaded = load_backbone(named(Conv), checkpoint=tmp_path / "mine.safetensors")
    for key, value in loaded.model.own.state_dict().items():  # running statistics too: no look at it has moved them
        assert torch.equal(value, state[key])
    brought = load_backbone(named(Conv, shipped=str(tmp_path / "mine.safetensors")))
    assert torch.equal(brought.model.own.layers[0].weight, state["layers.0.weight"])
    save_file({"layers.0.weight": state["layers.0.weight"]}, tmp_path / "part.safetensors")
    with pytest.raises(
        CheckpointMismatch, match=r"does not fit mine\. Of its own code's keys 6 missing: layers\.0\.bias"
    ):
        load_backbone(named(Conv), checkpoint=tmp_path / "part.safetensors")
    save_file({**state, "layers.0.bias": torch.full((16,), torch.nan)}, tmp_path / "nan.safetensors")
    with pytest.raises(CorruptFile, match="NaN"):
        load_backbone(named(Conv), checkpoint=tmp_path / "nan.safetensors")


class Fixed(Tokens):
    """The batch of its trace becomes a constant."""

    def forward(self, images: Tensor) -> Tensor:
        tokens = super().forward(images)
        return tokens + torch.zeros(1, 1, 1).expand(len(tokens), -1, -1)


class Untraceable(Conv):
    """What it does depends on a number."""

    def forward(self, images: Tensor) -> Tensor:
        out = super().forward(images)
        return out + 1 if float(out.mean()) > 0 else out


@pytest.mark.parametrize(("make", "contract"), [(Fixed, CONTRACT), (Untraceable, MAPS)])
def test_code_that_cannot_be_exported_is_said_to_be_its_own(make: Any, contract: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    with pytest.raises(S2RobotError, match=r"mine's own code cannot be exported to onnx: .* x\.shape"):
        export.export(encoder(make, contract), "onnx", tmp_path / "mine.onnx", (32, 32))
    assert not list(tmp_path.iterdir())


def test_onnxruntime_takes_weights_of_whole_numbers() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    frames, backbone = random_frames(2, 32, 32, 3), load_backbone(named(Counted), random_weights=True)
    close(
        Encoder(backbone, EncoderConfig(engine="onnxruntime"))(frames),
        Encoder(backbone, EncoderConfig(engine="torch"))(frames),
    )


def test_torch_computes_unless_another_engine_is_asked_for(tmp_path: Path) -> None:
    frames = random_frames(2, 32, 32, 3)
    backbone = load_backbone(named(Conv))
    plain = Encoder(backbone, EncoderConfig())
    assert plain.engine.name == "torch"
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    fast = Encoder(backbone, EncoderConfig(engine="onnxruntime"))
    close(fast(frames), plain(frames))
    assert fast.fingerprint == plain.fingerprint
    assert export.export(plain, "onnx", tmp_path / "mine.onnx", (32, 32))["difference"] < 1e-4
