"""Encode many frames offline: a tile whose very pixels were encoded before takes the answer it had.

In a recording much of the table is the same from step to step. Tiles are known by a hash of their pixels, so that a
return to an earlier view counts as well; which tiles come together in a batch then depends on what was seen before,
so a memory is started afresh with every episode: its features depend on that episode alone.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot.preprocess import check_frames, cut_tiles
from s2robot.types import Features

if TYPE_CHECKING:
    from s2robot.encoder import Encoder

CAPACITY = 256e6  # bytes of answers kept; the oldest go first

Answer = tuple[Tensor, Tensor]
"""Of one tile: prefix (K, D), grid (D, h, w)."""


class TileMemory:
    """An encoder that remembers. Called like one, on (B, V, H, W, 3) frames of any size."""

    def __init__(self, encoder: Encoder, capacity: float = CAPACITY) -> None:
        self.encoder, self.capacity = encoder, capacity
        self.tiles = self.encoded = 0
        self._answers: dict[bytes, Answer] = {}
        self._bytes = 0

    def forget(self) -> None:
        """Start afresh; the counts stay."""
        self._answers, self._bytes = {}, 0

    def __call__(self, frames: NDArray[np.uint8] | Tensor) -> Features:
        encoder = self.encoder
        batch = encoder.upload(check_frames(frames))
        plan = encoder.plan((batch.shape[2], batch.shape[3]))
        with encoder.computing():
            tiles = cut_tiles(batch, plan, encoder.contract, encoder.mean, encoder.std)
            if encoder.device.type != "cpu":  # hashing there would cost more than encoding
                return encoder.assemble(encoder.run(tiles), plan, batch.shape[0], batch.shape[1])
            return encoder.assemble(self._answer(tiles), plan, batch.shape[0], batch.shape[1])

    def _answer(self, tiles: list[Tensor]) -> list[Answer]:
        """What `Encoder.run` gives for these tiles of every scale, by way of the memory."""
        names = [[_digest(tile) for tile in part] for part in tiles]
        now: dict[bytes, Answer] = {}  # all that this batch needs, safe from being dropped meanwhile
        new: list[list[int]] = []  # of every scale, the first row of each tile not seen before
        for scale in names:
            rows = {name: row for row, name in reversed(list(enumerate(scale))) if name not in self._answers}
            new.append(sorted(rows.values()))
            now |= {name: self._answers[name] for name in scale if name in self._answers}
        scales = [k for k, rows in enumerate(new) if rows]
        answers = self.encoder.run([tiles[k][new[k]] for k in scales]) if scales else []
        for k, (prefix, grid) in zip(scales, answers, strict=True):
            for row, answer in zip(new[k], zip(prefix, grid, strict=True), strict=True):
                now[names[k][row]] = self._keep(names[k][row], answer)
        self.tiles += sum(map(len, names))
        self.encoded += sum(map(len, new))
        return [
            (torch.stack([now[name][0] for name in scale]), torch.stack([now[name][1] for name in scale]))
            for scale in names
        ]

    def _keep(self, name: bytes, answer: Answer) -> Answer:
        copy = (answer[0].clone(), answer[1].clone())  # a row would hold its whole batch in memory
        size = sum(part.nbytes for part in copy)
        while self._answers and self._bytes + size > self.capacity:
            self._bytes -= sum(part.nbytes for part in self._answers.pop(next(iter(self._answers))))
        self._answers[name] = copy
        self._bytes += size
        return copy


def _digest(tile: Tensor) -> bytes:
    """Of a tile's pixels and its shape, (3, h, w)."""
    pixels = np.ascontiguousarray(tile.numpy())
    return hashlib.blake2b(pixels.data, digest_size=16, salt=str(tuple(tile.shape[-2:])).encode()[:16]).digest()
