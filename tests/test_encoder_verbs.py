"""The verbs `bench` and `export`: answers for programs, wrong usage in one line."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_encoders import TOLERANCE, random_frames

from s2robot import bench, cli
from s2robot.encoder import load_encoder

QUICK = ["--runs", "2", "--warmup", "1", "--engine", "torch", "--scales", "1"]


@pytest.fixture(autouse=True)
def small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PEAK_SIZES", (16,))
    bench.matmul_peak.cache_clear()


def answer(words: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    """What a verb prints for programs: JSON, and nothing else on standard output."""
    assert cli.main(words) == 0
    return json.loads(capsys.readouterr().out)


# -- bench -----------------------------------------------------------------------------------------------------------


def test_bench_answers_programs_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "encoder", *QUICK, "--baseline", "--views", "2", "--batches", "1,2", "--json"]
    result = answer(words, capsys)
    assert {"machine", "versions", "git", "rows"} == result.keys()
    assert [(row["batch"], row["views"], row["encoder"]) for row in result["rows"]] == [
        (1, 2, "s2robot-tiny"), (2, 2, "s2robot-tiny"),
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["engine"].startswith("torch fp32 on cpu") and row["sizes"] == [128]
        assert row["ratio"] > 0 and row["difference"] == 0


def test_bench_tells_people_in_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert cli.main(["bench", "encoder", *QUICK, "--baseline", "--encoder.sizes", "64,128", "--fit", "crop"]) == 2
    assert "Unknown option '--fit'" in capsys.readouterr().err
    assert cli.main(["bench", "encoder", *QUICK, "--baseline", "--encoder.sizes", "64,128", "--height", "96"]) == 0
    told = capsys.readouterr().out
    for words in ("s2robot-tiny 64,128", "torch fp32", "1x1 96x96", "times plain", "GFLOPs", "GFLOP/s"):
        assert words in " ".join(told.split())


def test_bench_draws_weights_for_encoders_that_come_without(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["s2robot-tiny", "timm:vit_tiny_patch16_224"]
    result = answer(["bench", "encoder", *QUICK, "--encoder", ",".join(names), "--json"], capsys)
    assert [row["encoder"] for row in result["rows"]] == names
    assert result["rows"][1]["sizes"] == [224]
    assert all(math.isfinite(row["p50_ms"]) for row in result["rows"])


# -- export ----------------------------------------------------------------------------------------------------------


def test_export_writes_what_runs_without_s2robot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    path = tmp_path / "tiny.onnx"
    words = ["export", "s2robot-tiny", "--to", "onnx", "--frame", "240x320", "--out", str(path), "--json"]
    result = answer(words, capsys)
    assert result["path"] == str(path) and result["bytes"] == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    encoder = load_encoder(engine="torch", device="cpu")
    for batch in (1, 3):
        frames = random_frames(batch, 1, 240, 320, 3)
        for name, value in vars(encoder(frames)).items():
            (got,) = session.run([name], {"frames": frames})
            np.testing.assert_allclose(got, value.numpy(), atol=TOLERANCE, rtol=0)
    monkeypatch.setattr(sys, "argv", ["onnxruntime_alone.py", str(path)])
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / "onnxruntime_alone.py"))
    told = capsys.readouterr().out
    assert "s2robot-tiny: uint8 RGB frames (batch, 1, 240, 320, 3)" in told
    assert "(1, 1, 384, 8, 11) float32" in told


def test_export_has_defaults_and_passes_settings_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def spy(encoder: Any, kind: str, path: Path, frame: tuple[int, int], views: int) -> dict[str, Any]:
        asked.append((encoder.config, kind, path, frame, views))
        return {"path": str(path), "difference": 0.0, "bytes": 12_300_000}

    monkeypatch.setattr("s2robot.export.export", spy)
    words = ["export", "s2robot-tiny", "--to", "openvino", "--scales", "1,3", "--fit", "pad"]
    assert cli.main(words) == 0
    ((config, kind, path, frame, views),) = asked
    assert (config.scales, config.fit, config.engine) == ((1.0, 3.0), "pad", "torch")
    assert (kind, path, frame, views) == ("openvino", Path("s2robot-tiny.xml"), (384, 384), 1)
    told = " ".join(capsys.readouterr().out.split())
    assert "s2robot-tiny.xml: 12.3 MB" in told and "takes uint8 (batch, 1, 384, 384, 3)" in told


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "says"), [
    (["bench", "encoder", "--encoder", "s2robot-tyni"], "Did you mean 's2robot-tiny'"),
    (["bench", "encoder", "--engine", "onxruntime"], "Did you mean 'onnxruntime'"),
    (["bench", "encoder", "--runs", "1"], "runs must be 2 or more"),
    (["bench", "encoder", "--batches", "0"], "batches 1 or more"),
    (["bench", "encoder", "--sizes", "100"], "Near it: 96, 128 px"),
    (["bench", "encoder", "--encoder.gird", "1"], "Did you mean '--encoder.grid'"),
    (["export", "s2robot-tyni", "--to", "onnx"], "Did you mean 's2robot-tiny'"),
    (["export", "s2robot-tiny", "--to", "onnx", "--frame", "240"], "--frame is '240'; expected rows x columns"),
    (["export", "s2robot-tiny", "--to", "onnx", "--frame", "0x64"], "expected rows x columns"),
    (["export", "s2robot-tiny", "--to", "onnx", "--views", "0"], "views is 0"),
    (["export", "s2robot-tiny", "--to", "onnx", "--out", "a.pt2"], "a.pt2 should end in .onnx"),
    (["export", "s2robot-tiny", "--to", "onnx", "--precision", "bf16"], "Exported files are fp32, not bf16"),
    (["export", "mvp-vit-small", "--to", "onnx"], "mvp-vit-small needs a weights file"),
], ids=str)  # fmt: skip
def test_wrong_usage_is_one_line_and_exit_code_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.strip().count("\n") == 0
    assert captured.out == "" and "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []
