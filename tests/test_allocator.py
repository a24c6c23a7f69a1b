"""glibc's memory: what is freed within is there for the next tensor, and goes back to the system at the end."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from s2robot import allocator

pytestmark = pytest.mark.skipif(allocator._glibc() is None, reason="glibc alone is told")
LARGE = 64 << 20  # bytes; above what glibc keeps of itself


def first_touches(tensors: int) -> int:
    """Pages that the system gave for so many large tensors, one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(tensors):
        torch.zeros(LARGE, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_large_tensors_take_the_pages_of_those_before_them() -> None:
    outside = first_touches(10)
    with allocator.keeping_freed():
        first_touches(8)  # glibc goes through what it took at first
        within = first_touches(10)
    assert within < outside / 10


def test_at_the_end_memory_goes_back() -> None:
    before = resident()
    with allocator.keeping_freed():
        first_touches(1)
        held = resident()
    assert held - before > LARGE / 2
    assert resident() - before < LARGE / 2


def test_an_error_within_gives_it_back_too() -> None:
    before = resident()
    with pytest.raises(ZeroDivisionError), allocator.keeping_freed():
        assert first_touches(1) / 0
    assert resident() - before < LARGE / 2


def test_without_glibc_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    with allocator.keeping_freed():
        pass
