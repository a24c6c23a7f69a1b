"""The encoder's settings and frames: what arrives, and every mistake named, with what to do instead."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_encoders import random_frames, small_encoder, small_vit

from s2robot import config as configuration
from s2robot.encoder import Encoder, EncoderConfig, load_encoder
from s2robot.errors import InvalidInput, UnknownName


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(random_weights=True, engine="torch", device="cpu")


# -- what arrives ----------------------------------------------------------------------------------------------------


def test_every_setting_arrives_in_the_config() -> None:
    asked: dict[str, Any] = {
        "name": "s2robot-tiny", "scales": (1.0, 2.0), "sizes": (64, 192), "tile": 64, "grid": "1", "fusion": "project",
        "width": 5, "fit": "pad", "random_weights": True, "seed": 3, "engine": "torch", "precision": "bf16",
    }  # fmt: skip
    assert load_encoder(**{**asked, "grid": 1}, device="cpu").config == EncoderConfig(**asked)
    assert {**asked, "checkpoint": None}.keys() == {field.name for field in dataclasses.fields(EncoderConfig)}


def test_files_and_the_command_line_set_them_too(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("scales: [1, 1.5]\ngrid: 1\nfusion: project\nwidth: 8\n")
    words = ["--sizes", "224,448", "--tile=112", "--fit", "pad"]
    expected = EncoderConfig(
        scales=(1, 1.5), grid="1", fusion="project", width=8, sizes=(224, 448), tile=112, fit="pad"
    )
    assert configuration.load(EncoderConfig, str(tmp_path / "e.yaml"), words) == expected


def test_it_says_who_computes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "s2robot"):
        encoder = load_encoder(random_weights=True, engine="torch", device="cpu")
    told = f"torch fp32 on cpu, {torch.get_num_threads()} threads"
    assert str(encoder.engine) == told
    assert f"s2robot-tiny: {told}" in caplog.text


def test_random_weights_are_asked_for_and_said(caplog: pytest.LogCaptureFixture) -> None:
    load_encoder(engine="torch", device="cpu")
    assert not caplog.text
    load_encoder(random_weights=True, engine="torch", device="cpu")
    assert "s2robot-tiny has random weights" in caplog.text


def test_scales_are_named_by_what_was_asked_for() -> None:
    assert EncoderConfig(scales=(1, 1.5)).scale_names == ("scale 1", "scale 1.5")
    assert EncoderConfig(sizes=(224, 448)).scale_names == ("224 px", "448 px")
    assert EncoderConfig(scales=(1, 2, 3)).groups == 3
    assert EncoderConfig(scales=(1, 2, 3), fusion="sum").groups == 1
    assert Encoder(small_vit(), EncoderConfig(fusion="sum")).channels == 16


def test_scales_need_not_be_whole() -> None:
    assert small_encoder(scales=(0.5, 1, 1.5)).sizes == (16, 32, 48)
    assert small_encoder(sizes=(24, 48)).sizes == (24, 48)


# -- what does not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([[0]], "a list; expected a uint8 array. Try numpy.asarray"),
        (np.zeros((32, 32), np.uint8), r"uint8 \(32, 32\); expected \(B, V, H, W, 3\)"),
        (np.zeros((1,) * 5 + (3,), np.uint8), r"expected \(B, V, H, W, 3\)"),
        (np.zeros((32, 32, 3), np.float32), r"float32 \(32, 32, 3\).*\(frames \* 255\)"),
        (torch.zeros(32, 32, 3), r"float32 \(32, 32, 3\).*\(frames \* 255\)"),
        (np.zeros((32, 32, 3), np.int64), "int64.*frames.astype"),
        (np.zeros((3, 32, 32), np.uint8), r"The colours seem to come first.*moveaxis\(frames, -3, -1\)"),
        (np.zeros((2, 3, 32, 32), np.uint8), "The colours seem to come first"),
        (np.zeros((2, 32, 32, 4), np.uint8), r"alpha: drop it with frames\[..., :3\]"),
        (np.zeros((2, 32, 32, 1), np.uint8), "grey: repeat it"),
        (np.zeros((2, 32, 32), np.uint8), "without a colour axis"),
        (np.zeros((0, 32, 32, 3), np.uint8), "an empty batch"),
        (np.zeros((2, 0, 32, 32, 3), np.uint8), "an empty batch"),
        (np.zeros((2, 0, 32, 3), np.uint8), "an empty batch"),
    ],
)
def test_wrong_frames_are_named(encoder: Encoder, frames: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        encoder(frames)
    with pytest.raises(InvalidInput, match=message):
        encoder.stream("wrist")(frames)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": ()}, r"Neither scales nor sizes was given. Try scales=\(1, 2\)"),
        ({"scales": (0, 1)}, "scales are .*expected positive numbers"),
        ({"scales": (float("inf"),)}, "expected positive numbers"),
        ({"scales": (1, 1.01)}, r"Scale 1.01 of 128 px is 129.28 px; expected whole pixels. Try sizes="),
        ({"scales": (1, 1.125)}, "144 px does not divide .* 128 px and whole patches of 16. Near it: 128, 160 px"),
        ({"scales": (2, 1)}, r"coarse first: \[1.0, 2.0\]"),
        ({"scales": (1, 1)}, "each once"),
        ({"sizes": (128, 200)}, "A size of 200 px does not divide .* at most 128 px.* Near it: 192, 224 px"),
        ({"sizes": (128.5,)}, "sizes are .*expected whole positive numbers"),
        ({"sizes": (-128,)}, "expected whole positive numbers"),
        ({"sizes": (256, 128)}, r"coarse first: \[128, 256\]"),
        ({"tile": 8}, "A tile of at most 8 px holds no patch of 16 px"),
        ({"tile": 0}, "tile is 0; expected whole pixels"),
        ({"tile": -64}, "tile is -64; expected whole pixels"),
        ({"tile": "256"}, "tile is '256'; expected whole pixels"),
        ({"fusion": "project", "width": "64"}, "width='64' with fusion='project'"),
        ({"device": "meta"}, "Device 'meta' holds no numbers"),
        ({"device": 3.5}, "Unknown device 3.5"),
        ({"grid": "fine"}, "Known: base, finest, or 0 to 1"),
        ({"grid": 2}, "Unknown grid '2'. Known: base, finest, or 0 to 1"),
        ({"grid": -3}, "Unknown grid '-3'"),
        ({"fusion": "mean"}, "Unknown fusion 'mean'. Known: concat, sum, project"),
        ({"fusion": "project"}, "width=None with fusion='project': 'project' takes a width"),
        ({"fusion": "project", "width": 0}, "width=0 with fusion='project'"),
        ({"width": 64}, "width=64 with fusion='concat'"),
        ({"fit": "stretch"}, "Unknown fit 'stretch'. Known: whole, crop, pad"),
        ({"seed": "a"}, "seed is 'a'; expected a whole number"),
        ({"seed": -1}, "seed is -1"),
        ({"device": "gpu"}, "Unknown device 'gpu'"),
        ({"device": "xpu"}, "Device 'xpu' is not here .*device='cpu'"),
        ({"device": "cuda:99"}, "'cuda:99' is not here"),
        ({"checkpoint": "x.pth", "random_weights": True}, "leave one out"),
        ({"scales": (1, 3), "sizes": (128,)}, r"Both scales \(1.0, 3.0\) and sizes \(128,\) were given"),
        ({"random_weights": "no"}, "random_weights is 'no'; expected True or False"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_encoder(**{"engine": "torch", "device": "cpu", **arguments})


def test_numbers_of_numpy_do() -> None:
    """What was read from an array ends in a fingerprint, a store and a policy's description, which are JSON."""
    words: dict[str, Any] = {"sizes": np.array([64, 128])}
    words |= {name: np.int64(value) for name, value in (("tile", 128), ("width", 8), ("seed", 3))}
    given = EncoderConfig(fusion="project", **words)
    assert given == EncoderConfig(sizes=(64, 128), tile=128, fusion="project", width=8, seed=3)
    assert json.loads(json.dumps(vars(given)))["width"] == 8
    assert EncoderConfig(scales=None, sizes=(64,)).scales == ()  # type: ignore[arg-type]


