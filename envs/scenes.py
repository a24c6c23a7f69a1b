"""Frames of randomised robot scenes, for pre-training encoders on what manipulation cameras see.

A scene is the Lift table with everything a camera can notice drawn anew: arm pose, cube pose, size and
colour, table and robot tint, lights, small camera shifts, and up to eight distractor shapes that exist only
for the renderer. One third of the scenes keep the task's own look, because that is what a policy meets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.envs import make_env
from s2robot.envs.bridge import RobosuiteEnv
from s2robot.envs.lift import PLACEMENT, TABLE_TOP

STOCK_LOOK = 1 / 3  # share of episodes that keep the task's colours, lights and cameras
FRAMES_PER_EPISODE = 6  # moments drawn from one short disturbed expert episode


class SceneSampler:
    """Draws frames of random scenes; the k-th episode depends on (seed, k) alone.

    Args:
        frame_size: pixels; render at the largest scale the encoder will look at.
        seed: of the whole series.
    """

    def __init__(self, frame_size: int = 256, seed: int = 0) -> None:
        self.seed = seed
        self.env: RobosuiteEnv = make_env("Lift", fidelity="fast", frame_size=frame_size)
        model = self.env._env.sim.model._model
        names = (
            "geom_rgba",
            "geom_size",
            "geom_matid",
            "mat_rgba",
            "light_diffuse",
            "light_ambient",
            "light_pos",
            "cam_pos",
            "cam_quat",
            "cam_fovy",
        )
        self._stock = {name: getattr(model, name).copy() for name in names}
        self._model = model

    def episode(self, index: int) -> NDArray[np.uint8]:
        """Frames of one episode, (FRAMES_PER_EPISODE * V, H, W, 3)."""
        rng = np.random.default_rng((self.seed, index))
        self._restore()
        if rng.random() > STOCK_LOOK:
            self._repaint(rng)
            distractors = _random_shapes(rng)
        else:
            distractors = []
        env, expert = self.env, self.env.task.demonstrator()
        env.reset(seed=int(rng.integers(2**31)))
        noise = rng.choice([0.2, 0.6, 1.2])  # from nearly the expert's path to wandering about the workspace
        frames = []
        for _ in range(FRAMES_PER_EPISODE):
            for _ in range(int(rng.integers(1, 9))):
                action = expert.act(env.privileged())
                action[:3] += rng.normal(0, noise, 3)
                env.advance(np.clip(action, -1, 1))
            frames.append(self._draw(distractors))
        return np.concatenate(frames)

    def close(self) -> None:
        self.env.close()

    def _draw(self, shapes: list[dict[str, Any]]) -> NDArray[np.uint8]:
        assert self.env._renderer is not None
        return self.env._renderer.render(lambda scene: _add_shapes(scene, shapes))

    def _restore(self) -> None:
        for name, value in self._stock.items():
            getattr(self._model, name)[:] = value

    def _repaint(self, rng: np.random.Generator) -> None:
        model = self._model
        tint = rng.uniform(0.3, 1.0, (model.nmat, 3))
        model.mat_rgba[:, :3] = np.where(rng.random((model.nmat, 1)) < 0.6, tint, model.mat_rgba[:, :3])
        cube = model.geom("cube_g0_vis").id
        model.geom_matid[cube] = -1 if rng.random() < 0.8 else model.geom_matid[cube]
        model.geom_rgba[cube, :3] = rng.uniform(0, 1, 3)
        model.geom_size[cube] *= rng.uniform(0.6, 1.4, 3)
        model.light_diffuse[:] = rng.uniform(0.3, 1.0, (model.nlight, 1))
        model.light_ambient[:] = rng.uniform(0.0, 0.4, (model.nlight, 1))
        model.light_pos[:] += rng.normal(0, 0.4, model.light_pos.shape)
        model.cam_pos[:] += rng.normal(0, 0.02, model.cam_pos.shape)
        quat = model.cam_quat + rng.normal(0, 0.015, model.cam_quat.shape)
        model.cam_quat[:] = quat / np.linalg.norm(quat, axis=1, keepdims=True)
        model.cam_fovy[:] *= rng.uniform(0.9, 1.1, model.ncam)


def _random_shapes(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Distractors standing on the table: boxes, balls, cylinders of 1 to 4 cm."""
    import mujoco

    kinds = (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CYLINDER)
    shapes = []
    for _ in range(int(rng.integers(0, 9))):
        size = rng.uniform(0.01, 0.04, 3)
        kind = kinds[rng.integers(3)]
        height = size[0] if kind == mujoco.mjtGeom.mjGEOM_SPHERE else size[2 if kind == kinds[0] else 1]
        x, y = rng.uniform(-2 * PLACEMENT, 2 * PLACEMENT, 2)
        yaw = rng.uniform(0, np.pi)
        turn = np.array([np.cos(yaw), -np.sin(yaw), 0, np.sin(yaw), np.cos(yaw), 0, 0, 0, 1.0])
        rgba = np.append(rng.uniform(0, 1, 3), 1.0).astype(np.float32)
        shapes.append(
            {"type": kind, "size": size, "pos": np.array([x, y, TABLE_TOP + height]), "mat": turn, "rgba": rgba}
        )
    return shapes


def _add_shapes(scene: Any, shapes: list[dict[str, Any]]) -> None:
    import mujoco

    for shape in shapes:
        if scene.ngeom < scene.maxgeom:
            mujoco.mjv_initGeom(scene.geoms[scene.ngeom], **shape)
            scene.ngeom += 1
