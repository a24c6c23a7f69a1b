"""How fast is an encoder here? Latency, rate, cost and share of the machine's peak: `s2robot bench encoder`.

End to end, uint8 frames on the host to features on the device. Whatever is compared is run in turn, A B A B, so that
a ratio holds while the machine's speed drifts; medians are printed, and the spread beside them.
"""

from __future__ import annotations

import functools
import gc
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2robot import flops, machine
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.errors import InvalidInput
from s2robot.multiscale import multiscale_forward
from s2robot.preprocess import check_frames, resize_frames
from s2robot.progress import Told, silent

PEAK_SIZES = (1024, 2048)  # square matrices whose product shows the peak


@dataclass(frozen=True)
class BenchConfig:
    """What to time. Several encoders, engines or batches may be named at once: `--encoders a,b`."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    encoders: tuple[str, ...] = ()  # names; default: the one of `encoder`
    engines: tuple[str, ...] = ()  # default: the one of `encoder`
    batches: tuple[int, ...] = (1,)  # frames of each camera at once (B)
    views: int = 1  # cameras (V)
    height: int = 0  # of the frames [pixels]; 0: the largest scale
    width: int = 0  # 0: as high
    runs: int = 30
    warmup: int = 5
    baseline: bool = False  # also the plain definition: one eager torch forward a scale, as the reference does

    def __post_init__(self) -> None:
        if self.runs < 2 or self.warmup < 1 or self.views < 1 or any(batch < 1 for batch in self.batches):
            raise InvalidInput("runs must be 2 or more; warmup, views and batches 1 or more")


def bench_encoders(config: BenchConfig, progress: Told = silent) -> dict[str, Any]:
    """Time every encoder x batch; returns {"machine", "versions", "git", "rows": [...]}, plain numbers throughout."""
    names = config.encoders or (config.encoder.name,)
    engines = config.engines or (config.encoder.engine,)
    rows: list[dict[str, Any]] = []
    total = len(names) * len(config.batches) * (config.warmup + config.runs)
    steps = itertools.count(1)
    for name in names:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # of the encoder before
        arms = {engine: replace(config.encoder, name=name, engine=engine).build() for engine in engines}
        for batch in config.batches:
            rows += _bench(arms, batch, config, lambda note: progress(next(steps), total, note))
        del arms
        gc.collect()  # a large encoder must go before the next is built
    return {**machine.provenance(), "rows": rows}


def _bench(
    arms: dict[str, Encoder], batch: int, config: BenchConfig, told: Callable[[str], None]
) -> list[dict[str, Any]]:
    """All engines of one encoder, in turn."""
    first = next(iter(arms.values()))
    height = config.height or max(first.sizes)
    frame = (height, config.width or height)
    shape = (batch, config.views, *frame, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    jobs: dict[str, Callable[[], Any]] = {name: functools.partial(encoder, frames) for name, encoder in arms.items()}
    if config.baseline:
        jobs["baseline"] = plain_definition(first, frames)
    seconds = time_in_turn(jobs, config.runs, config.warmup, first.device, told)
    peak = matmul_peak(first.device, config.encoder.precision)
    cost = flops.encoder_cost(first, frame).gflops * batch * config.views
    rows = []
    for name, encoder in arms.items():
        row = {
            "encoder": encoder.config.name, "sizes": list(encoder.sizes), "engine": str(encoder.engine),
            "frame": list(frame), "views": config.views, "batch": batch, **_latency(seconds[name]),
            "gflops": cost, "parameters": sum(p.numel() for p in encoder.parameters()),
            "percent_of_peak": 100 * 2 * cost / statistics.median(seconds[name]) / peak,
            "peak_gflops": peak, "memory_mb": _memory(first.device),
        }  # fmt: skip
        if encoder.device.type == "cuda":
            row["upload_ms"] = _upload_ms(encoder, frames)
        if config.baseline:
            row |= ratio(seconds[name], seconds["baseline"])
            row["difference"] = None if encoder.config.precision != "fp32" else _difference(encoder, frames)
        rows.append(row)
    return rows


def plain_definition(encoder: Encoder, frames: np.ndarray[Any, Any]) -> Callable[[], Tensor]:
    """S2 as its reference computes it: eager torch in fp32, one forward a scale, larger scales made of the base one."""
    contract, base, target = encoder.contract, encoder.sizes[0], encoder.target

    def model(images: Tensor) -> Tensor:
        prefix, grid = encoder.backbone.at(images.shape[-2:])(images)
        return torch.cat([prefix, grid.flatten(2).transpose(1, 2)], dim=1)

    @torch.no_grad()
    def run() -> Tensor:
        pixels = check_frames(frames).to(encoder.device).flatten(0, 1).permute(0, 3, 1, 2).float()
        images = (resize_frames(pixels, (base, base), contract) / 255 - encoder.mean) / encoder.std
        return multiscale_forward(
            model, images, img_sizes=encoder.sizes, max_split_size=encoder.largest_tile,
            num_prefix_token=contract.prefix_tokens, resize_output_to_idx=target,
        )  # fmt: skip

    return run


def time_in_turn(
    jobs: dict[str, Callable[[], Any]],
    runs: int,
    warmup: int,
    device: torch.device,
    told: Callable[[str], None] = lambda note: None,
) -> dict[str, list[float]]:
    """Seconds of every job, `runs` times each, one after another in turn; waits for the device to finish.

    In its turn a job runs twice and the second run counts: a control loop calls one encoder again and again, so it
    finds its weights in the caches and its threads awake, and not what another job left behind.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for k in range(-warmup, runs):
        for name, job in jobs.items():
            job()
            _wait(device)
            start = time.perf_counter()
            job()
            _wait(device)
            if k >= 0:
                seconds[name].append(time.perf_counter() - start)
        told("warming up" if k < 0 else "")
    return seconds


@functools.cache
def matmul_peak(device: torch.device, precision: str = "fp32") -> float:
    """The best matrix product this device does now [GFLOP/s, multiplications and additions], int8 counted as fp32."""
    best, dtype = 0.0, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    for size in PEAK_SIZES:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        rates = time_in_turn({"": functools.partial(torch.mm, a, b)}, 10, 3, device)[""]
        best = max(best, 2 * size**3 / min(rates) / 1e9)
    return best


def _latency(seconds: list[float]) -> dict[str, Any]:
    ms = sorted(1e3 * s for s in seconds)
    p50, p90, p99 = (float(np.quantile(ms, q)) for q in (0.5, 0.9, 0.99))
    return {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "hz": 1e3 / p50, "runs": len(ms)}


def ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """How many times faster than the baseline, pair by pair."""
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    return {
        "baseline_p50_ms": 1e3 * statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
    }


def _difference(encoder: Encoder, frames: np.ndarray[Any, Any]) -> float:
    """Largest difference of this engine's features from torch's on these frames."""
    plain = Encoder(encoder.backbone, replace(encoder.config, engine="torch")).to(encoder.device)
    return float((encoder(frames).map - plain(frames).map).abs().max())


def _upload_ms(encoder: Encoder, frames: np.ndarray[Any, Any]) -> float:
    host = check_frames(frames)
    seconds = time_in_turn({"": functools.partial(encoder.upload, host)}, 20, 5, encoder.device)[""]
    return 1e3 * statistics.median(seconds)


def _memory(device: torch.device) -> float:
    """Peak memory so far [MB]: of the device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1e6 if sys.platform == "darwin" else 1e3)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
