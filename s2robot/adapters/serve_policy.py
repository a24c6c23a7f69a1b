"""A policy as a server offers it: what it takes and gives, by name, so that a client need not know the run folder.

metadata     first message of every connection; `Interface.metadata` is its table
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2robot import __version__, files, registry
from s2robot.errors import InvalidInput
from s2robot.frames import small_size
from s2robot.interface import names_of
from s2robot.runs import find_policy, seed_folders
from s2robot.trained import SUM

Size = tuple[int, int]


@dataclass(frozen=True)
class Interface:
    """What one policy takes and gives.

    fits: may frames of this size (H, W) be looked at?
    fitting: which may, beside those it was trained on, in words.
    metadata: plain numbers, texts and lists; names are empty where the demonstrations named no task of ours:
        server, server_version, protocol    "s2robot", its version, 1
        policy, task, robot                 kind of policy, task and arm it was trained for
        weights                             sha256 of what it learned, or None for a policy of an older version
        cameras, frame, frame_size          names in order, (H, W) trained on, H
        proprioception, goal, actions       how many numbers: Q, G, M
        proprioception_names, goal_names, action_names
        chunk, execute, context             A; actions to execute before asking again; looks it decides by
        control_hz                          control steps a second, or None
        encoder                             {name, sizes, fingerprint, engine}, or None for a policy with its own eyes
    """

    cameras: tuple[str, ...]
    frame: Size
    proprioception_names: tuple[str, ...]
    goal_names: tuple[str, ...]
    proprioception: int
    goal: int
    task: str
    fits: Callable[[Size], bool]
    fitting: str
    metadata: dict[str, Any]


def load(folder: str | Path, *, engine: str, precision: str | None, execute: int) -> tuple[Any, Interface]:
    """The policy of a run folder, and what it takes and gives.

    Raises:
        InvalidInput: no policy there, or not for this engine or `execute`; see `s2robot.load_policy` for what else.
    """
    folder = Path(folder)
    if seeds := seed_folders(folder):
        raise InvalidInput(f"{folder} holds one run a seed. Serve one of them: s2robot serve {seeds[0]}")
    policy: Any = registry.load_policy(folder, engine=engine, precision=precision)
    if execute:
        policy.execute = execute
    return policy, describe(policy, files.read_json(find_policy(folder) / "policy.json"))


def describe(policy: Any, description: dict[str, Any]) -> Interface:
    """The interface of a loaded policy; description: its `policy.json`."""
    shapes, height = policy.network.shapes, int(description["frame_size"])
    frame = tuple(description.get("frame") or (height, height))  # older ones do not tell the width
    sizes = {"proprioception": shapes.proprioception, "goal": shapes.goal, "actions": shapes.actions}
    names = names_of({**description, "shapes": sizes})
    config = policy.network.config
    metadata = {
        "server": "s2robot",
        "server_version": __version__,
        "protocol": 1,
        "policy": description["kind"],
        "weights": description.get(SUM),
        **{key: description.get(key) for key in ("task", "robot", "cameras", "frame_size")},
        "frame": list(frame),
        **sizes,
        "proprioception_names": list(names.proprioception),
        "goal_names": list(names.goal),
        "action_names": list(names.actions),
        "chunk": config.chunk,
        "execute": policy.execute,
        "context": config.context,
        "control_hz": names.control_hz,
        "encoder": _encoder(getattr(policy, "encoder", None)),
    }
    return Interface(
        cameras=tuple(description["cameras"]),
        frame=(frame[0], frame[1]),
        proprioception_names=names.proprioception,
        goal_names=names.goal,
        proprioception=shapes.proprioception,
        goal=shapes.goal,
        task=description.get("task") or "",
        fits=_fits(policy, (frame[0], frame[1])),
        fitting=_fitting(policy, (frame[0], frame[1])),
        metadata=metadata,
    )


def _encoder(encoder: Any) -> dict[str, Any] | None:
    if encoder is None:
        return None
    sizes, engine = list(encoder.sizes), str(encoder.engine)
    return {"name": encoder.config.name, "sizes": sizes, "fingerprint": encoder.fingerprint, "engine": engine}


def _fits(policy: Any, trained: Size) -> Callable[[Size], bool]:
    """Any size of the same shape will do: it is resized as in training, from the frame as it came."""
    encoder, network = getattr(policy, "encoder", None), policy.network
    if encoder is None:
        return lambda frame: small_size(frame, network.config.size) == small_size(trained, network.config.size)
    grid = network.shapes.grid if network.config.tokens == "map" else encoder.grid_of(trained)
    return lambda frame: bool(encoder.grid_of(frame) == grid)


def _fitting(policy: Any, trained: Size) -> str:
    if getattr(policy, "encoder", None) is not None:
        return "frames of that shape at any size"
    size = policy.network.config.size
    return f"frames of that shape from {size} pixels on" if 0 < size <= min(trained) else "no others"
