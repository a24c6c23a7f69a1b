"""Scenes whose contents are known: what `s2robot probe` asks frozen features about.

scene      Panda over the Lift table in the task's own look; the gripper anywhere over the workspace, pointing down
cubes      red, green, blue and yellow, 4 cm wide, anywhere within 15 cm of the table's centre, any yaw, apart
odd one    a box, ball or cylinder, 6 cm wide, of any colour that is none of theirs
in hand    a box of any colour, 2 to 5 cm wide, between the fingers: touched by one, by both, or by none, which are then
           a few millimetres away; how far they are open says nothing, as the box's width is not known
kept       only scenes in which agentview sees a part of every cube: no read-out can know what is hidden
"""

from __future__ import annotations

import colorsys
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from s2robot.envs.lift import TABLE_TOP
from s2robot.envs.pick_color import COLOURS, GAP
from s2robot.envs.props import SHAPES, Prop
from s2robot.envs.stage import PARTS, Stage, Vector
from s2robot.errors import S2RobotError

LABELS = ("background", "table", "arm", "gripper", *COLOURS, "other")
CAMERAS = ("agentview", "robot0_eye_in_hand")
SIDE = 64  # of the pictures of labels and depth [pixels]

REGION = 0.15  # the cubes' centres lie within this of the table's centre, along x and y [m]
CUBE = 0.02  # half a cube's side [m]
SEEN = 3  # pixels of every cube among agentview's SIDE x SIDE, at least
ODD = 0.03  # half the width of the odd one [m]
HELD = (0.010, 0.024)  # half the width of the box in the hand [m]
FINGERS_OPEN = 0.04  # a Panda's finger from the middle when open [m]
ROOM = (0.001, 0.008)  # between that box and each finger when neither touches it [m]


class ProbeScene(NamedTuple):
    """One scene and all that is known of it; views in the order of CAMERAS."""

    frames: NDArray[np.uint8]  # (V, H, W, 3)
    labels: NDArray[np.uint8]  # (V, SIDE, SIDE), indices into LABELS
    depth: NDArray[np.float32]  # (V, SIDE, SIDE) [m]
    cubes: NDArray[np.float32]  # (4, 2), x and y on the table [m], in the order of COLOURS
    leftmost: int  # the cube furthest to the left in agentview
    shape: int  # of the odd one, an index into SHAPES
    odd: NDArray[np.float32]  # (2,), where it appears in agentview: x and y from -1 to 1, right and up
    contact: bool  # a finger touches the cube in the hand


class ProbeScenes:
    """Draws scenes; the k-th depends on (seed, k) alone.

    Args:
        frame_size: pixels, a multiple of SIDE.
        seed: of the whole series.
    """

    cameras = CAMERAS

    def __init__(self, frame_size: int = 256, seed: int = 0) -> None:
        if frame_size % SIDE:
            raise S2RobotError(f"frame_size is {frame_size}; expected a multiple of {SIDE}")
        self.seed, self.step = seed, frame_size // SIDE
        self.stage = Stage(frame_size, CAMERAS)

    def scene(self, index: int) -> ProbeScene:
        """Draw one."""
        rng = np.random.default_rng((self.seed, index))
        for _ in range(100):
            places = _apart(rng, len(COLOURS) + 1)
            self._set(rng, places)
            labels = self._labels()
            if all((labels[0] == LABELS.index(colour)).sum() >= SEEN for colour in COLOURS):
                return self._picture(labels, places)
        raise S2RobotError(f"Scene {index} of seed {self.seed} hides a cube in 100 drawings; please report it")

    def close(self) -> None:
        self.stage.close()

    def _set(self, rng: np.random.Generator, places: Vector) -> None:
        stage = self.stage
        stage.clear()
        stage.props = [
            Prop.standing("box", xy, (CUBE, CUBE, CUBE), colour=colour, yaw=rng.uniform(0, np.pi / 2))
            for xy, colour in zip(places, COLOURS.values(), strict=False)
        ]
        self.shape = int(rng.integers(len(SHAPES)))
        size = (ODD, ODD, ODD)
        odd = colorsys.hsv_to_rgb(rng.uniform(0, 1), rng.uniform(0, 0.35), rng.uniform(0.2, 0.9))
        stage.props.append(
            Prop.standing(SHAPES[self.shape], places[-1], size, colour=odd, yaw=rng.uniform(0, np.pi / 2))
        )
        yaw = rng.uniform(-0.6, 0.6)
        while True:
            target = np.array([*rng.uniform(-0.2, 0.2, 2), TABLE_TOP + rng.uniform(0.08, 0.3)])
            if stage.reach(target, _down(yaw), rng):
                break
        self._hold(rng)

    def _hold(self, rng: np.random.Generator) -> None:
        """A box between the fingers, squeezed, touched by one of them, or by none."""
        stage, half = self.stage, rng.uniform(*HELD)
        look = stage.model.geom("cube_g0_vis").id
        colour = colorsys.hsv_to_rgb(rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.2, 1))
        stage.model.geom_rgba[look] = (*colour, 1)
        stage.model.geom_matid[look] = -1
        for name in ("cube_g0", "cube_g0_vis"):
            stage.model.geom_size[stage.model.geom(name).id] = half
        room = rng.uniform(-0.001, 0.0) if rng.random() < 0.4 else rng.uniform(*ROOM)
        stage.open_fingers((half + room) / FINGERS_OPEN)
        stage.settle()
        position, rotation = stage.gripper()
        aside = rng.uniform(-room, room) * rng.choice([1.0, 1.15]) if room > 0 else 0.0
        along = rng.uniform(-0.004, 0.004, 2)
        centre = position + rotation @ np.array([along[0], aside, along[1]])
        stage.place_cube(centre, float(np.arctan2(rotation[1, 1], rotation[0, 1]) - np.pi / 2))
        stage.settle()

    def _labels(self) -> NDArray[np.uint8]:
        parts = self.stage.parts()[:, self.step // 2 :: self.step, self.step // 2 :: self.step]
        first = len(PARTS) - 1  # of the props: the four cubes, then the odd one
        meaning = [LABELS.index(name) for name in ("background", "table", "arm", "gripper", "other", *COLOURS, "other")]
        assert len(meaning) == first + len(COLOURS) + 1
        labels: NDArray[np.uint8] = np.array(meaning, np.uint8)[parts]
        return labels

    def _picture(self, labels: NDArray[np.uint8], places: Vector) -> ProbeScene:
        stage, cut = self.stage, slice(self.step // 2, None, self.step)
        heights = TABLE_TOP + np.array([CUBE] * len(COLOURS) + [ODD])
        seen = stage.pixel("agentview", np.column_stack([places, heights]))
        return ProbeScene(
            frames=stage.frames(),
            labels=labels,
            depth=stage.depth()[:, cut, cut],
            cubes=places[:-1].astype(np.float32),
            leftmost=int(seen[:-1, 0].argmin()),
            shape=self.shape,
            odd=seen[-1].astype(np.float32),
            contact=stage.touches("gripper", "cube"),
        )


def _apart(rng: np.random.Generator, count: int) -> Vector:
    """Points (count, 2) within REGION, no two nearer than GAP."""
    while True:
        points = rng.uniform(-REGION, REGION, (count, 2))
        distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(count)
        if distances.min() >= GAP:
            return points


def _down(yaw: float) -> Vector:
    """The rotation of a gripper that points down at the table, turned by yaw."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, sin, 0], [sin, -cos, 0], [0, 0, -1.0]])
