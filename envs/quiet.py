"""robosuite, imported and called without its words."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """robosuite warns of optional robots at import, names a file at every make, and asks everybody for EGL."""
    before, chosen = logging.root.manager.disable, os.environ.get("MUJOCO_GL")
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        if chosen is None:
            os.environ.pop("MUJOCO_GL", None)  # else our own choice would take it for the user's


def versions() -> dict[str, str]:
    """Of what simulates, as they say themselves: one may be a checkout that was never installed."""
    with quiet():
        return {name: importlib.import_module(name).__version__ for name in ("mujoco", "robosuite", "numpy")}
