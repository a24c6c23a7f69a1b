"""What was made of frames before, looked up by their bytes: a loop that shows frames again does not encode them again.

Learning libraries shuffle a dataset and show it many times, and a frozen encoder says the same of a frame every time.
Looked up is what was shown, not where it came from: an image that was augmented on the way is another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

PIECE = 32  # rows made at once


class Remembered:
    """Rows of float16 by the digest (sha256) of the uint8 rows they were made of; those not asked for longest go first.

    Args:
        capacity: bytes kept; 0: none, and nothing is looked up.
    """

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.made = self.found = 0  # rows
        self.forget()

    def forget(self) -> None:
        """Start afresh, as when the same frame would now be made into something else; the counts stay."""
        self._rows: dict[bytes, Tensor] = {}
        self._bytes = 0

    def __call__(self, frames: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """frames (n, ...) uint8 -> what `make` makes of them, (n, ...) float16, made only of those not known.

        A digest would cost more than encoding on a GPU: frames that lie there are all made.
        """
        if not self.capacity or frames.device.type != "cpu":
            self.made += len(frames)
            return torch.cat([make(part).half() for part in frames.split(PIECE)])
        names = [hashlib.sha256(row.contiguous().numpy().data).digest() for row in frames]
        known = {name: self._rows[name] for name in names if name in self._rows}
        self._rows |= {name: self._rows.pop(name) for name in known}  # to the end: asked for last
        new = {name: row for row, name in reversed(list(enumerate(names))) if name not in known}  # the first of each
        for part in torch.tensor(sorted(new.values()), dtype=torch.long).split(PIECE):
            for row, value in zip(part.tolist(), make(frames[part]).half().cpu() if len(part) else [], strict=True):
                known[names[row]] = value.clone()  # a row of a piece would keep the whole piece
                self._keep(names[row], known[names[row]])
        self.made += len(new)
        self.found += len(names) - len(new)
        return torch.stack([known[name] for name in names])

    def _keep(self, name: bytes, row: Tensor) -> None:
        while self._rows and self._bytes + row.nbytes > self.capacity:
            self._bytes -= self._rows.pop(next(iter(self._rows))).nbytes
        self._rows[name] = row
        self._bytes += row.nbytes
