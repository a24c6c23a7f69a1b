"""One large array in several files: rows of whole episodes, about a gigabyte each.

    map.npy                        an array that is no larger
    map-00000.npy, map-00001.npy   one that is: its index names the row each file begins with

Files of that size are copied, checked and fetched one by one; an array of a terabyte in one file is not.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SHARD = 1 << 30  # bytes; part of no name: a store is the same however it is cut


class Shard(NamedTuple):
    """One file of an array."""

    file: str
    first: int  # row of the array it begins with
    shape: list[int]


def cut(index: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[int]]:
    """The row each file begins with, of the arrays of a store's index that are too large for one; between episodes."""
    starts = {name: [0] for name in names}
    begins = [row for row, k in enumerate(index["episode"]) if row == 0 or k != index["episode"][row - 1]]
    ends = [*begins[1:], len(index["episode"])]
    for name in names:
        row_bytes = 2 * math.prod(index[f"{name}_shape"][1:])
        for begin, end in zip(begins, ends, strict=True):
            if begin and (end - starts[name][-1]) * row_bytes > SHARD:
                starts[name].append(begin)
    return {name: rows for name, rows in starts.items() if len(rows) > 1}


def shards(index: Mapping[str, Any], name: str) -> list[Shard]:
    """The files of an array."""
    count, *row = index[f"{name}_shape"]
    starts = index.get("shards", {}).get(name)
    if starts is None:
        return [Shard(f"{name}.npy", 0, [count, *row])]
    ends = [*starts[1:], count]
    return [
        Shard(f"{name}-{k:05}.npy", start, [end - start, *row])
        for k, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


class Sharded:
    """Reads like the float16 array (F, ...) that its files make up; each is opened when first read."""

    def __init__(self, files: Sequence[Shard], open_one: Callable[[Shard], NDArray[np.float16]]) -> None:
        self._files, self._open = files, open_one
        self._starts = [file.first for file in files]
        self._opened: dict[int, NDArray[np.float16]] = {}
        self.shape = (files[-1].first + files[-1].shape[0], *files[0].shape[1:])
        self.dtype, self.ndim = np.dtype("<f2"), len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @cached_property
    def nbytes(self) -> int:
        return 2 * math.prod(self.shape)

    def __getitem__(self, rows: int | slice | Sequence[int] | NDArray[np.int64]) -> NDArray[np.float16]:
        """Rows by number, slice or array of numbers, copied."""
        if isinstance(rows, (int, np.integer)):
            one: NDArray[np.float16] = self[np.array([rows])][0]
            return one
        wanted = np.arange(len(self))[rows]  # (n,), and an IndexError where there is no such row
        of = np.array([bisect_right(self._starts, row) - 1 for row in wanted.tolist()], int)
        out = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        for k in np.unique(of):
            out[of == k] = self._file(int(k))[wanted[of == k] - self._starts[k]]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def _file(self, k: int) -> NDArray[np.float16]:
        if k not in self._opened:
            self._opened[k] = self._open(self._files[k])
        return self._opened[k]
