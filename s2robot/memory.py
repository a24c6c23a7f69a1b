"""Encode many frames offline: a tile whose very pixels were encoded before takes the answer it had.

In a recording much of the table is the same from step to step. Tiles are looked up by a checksum and then compared
pixel by pixel, so that a return to an earlier view counts as well, and nothing is taken for what it is not. Which tiles
come together in a batch then depends on what was seen before, so a memory is started afresh with every episode: its
features depend on that episode alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot.preprocess import check_frames, cut_tiles
from s2robot.types import Features

if TYPE_CHECKING:
    from s2robot.encoder import Encoder

CAPACITY = 512e6  # bytes of tiles and answers kept; the oldest go first

Answer = tuple[Tensor, Tensor]
"""Of one tile: prefix (K, D), grid (D, h, w)."""

Name = tuple[int, int, int]
"""Of one tile: its height and width, and a checksum of its pixels."""


class TileMemory:
    """An encoder that remembers. Called like one, on (B, V, H, W, 3) frames of any size."""

    def __init__(self, encoder: Encoder, capacity: float = CAPACITY) -> None:
        self.encoder, self.capacity = encoder, capacity
        self.tiles = self.encoded = 0
        self._entries: dict[Name, _Entry] = {}
        self._bytes = 0

    def forget(self) -> None:
        """Start afresh; the counts stay."""
        self._entries, self._bytes = {}, 0

    def __call__(self, frames: NDArray[np.uint8] | Tensor) -> Features:
        encoder = self.encoder
        batch = encoder.upload(check_frames(frames))
        plan = encoder.plan((batch.shape[2], batch.shape[3]))
        with encoder.computing():
            tiles = cut_tiles(batch, plan, encoder.contract, encoder.mean, encoder.std)
            if encoder.device.type != "cpu":  # looking there would cost more than encoding
                return encoder.assemble(encoder.run(tiles), plan, batch.shape[0], batch.shape[1])
            return encoder.assemble(self._answer(tiles), plan, batch.shape[0], batch.shape[1])

    def _answer(self, tiles: list[Tensor]) -> list[Answer]:
        """What `Encoder.run` gives for these tiles of every scale, by way of the memory."""
        names = [_names(part) for part in tiles]
        known: list[list[Answer | None]] = [
            [self._recall(name, tile) for name, tile in zip(*pair, strict=True)]
            for pair in zip(names, tiles, strict=True)
        ]
        new: list[list[int]] = []  # of every scale, the first row of each tile not seen before
        repeats: list[dict[int, int]] = []  # of every scale, rows that repeat one of those: row -> the first
        for k, part in enumerate(tiles):
            first, again = _distinct(part, names[k], [row for row, answer in enumerate(known[k]) if answer is None])
            new.append(first)
            repeats.append(again)
        scales = [k for k, rows in enumerate(new) if rows]
        unseen = {k: tiles[k] if len(new[k]) == len(tiles[k]) else tiles[k][new[k]] for k in scales}
        answers = dict(zip(scales, self.encoder.run(list(unseen.values())) if scales else [], strict=True))
        for k, (prefix, grid) in answers.items():
            for row, pixels, answer in zip(new[k], unseen[k], zip(prefix, grid, strict=True), strict=True):
                known[k][row] = self._keep(names[k][row], pixels, answer)
            for row, first_row in repeats[k].items():
                known[k][row] = known[k][first_row]
        self.tiles += sum(map(len, tiles))
        self.encoded += sum(map(len, new))
        return [answers[k] if k in unseen and unseen[k] is part else _stacked(known[k]) for k, part in enumerate(tiles)]

    def _recall(self, name: Name, tile: Tensor) -> Answer | None:
        """The answer to this very tile (3, h, w), if it is known."""
        entry = self._entries.get(name)
        return entry.answer if entry is not None and torch.equal(entry.pixels, tile) else None

    def _keep(self, name: Name, tile: Tensor, answer: Answer) -> Answer:
        entry = _Entry(tile, answer)  # no copies: all rows of what was encoded together are kept, and go together
        self._drop(name)
        while self._entries and self._bytes + entry.bytes > self.capacity:
            self._drop(next(iter(self._entries)))
        self._entries[name] = entry
        self._bytes += entry.bytes
        return entry.answer

    def _drop(self, name: Name) -> None:
        if name in self._entries:
            self._bytes -= self._entries.pop(name).bytes


def _stacked(answers: list[Answer | None]) -> Answer:
    found = [answer for answer in answers if answer is not None]
    return torch.stack([prefix for prefix, _ in found]), torch.stack([grid for _, grid in found])


class _Entry(NamedTuple):
    pixels: Tensor  # (3, h, w)
    answer: Answer

    @property
    def bytes(self) -> int:
        return self.pixels.nbytes + sum(part.nbytes for part in self.answer)


def _names(tiles: Tensor) -> list[Name]:
    """What tiles (n, 3, h, w) are looked up by. Whether two are the same, their pixels decide."""
    checksums = tiles.contiguous().view(torch.int32).flatten(1).sum(dim=1).tolist()
    return [(tiles.shape[-2], tiles.shape[-1], checksum) for checksum in checksums]


def _distinct(tiles: Tensor, names: list[Name], rows: list[int]) -> tuple[list[int], dict[int, int]]:
    """Which of these rows come first with their pixels, and which repeat an earlier one."""
    firsts: list[int] = []
    repeats: dict[int, int] = {}
    by_name: dict[Name, int] = {}
    for row in rows:
        first = by_name.setdefault(names[row], row)
        if first != row and torch.equal(tiles[first], tiles[row]):
            repeats[row] = first
        else:
            firsts.append(row)
    return firsts, repeats
