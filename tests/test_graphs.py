"""The cache of traced graphs: saves the tracing, holds no weights, and is never trusted blindly."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_encoders import TOLERANCE, close, graph_cache, random_frames, small_encoder, small_vit, wrap
from timm.models.vision_transformer import VisionTransformer

from s2robot import files, graphs
from s2robot.backbones import FrozenViT
from s2robot.encoder import Encoder
from s2robot.errors import MissingExtra

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package)

__all__ = ["graph_cache"]
FRAMES = random_frames(2, 64, 64, 3)


@pytest.fixture(scope="module")
def traced(graph_cache: Path) -> bytes:
    """The graph of `small_vit()`, traced once."""
    graph = graphs._cached(small_vit())
    assert graph_cache.is_dir()
    return graph


@pytest.fixture
def cache(traced: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of one's own, and a tracer that knows `small_vit()` by heart: tracing takes seconds."""
    monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(graphs, "_trace", lambda backbone: calls.append(backbone) or traced)
    calls.clear()
    return tmp_path / "cache" / "graphs"


calls: list[FrozenViT] = []  # of the tracer


def features(seed: int = 0, **settings: Any) -> None:
    """Encode under ONNX Runtime, and hold it against torch."""
    encoder = small_encoder(seed=seed, engine="onnxruntime", **settings)
    close(encoder(FRAMES), wrap(encoder, engine="torch")(FRAMES))


def no_tracing(*arguments: Any, **options: Any) -> None:
    raise AssertionError("traced once more")


# -- kept ------------------------------------------------------------------------------------------------------------


def test_a_second_session_is_made_without_tracing(
    traced: bytes, graph_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "export", no_tracing)
    there = set(graph_cache.iterdir())
    features()
    features(seed=1)  # other weights, the same graph
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        features()
    finally:
        torch.set_num_threads(before)
    assert set(graph_cache.iterdir()) == there


def test_the_kept_file_holds_no_weights(traced: bytes, cache: Path) -> None:
    weights = small_vit().state_dict()
    large = [value for value in weights.values() if value.numel() >= 16]
    assert len(large) > 10
    graphs._cached(small_vit())
    (file,) = cache.iterdir()
    content = file.read_bytes()
    assert not any(value.numpy().tobytes()[:64] in content for value in large)
    assert traced in content and len(content) == len(traced) + 32


def test_seeds_share_a_file_and_have_their_own_features(cache: Path) -> None:
    for seed in range(3):
        features(seed)
    assert len(list(cache.iterdir())) == 1 and len(calls) == 1


