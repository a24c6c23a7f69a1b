"""Shapes that only cameras see: they stand in the picture and touch nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.envs.lift import TABLE_TOP

SHAPES = ("box", "ball", "cylinder")
PROP = 900  # an object type that MuJoCo has not: what a segmentation says of a prop


@dataclass(frozen=True)
class Prop:
    """A shape that only cameras see, standing upright.

    position: of its centre [m]; size: half its extent along x, y, z [m] (a ball's and a cylinder's radius is the
    first); yaw [rad]; colour: RGB in [0, 1]; material: one of the model's, for its texture.
    """

    shape: str
    position: tuple[float, float, float]
    size: tuple[float, float, float]
    colour: tuple[float, float, float]
    yaw: float = 0.0
    material: int = -1

    @classmethod
    def standing(
        cls,
        shape: str,
        xy: Sequence[float] | NDArray[np.float64],
        size: Sequence[float] | NDArray[np.float64],
        ground: float = TABLE_TOP,
        **look: Any,
    ) -> Prop:
        """At (x, y), on ground of this height [m]."""
        height = size[0] if shape == "ball" else size[2]
        return cls(shape, (float(xy[0]), float(xy[1]), ground + height), tuple(map(float, size)), **look)  # type: ignore[arg-type]


def add_props(scene: Any, props: Iterable[Prop]) -> None:
    """Add them to MuJoCo's scene for one drawing; those it has no room for are left out."""
    import mujoco

    kinds = {"box": mujoco.mjtGeom.mjGEOM_BOX, "ball": mujoco.mjtGeom.mjGEOM_SPHERE}
    for k, prop in enumerate(props):
        if scene.ngeom >= scene.maxgeom:
            return
        geom = scene.geoms[scene.ngeom]
        cos, sin = np.cos(prop.yaw), np.sin(prop.yaw)
        size = {"box": prop.size, "ball": prop.size[:1] * 3, "cylinder": (prop.size[0], prop.size[0], prop.size[2])}
        mujoco.mjv_initGeom(
            geom,
            kinds.get(prop.shape, mujoco.mjtGeom.mjGEOM_CYLINDER),
            np.array(size[prop.shape]),
            np.array(prop.position),
            np.array([cos, -sin, 0, sin, cos, 0, 0, 0, 1.0]),
            np.array([*prop.colour, 1.0], np.float32),
        )
        geom.matid, geom.segid, geom.objid, geom.objtype = prop.material, scene.ngeom, k, PROP
        scene.ngeom += 1
