"""Encode many frames offline: a tile whose very pixels were encoded before takes the answer it had.

In a recording much of the table is the same from step to step. A tile is looked up by a digest (sha256) of the pixels
it is made of, before anything is resized, so that a return to an earlier view counts as well. Which tiles come together
in a batch then depends on what was seen before, so a memory is started afresh with every episode: its features depend
on that episode alone.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot.preprocess import check_frames, tile_sources
from s2robot.types import Features

if TYPE_CHECKING:
    from s2robot.encoder import Encoder
    from s2robot.scales import Plan, Size

CAPACITY = 512e6  # bytes of answers kept; the oldest go first

Answer = tuple[Tensor, Tensor]
"""Of one tile: prefix (K, D), grid (D, h, w)."""

Name = tuple[int, int, bytes]
"""Of one tile: its scale, its place in it, and the digest of its pixels in the frame."""


class TileMemory:
    """An encoder that remembers. Called like one, on (B, V, H, W, 3) frames; frames of another size start it afresh."""

    def __init__(self, encoder: Encoder, capacity: float = CAPACITY) -> None:
        self.encoder, self.capacity = encoder, capacity
        self.tiles = self.encoded = 0
        self.forget()

    def forget(self) -> None:
        """Start afresh; the counts stay."""
        self._answers: dict[Name, Answer] = {}
        self._bytes = 0
        self._of: tuple[Size, str] | None = None  # what the answers are of

    def __call__(self, frames: NDArray[np.uint8] | Tensor) -> Features:
        encoder, batch = self.encoder, check_frames(frames)
        size = (batch.shape[2], batch.shape[3])
        plan = encoder.plan(size)
        if self._of != (size, encoder.fingerprint):
            self.forget()
            self._of = (size, encoder.fingerprint)
        with encoder.computing():
            if encoder.device.type != "cpu":  # looking there would cost more than encoding
                answers = encoder.run(encoder.cut(batch, plan))
                count = plan.tiles * batch.shape[0] * batch.shape[1]
                self.tiles, self.encoded = self.tiles + count, self.encoded + count
            else:
                answers = self._answer(batch, plan)
            return encoder.assemble(answers, plan, batch.shape[0], batch.shape[1])

    def _answer(self, batch: Tensor, plan: Plan) -> list[Answer]:
        """What `Encoder.run` gives for the tiles of every scale, by way of the memory."""
        names = _names(batch, plan, self.encoder)
        known = {name: self._answers[name] for part in names for name in part if name in self._answers}
        new: list[list[int]] = []  # of every scale, the first row of each tile not seen before
        for part in names:
            firsts = {name: row for row, name in reversed(list(enumerate(part))) if name not in known}
            new.append(sorted(firsts.values()))
        tiles = self.encoder.cut(batch, plan, new)
        scales = [k for k, rows in enumerate(new) if rows]
        answers = dict(zip(scales, self.encoder.run([tiles[k] for k in scales]) if scales else [], strict=True))
        for k, (prefix, grid) in answers.items():
            for row, *answer in zip(new[k], prefix, grid, strict=True):
                known[names[k][row]] = self._keep(names[k][row], (answer[0], answer[1]))
        self.tiles += sum(map(len, names))
        self.encoded += sum(map(len, new))
        return [
            answers[k] if len(new[k]) == len(part) else _stacked([known[name] for name in part])
            for k, part in enumerate(names)
        ]

    def _keep(self, name: Name, answer: Answer) -> Answer:
        size = _bytes(answer)  # no copies: all rows of what was encoded together are kept, and go together
        while self._answers and self._bytes + size > self.capacity:
            self._bytes -= _bytes(self._answers.pop(next(iter(self._answers))))
        self._answers[name] = answer
        self._bytes += size
        return answer


def _names(batch: Tensor, plan: Plan, encoder: Encoder) -> list[list[Name]]:
    """What the tiles of every scale are looked up by, in the order they are cut in: all frames' first tiles first."""
    frames = batch.flatten(0, 1).cpu().numpy()
    boxes = tile_sources((batch.shape[2], batch.shape[3]), plan, encoder.contract)
    return [
        [(k, t, _digest(frame[box])) for t, box in enumerate(part) for frame in frames] for k, part in enumerate(boxes)
    ]


def _digest(pixels: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(pixels).data).digest()  # tobytes() takes seven times as long as this


def _stacked(answers: list[Answer]) -> Answer:
    return torch.stack([prefix for prefix, _ in answers]), torch.stack([grid for _, grid in answers])


def _bytes(answer: Answer) -> int:
    return sum(part.nbytes for part in answer)
