"""What a server counts, and as Prometheus reads it (text format 0.0.4)."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping

import numpy as np

from s2robot import machine

KEPT = 1024  # latencies of each stage that quantiles are of: the last ones
STAGES = ("decode", "queue", "encode", "act", "total")
ERRORS = ("malformed", "observation", "too_big", "timeout", "failed", "unauthorised", "full")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Touched by the event loop alone, so nothing is locked."""

    def __init__(self) -> None:
        self.requests = self.answers = self.connections = self.clients = self.camera_faults = 0
        self.errors: Counter[str] = Counter(dict.fromkeys(ERRORS, 0))
        self._began = time.time()
        self._last: dict[str, deque[float]] = {stage: deque(maxlen=KEPT) for stage in STAGES}
        self._sums = dict.fromkeys(STAGES, 0.0)
        self._counts = dict.fromkeys(STAGES, 0)

    def took(self, seconds: Mapping[str, float]) -> None:
        """Durations of one request by stage [s]."""
        for stage, value in seconds.items():
            self._last[stage].append(value)
            self._sums[stage] += value
            self._counts[stage] += 1

    def text(self) -> str:
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield from _one("requests_total", "counter", "Messages that came.", self.requests)
        yield from _one("answers_total", "counter", "Action chunks and resets that went out.", self.answers)
        yield from _one("connections_total", "counter", "Connections that were accepted.", self.connections)
        yield from _one("clients", "gauge", "Connections that are open.", self.clients)
        yield from _one("camera_faults_total", "counter", "Blank and frozen frames that came.", self.camera_faults)
        yield from _head("errors_total", "counter", "Refusals and failures, by kind.")
        yield from (f's2robot_errors_total{{kind="{kind}"}} {count}' for kind, count in sorted(self.errors.items()))
        yield from _head("latency_seconds", "summary", f"By stage; quantiles of the last {KEPT}.")
        for stage, last in self._last.items():
            if last:
                for quantile, value in zip((0.5, 0.9, 0.99), np.quantile(last, (0.5, 0.9, 0.99)), strict=True):
                    yield f's2robot_latency_seconds{{stage="{stage}",quantile="{quantile}"}} {value:.6f}'
            yield f's2robot_latency_seconds_sum{{stage="{stage}"}} {self._sums[stage]:.6f}'
            yield f's2robot_latency_seconds_count{{stage="{stage}"}} {self._counts[stage]}'
        yield from _one("start_time_seconds", "gauge", "When the server began, since 1970.", round(self._began, 3))
        if (resident := machine.resident_mb(os.getpid())) is not None:
            yield from _one("resident_memory_bytes", "gauge", "Memory of the process in RAM.", round(1e6 * resident))


def _one(name: str, kind: str, purpose: str, value: float) -> Iterator[str]:
    yield from _head(name, kind, purpose)
    yield f"s2robot_{name} {value}"


def _head(name: str, kind: str, purpose: str) -> Iterator[str]:
    yield f"# HELP s2robot_{name} {purpose}"
    yield f"# TYPE s2robot_{name} {kind}"
