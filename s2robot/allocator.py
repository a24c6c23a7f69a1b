"""The C library's memory: keep what large tensors free, where training makes the same ones again at once.

glibc asks the system for every block of more than 32 MB anew, and each of its pages is then zeroed at the first touch.
The convolutions of `cnn` make dozens of such blocks in a step: with them kept, one on 128 observations of two views
took 1.55 s of a core instead of 2.3, and the process 2.0 GB instead of 1.4 (CPU time on a 2-core AMD EPYC beside
other work, twice in turn).
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

# As in mallopt(3). From the first call on glibc does not move its thresholds by itself: the usual ones are those that
# it comes to where large blocks are freed.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 1 << 28}
USUAL = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 1 << 25, M_TRIM_THRESHOLD: 1 << 26, M_TOP_PAD: 1 << 17}


@contextlib.contextmanager
def keeping_freed() -> Iterator[None]:
    """Within, this process keeps freed memory for itself; at the end it gives it back. Only glibc is told."""
    glibc = _glibc()
    try:
        _tell(glibc, KEEP)
        yield
    finally:
        _tell(glibc, USUAL)
        if glibc is not None:
            glibc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    with contextlib.suppress(OSError, TypeError):  # Windows has no library without a name
        library = ctypes.CDLL(None)
        if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt"):
            return library
    return None


def _tell(glibc: ctypes.CDLL | None, options: dict[int, int]) -> None:
    if glibc is not None:
        for option, value in options.items():
            glibc.mallopt(option, value)
