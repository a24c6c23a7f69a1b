"""What a trained policy wants and gives, by name: read from its run folder, before any message comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2robot import files
from s2robot.interface import names_of
from s2robot.runs import find_policy


@dataclass(frozen=True)
class Contract:
    """Of one policy.

    fields: of the proprioception, in order; where nobody named them: proprioception_0 and so on.
    control_hz: control steps a second; 0 where nobody says.
    frame: height and width of the frames it was trained on [pixels], where they are known.
    """

    cameras: tuple[str, ...]
    fields: tuple[str, ...]
    actions: tuple[str, ...]
    goals: int
    control_hz: float
    frame: tuple[int, int] | None


def contract_of(run: str | Path) -> Contract:
    """Of the policy in a run folder.

    Raises:
        InvalidInput: there is none.
    """
    said = files.read_json(find_policy(run) / "policy.json")
    shapes, names = said["shapes"], names_of(said)
    return Contract(
        cameras=tuple(said.get("cameras") or (f"camera_{k}" for k in range(shapes["views"]))),
        fields=_named(names.proprioception, shapes["proprioception"], "proprioception"),
        actions=_named(names.actions, shapes["actions"], "action"),
        goals=int(shapes.get("goal", 0)),
        control_hz=names.control_hz or 0.0,
        frame=_frame(said),
    )


def _frame(said: Mapping[str, Any]) -> tuple[int, int] | None:
    """A policy of before says one side alone: its frames are square."""
    if height_width := said.get("frame"):
        return int(height_width[0]), int(height_width[1])
    return (int(said["frame_size"]),) * 2 if said.get("frame_size") else None


def _named(names: tuple[str, ...], count: int, kind: str) -> tuple[str, ...]:
    return names or tuple(f"{kind}_{k}" for k in range(count))
