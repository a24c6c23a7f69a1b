"""Shared fixtures. Real robosuite physics and rendering wherever a test says `sim`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def lift_env() -> Iterator[object]:
    """One Lift environment for all tests of a session: making one takes seconds."""
    from s2robot.envs import make_env

    env = make_env("Lift", fidelity="fast", frame_size=64)
    yield env
    env.close()
