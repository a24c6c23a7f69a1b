"""Shared fixtures. Real robosuite physics and rendering wherever a test says `sim`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from s2robot import launchers

# Traced graphs are kept beside the checkout: never in the home of whoever runs the tests, and traced once for all.
os.environ.setdefault("S2ROBOT_CACHE", str(Path(__file__).resolve().parents[1] / ".cache"))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker processes, each of which takes seconds to begin: for tests that are not about them."""
    monkeypatch.setattr(launchers.Local, "work", launchers.Here.work)


@pytest.fixture(scope="session")
def lift_env() -> Iterator[object]:
    """One Lift environment for all tests of a session: making one takes seconds."""
    from s2robot.envs import make_env

    env = make_env("Lift", fidelity="fast", frame_size=64)
    yield env
    env.close()
