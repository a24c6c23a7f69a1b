"""What a policy's numbers are called: by training, else by the task's sheet, never of the wrong length."""

from __future__ import annotations

from typing import Any

import pytest

from s2robot.interface import Names, described, names_of

SHAPES = {"proprioception": 7, "goal": 0, "actions": 4}
LIFT = ("left_finger", "right_finger", "left_finger_speed", "right_finger_speed")


def test_names_come_from_the_demonstrations() -> None:
    args = {"task": "foreign", "proprioception_names": list("abcdefg"), "action_names": list("wxyz"), "control_hz": 30}
    found = names_of({"shapes": SHAPES, "task": "foreign", **described(args)})
    assert found == Names(tuple("abcdefg"), (), tuple("wxyz"), 30.0)


@pytest.mark.sim
def test_an_older_policy_is_helped_out_by_its_tasks_sheet() -> None:
    found = names_of({"shapes": SHAPES, "task": "Lift", "robot": "Panda"})
    assert found.proprioception[3:] == LIFT and found.actions[-1] == "gripper" and found.control_hz == 20
    # What the demonstrations said goes before it.
    own = names_of({"shapes": SHAPES, "task": "Lift", "names": {"actions": list("wxyz")}, "control_hz": 10})
    assert (own.actions, own.control_hz) == (tuple("wxyz"), 10) and own.proprioception == found.proprioception


@pytest.mark.sim
def test_goals_are_named_by_the_task() -> None:
    colours = described({"task": "PickColor"})["names"]["goal"]
    found = names_of({"shapes": {**SHAPES, "goal": 4}, "task": "PickColor", **described({"task": "PickColor"})})
    assert found.goal == tuple(colours) and "red" in colours


@pytest.mark.parametrize(
    "said", [{}, {"task": None}, {"task": "nobody's"}, {"names": {"actions": ["x"]}}, {"task": "Lift", "robot": "R2D2"}]
)
def test_what_nobody_names_or_does_not_fit_has_no_names(said: dict[str, Any]) -> None:
    shapes = {"proprioception": 3, "goal": 0, "actions": 2}
    found = names_of({"shapes": shapes, **said})
    assert (found.proprioception, found.goal, found.actions) == ((), (), ())
