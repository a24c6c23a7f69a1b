"""What reuse of unchanged tiles saves on real frames: `s2robot bench stream Lift`.

The task's own expert is filmed; then every camera's frames go through the encoder twice in turn, frame by frame as a
live feed with and without reuse, and batch by batch as a recording with and without memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from s2robot import machine, registry
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.encoding import BATCH
from s2robot.errors import InvalidInput
from s2robot.progress import Told, silent
from s2robot.types import Features


@dataclass(frozen=True)
class StreamBenchConfig:
    """Which frames, and how they are encoded."""

    task: str = "Lift"
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(scales=(1.0, 2.0, 3.0)))
    episodes: int = 5
    noise: float = 0.0  # standard deviation of the disturbance of the arm's motion, in action units
    tolerance: float = 0.0  # mean pixel difference that counts as no change; 0 is exact
    seed: int = 0

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise InvalidInput(f"episodes is {self.episodes}; ask for at least 1")


def bench_stream(config: StreamBenchConfig, progress: Told = silent) -> dict[str, Any]:
    """Film, encode, compare; returns {"machine", "versions", "git", "rows": one a camera}."""
    from s2robot.collect import demonstrate

    encoder = config.encoder.build()
    env = registry.make_env(config.task, fidelity="fast", frame_size=max(encoder.sizes))
    rows = [_Row(camera, encoder, config.tolerance) for camera in env.cameras]
    try:
        for k in range(config.episodes):
            frames = demonstrate(env, config.seed + k, config.noise).frames  # (L, V, H, W, 3)
            for view, row in enumerate(rows):
                row.episode(frames[:, view])
                progress(k * len(rows) + view + 1, config.episodes * len(rows), row.camera)
    finally:
        env.close()
    return {
        **machine.provenance(),
        "engine": str(encoder.engine),
        "rows": [row.result() for row in rows],
    }


class _Row:
    """One camera's tally."""

    def __init__(self, camera: str, encoder: Encoder, tolerance: float) -> None:
        self.camera, self.encoder = camera, encoder
        self.stream, self.memory = encoder.stream(camera, tolerance), encoder.memory()
        self.seconds = {"plain": 0.0, "stream": 0.0, "batches": 0.0, "memory": 0.0}
        self.frames, self.tiles, self.reused = 0, 0, 0.0
        self.worst = 0.0  # largest difference of a stream's features from the encoder's

    def episode(self, frames: NDArray[np.uint8]) -> None:
        """One episode's frames (L, H, W, 3)."""
        if not self.frames:  # what the encoder makes once, at a first call, is nobody's time
            self.encoder(frames[0])
            self.encoder(frames[:BATCH])
            self.encoder.stream(self.camera)(frames[0])
            self.encoder.memory()(frames[:BATCH])
        self.stream.reset()
        self.memory.forget()
        for frame in frames:
            plain = self._timed("plain", self.encoder, frame)
            reused = self._timed("stream", self.stream, frame)
            self.worst = max(self.worst, float((plain.map - reused.map).abs().max()))
        found = self.stream.statistics()
        self.frames, self.tiles = self.frames + found.frames, self.tiles + found.tiles
        self.reused += found.reused * found.tiles
        for start in range(0, len(frames), BATCH):
            batch = frames[start : start + BATCH]
            self._timed("batches", self.encoder, batch)
            self._timed("memory", self.memory, batch)

    def result(self) -> dict[str, Any]:
        seconds, frames = self.seconds, self.frames
        return {
            "camera": self.camera,
            "frames": frames,
            "live_reused": self.reused / self.tiles,
            "live_hz": frames / seconds["stream"],
            "live_ratio": seconds["plain"] / seconds["stream"],
            "recorded_reused": 1 - self.memory.encoded / self.memory.tiles,
            "recorded_hz": frames / seconds["memory"],
            "recorded_ratio": seconds["batches"] / seconds["memory"],
            "difference": self.worst,
        }

    def _timed(self, name: str, encode: Callable[[NDArray[np.uint8]], Features], frames: NDArray[np.uint8]) -> Features:
        start = time.perf_counter()
        answer = encode(frames)
        if self.encoder.device.type == "cuda":
            torch.cuda.synchronize(self.encoder.device)
        self.seconds[name] += time.perf_counter() - start
        return answer
