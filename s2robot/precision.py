"""What numbers torch makes when nobody says: whatever its owner set, weights of ours are read and made in float32."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_lock = threading.Lock()
_within: list[torch.dtype] = []  # what was the default when each that is inside came


@contextlib.contextmanager
def single_precision() -> Iterator[None]:
    """Within it float32 is torch's default, as of all files and fingerprints: for all threads, till the last is out."""
    with _lock:
        _within.append(_within[0] if _within else torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        with _lock:
            before = _within.pop()
            if not _within:
                torch.set_default_dtype(before)
