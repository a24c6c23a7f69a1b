"""What numbers torch makes when nobody says: whatever its owner set, weights of ours are read and made in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def single_precision() -> Iterator[None]:
    """Within it float32 is torch's default, as it is of all files and fingerprints."""
    before = torch.get_default_dtype()
    if before is torch.float32:  # the default is of all threads: it is left alone where it may be
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
