"""Timing: in turn, in plain numbers, and against a baseline that computes the same. No test here asserts a time."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from small_encoders import TOLERANCE, random_frames, small_encoder

from s2robot import bench, files, flops
from s2robot.bench import BenchConfig, bench_encoders, plain_definition, time_in_turn
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.errors import InvalidInput

TINY = EncoderConfig(random_weights=True, engine="torch", scales=(1,))
NUMBERS = ("p50_ms", "p90_ms", "p99_ms", "hz", "gflops", "percent_of_peak", "peak_gflops", "memory_mb")


@pytest.fixture(autouse=True)
def small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PEAK_SIZES", (16, 32))
    bench.matmul_peak.cache_clear()


def config(**changes: Any) -> BenchConfig:
    return BenchConfig(**{"encoder": TINY, "runs": 2, "warmup": 1, **changes})


def all_numbers(value: Any) -> list[float]:
    """Every number within rows of rows."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [number for each in inner for number in all_numbers(each)]
    return [value] if isinstance(value, int | float) else []


# -- rows ------------------------------------------------------------------------------------------------------------


def test_rows_are_finite_plain_numbers() -> None:
    result = bench_encoders(config(batches=(1, 2), views=2, baseline=True, height=96, width=120))
    assert json.loads(json.dumps(result)) == files.plain(result) == result
    assert [row["batch"] for row in result["rows"]] == [1, 2]
    for row in result["rows"]:
        assert all(row[key] > 0 for key in NUMBERS)
        assert row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] and row["hz"] == pytest.approx(1e3 / row["p50_ms"])
        assert row["ratio_range"][0] <= row["ratio"] <= row["ratio_range"][1] and row["ratio"] > 0
        assert (row["frame"], row["views"], row["runs"], row["sizes"]) == ([96, 120], 2, 2, [128])
        assert row["parameters"] == sum(p.numel() for p in TINY.build("cpu").parameters())
        assert row["difference"] == 0  # torch against torch
        assert all(math.isfinite(number) for number in all_numbers(row))
    one, two = result["rows"]
    cost = flops.encoder_cost(TINY.build("cpu"), (96, 120)).gflops
    assert one["gflops"] == pytest.approx(2 * cost) and two["gflops"] == pytest.approx(4 * cost)
    ratio = one["percent_of_peak"] * one["p50_ms"] * one["peak_gflops"] / (100 * 1e3 * one["gflops"])
    assert ratio == pytest.approx(2, rel=0.01)  # two operations a multiply-add


def test_the_share_of_the_peak_is_of_the_peak_at_that_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"fp32": 100.0, "bf16": 400.0}
    monkeypatch.setattr(bench, "matmul_peak", lambda device, precision: peaks[precision])
    for precision, peak in peaks.items():
        encoder = dataclasses.replace(TINY, precision=precision)
        row = bench_encoders(config(encoder=encoder, baseline=False, batches=(1,)))["rows"][0]
        assert row["peak_gflops"] == peak
        assert row["percent_of_peak"] == pytest.approx(100 * 2 * row["gflops"] / (1e-3 * row["p50_ms"]) / peak)


