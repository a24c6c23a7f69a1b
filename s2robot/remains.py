"""What is left of an HDF5 file that was cut short: an interrupted copy, a full disk.

HDF5 refuses such a file. Here it is opened all the same, and every read of what is no longer there fails: HDF5 itself
would take it for zeros.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py

from s2robot.parts import DAMAGE

_REFUSAL = re.compile(r"truncated file: .*stored_eof = (\d+)")
_DRIVER = "fileobj"  # h5py's name for reading through an object of Python's


def open_hdf5(path: Path, **options: Any) -> h5py.File:
    """Open for reading; a file that was cut short too, more slowly.

    Raises:
        OSError: it is no HDF5 file. Reading on, where what is asked for lies beyond the cut; it says how much is left.
    """
    try:
        return h5py.File(path, "r", **options)
    except OSError as error:
        refusal = _REFUSAL.search(str(error))
        if not refusal:
            raise
    return h5py.File(_Remains(path, int(refusal[1])), "r", **options)


def find_lost(data: h5py.Group, names: Sequence[str], size: int) -> tuple[int, ...]:
    """Which groups in `data` do not lie wholly in the `size` bytes that are left; () for a file that was not cut short.

    Raises:
        ValueError: not one of them is whole.
    """
    if data.file.driver != _DRIVER:
        return ()
    lost = []
    for k, name in enumerate(names):
        try:
            _read_headers(data[name], size)
        except DAMAGE as error:
            lost.append(k)
            if len(lost) == len(names):
                raise ValueError(f"not one episode is whole: {error}") from error
    return tuple(lost)


def _read_headers(group: h5py.Group, size: int) -> None:
    """Read the headers and attributes of a group and all in it, and hold their rows against the file's size [bytes].

    Raises:
        OSError, RuntimeError, KeyError: some of it lies beyond the cut.
    """

    def read(name: str, item: h5py.Group | h5py.Dataset) -> None:
        dict(item.attrs)
        if isinstance(item, h5py.Dataset) and _end(item) > size:
            raise OSError(f"rows of {name} lie beyond the cut")

    read("", group)
    group.visititems(read)


def _end(dataset: h5py.Dataset) -> int:
    """Where the rows of a dataset end in the file [bytes]; 0 where none are stored."""
    ends = [0]
    if dataset.chunks:
        dataset.id.chunk_iter(lambda chunk: ends.append(chunk.byte_offset + chunk.size))
    elif (start := dataset.id.get_offset()) is not None:
        ends.append(start + dataset.id.get_storage_size())
    return max(ends)


class _Remains(io.RawIOBase):
    """For h5py: a file that is as long as it ever was, of which only the beginning can be read."""

    def __init__(self, path: Path, whole: int) -> None:
        """`whole`: the bytes it had."""
        self._file = path.open("rb")
        self._size, self._whole, self._position = path.stat().st_size, whole, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = self._whole if whence == os.SEEK_END else offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._position)
        if self._file.readinto(buffer) < len(buffer):
            raise OSError(f"cut short: {self._size} of {self._whole} bytes are left, and this lies beyond them")
        return len(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()
