"""A tensor on disk, mapped into memory: what does not fit stays there and is read as it is wanted.

The kernel keeps of it what there is room for, and gives that up when anything else wants memory. Rows are told of a
little ahead, so that they are there when they are read.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from s2robot import files


class OnDisk:
    """Room for a tensor, in a file without a name: it is gone with its last user, even a killed one."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, folder: Path) -> None:
        """Raises `OutOfSpace` if the disk does not hold it."""
        count = int(torch.Size(shape).numel())
        size = count * dtype.itemsize
        folder.mkdir(parents=True, exist_ok=True)
        path = files.temporary_of(folder / "seen")
        try:
            files.reserve(path, size)  # a map that meets a full disk kills the process
            with path.open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), size)
        finally:
            path.unlink(missing_ok=True)
        self.tensor: Tensor = torch.frombuffer(self._map, dtype=dtype, count=count).view(*shape)
        self._row = size // shape[0]
        if hasattr(mmap, "MADV_RANDOM"):
            self._map.madvise(mmap.MADV_RANDOM)  # the neighbours of a row are not wanted

    def expect(self, rows: Tensor) -> None:
        """Have these rows read while something else is done."""
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        for row in rows.flatten().unique().tolist():
            first = row * self._row // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, first, (row + 1) * self._row - first)
