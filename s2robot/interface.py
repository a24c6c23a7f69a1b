"""What a policy's numbers are called, and how often it acts: for whoever drives a robot by it.

Training writes `names` and `control_hz` into policy.json, from the demonstrations. Folders written before that are
helped out by the task's spec sheet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2robot import registry
from s2robot.errors import InvalidInput, S2RobotError

KINDS = ("proprioception", "goal", "actions")


@dataclass(frozen=True)
class Names:
    """Each as long as the policy's numbers, or empty where nobody says; control_hz: control steps a second, or None."""

    proprioception: tuple[str, ...]
    goal: tuple[str, ...]
    actions: tuple[str, ...]
    control_hz: float | None


def names_of(description: Mapping[str, Any]) -> Names:
    """Of a policy, by its policy.json.

    Raises:
        InvalidInput: it learned from the simulator's state: no robot can be driven by it.
    """
    if description.get("privileged"):
        raise InvalidInput("This policy reads the simulator's state, which nobody can show it but a simulation of ours")
    shapes = description["shapes"]
    found, hz = dict(description.get("names") or {}), description.get("control_hz")
    if not all(found.get(kind) or not shapes.get(kind) for kind in KINDS) or not hz:
        sheet = _sheet(description)
        found = {kind: found.get(kind) or sheet.get(kind, ()) for kind in KINDS}
        hz = hz or sheet.get("control_hz")
    fitting = {kind: tuple(found.get(kind, ())) for kind in KINDS}
    fitting = {kind: names if len(names) == shapes.get(kind) else () for kind, names in fitting.items()}
    return Names(**fitting, control_hz=float(hz) if hz else None)


def encoder_said(encoder: Any) -> dict[str, Any]:
    """What `policy.json` says of an `EncoderConfig`: weights of one's own by their whole path, wherever it is read."""
    said = dataclasses.asdict(encoder)
    if encoder.checkpoint is not None:
        said["checkpoint"] = str(Path(encoder.checkpoint).expanduser().absolute())
    return said


def described(env_args: Mapping[str, Any]) -> dict[str, Any]:
    """What training writes of its demonstrations; what they do not say is left out."""
    names = {"proprioception": env_args.get("proprioception_names"), "actions": env_args.get("action_names")}
    names["goal"] = _sheet(env_args).get("goal")
    known = {kind: list(found) for kind, found in names.items() if found}
    return {"names": known, "control_hz": env_args.get("control_hz")}


def _sheet(said: Mapping[str, Any]) -> dict[str, Any]:
    """What the task's spec sheet says; nothing where the task, or the arm, is not known here."""
    with suppress(S2RobotError):
        task = registry.get_task(said.get("task") or "", said.get("robot"))
        names = {"proprioception": task.proprioception_names, "goal": task.goal_names, "actions": task.action_names}
        return {**names, "control_hz": task.control_hz}
    return {}
