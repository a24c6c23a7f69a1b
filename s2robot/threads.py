"""torch's threads, put aside while another engine's threads work.

Cutting a frame into tiles takes torch a millisecond on one thread. On two, its second thread meets the engine's own
on one core, and the millisecond becomes twenty on a machine that does anything else. So frames are prepared on the
caller's thread alone where the network runs elsewhere.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

_lock = threading.Lock()
_inside = 0  # callers within `one_thread`, of all Python threads
_usual = 0  # torch's count while there are any
_mine = threading.local()  # how deep this Python thread is within: under OpenMP each has a count of its own


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch computes on the calling thread alone; may be entered from several threads at once, and twice by one."""
    global _inside, _usual  # noqa: PLW0603 - what they describe is global: every thread has the same count at first
    depth = getattr(_mine, "depth", 0)
    with _lock:
        if _inside == 0:
            _usual = _own()
        _inside += 1
    _mine.depth = depth + 1
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _mine.depth = depth
        with _lock:
            _inside -= 1
            if depth == 0:
                torch.set_num_threads(_usual)
                _mine.known = True


def usual() -> int:
    """torch's thread count, as it is when nobody is within `one_thread`."""
    with _lock:
        return _usual if _inside else _own()


def _own() -> int:
    """This thread's count, while nobody is within.

    One whose first work came while somebody was has got their 1, and would keep it, and give it to all. What all have
    is what a new thread has.
    """
    if torch.get_num_threads() == 1 and _usual > 1 and not getattr(_mine, "known", False):
        with ThreadPoolExecutor(1) as pool:
            torch.set_num_threads(pool.submit(torch.get_num_threads).result())
    _mine.known = True
    return torch.get_num_threads()
