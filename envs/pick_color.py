"""PickColor: grasp the cube of the named colour among four and raise it.

robot      Panda, OSC_POSE at 20 Hz; the policy drives xyz and the gripper
cameras    agentview (in front, looking down at the table), robot0_eye_in_hand
goal       which colour, one-hot: red, green, blue, yellow
start      four cubes anywhere within +-12 cm of the table centre, centres 7.5 cm apart at least, any yaw
success    the named cube's centre is 4 cm above the table, as in Lift
horizon    120 control steps (6 s)
sizes      cubes of 4 cm (PickColor) or 2 cm (PickColorSmall), where finding the place takes finer eyes

The task of the S2 paper's robot experiment (Shi et al. 2024, Fig. 5), in simulation.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.envs import lift
from s2robot.envs.task import Privileged, TaskSpec

COLOURS = {"red": (0.8, 0.1, 0.1), "green": (0.1, 0.6, 0.15), "blue": (0.15, 0.25, 0.85), "yellow": (0.85, 0.75, 0.1)}
PLACEMENT = 0.12  # half-width of the square in which the cubes' centres are placed [m]
GAP = 0.075  # between two centres, at least [m]: a finger fits between


class PickColorExpert(lift.LiftExpert):
    """Lift's expert, set on the named cube. It stays higher on its way, so as not to sweep the others along."""

    CLEARANCE = 0.08

    def __init__(self, half_size: float) -> None:
        self.DEPTH = min(lift.LiftExpert.DEPTH, 0.25 * half_size)  # the fingers must not meet the table
        self.CLOSED = (2 * half_size + 0.03, lift.LiftExpert.CLOSED[1])
        super().__init__()


def _environment(half_size: float) -> Any:
    """robosuite's Lift with four cubes; made when asked for, as robosuite takes seconds to import."""
    from robosuite.environments.manipulation.lift import Lift
    from robosuite.models.arenas import TableArena
    from robosuite.models.objects import BoxObject
    from robosuite.models.tasks import ManipulationTask

    class PickColor(Lift):  # type: ignore[misc]
        """`cube` is the named one, so that Lift's reward and success speak of it."""

        def _load_model(self) -> None:
            super(Lift, self)._load_model()
            robot = self.robots[0].robot_model
            robot.set_base_xpos(robot.base_xpos_offset["table"](self.table_full_size[0]))
            arena = TableArena(self.table_full_size, self.table_friction, table_offset=self.table_offset)
            arena.set_origin([0, 0, 0])
            size = [half_size] * 3
            self.cubes = [
                BoxObject(name=f"{name}_cube", size_min=size, size_max=size, rgba=[*rgb, 1], rng=self.rng)
                for name, rgb in COLOURS.items()
            ]
            self.cube = self.cubes[0]
            self.model = ManipulationTask(arena, [robot], self.cubes)

        def _setup_references(self) -> None:
            super()._setup_references()
            self.cube_bodies = [self.sim.model.body_name2id(cube.root_body) for cube in self.cubes]

        def _reset_internal(self) -> None:
            super(Lift, self)._reset_internal()
            self.target = int(self.rng.integers(len(COLOURS)))
            self.cube, self.cube_body_id = self.cubes[self.target], self.cube_bodies[self.target]
            if self.deterministic_reset:
                return
            for cube, place in zip(self.cubes, _apart(self.rng), strict=True):
                yaw = self.rng.uniform(0, 2 * np.pi)
                pose = [*place, lift.TABLE_TOP + half_size + 0.002, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
                self.sim.data.set_joint_qpos(cube.joints[0], np.array(pose))

    return PickColor


class _Anyone:
    """Stands for robosuite's placement sampler, which knows no minimum gap: the bridge gives it a generator."""

    rng: Any = None


def _apart(rng: np.random.Generator) -> NDArray[np.float64]:
    """One place (x, y) a cube, no two nearer than GAP."""
    while True:
        places = rng.uniform(-PLACEMENT, PLACEMENT, (len(COLOURS), 2))
        if (np.linalg.norm(places[:, None] - places, axis=-1) + np.eye(len(places))).min() >= GAP:
            return places


def _goal(env: Any) -> NDArray[np.float32]:
    one_hot: NDArray[np.float32] = np.eye(len(COLOURS), dtype=np.float32)[env.target]
    return one_hot


def _privileged(env: Any) -> Privileged:
    places = {f"{name}_cube": env.sim.data.body_xpos[body] for name, body in zip(COLOURS, env.cube_bodies, strict=True)}
    return {**lift.privileged(env), **{name: place.copy() for name, place in places.items()}}


def task(name: str, half_size: float) -> TaskSpec:
    """The task with cubes of this size; half the side [m]."""
    return replace(
        lift.TASK,
        name=name,
        robosuite_name=name,
        horizon=120,
        success=f"the named cube (of four, {200 * half_size:.0f} cm wide) 4 cm above the table",
        expert=partial(PickColorExpert, half_size),
        robosuite_kwargs=lambda rng: {"placement_initializer": _Anyone()},
        privileged=_privileged,
        goal_names=tuple(COLOURS),
        goal=_goal,
        environment=partial(_environment, half_size),
        colours_name_objects=True,
    )


TASK = task("PickColor", 0.02)
SMALL = task("PickColorSmall", 0.01)
