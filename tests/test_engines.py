"""Engines: torch's numbers whoever computes them, and a clear word where one cannot."""

from __future__ import annotations

import copy
import functools
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_encoders import Frames, close, graph_cache, random_frames, small_encoder, small_vit, wrap
from torch import Tensor

from s2robot import engines
from s2robot.encoder import Encoder, load_encoder
from s2robot.engines import Engine, pick
from s2robot.errors import InvalidInput, MissingExtra, S2RobotError, UnknownName

__all__ = ["graph_cache"]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NEEDS = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino",), "inductor": ()}

pytestmark = pytest.mark.usefixtures("graph_cache")
each_engine = pytest.mark.parametrize(
    "engine", ["onnxruntime", "openvino", pytest.param("inductor", marks=pytest.mark.slow)]
)


def require(engine: str) -> None:
    for package in NEEDS[engine]:
        pytest.importorskip(package)


def scene() -> Frames:
    """A table in the light of a lamp, with coloured blocks on it, and a camera's noise."""
    rng = np.random.default_rng(0)
    down, across = np.mgrid[0:256, 0:256] / 256
    frame = (np.stack([0.7 - 0.3 * down, 0.6 - 0.2 * down * across, 0.5 - 0.2 * across], axis=-1) * 255).astype(float)
    for _ in range(8):
        row, column, side = rng.integers((0, 0, 15), (200, 200, 50)).tolist()
        frame[row : row + side, column : column + side] = rng.integers(0, 256, 3)
        frame[row : row + side, column : column + side // 3] *= 0.6  # its side in the shade
    return np.clip(frame + rng.normal(0, 3, frame.shape), 0, 255).astype(np.uint8)


# -- the same numbers ------------------------------------------------------------------------------------------------


CASES: dict[str, tuple[Callable[[str], Encoder], tuple[int, int]]] = {
    "shipped": (lambda engine: load_encoder(engine=engine, device="cpu"), (256, 256)),
    "registers, not square": (lambda engine: small_encoder("registers", engine=engine), (64, 96)),
    "no prefix": (lambda engine: small_encoder("no prefix", engine=engine), (64, 64)),
    "averaged": (lambda engine: small_encoder("averaged", engine=engine), (64, 64)),
    "rotary, not square": (lambda engine: small_encoder("rotary", engine=engine, sizes=(32, 64)), (64, 96)),
    "tiles of two sizes": (lambda engine: small_encoder(engine=engine, scales=(1, 1.5)), (96, 96)),
}


SLOW = {("openvino", case) for case in CASES if case not in ("shipped", "registers, not square")}
SLOW |= {("onnxruntime", "averaged")} | {("inductor", case) for case in CASES}


@pytest.mark.parametrize(("engine", "case"), [
    pytest.param(engine, case, marks=[pytest.mark.slow] if (engine, case) in SLOW else [])
    for engine in NEEDS for case in CASES
])  # fmt: skip
def test_features_are_torchs(engine: str, case: str) -> None:
    require(engine)
    make, side = CASES[case]
    encoder = make(engine)
    plain = wrap(encoder, engine="torch")
    for batch in (1, 2, 5):
        frames = random_frames(batch, 2, *side, 3, seed=batch)
        close(encoder(frames), plain(frames))
    assert encoder.engine.name == engine and encoder._runners
    assert encoder.fingerprint == plain.fingerprint


@each_engine
def test_threads_get_the_features_of_their_own_frames(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require(engine)
    encoder, maker, made_for = small_encoder(engine=engine), engines._MAKERS[engine], []
    monkeypatch.setitem(engines._MAKERS, engine, lambda *what: made_for.append(what) or maker(*what))
    frames = [random_frames(1 + k % 3, 64, 64, 3, seed=k) for k in range(6)]
    expected = [wrap(encoder, engine="torch")(each) for each in frames]
    raised: list[BaseException] = []

    def hammer(seed: int) -> None:
        try:
            for k in np.random.default_rng(seed).integers(0, len(frames), 40):
                close(encoder(frames[k]), expected[k])
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            raised.append(error)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not raised, raised
    assert len(made_for) == len(encoder._runners) == 1  # by whoever came first


@functools.cache
def made(engine: str) -> Encoder:
    """A small encoder, prepared once: OpenVINO takes seconds."""
    require(engine)
    return small_encoder(engine=engine)


@each_engine
def test_runners_stay_in_their_process_and_with_their_weights(engine: str) -> None:
    encoder, frames = made(engine), random_frames(2, 64, 64, 3)
    expected = encoder(frames)
    assert encoder._runners and not copy.deepcopy(encoder)._runners
    twin = pickle.loads(pickle.dumps(encoder))
    assert not twin._runners
    close(twin(frames), expected)
    other = small_encoder(seed=1)
    twin.load_state_dict(other.state_dict())
    close(twin(frames), other(frames))
    assert not torch.allclose(twin(frames).map, expected.map, atol=0.1)
    close(encoder(frames), expected)
    twin.to(memory_format=torch.channels_last)  # its convolution's weights in another order
    assert not twin._runners
    if engine == "onnxruntime":  # which is given the weights as they lie in memory
        close(twin(frames), other(frames))


@each_engine
def test_streams_keep_the_answers_they_had(engine: str) -> None:
    encoder, frame = made(engine), random_frames(64, 64, 3)
    stream, plain = encoder.stream("front"), wrap(encoder, engine="torch")
    for step in range(4):
        frame[8 * step, :32] = 255
        encoder(255 - frame)  # meanwhile the engine works for others
        close(stream(frame), plain(frame))
    assert stream.statistics().reused == pytest.approx(9 / 20)  # two tiles a step


@each_engine
def test_features_can_be_trained_on_and_written_to(engine: str) -> None:
    encoder, frames = made(engine), random_frames(2, 64, 64, 3)
    first = encoder(frames)
    kept = first.map.clone()
    torch.nn.Linear(32, 1)(first.tokens).sum().backward()
    encoder(255 - frames)
    assert torch.equal(first.map, kept)  # the next frame's features are not written over them
    first.map.zero_()
    assert torch.equal(encoder(frames).map, kept)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder(frames).map, kept)


def profiled(run: Callable[[Tensor], Any], tiles: Tensor) -> tuple[Any, int]:
    """What it answers, and how often it cast something meanwhile."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as calls:
        answer = run(tiles)
    return answer, sum(each.key == "aten::_to_copy" for each in calls.events())


@pytest.mark.parametrize("case", CASES)
def test_half_precision_is_what_autocast_computes_and_casts_no_weight_twice(case: str) -> None:
    make, _ = CASES[case]
    backbone = make("torch").backbone
    tiles = torch.randn(2, 3, *backbone.tile, generator=torch.Generator().manual_seed(0))
    run = Engine("torch", "bf16", CPU).runner(backbone)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected, before = profiled(backbone, tiles)
    with torch.no_grad():
        got, now = profiled(run, tiles)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, expected, strict=True))
    products = sum(isinstance(module, torch.nn.Linear | torch.nn.Conv2d) for module in backbone.modules())
    assert before - now >= products  # at least the weights'
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}  # others use them too


def test_half_precision_follows_weights_that_are_loaded_anew() -> None:
    """Those that were copied: it shares the others, so they would not tell."""
    encoder = small_encoder(engine="torch", precision="bf16")
    frames = random_frames(64, 64, 3)
    before = encoder(frames).map.clone()
    weights = encoder.backbone.state_dict()
    changed = {key: value * 1.5 if key.endswith("fc1.weight") else value for key, value in weights.items()}
    encoder.backbone.load_state_dict(changed)
    assert not torch.equal(encoder(frames).map, before)


def test_int8_sees_nearly_the_same() -> None:
    require("onnxruntime")
    whole = load_encoder(engine="torch", device="cpu")
    small = wrap(whole, engine="auto", precision="int8")
    got, expected = small(scene()), whole(scene())
    assert small.engine.name == "onnxruntime" and "int8" in str(small.engine)
    for scale in range(2):
        part = slice(192 * scale, 192 * (scale + 1))
        cosine = torch.cosine_similarity(got.tokens[..., part], expected.tokens[..., part], dim=-1)
        assert cosine.min() >= 0.99
        assert torch.cosine_similarity(got.cls[..., part], expected.cls[..., part], dim=-1) >= 0.99
    assert not torch.equal(got.map, expected.map)
    assert small.fingerprint != whole.fingerprint


# -- a wrong one is not used -----------------------------------------------------------------------------------------


def off(prefix: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    return prefix, grid + 1e-2 * grid.abs().max()


def shuffled(prefix: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    return prefix, grid.flip(0)


def too_few(prefix: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    return prefix, grid[..., :1, :1].mean(dim=0, keepdim=True)


def with_an_axis_too_many(prefix: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    return prefix, grid[None]


def broken_grid(prefix: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    return prefix, torch.full_like(grid, torch.nan)


def broken_prefix(prefix: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full_like(prefix, torch.nan), grid


def off_in_one_number(prefix: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    grid = grid.clone()
    grid[-1, -1, -1, -1] += 0.5
    return prefix, grid


@pytest.mark.parametrize(
    "wrong", [off, shuffled, too_few, with_an_axis_too_many, broken_grid, broken_prefix, off_in_one_number]
)
def test_a_runner_that_gives_other_numbers_is_refused(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    require("onnxruntime")

    def maker(backbone: Any, precision: str, device: torch.device) -> engines.Runner:
        return lambda tiles: wrong(*backbone(tiles))

    monkeypatch.setitem(engines._MAKERS, "onnxruntime", maker)
    encoder = small_encoder("registers", engine="onnxruntime")
    for _ in range(2):  # nor is it taken the second time
        with pytest.raises(S2RobotError, match=r"Engine onnxruntime fp32 on cpu.* for registers: off by .*torch"):
            encoder(random_frames(64, 64, 3))


def test_a_runner_that_is_right_to_rounding_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    require("onnxruntime")

    def maker(backbone: Any, precision: str, device: torch.device) -> engines.Runner:
        return lambda tiles: tuple(part + 1e-6 for part in backbone(tiles))  # type: ignore[return-value]

    monkeypatch.setitem(engines._MAKERS, "onnxruntime", maker)
    assert small_encoder(engine="onnxruntime")(random_frames(64, 64, 3)).map.isfinite().all()


# -- picking ---------------------------------------------------------------------------------------------------------


def test_weights_in_half_precision_are_taken_by_an_engine_that_computes_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(engines._MAKERS, "inductor", lambda backbone, *_: backbone)
    frames = random_frames(64, 64, 3)
    found = small_encoder(engine="inductor").bfloat16()(frames).map
    torch.testing.assert_close(found, small_encoder().bfloat16()(frames).map)


def missing(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed


def test_auto_is_the_fastest_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    require("onnxruntime")
    assert pick("auto", "fp32", CPU).name == "onnxruntime"
    assert pick("auto", "int8", CPU).name == "onnxruntime"
    assert pick("auto", "bf16", CPU).name == "torch"
    assert {pick("auto", precision, CUDA).name for precision in ("fp32", "bf16", "fp16")} == {"torch"}
    for package in NEEDS["onnxruntime"]:
        with monkeypatch.context() as patch:
            missing(patch, package)
            assert pick("auto", "fp32", CPU).name == "torch"
            assert torch.isfinite(small_encoder(engine="auto")(random_frames(64, 64, 3)).map).all()


@pytest.mark.parametrize(("engine", "precision", "package", "extra"), [
    ("onnxruntime", "fp32", "onnxruntime", "export"), ("onnxruntime", "fp32", "onnxscript", "export"),
    ("onnxruntime", "int8", "onnx", "export"), ("auto", "int8", "onnxruntime", "export"),
    ("openvino", "fp32", "openvino", "openvino"),
])  # fmt: skip
def test_a_missing_package_names_its_pip_line(
    engine: str, precision: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("onnxruntime")
    missing(monkeypatch, package)
    with pytest.raises(MissingExtra, match=rf"needs {package}, which is not .* pip install 's2robot\[{extra}\]'"):
        load_encoder(engine=engine, precision=precision, random_weights=True, device="cpu")


@pytest.mark.parametrize(("engine", "precision", "says"), [
    ("onxruntime", "fp32", "Unknown engine 'onxruntime'. Did you mean 'onnxruntime'"),
    ("tensorrt", "fp32", "Known: auto, inductor, onnxruntime, openvino, torch"),
    ("torch", "fp8", "Unknown precision 'fp8'. Did you mean 'fp32'"),
    ("torch", "float32", "Known: bf16, fp16, fp32, int8"),
])  # fmt: skip
def test_unknown_names_suggest_the_nearest(engine: str, precision: str, says: str) -> None:
    with pytest.raises(UnknownName) as caught:
        pick(engine, precision, CPU)
    assert says in str(caught.value)


@pytest.mark.parametrize(("engine", "precision", "device", "says"), [
    ("torch", "int8", CPU, "'torch' has no int8. Try engine='onnxruntime'"),
    ("inductor", "int8", CPU, "'inductor' has no int8"),
    ("openvino", "int8", CPU, "'openvino' has no int8"),
    ("auto", "int8", CUDA, "'torch' has no int8"),
    ("onnxruntime", "fp16", CPU, "'onnxruntime' computes in fp32 or int8, not fp16"),
    ("onnxruntime", "bf16", CPU, "not bf16"),
    ("openvino", "fp16", CPU, "not fp16"),
    ("onnxruntime", "fp32", CUDA, "'onnxruntime' runs on the CPU, not on cuda. There: engine='torch' or 'inductor'"),
    ("openvino", "fp32", CUDA, "runs on the CPU"),
])  # fmt: skip
def test_what_does_not_go_together_is_named(engine: str, precision: str, device: torch.device, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        pick(engine, precision, device)
    assert says in str(caught.value)


def test_an_engine_says_what_it_is() -> None:
    assert str(Engine("torch", "fp16", CUDA)) == "torch fp16 on cuda"
    assert str(Engine("openvino", "fp32", CPU)) == f"openvino fp32 on cpu, {torch.get_num_threads()} threads"
    assert Engine("torch", "fp32", CPU).runner(small_vit())(torch.zeros(3, 3, 32, 32))[1].shape == (3, 16, 4, 4)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_weights_written_to_in_place_are_another_encoders(engine: str) -> None:
    """What is stored is kept by the fingerprint, and an engine's copy of the weights must not outlive them."""
    encoder, frames = load_encoder(random_weights=True, engine=engine, device="cpu"), random_frames(1, 1, 64, 64, 3)
    before, known = encoder(frames).map, encoder.fingerprint
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(0.9)
    after = encoder(frames).map
    assert encoder.fingerprint != known and not torch.allclose(before, after)
    again = copy.deepcopy(encoder)
    assert again.fingerprint == encoder.fingerprint
    torch.testing.assert_close(again(frames).map, after)