@pytest.mark.parametrize(("variable", "expected"), [
    ({"S2ROBOT_CACHE": "/a"}, "/a"), ({"S2ROBOT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
    ({"XDG_CACHE_HOME": "/b"}, "/b/s2robot"), ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/s2robot"),
    ({}, "/home/me/.cache/s2robot"),
])  # fmt: skip
def test_the_folder_is_the_one_asked_for(
    variable: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    for name in ("S2ROBOT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    assert files.cache_folder() == Path(expected)


# -- not mistaken ----------------------------------------------------------------------------------------------------


def vit_of(**changes: Any) -> FrozenViT:
    """`small_vit()`, but for one thing that its weights do not tell."""
    backbone = small_vit()
    for name, value in changes.items():
        setattr(backbone.model.blocks[0].attn, name, value)
    return backbone


def test_another_architecture_is_another_file() -> None:
    backbone = small_vit()
    other_norm = small_vit()
    other_norm.model.norm.eps = 1e-3
    activated = [small_vit(), small_vit()]
    for each, activation in zip(activated, (torch.nn.Tanh(), torch.nn.Sigmoid()), strict=True):
        each.model.blocks[0].mlp.act = activation
    with_constant = small_vit()
    with_constant.model.register_buffer("angles", torch.ones(3), persistent=False)
    another_constant = small_vit()
    another_constant.model.register_buffer("angles", torch.zeros(3), persistent=False)
    different = [
        backbone, backbone.at((32, 48)), backbone.at((48, 32)), small_vit("registers"), small_vit(heads=4),
        vit_of(scale=0.5), other_norm, *activated, with_constant, another_constant,
    ]  # fmt: skip
    keys = [graphs._key(each) for each in different]
    assert len(set(keys)) == len(keys)
    assert keys[0] == graphs._key(small_vit(seed=3)) == graphs._key(small_vit().at((32, 32)))


def test_other_versions_of_its_makers_are_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = graphs._key(small_vit())
    for package in ("torch", "timm", "onnx", "onnxscript"):
        with monkeypatch.context() as patch:
            version = graphs.version
            patch.setattr(graphs, "version", lambda name, p=package, v=version: "0" if name == p else v(name))
            assert graphs._key(small_vit()) != before


@pytest.mark.parametrize("damage", ["empty", "truncated", "one bit of the graph", "one bit of the sum", "other graph"])
def test_a_damaged_file_is_made_again(damage: str, cache: Path) -> None:
    features()
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes({
        "empty": b"",
        "truncated": whole[:-100],
        "one bit of the graph": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "one bit of the sum": bytes([whole[0] ^ 128]) + whole[1:],
        "other graph": whole[:32] + b"another graph altogether",
    }[damage])  # fmt: skip
    features()
    assert len(calls) == 2
    assert file.read_bytes() == whole
    features()
    assert len(calls) == 2


def test_somebodys_own_model_is_never_kept(cache: Path) -> None:
    class Own(VisionTransformer):
        """Nothing tells when this code changes."""

    backbone = small_vit()
    backbone.model.__class__ = Own
    encoder = Encoder(backbone, small_encoder(engine="onnxruntime").config)
    close(encoder(FRAMES), small_encoder()(FRAMES))
    within = small_vit()
    within.model.blocks[0].__class__ = type("OwnBlock", (type(within.model.blocks[0]),), {"__module__": __name__})
    graphs._cached(within)
    graphs._cached(within)
    assert not cache.exists() and len(calls) == 3


def test_a_folder_that_cannot_be_written_only_warns(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path / "file"))  # as root, a read-only folder would be writable
    with caplog.at_level(logging.WARNING, "s2robot"):
        features()
    assert "The traced graph is not kept in" in caplog.text and str(tmp_path / "file") in caplog.text
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_full_disk_only_warns(cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with caplog.at_level(logging.WARNING, "s2robot"):
        features()
    assert "No space left" in caplog.text
    assert not list(cache.iterdir())


# -- tracing ---------------------------------------------------------------------------------------------------------


def test_tracing_makes_no_noise(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    session = graphs.session(small_vit("no prefix"), "fp32", 1)
    prefix, grid = session.run(None, {graphs.INPUT: torch.zeros(3, 3, 32, 32).numpy()})
    assert prefix.shape == (3, 0, 16) and grid.shape == (3, 16, 4, 4)
    expected = small_vit("no prefix")(torch.zeros(3, 3, 32, 32))[1]
    torch.testing.assert_close(torch.from_numpy(grid), expected, atol=TOLERANCE, rtol=0)
    captured = capfd.readouterr()
    loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (captured.out, captured.err) == ("", "") and not loud and not recwarn.list


def test_quiet_threads_leave_the_process_as_it_was() -> None:
    mine, overlapped, inside = io.StringIO(), [], []

    def work() -> None:
        for _ in range(20):
            with graphs.quiet():
                inside.append(1)
                print("not to be seen")
                time.sleep(0.001)
                overlapped.append(len(inside) > 1)
                inside.pop()

    with contextlib.redirect_stdout(mine):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sys.stdout is mine
    assert logging.root.manager.disable == 0
    assert mine.getvalue() == "" and not any(overlapped)


def test_quiet_is_over_after_an_error() -> None:
    with pytest.raises(MissingExtra), graphs.quiet(), graphs.quiet():
        raise MissingExtra("x", "y", "z")
    assert logging.root.manager.disable == 0
