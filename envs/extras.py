"""What an environment shows on request, beside what a policy sees: depth, segmentation, the simulator's own state."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from s2robot.envs.renderer import FrameRenderer
from s2robot.envs.task import Privileged
from s2robot.errors import UnknownName, UsageError
from s2robot.types import DEPTH, PRIVILEGED, SEGMENTATION

EXTRAS = (DEPTH, SEGMENTATION, PRIVILEGED)
FAR = 100.0  # no depth is beyond, and no number of the state either [m]
Array = NDArray[Any]


class Extras:
    """The extras that were asked for.

    segment_names: what the numbers of a segmentation mean: the background (walls, floor, props), robot, gripper, and
        every other body that stands in the world by itself, under the model's name for it.

    Raises:
        UnknownName: an extra that does not exist.
        UsageError: pictures, of an environment that draws none.
    """

    def __init__(self, renderer: FrameRenderer | None, model: Any, views: int, wanted: Collection[str]) -> None:
        for name in wanted:
            if name not in EXTRAS:
                raise UnknownName("extra observation", name, EXTRAS)
        if renderer is None and set(wanted) - {PRIVILEGED}:
            raise UsageError("render_frames=False draws no depth and no segmentation; leave it out")
        self.wanted, self._renderer, self._views = frozenset(wanted), renderer, views
        names = ["background", "robot", "gripper"]
        owners = [_owner(model, geom) for geom in range(model.ngeom)]
        names += sorted(set(owners) - set(names))
        self.segment_names = tuple(names)
        self._segment_of_geom = np.array([names.index(owner) for owner in owners] + [0], np.uint8)

    def spaces(self, frame_size: int, state: Callable[[], Privileged]) -> dict[str, spaces.Space[Any]]:
        """Gymnasium's spaces of what `observe` gives."""
        pictures = (self._views, frame_size, frame_size)
        known: dict[str, Callable[[], spaces.Space[Any]]] = {
            DEPTH: lambda: spaces.Box(0.0, FAR, pictures, np.float32),
            SEGMENTATION: lambda: spaces.Box(0, 255, pictures, np.uint8),
            PRIVILEGED: lambda: spaces.Box(-FAR, FAR, (_some(len(field_names(state()))),), np.float32),
        }
        return {name: known[name]() for name in EXTRAS if name in self.wanted}

    def observe(self, dress: Callable[[Any], None] | None, state: Callable[[], Privileged]) -> dict[str, Array]:
        """The extras of the present state."""
        found: dict[str, Array] = {}
        if DEPTH in self.wanted and self._renderer is not None:
            found[DEPTH] = self._renderer.render_depth(dress).clip(0, FAR)
        if SEGMENTATION in self.wanted and self._renderer is not None:
            found[SEGMENTATION] = self._segments(self._renderer.render_segments(dress))
        if PRIVILEGED in self.wanted:
            found[PRIVILEGED] = np.concatenate([np.ravel(value) for value in state().values()]).astype(np.float32)
        return found

    def _segments(self, seen: NDArray[np.int32]) -> NDArray[np.uint8]:
        import mujoco

        ids, kinds = np.moveaxis(seen, -1, 0)
        segments: NDArray[np.uint8] = self._segment_of_geom[np.where(kinds == int(mujoco.mjtObj.mjOBJ_GEOM), ids, -1)]
        return segments


def field_names(state: Privileged) -> tuple[str, ...]:
    """One name a number: "cube.0", "cube.1", ... in the order of the flat vector."""
    return tuple(f"{key}.{k}" for key, value in state.items() for k in range(np.size(value)))


def _some(numbers: int) -> int:
    if not numbers:
        raise UsageError("This task names no privileged state (`TaskSpec.privileged`), so there is none to be shown")
    return numbers


def _owner(model: Any, geom: int) -> str:
    body = int(model.geom_bodyid[geom])
    name, root = model.body(body).name, model.body(int(model.body_rootid[body])).name
    if root == "world":
        return "background"
    if root.startswith("robot"):
        return "gripper" if name.startswith("gripper") else "robot"
    return str(root)
