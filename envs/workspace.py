"""Randomised scenes over the whole workspace, for pre-training encoders on what manipulation cameras see.

robots     Panda in every other block of episodes, else another of robosuite's single arms
arm        the gripper anywhere over the table, pointing down give or take 30 degrees; the fingers open or closed
things     up to twelve boxes, balls and cylinders of 1 to 5 cm half-width; the task's cube on the table, below the
           gripper, or in it
looks      table, robot, walls and things recoloured and retextured, drawn patterns among the textures; lights
cameras    agentview (shaken a little), eye in hand, and one from anywhere around, looking at the table
stock      one moment in four keeps Lift's own look, with nothing but its cube: what a policy of the house meets
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.envs.lift import PLACEMENT, TABLE_TOP
from s2robot.envs.looks import PATTERN, grain
from s2robot.envs.props import SHAPES, Prop
from s2robot.envs.stage import Stage, Vector
from s2robot.envs.turning import about

ROBOTS = ("Panda", "Sawyer", "Panda", "UR5e", "Panda", "IIWA", "Panda", "Kinova3")
BLOCK = 64  # episodes in a row with one robot: loading one takes a second or two
MOMENTS = 4  # an episode
CAMERAS = ("agentview", "robot0_eye_in_hand", "frontview")  # the last is the one that goes anywhere
STOCK_LOOK = 1 / 4


class SceneSampler:
    """Draws frames of random scenes; the k-th episode depends on (seed, k) alone.

    Args:
        frame_size: pixels; render at the largest scale the encoder will look at.
        seed: of the whole series.
    """

    def __init__(self, frame_size: int = 256, seed: int = 0) -> None:
        self.frame_size, self.seed = frame_size, seed
        self._stage: Stage | None = None

    def episode(self, index: int) -> NDArray[np.uint8]:
        """Frames of MOMENTS scenes that have nothing in common but the robot, (MOMENTS * V, H, W, 3)."""
        rng = np.random.default_rng((self.seed, index))
        stage = self._stage_of(ROBOTS[index // BLOCK % len(ROBOTS)])
        frames = []
        for _ in range(MOMENTS):
            stage.clear()
            if rng.random() > STOCK_LOOK:
                _repaint(stage, rng)
                _move_cameras(stage, rng)
                stage.props = _things(stage, rng)
            else:
                _free_camera(stage, rng)
            _pose(stage, rng)
            frames.append(stage.frames())
        return np.concatenate(frames)

    def close(self) -> None:
        if self._stage is not None:
            self._stage.close()
            self._stage = None

    def _stage_of(self, robot: str) -> Stage:
        if self._stage is None or self._stage.robot != robot:
            self.close()
            self._stage = Stage(self.frame_size, CAMERAS, robot)
        return self._stage


def _pose(stage: Stage, rng: np.random.Generator) -> None:
    """The arm somewhere, and the cube in the hand, below it, or anywhere on the table."""
    near = rng.random() < 0.4
    place = rng.uniform(-PLACEMENT, PLACEMENT, 2) if near else rng.uniform(-0.25, 0.25, 2)
    height = TABLE_TOP + (rng.uniform(0.015, 0.1) if near else rng.uniform(0.02, 0.45))
    for _ in range(20):  # where one arm cannot reach, the pose it came to serves as well
        if stage.reach(np.array([*place, height]), _about_down(rng), rng):
            break
    stage.open_fingers(rng.choice([0.0, 0.5, 1.0, rng.uniform()]))
    stage.settle()
    where, _ = stage.gripper()
    draw = rng.random()
    if near and draw < 0.5:  # in the hand
        stage.place_cube(where + rng.normal(0, 0.005, 3), rng.uniform(0, np.pi))
    elif near and draw < 0.8:  # below it
        stage.place_cube([*(where[:2] + rng.normal(0, 0.02, 2)), TABLE_TOP + 0.02], rng.uniform(0, np.pi))
    else:
        stage.place_cube([*rng.uniform(-PLACEMENT, PLACEMENT, 2), TABLE_TOP + 0.02], rng.uniform(0, np.pi))
    stage.settle()


def _about_down(rng: np.random.Generator) -> Vector:
    """The rotation of a gripper that points down, turned any way and tilted up to 30 degrees."""
    yaw, tilt, way = rng.uniform(-np.pi / 2, np.pi / 2), rng.uniform(0, 0.5), rng.uniform(-np.pi, np.pi)
    turn = np.array([[np.cos(yaw), np.sin(yaw), 0], [np.sin(yaw), -np.cos(yaw), 0], [0, 0, -1.0]])
    axis = np.array([np.cos(way), np.sin(way), 0.0])
    return np.asarray(about(axis, tilt) @ turn)


def _things(stage: Stage, rng: np.random.Generator) -> list[Prop]:
    textured = np.flatnonzero(stage.model.mat_texid[:, 1] >= 0)
    props = []
    for _ in range(int(rng.integers(0, 13))):
        size = rng.uniform(0.01, 0.05) * rng.uniform(0.6, 1.4, 3)
        material = int(rng.choice(textured)) if rng.random() < 0.3 else -1
        colour = tuple(rng.uniform(0, 1, 3)) if rng.random() < 0.7 else (rng.uniform(0, 1),) * 3
        look: dict[str, Any] = {"colour": colour, "material": material, "yaw": rng.uniform(0, np.pi)}
        props.append(Prop.standing(str(rng.choice(SHAPES)), rng.uniform(-0.35, 0.35, 2), size, **look))
    return props


def _repaint(stage: Stage, rng: np.random.Generator) -> None:
    """Colours, textures and lights of everything that was there."""
    model = stage.model
    tint = rng.uniform(0.2, 1.0, (model.nmat, 3))
    model.mat_rgba[:, :3] = np.where(rng.random((model.nmat, 1)) < 0.6, tint, model.mat_rgba[:, :3])
    _draw_pattern(stage, rng)
    surfaces = [k for k in range(model.nmat) if model.mat(k).name in ("table_ceramic", "floorplane", "walls_mat")]
    textures = [k for k in range(model.ntex) if model.tex(k).name]
    for k in surfaces:
        if rng.random() < 0.7:
            model.mat_texid[k, 1] = rng.choice(textures)
            model.mat_texrepeat[k] = rng.uniform(0.5, 6)
    cube = model.geom("cube_g0_vis").id
    model.geom_matid[cube] = -1 if rng.random() < 0.8 else model.geom_matid[cube]
    model.geom_rgba[cube, :3] = rng.uniform(0, 1, 3)
    model.geom_size[cube] *= rng.uniform(0.5, 1.6, 3)
    model.light_diffuse[:] = rng.uniform(0.3, 1.0, (model.nlight, 1))
    model.light_ambient[:] = rng.uniform(0.0, 0.4, (model.nlight, 1))
    model.light_pos[:] += rng.normal(0, 0.5, model.light_pos.shape)
    model.light_dir[:] += rng.normal(0, 0.3, model.light_dir.shape)


def _draw_pattern(stage: Stage, rng: np.random.Generator) -> None:
    """Blots, stripes or squares of two colours on one texture."""
    texture = stage.model.tex(PATTERN)
    side = int(texture.width[0])
    blend = grain(rng, side, int(rng.integers(2, 24)))[..., None]
    colours = rng.uniform(0, 255, (2, 3))
    picture = (blend * colours[0] + (1 - blend) * colours[1]).astype(np.uint8)
    stage.paint(PATTERN, np.tile(picture.ravel(), int(texture.height[0]) // side))


def _move_cameras(stage: Stage, rng: np.random.Generator) -> None:
    model = stage.model
    model.cam_pos[:] += rng.normal(0, 0.02, model.cam_pos.shape)
    quat = model.cam_quat + rng.normal(0, 0.02, model.cam_quat.shape)
    model.cam_quat[:] = quat / np.linalg.norm(quat, axis=1, keepdims=True)
    model.cam_fovy[:] *= rng.uniform(0.85, 1.15, model.ncam)
    _free_camera(stage, rng)


def _free_camera(stage: Stage, rng: np.random.Generator) -> None:
    """From anywhere above the table, 0.4 to 1.3 m off, looking at a point on it or a little over it."""
    import mujoco

    camera = stage.model.camera(CAMERAS[-1])
    aim = np.array([*rng.uniform(-0.15, 0.15, 2), TABLE_TOP + rng.uniform(0, 0.15)])
    way, rise, distance = rng.uniform(-np.pi, np.pi), rng.uniform(0.2, 1.4), rng.uniform(0.4, 1.3)
    back = np.array([np.cos(way) * np.cos(rise), np.sin(way) * np.cos(rise), np.sin(rise)])  # a camera looks along -z
    right = np.array([-np.sin(way), np.cos(way), 0.0])
    frame = np.column_stack([right, np.cross(back, right), back])
    stage.model.cam_pos[camera.id] = aim + distance * back
    mujoco.mju_mat2Quat(stage.model.cam_quat[camera.id], frame.ravel())
    stage.model.cam_fovy[camera.id] = rng.uniform(30, 70)
