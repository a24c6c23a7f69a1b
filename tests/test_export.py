"""Exports: a file that gives the encoder's features without s2robot, or no file at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_encoders import TOLERANCE, Frames, random_frames, small_encoder

from s2robot import __version__, export
from s2robot.errors import InvalidInput, MissingExtra, S2RobotError, UnknownName
from s2robot.export import OUTPUTS, SUFFIX, WholeEncoder, describe, pool_by_matrices
from s2robot.multiscale import pool_to_grid
from s2robot.scales import Size

Run = Callable[[Frames], Any]


def require(kind: str) -> None:
    for package in {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "onnx")}.get(kind, ()):
        pytest.importorskip(package)


def run_onnx(path: Path) -> tuple[Run, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert taken.name == "frames" and taken.type == "tensor(uint8)" and isinstance(taken.shape[0], str)
    note = session.get_modelmeta().custom_metadata_map["s2robot"]
    return (lambda frames: session.run(list(OUTPUTS), {"frames": frames})), note


def run_openvino(path: Path) -> tuple[Run, str]:
    import openvino

    model = openvino.Core().read_model(path)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(frames: Frames) -> list[NDArray[np.float32]]:
        answer = compiled({"frames": frames})
        return [np.array(answer[name]) for name in OUTPUTS]

    return run, str(model.get_rt_info("s2robot").value)


def run_torch(path: Path) -> tuple[Run, str]:
    files = {"s2robot.json": ""}
    module = torch.export.load(path, extra_files=files).module()
    return (lambda frames: [each.detach().numpy() for each in module(torch.from_numpy(frames))]), files["s2robot.json"]


ALONE = {"onnx": run_onnx, "openvino": run_openvino, "torch-export": run_torch}


def check(encoder: Any, run: Run, frame: Size, views: int, batches: tuple[int, ...] = (1, 2, 3)) -> None:
    for batch in batches:
        frames = random_frames(batch, views, *frame, 3, seed=batch)
        expected = encoder(frames)
        for name, got in zip(OUTPUTS, run(frames), strict=True):
            np.testing.assert_allclose(got, getattr(expected, name).numpy(), atol=TOLERANCE, rtol=0)


# -- the same numbers ------------------------------------------------------------------------------------------------

SETTINGS: list[tuple[dict[str, Any], Size]] = [
    ({}, (64, 64)), ({}, (50, 50)), ({}, (200, 200)), ({"grid": "finest"}, (240, 320)), ({}, (320, 240)),
    ({"scales": (1, 1.5), "grid": "1"}, (100, 130)), ({"scales": (1, 2, 3), "fusion": "sum"}, (96, 96)),
    ({"fusion": "project", "width": 5, "grid": "finest"}, (48, 64)), ({"fit": "crop"}, (48, 65)),
    ({"fit": "pad"}, (48, 64)), ({"fit": "pad", "fusion": "sum"}, (65, 48)), ({"sizes": (24, 48)}, (31, 77)),
]  # fmt: skip


@pytest.mark.parametrize("art", ["plain", "registers", "no prefix", "averaged"])
@pytest.mark.parametrize(("settings", "frame"), SETTINGS, ids=str)
def test_what_is_exported_is_the_encoder(art: str, settings: dict[str, Any], frame: Size) -> None:
    encoder = small_encoder(art, **settings)
    whole = WholeEncoder(encoder, frame)
    check(encoder, lambda frames: whole(torch.from_numpy(frames)), frame, views=2, batches=(1, 2))


@pytest.mark.parametrize("interpolation", ["area", "bicubic", "bilinear"])
@pytest.mark.parametrize("frame", [(128, 128), (70, 50), (16, 20)])
def test_its_resize_is_the_contracts(interpolation: str, frame: Size) -> None:
    encoder = small_encoder(fit="crop")
    encoder.contract = type(encoder.contract)(**{**vars(encoder.contract), "interpolation": interpolation})
    whole = WholeEncoder(encoder, frame)
    check(encoder, lambda frames: whole(torch.from_numpy(frames)), frame, views=1)


@pytest.mark.parametrize("size", [(4, 4), (2, 6), (8, 3), (16, 12), (5, 7)])
def test_pooling_by_matrices_is_pooling(size: Size) -> None:
    maps = torch.randn(2, 3, 8, 6)
    torch.testing.assert_close(pool_by_matrices(maps, size), pool_to_grid(maps, size))


FILES: dict[str, tuple[str, dict[str, Any], Size, int]] = {
    "whole": ("registers", {"grid": "finest", "fusion": "sum"}, (240, 320), 2),
    "padded": ("no prefix", {"fit": "pad"}, (48, 65), 1),
    "cropped": ("plain", {"fit": "crop"}, (48, 64), 2),
    "square": ("averaged", {"fusion": "project", "width": 5}, (64, 64), 1),
    "tiles of two sizes": ("plain", {"scales": (1, 1.5), "grid": "finest"}, (240, 320), 2),
}
QUICK = {("onnx", "whole"), ("openvino", "padded"), ("torch-export", "tiles of two sizes")}


@pytest.mark.parametrize(("kind", "case"), [
    pytest.param(kind, case, marks=[] if (kind, case) in QUICK else [pytest.mark.slow])
    for kind in SUFFIX for case in FILES
])  # fmt: skip
def test_the_file_alone_gives_the_features_and_says_what_it_takes(kind: str, case: str, tmp_path: Path) -> None:
    require(kind)
    art, settings, frame, views = FILES[case]
    encoder, path = small_encoder(art, **settings), tmp_path / "new" / f"encoder{SUFFIX[kind]}"
    result = export.export(encoder, kind, path, frame, views)
    files = sorted(path.parent.iterdir())
    assert path in files and len(files) == (2 if kind == "openvino" else 1)
    assert result["path"] == str(path) and result["bytes"] == sum(file.stat().st_size for file in files)
    assert 0 < result["difference"] < TOLERANCE
    run, note = ALONE[kind](path)
    check(encoder, run, frame, views)
    about = json.loads(note)
    assert about == json.loads(json.dumps(describe(encoder, frame, views)))
    assert about["input"]["shape"] == ["batch", views, *frame, 3]
    assert about["fingerprint"] == encoder.fingerprint
    assert about["contract"]["mean"] == list(encoder.contract.mean) and about["contract"]["colour"] == "RGB"


TENSORRT = {  # of the operators that onnx-tensorrt lists for TensorRT 10.15, those that graphs of ours are made of
    "Add", "Cast", "Clip", "Concat", "Conv", "Div", "Expand", "Gather", "Gelu", "LayerNormalization", "MatMul", "Mul",
    "Neg", "Pad", "ReduceMean", "Reshape", "Shape", "Slice", "Softmax", "Split", "Squeeze", "Sub", "Transpose",
    "Unsqueeze",
}  # fmt: skip


@pytest.mark.parametrize("art", ["plain", "registers", "no prefix", "averaged", "rotary"])
def test_graphs_are_of_what_tensorrt_takes(art: str, tmp_path: Path) -> None:
    """No `Resize`, whose antialiasing it refuses and OpenVINO drops; and nothing reads uint8 but one cast."""
    onnx = pytest.importorskip("onnx")
    require("onnx")
    encoder = small_encoder(art, fit="pad", **({"scales": (1,)} if art == "rotary" else {}))
    export.export(encoder, "onnx", tmp_path / "encoder.onnx", (64, 80))
    graph = onnx.load(tmp_path / "encoder.onnx").graph
    assert {node.op_type for node in graph.node} <= TENSORRT
    assert [node.op_type for node in graph.node if "frames" in node.input] == ["Cast"]
    assert not [node for node in graph.node if node.op_type == "LayerNormalization" and len(node.output) > 1]


def test_positions_are_resampled_before_the_trace() -> None:
    """Not at every call, with an antialiasing that OpenVINO drops."""
    whole = WholeEncoder(small_encoder(sizes=(24, 48)), (48, 64))
    with torch.no_grad():  # as when exporting: else it is hidden in a graph of its own
        program = torch.export.export(whole, (torch.zeros(2, 1, 48, 64, 3, dtype=torch.uint8),))
    assert not [node for node in program.graph.nodes if "upsample" in str(node.target)]


def test_the_description_is_all_there_is_to_know() -> None:
    encoder = small_encoder(fit="pad", grid="finest")
    about = describe(encoder, (48, 64), 3)
    assert json.loads(json.dumps(about)) == about
    assert about["s2robot"] == __version__ and about["encoder"]["fit"] == "pad"
    assert about["outputs"] == ["map", "tokens", "cls"]
    assert (about["channels"], about["grid"]) == (32, [8, 8])
    assert about["crop"] == {"corner": [0, 0], "size": [64, 64], "pad": [16, 0]}
    assert about["scales"] == [{"image": [32, 32], "tile": [32, 32]}, {"image": [64, 64], "tile": [32, 32]}]


# -- a wrong one is not kept -----------------------------------------------------------------------------------------


def off(answer: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    return [answer[0], answer[1], answer[2] + 1e-2 * np.abs(answer[2]).max()]


def broken(answer: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    return [answer[0], np.full_like(answer[1], np.nan), answer[2]]


def of_another_shape(answer: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    return [answer[0][None], answer[1], answer[2]]  # an axis too many


def of_the_first_frame(answer: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    return [np.repeat(each[:1], len(each), axis=0) for each in answer]  # right for one frame, wrong for three


@pytest.mark.parametrize("kind", SUFFIX)
@pytest.mark.parametrize("wrong", [off, broken, of_another_shape, of_the_first_frame])
def test_a_file_that_gives_other_features_is_refused(
    kind: str, wrong: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writer(whole: WholeEncoder, example: torch.Tensor, path: Path, note: str) -> export.Run:
        path.write_text("half a graph")
        path.with_suffix(".bin").write_text("half its weights")
        return lambda frames: wrong([each.numpy() for each in whole(torch.from_numpy(frames))])

    monkeypatch.setitem(export._WRITERS, kind, writer)
    path = tmp_path / f"encoder{SUFFIX[kind]}"
    for before in (None, "an older file"):
        if before:
            path.write_text(before)
        with pytest.raises(S2RobotError, match=f"exported {kind} file gives other features .* nothing was written"):
            export.export(small_encoder(), kind, path, (64, 64))
        assert list(tmp_path.iterdir()) == ([path] if before else [])
        assert not before or path.read_text() == before


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def writer(whole: WholeEncoder, example: torch.Tensor, path: Path, note: str) -> export.Run:
        path.write_text("half a graph")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(export._WRITERS, "torch-export", writer)
    with pytest.raises(OSError, match="No space"):
        export.export(small_encoder(), "torch-export", tmp_path / "encoder.pt2", (64, 64))
    assert list(tmp_path.iterdir()) == []


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name", "says"), [
    ("onnx", "encoder.pt2", "should end in .onnx for --to onnx"),
    ("openvino", "encoder", "should end in .xml for --to openvino"),
    ("torch-export", "encoder.onnx", "should end in .pt2"),
    ("onxx", "encoder.onnx", "Unknown export 'onxx'. Did you mean 'onnx'"),
    ("tensorrt", "encoder.plan", "Known: onnx, openvino, torch-export"),
])  # fmt: skip
def test_a_wrong_kind_or_name_is_named(kind: str, name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises((InvalidInput, UnknownName)) as caught:
        export.export(small_encoder(), kind, tmp_path / name, (64, 64))
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("frame", "views", "says"), [
    ((64, 64), 0, "views is 0; expected the number of cameras"), ((0, 64), 1, "A frame of 0x64 has no pixels"),
])  # fmt: skip
def test_nothing_to_look_at_is_named(frame: Size, views: int, says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=says):
        export.export(small_encoder(), "torch-export", tmp_path / "encoder.pt2", frame, views)


def test_only_fp32_is_exported(tmp_path: Path) -> None:
    path = tmp_path / "encoder.pt2"
    with pytest.raises(InvalidInput, match="Export from the CPU in fp32"):
        export.export(small_encoder().half(), "torch-export", path, (64, 64))
    with pytest.raises(InvalidInput, match="Exported files are fp32, not bf16"):
        export.export(small_encoder(precision="bf16"), "torch-export", path, (64, 64))


@pytest.mark.parametrize(("kind", "package", "extra"), [
    ("onnx", "onnx", "export"), ("onnx", "onnxscript", "export"), ("onnx", "onnxruntime", "export"),
    ("openvino", "openvino", "openvino"),
])  # fmt: skip
def test_a_missing_package_names_its_pip_line(
    kind: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("onnx")
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(MissingExtra, match=rf"needs {package}, .* pip install 's2robot\[{extra}\]'"):
        export.export(small_encoder(), kind, tmp_path / f"encoder{SUFFIX[kind]}", (64, 64))
    assert list(tmp_path.iterdir()) == []
