"""What a pre-training run tells: while it runs, and afterwards.

recipe.json        every number that decides the weights
starts.jsonl       one line each time it was started: from which step, when, on what, with which versions
metrics.jsonl      one line every 25 steps (loss, lr, images_per_second, percent_of_peak, seconds) and one a
                   checkpoint (valid_base, valid_tile; valid_x1, valid_x2 when merged)
tensorboard/       the same numbers, where tensorboard is installed
pictures/          held-out views: as they are, what the encoder sees, what was painted
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from s2robot import files, machine
from s2robot.board import Board
from s2robot.pretrain_cost import multiply_adds
from s2robot.ranks import Ranks
from s2robot.recipe import PretrainConfig


class Journal:
    """Writes what a run tells; on any process but the first, nothing."""

    def __init__(self, config: PretrainConfig, out: Path, start: int, here: Ranks, device: torch.device) -> None:
        self._config, self._start, self._here, self._device = config, start, here, device
        self._began = self._mark = time.monotonic()
        self._idle = 0.0  # seconds since the mark that were not training
        self._marked = start
        self._lines: files.JsonLines | None = None
        self._board: Board | None = None
        if here.is_first:
            files.keep_lines(out / "metrics.jsonl", lambda row: row["step"] <= start)
            self._lines = files.JsonLines(out / "metrics.jsonl")
            self._board = Board(out / "tensorboard", start)
            with files.JsonLines(out / "starts.jsonl") as starts:
                starts.write(_circumstances(start, here, device))

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._lines is not None:
            self._lines.close()
        if self._board is not None:
            self._board.close()

    def step(self, done: int, loss: float, rate: float) -> None:
        """Tell of training: the loss of a step, its learning rate, and how fast it went since the last time."""
        now = time.monotonic()
        seconds = max(now - self._mark - self._idle, 1e-9)
        images = self._config.batch * (done - self._marked) / seconds
        row = {"step": done, "loss": round(loss, 5), "lr": rate, "seconds": round(now - self._began, 1)}
        row["images_per_second"] = round(images, 2)
        if self._lines is not None:
            row["percent_of_peak"] = round(percent_of_peak(self._config, images, self._device, self._here.world), 2)
        self.write(row)
        self._mark, self._idle, self._marked = time.monotonic(), 0.0, done

    def write(self, row: Mapping[str, Any]) -> None:
        """Tell some numbers of a step."""
        if self._lines is not None:
            self._lines.write(row)
        if self._board is not None:
            self._board.write(row)

    def rested(self, seconds: float) -> None:
        """So long was spent on something else than training, e.g. validation."""
        self._idle += seconds

    def note(self, done: int, loss: float) -> str:
        """One line for whoever watches: loss, speed, time left."""
        seconds = time.monotonic() - self._began
        a_second = max(1, done - self._start) / max(seconds, 1e-9)
        left = datetime.timedelta(seconds=round((self._config.steps - done) / a_second))
        return f"loss {loss:.3f}, {self._config.batch * a_second:.0f} images/s, {left} left"


def percent_of_peak(config: PretrainConfig, images_per_second: float, device: torch.device, world: int = 1) -> float:
    """How much of these processors' best matrix product, at the precision it trains in, training makes use of."""
    from s2robot.bench import matmul_peak

    return 100 * 2 * multiply_adds(config) * images_per_second / (world * matmul_peak(device, config.precision) * 1e9)


def _circumstances(start: int, here: Ranks, device: torch.device) -> dict[str, Any]:
    return {
        "step": start,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "device": str(device),
        "processes": here.world,
        "threads": torch.get_num_threads(),
        **machine.provenance(),
    }
