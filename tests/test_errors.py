"""Errors: one tree, exit codes, and the same words in another process."""

from __future__ import annotations

import pickle

import pytest

from s2robot.errors import (
    BrokenPlugin,
    CheckpointMismatch,
    CorruptFile,
    InvalidInput,
    MissingExtra,
    OutOfSpace,
    RenderingUnavailable,
    S2RobotError,
    UnknownName,
    UsageError,
)

ERRORS = [
    S2RobotError("a"),
    UsageError("b"),
    UnknownName("task", "Lfit", ["Lift", "Door"], "s2robot list tasks"),
    InvalidInput("c"),
    MissingExtra("av", "video", "A video"),
    BrokenPlugin("task", "Push", "acme", "acme 1.0 (acme.push:TASK)", "it is no TaskSpec"),
    CorruptFile("x.hdf5", "torn", "Collect it again."),
    CheckpointMismatch("d"),
    RenderingUnavailable("e"),
    OutOfSpace("f"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_type_message_and_fields_survive_a_process(error: S2RobotError) -> None:
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is type(error) and str(twin) == str(error) and vars(twin) == vars(error)
    assert twin.exit_code == (2 if isinstance(error, UsageError) else 1)


def test_a_long_table_is_cut_to_the_nearest_names() -> None:
    error = UnknownName("option", "item-3x", [f"item-{k}" for k in range(100)])
    assert "Did you mean" in str(error) and "and 94 more" in str(error)
    assert len(str(error)) < 200


def test_nothing_near_suggests_nothing() -> None:
    error = UnknownName("task", "zzzz", ["Lift", "Door"])
    assert "Did you mean" not in str(error) and "Known: Door, Lift" in str(error)