@pytest.mark.parametrize(("precision", "dtype"), [
    ("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("int8", torch.float32),
])  # fmt: skip
def test_the_peak_is_of_products_at_that_precision(
    precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiplied: set[torch.dtype] = set()

    def spy(a: torch.Tensor, b: torch.Tensor) -> None:
        multiplied.update({a.dtype, b.dtype})

    monkeypatch.setattr(torch, "mm", spy)
    assert bench.matmul_peak(torch.device("cpu"), precision) > 0
    assert multiplied == {dtype}


def test_every_encoder_batch_and_engine_has_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    arms: list[list[str]] = []

    def spy(jobs: dict[str, Any], runs: int, *rest: Any) -> dict[str, list[float]]:
        arms.append(list(jobs))
        return {name: [0.5] * runs for name in jobs}

    monkeypatch.setattr(bench, "time_in_turn", spy)
    monkeypatch.setattr(bench, "matmul_peak", lambda device, precision: 100.0)
    names = ("s2robot-tiny", "timm:vit_tiny_patch16_224")
    result = bench_encoders(config(encoders=names, engines=("torch", "inductor"), batches=(1, 3), baseline=False))
    told = [(row["encoder"], row["batch"], row["engine"].split()[0]) for row in result["rows"]]
    assert told == [(name, batch, engine) for name in names for batch in (1, 3) for engine in ("torch", "inductor")]
    assert arms == [["torch", "inductor"]] * 4
    assert not any("ratio" in row for row in result["rows"])


def test_progress_is_told_of_every_encoder() -> None:
    told: list[tuple[int, int, str]] = []
    bench_encoders(config(encoders=("s2robot-tiny", "s2robot-tiny")), lambda *news: told.append(news))
    assert [news[:2] for news in told] == [(done, 6) for done in range(1, 7)]  # with a round of warming up for each


def test_a_lower_precision_claims_no_difference() -> None:
    (row,) = bench_encoders(config(encoder=dataclasses.replace(TINY, precision="bf16"), baseline=True))["rows"]
    assert row["difference"] is None and "bf16" in row["engine"]


@pytest.mark.parametrize("changes", [{"runs": 1}, {"warmup": 0}, {"views": 0}, {"batches": (1, 0)}])
def test_nothing_to_time_is_named(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="2 or more; warmup, views and batches 1 or more"):
        config(**changes)


# -- in turn ---------------------------------------------------------------------------------------------------------


def test_jobs_run_in_turn() -> None:
    ran: list[str] = []
    jobs = {name: (lambda name=name: ran.append(name)) for name in "abc"}
    seconds = time_in_turn(jobs, 4, 2, torch.device("cpu"))
    assert "".join(ran) == "aabbcc" * 6  # the second of each counts
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert all(second >= 0 for times in seconds.values() for second in times)


def test_warming_up_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    work = iter([100] * 4 + [50, 1, 50, 2, 50, 3])  # neither are the first runs of each turn
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    seconds = time_in_turn({"a": lambda: [next(clock) for _ in range(next(work))]}, 3, 2, torch.device("cpu"))
    assert seconds == {"a": [2, 3, 4]}


def test_ratios_are_of_pairs() -> None:
    assert bench.ratio([1.0, 2.0, 4.0], [3.0, 4.0, 4.0]) == {
        "baseline_p50_ms": 4000.0, "ratio": 2.0, "ratio_range": [1.0, 3.0],
    }  # fmt: skip
    assert bench._latency([0.002] * 5) == {"p50_ms": 2.0, "p90_ms": 2.0, "p99_ms": 2.0, "hz": 500.0, "runs": 5}


# -- the baseline ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("art", ["plain", "registers", "no prefix"])
@pytest.mark.parametrize("settings", [
    {"scales": (1,)}, {"scales": (2,)}, {"scales": (1, 2)}, {"scales": (1, 1.5)}, {"scales": (1, 2), "grid": "finest"},
    {"sizes": (24, 48, 96), "grid": "1"},
], ids=str)  # fmt: skip
def test_the_plain_definition_is_the_encoder_where_their_resizes_agree(art: str, settings: dict[str, Any]) -> None:
    encoder = small_encoder(art, **settings)
    frames = np.broadcast_to(random_frames(2, 3, 1, 1, 3), (2, 3, 32, 32, 3)).copy()  # flat: any resize agrees
    got = plain_definition(encoder, frames)()
    expected = encoder(frames).tokens.flatten(0, 1)
    prefix = encoder.contract.prefix_tokens
    torch.testing.assert_close(got[:, prefix:], expected, atol=TOLERANCE, rtol=0)


def test_the_plain_definition_takes_frames_of_any_shape() -> None:
    encoder: Encoder = small_encoder()
    assert plain_definition(encoder, random_frames(1, 2, 48, 64, 3))().shape == (2, 1 + 16, 32)


def test_a_difference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small_encoder()
    assert bench._difference(encoder, random_frames(1, 1, 64, 64, 3)) == 0
    run = encoder.run
    monkeypatch.setattr(encoder, "run", lambda tiles: [(prefix, grid + 0.25) for prefix, grid in run(tiles)])
    assert bench._difference(encoder, random_frames(1, 1, 64, 64, 3)) == pytest.approx(0.25, abs=1e-4)