def test_wrong_names_are_said_before_any_weights_are_read() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'openvino'"):
        load_encoder(engine="openvina", checkpoint="nowhere.pth", device="cpu")
    with pytest.raises(UnknownName, match="Unknown engine 'None'"):
        load_encoder(engine=None, device="cpu")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="Did you mean 'int8'"):
        load_encoder(precision="int", checkpoint="nowhere.pth", device="cpu")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_of_fp32_refuse_other_weights(engine: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(f"Engine '{engine}' takes fp32 weights, not torch.float16")):
        small_encoder(engine=engine).half()(random_frames(64, 64, 3))


def test_auto_takes_any_weights() -> None:
    encoder = small_encoder(engine="auto").bfloat16()
    assert encoder(random_frames(64, 64, 3)).map.dtype == torch.float32
    assert encoder.engine.name == "torch"
    with pytest.raises(InvalidInput, match=r"'onnxruntime' takes fp32 weights, not torch.bfloat16"):
        small_encoder(engine="auto", precision="int8").bfloat16()(random_frames(64, 64, 3))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"scales": 2}, r"scales is 2; expected several, or one in a list: \[2\]"),
        ({"sizes": 448}, r"\[448\]"),
        ({"scales": np.int64(2)}, r"scales is 2; expected several"),
        ({"scales": None}, "Neither scales nor sizes"),
        ({"scales": (1, None)}, "expected positive numbers"),
    ],
)
def test_sizes_that_are_none_are_named(words: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        load_encoder(**words)


@pytest.mark.parametrize("width", [None, 6])
def test_there_and_back_through_half_precision_is_the_same_encoder(width: int | None) -> None:
    encoder = small_encoder(fusion="concat" if width is None else "project", width=width)
    frames = random_frames(64, 64, 3)
    encoder.half().float()
    before = encoder(frames).map  # its weights are rounded now, once and for all
    constants = {name: encoder.get_buffer(name).clone() for name in ("mean", "std", "projection")}
    encoder.half().float()
    assert torch.equal(encoder(frames).map, before)
    fresh = small_encoder(fusion="concat" if width is None else "project", width=width)
    for name, value in constants.items():
        assert torch.equal(value, fresh.get_buffer(name))
