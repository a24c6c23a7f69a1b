"""What a trained policy wants and gives, by name: read from its run folder, before any message comes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2robot import files, registry
from s2robot.errors import InvalidInput, S2RobotError


@dataclass(frozen=True)
class Contract:
    """Of one policy.

    fields: of the proprioception, in order; of a task that is not known here: proprioception_0 and so on.
    control_hz: control steps a second; 0 where nobody says.
    frame_size: side of the frames it was trained on [pixels], where that is known.
    """

    cameras: tuple[str, ...]
    fields: tuple[str, ...]
    actions: tuple[str, ...]
    goals: int
    control_hz: float
    frame_size: int | None


def contract_of(run: str | Path) -> Contract:
    """Of the policy in a run folder.

    Raises:
        InvalidInput: there is none.
    """
    folder = Path(run)
    folder = folder / "policy" if (folder / "policy" / "policy.json").exists() else folder
    if not (folder / "policy.json").exists():
        raise InvalidInput(f"No policy in {run}: it has no policy.json. Train one: s2robot train --help")
    said = files.read_json(folder / "policy.json")
    shapes, task = said["shapes"], _task(said)
    known = (task.proprioception_names, task.action_names) if task else ((), ())
    return Contract(
        cameras=tuple(said.get("cameras") or (f"camera_{k}" for k in range(shapes["views"]))),
        fields=_named(known[0], shapes["proprioception"], "proprioception"),
        actions=_named(known[1], shapes["actions"], "action"),
        goals=int(shapes.get("goal", 0)),
        control_hz=float(task.control_hz) if task else 0.0,
        frame_size=said.get("frame_size"),
    )


def _task(said: dict[str, Any]) -> Any:
    """Its task's spec sheet; None for a dataset of somebody's, or a robot whose simulator is not installed here."""
    try:
        return registry.get_task(said["task"], said.get("robot")) if said.get("task") else None
    except S2RobotError:
        return None


def _named(names: tuple[str, ...], count: int, kind: str) -> tuple[str, ...]:
    return names if len(names) == count else tuple(f"{kind}_{k}" for k in range(count))
