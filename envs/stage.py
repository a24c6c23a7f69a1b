"""A robot, a table and anything on it, set up by hand: poses without physics, for pictures with known contents.

Where a task's environment steps through time, a stage is told where everything is: the gripper's pose (by inverse
kinematics), the fingers, the task's own cube, and any number of props, shapes that exist only for the renderer. So a
picture costs its rendering and little else, and what is in it is known to the pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.envs.bridge import RobosuiteEnv
from s2robot.envs.lift import TASK
from s2robot.envs.looks import Looks
from s2robot.envs.props import PROP, Prop, add_props
from s2robot.envs.renderer import FrameRenderer
from s2robot.errors import S2RobotError

PARTS = ("background", "table", "arm", "gripper", "cube", "prop")
"""What a pixel can belong to; prop k is len(PARTS) - 1 + k."""

Vector = NDArray[np.float64]
Numbers = Sequence[float] | Vector


@dataclass
class Stage:
    """The Lift scene of any of robosuite's single arms, without its physics.

    Args:
        frame_size: pixels.
        cameras: camera names, one view each.
        robot: robosuite's name.
    """

    frame_size: int
    cameras: tuple[str, ...]
    robot: str = "Panda"
    props: list[Prop] = field(default_factory=list)

    def __post_init__(self) -> None:
        task = replace(TASK, robot=self.robot)
        self.env = RobosuiteEnv(task, fidelity="fast", cameras=self.cameras, frame_size=self.frame_size)
        self.model: Any = self.env._env.sim.model._model
        self.data: Any = self.env._env.sim.data._data
        self.env.reset(seed=0)
        self._home = self.data.qpos.copy()
        self._looks = Looks(self.model, self._renderer)
        robot = self.env._env.robots[0]
        self._arm = np.array(robot._ref_arm_joint_pos_indexes)
        self._arm_dofs = np.array(robot._ref_arm_joint_vel_indexes)
        self._hand = robot.eef_site_id["right"]
        self._cube = self.model.joint("cube_joint0").qposadr[0]
        self._part_of_geom = np.array([_part(self.model.geom(k)) for k in range(self.model.ngeom)], np.int64)

    def clear(self) -> None:
        """Everything as robosuite had it: looks, poses, no props."""
        self._looks.restore()
        self.data.qpos[:] = self._home
        self.data.qvel[:] = 0
        self.props = []

    def paint(self, texture: str, pixels: NDArray[np.uint8]) -> None:
        """Overwrite a texture, by its name, until the stage is cleared; pixels as many bytes as it has."""
        self._looks.paint(texture, pixels)

    def reach(self, target: Vector, rotation: Vector, rng: np.random.Generator) -> bool:
        """Bring the gripper to a position [m] and rotation (3, 3), from a random start; False where it cannot."""
        import mujoco

        low, high = self.model.jnt_range[[self.model.joint(name).id for name in self._arm_names()]].T
        self.data.qpos[self._arm] = np.clip(self._home[self._arm] + rng.normal(0, 0.3, len(self._arm)), low, high)
        moves = np.zeros((2, 3, self.model.nv))
        for _ in range(40):
            mujoco.mj_kinematics(self.model, self.data)
            mujoco.mj_comPos(self.model, self.data)
            aside = target - self.data.site_xpos[self._hand]
            turn = _turn(rotation @ self.data.site_xmat[self._hand].reshape(3, 3).T)
            if np.linalg.norm(aside) < 1e-3 and np.linalg.norm(turn) < 0.02:
                return True
            mujoco.mj_jacSite(self.model, self.data, moves[0], moves[1], self._hand)
            jacobian = moves.reshape(6, -1)[:, self._arm_dofs]
            error = np.concatenate([np.clip(aside, -0.2, 0.2), np.clip(turn, -0.5, 0.5)])
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + 1e-3 * np.eye(6), error)
            self.data.qpos[self._arm] = np.clip(self.data.qpos[self._arm] + step, low, high)
        return bool(np.linalg.norm(target - self.data.site_xpos[self._hand]) < 0.02)

    def open_fingers(self, share: float) -> None:
        """0 closed, 1 open: every finger joint at that share of its range, for grippers with two sliding fingers."""
        for name in self.env._env.robots[0].gripper["right"].joints:
            joint = self.model.joint(name)
            low, high = joint.range
            closed, opened = (low, high) if abs(low) < abs(high) else (high, low)
            self.data.qpos[joint.qposadr[0]] = closed + share * (opened - closed)

    def place_cube(self, position: Numbers, yaw: float) -> None:
        """Lift's own cube: its centre [m]."""
        self.data.qpos[self._cube : self._cube + 7] = [*position, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]

    def settle(self) -> None:
        """Make positions and contacts follow from the poses."""
        import mujoco

        mujoco.mj_forward(self.model, self.data)

    def gripper(self) -> tuple[Vector, Vector]:
        """Where the gripper is: position [m] and rotation (3, 3)."""
        return self.data.site_xpos[self._hand].copy(), self.data.site_xmat[self._hand].reshape(3, 3).copy()

    def touches(self, one: str, other: str) -> bool:
        """Whether any geom of part `one` touches any of part `other`, by MuJoCo's own collision."""
        a, b = PARTS.index(one), PARTS.index(other)
        pairs = self._part_of_geom[self.data.contact.geom]  # (n, 2)
        return bool(((pairs == (a, b)) | (pairs == (b, a))).all(axis=1).any())

    def frames(self) -> NDArray[np.uint8]:
        """(V, H, W, 3) RGB."""
        self._renderer.wear_textures()
        return self._renderer.render(self._dress)

    def depth(self) -> NDArray[np.float32]:
        """Distance along the camera's axis [m], (V, H, W)."""
        return self._renderer.render_depth(self._dress)

    def parts(self) -> NDArray[np.int64]:
        """What each pixel shows, (V, H, W): an index into PARTS, props counted on."""
        ids, kinds = np.moveaxis(self._renderer.render_segments(self._dress), -1, 0)
        known = np.append(self._part_of_geom, 0)
        return np.where(kinds == PROP, len(PARTS) - 1 + ids, known[np.where(kinds == _geom_kind(), ids, -1)])

    def pixel(self, camera: str, points: Vector) -> Vector:
        """Where points (n, 3) [m] appear to a camera: (n, 2), x and y from -1 to 1, right and up."""
        k = self.model.camera(camera).id
        seen = (points - self.data.cam_xpos[k]) @ self.data.cam_xmat[k].reshape(3, 3)  # (n, 3), looking along -z
        reach = np.tan(np.deg2rad(self.model.cam_fovy[k]) / 2)
        projected: Vector = seen[:, :2] / (-seen[:, 2:] * reach)
        return projected

    def close(self) -> None:
        self.env.close()

    @property
    def _renderer(self) -> FrameRenderer:
        if self.env._renderer is None:
            raise S2RobotError("This stage is closed")
        return self.env._renderer

    def _arm_names(self) -> list[str]:
        return list(self.env._env.robots[0].robot_joints)

    def _dress(self, scene: Any) -> None:
        add_props(scene, self.props)


def _geom_kind() -> int:
    import mujoco

    return int(mujoco.mjtObj.mjOBJ_GEOM)


def _part(geom: Any) -> int:
    owners = (("robot0_", "arm"), ("gripper0_", "gripper"), ("fixed_mount0_", "arm"), ("table_", "table"))
    named = {prefix: PARTS.index(part) for prefix, part in (*owners, ("cube_", "cube"))}
    return next((part for prefix, part in named.items() if geom.name.startswith(prefix)), 0)


def _turn(rotation: Vector) -> Vector:
    """A rotation (3, 3) as a vector: its axis times its angle [rad]."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine, cosine = np.linalg.norm(axis) / 2, (np.trace(rotation) - 1) / 2
    angle = np.arctan2(sine, cosine)
    turned: Vector = axis * (angle / (2 * sine)) if sine > 1e-9 else np.zeros(3)
    return turned
