"""robosuite behind Gymnasium's interface: the frames, proprioception and actions of `s2robot.types`.

Two fidelities, named in every result:

    exact  robosuite's own arithmetic: 2 ms physics steps, the controller at every one of them
    fast   5 ms physics steps, the controller at every second one: more steps a second, see `s2robot bench env`
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from s2robot import gl
from s2robot.envs import osc
from s2robot.envs.extras import Extras, field_names
from s2robot.envs.physics import place_bodies, put_state
from s2robot.envs.quiet import quiet
from s2robot.envs.renderer import FrameRenderer
from s2robot.envs.shifts import Shift, ShiftedLooks
from s2robot.envs.suite import make_robosuite, reseed
from s2robot.envs.task import Privileged, TaskSpec, checked_actions, command_of, proprioception
from s2robot.errors import InvalidInput, UnknownName, UsageError
from s2robot.types import FRAMES, GOAL, PROPRIOCEPTION

REACH = 10.0  # bound of every proprioception field [m, rad, m/s, rad/s]; a finite one, as learning libraries ask for
FIDELITIES = {"exact": (0.002, 1), "fast": (0.005, 2)}  # physics step [s], controller every k-th of them


def check_manner(fidelity: str, shift: str) -> Shift:
    """How things look.

    Raises:
        UnknownName, InvalidInput: there is no such fidelity, or no such shift.
    """
    if fidelity not in FIDELITIES:
        raise UnknownName("fidelity", fidelity, FIDELITIES)
    return Shift.parse(shift)


class RobosuiteEnv(gymnasium.Env[Any, Any]):
    """One robosuite task as a `gymnasium.Env`.

    Args:
        task: the spec sheet.
        fidelity: "exact" or "fast".
        cameras: camera names, one view each; default: the task's.
        frame_size: pixels; render at the largest scale the encoder will look at.
        quality: "fast" or "robosuite", see `envs.renderer`.
        render_frames: False leaves `frames` black and needs no GL: for state-based work.
        shift: other looks every episode, such as "light,table:0.5" or "all/test"; see `envs.shifts`.
        shaped: reward on the way to success too, as robosuite shapes it (Reach always does); else at success alone.
        extras: what else to observe: "depth", "segmentation", "privileged" (see `s2robot.types`).
        render_mode: Gymnasium's; "rgb_array", whether given or not.

    `step` after the end of an episode raises; an action outside [-1, 1] or with a NaN raises.
    `reset(seed=k)` fixes everything: two resets with the same seed give the same bits from there on.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - Gymnasium's own declaration
    render_mode = "rgb_array"

    def __init__(  # noqa: PLR0913 - options, each by its name
        self,
        task: TaskSpec,
        *,
        fidelity: str = "exact",
        cameras: tuple[str, ...] | None = None,
        frame_size: int = 256,
        quality: str = "fast",
        render_frames: bool = True,
        shift: str = "",
        shaped: bool = False,
        extras: Collection[str] = (),
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, self.render_mode):
            raise InvalidInput(f"render_mode is {render_mode!r}; `render` gives images: {self.render_mode!r}")
        wanted = check_manner(fidelity, shift)
        self.task, self.fidelity, self.frame_size = task, fidelity, frame_size
        self.metadata = {**self.metadata, "render_fps": task.control_hz}
        for what, names in (("cameras", cameras), ("extras", extras)):
            if isinstance(names, str):
                raise InvalidInput(f"{what} is {names!r}; expected several names, e.g. ({names!r},)")
        if not isinstance(frame_size, (int, np.integer)):
            raise InvalidInput(f"frame_size is {frame_size!r}; expected a whole number: frames are square")
        self.cameras = tuple(cameras) if cameras else task.cameras
        if render_frames:
            gl.prepare()  # before robosuite, which takes EGL for granted
        self._env = make_robosuite(task, reward_shaping=shaped)
        self._set_fidelity(fidelity)
        model, data = self._env.sim.model._model, self._env.sim.data._data
        self._renderer = FrameRenderer(model, data, self.cameras, frame_size, quality) if render_frames else None
        self.shift = str(wanted)
        self._looks = ShiftedLooks(model, data, self._renderer, wanted, task) if self.shift and self._renderer else None
        self._extras = Extras(self._renderer, model, len(self.cameras), extras)
        views, fields, actions = len(self.cameras), len(task.proprioception_names), len(task.action_names)
        observed: dict[str, spaces.Space[Any]] = {
            FRAMES: spaces.Box(0, 255, (views, frame_size, frame_size, 3), np.uint8),
            PROPRIOCEPTION: spaces.Box(-REACH, REACH, (fields,), np.float32),
        }
        if task.goal_names:
            observed[GOAL] = spaces.Box(0.0, 1.0, (len(task.goal_names),), np.float32)
        observed |= self._extras.spaces(frame_size, self.privileged)
        self.observation_space = spaces.Dict(observed)
        self.action_space = spaces.Box(-1.0, 1.0, (actions,), np.float32)
        self._steps, self._over, self._closed = 0, True, False
        self._arm: osc.Arm | None = None
        self.seconds = {"render": 0.0, "step": 0.0}  # wall time of the last drawing and of one control step

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._must_be_open()
        super().reset(seed=None if seed is None else operator.index(seed))  # numpy's numbers too
        env = self._env
        reseed(env, self.np_random)
        for robot in env.robots:  # robosuite keeps the fingers' command across resets: an episode must not see the last
            for gripper in robot.gripper.values():
                gripper.current_action = np.zeros(gripper.dof)
        with quiet():
            env.reset()
        self._arm = osc.arm_of(env)  # robosuite makes its controllers anew
        if self._looks is not None:
            self._looks.draw(seed)
        self._steps, self._over = 0, False
        return self.observe(), {"success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.step_chunk(np.asarray(action)[None])

    def step_chunk(self, actions: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Execute actions (n, M) one after another and draw only the last state.

        The same as n calls of `step`, the frames nobody would look at left out. Stops early where the episode
        ends; `info["steps"]` says how many were executed, the reward is their sum. Where the physics runs away the
        episode is truncated, and there is `info["unstable"]`.
        """
        reward, success, stable, executed, start = 0.0, False, True, 0, time.perf_counter()
        for action in actions:
            self.advance(action)
            executed += 1
            reward += float(self._env.reward(None))
            stable = self._stable()
            success = stable and bool(self._env._check_success())
            self._over = success or not stable or self._steps >= self.task.horizon
            if self._over:
                break
        self.seconds["step"] = (time.perf_counter() - start) / max(1, executed)
        info = {"success": success, "steps": executed} | ({} if stable else {"unstable": True})
        return self.observe(), reward, success, self._over and not success, info

    def advance(self, action: NDArray[np.float32]) -> None:
        """One control step of physics, without drawing or judging."""
        self._must_be_open()
        if self._over:
            raise UsageError("This episode is over: call reset() before step()")
        action = checked_actions(action, self.task)
        command = command_of(self._env, action, self.task)
        timestep, every = FIDELITIES[self.fidelity]
        env, sim = self._env, self._env.sim
        go_on = self._arm.command if self._arm else partial(env._pre_action, command)
        for substep in range(round(1 / (self.task.control_hz * timestep))):
            sim.step1()
            if substep == 0:
                env._pre_action(command, policy_step=True)
            elif substep % every == 0:
                go_on()
            sim.step2()
        self._steps += 1

    def observe(self) -> dict[str, NDArray[Any]]:
        """The observation of the present state."""
        observation: dict[str, NDArray[Any]] = {FRAMES: self.frames(), PROPRIOCEPTION: self.proprioception()}
        observation |= {GOAL: self.task.goal(self._env)} if self.task.goal_names else {}
        return observation | self._extras.observe(self._dress, self.privileged)

    def frames(self) -> NDArray[np.uint8]:
        """Every camera, (V, H, W, 3) RGB, top row first."""
        self._must_be_open()
        if self._renderer is None:
            return np.zeros((len(self.cameras), self.frame_size, self.frame_size, 3), np.uint8)
        start = time.perf_counter()
        frames = self._renderer.render(self._dress)
        self.seconds["render"] = time.perf_counter() - start
        return frames

    def proprioception(self) -> NDArray[np.float32]:
        """The fields that `task.proprioception_names` names, in metres, radians and seconds, world frame, (Q,)."""
        return proprioception(self._env, self.task)

    def privileged(self) -> Privileged:
        """Simulator state for experts and probes; no policy may see it."""
        return self.task.privileged(self._env)

    def state(self) -> NDArray[np.float64]:
        """MuJoCo's flattened state (time, qpos, qvel), as robomimic stores it."""
        flat: NDArray[np.float64] = self._env.sim.get_state().flatten()
        return flat

    def show(self, state: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The frames an episode showed when `state()` was `state`, to the bit; reset before going on.

        `proprioception` and `privileged` say then what they said there.

        A physics step moves the joints last and leaves bodies where they were before it, so what is drawn lags by
        that one step. It is undone here: MuJoCo's integrator moved the joints by the new speeds.
        """
        import mujoco

        model, data = self._env.sim.model._model, self._env.sim.data._data
        put_state(model, data, state)
        mujoco.mj_integratePos(model, data.qpos, data.qvel, -model.opt.timestep)
        place_bodies(model, data)
        frames = self.frames()
        put_state(model, data, state)  # joints are read where they are, bodies where they were
        return frames

    def render(self) -> NDArray[np.uint8]:
        """The first camera, (H, W, 3)."""
        frame: NDArray[np.uint8] = self.frames()[0]
        return frame

    def _must_be_open(self) -> None:
        if self._closed:
            raise UsageError("This environment is closed: make another")

    def close(self) -> None:
        self._closed = True
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._env.close()

    def draw_mark(self) -> None:
        """See `envs.own_context`."""
        if self._renderer is not None:
            self._renderer.context.draw_mark()

    def check_mark(self) -> None:
        """See `envs.own_context`."""
        if self._renderer is not None:
            self._renderer.context.check_mark()

    @property
    def segment_names(self) -> tuple[str, ...]:
        """What the numbers of `segmentation` mean."""
        return self._extras.segment_names

    @property
    def privileged_names(self) -> tuple[str, ...]:
        """The fields of `privileged`."""
        return field_names(self.privileged())

    @property
    def _dress(self) -> Callable[[Any], None] | None:
        return None if self._looks is None else self._looks.dress

    def _stable(self) -> bool:
        """Whether no number of this episode's physics has run away: MuJoCo then starts over without a word to us."""
        import mujoco

        warned = mujoco.mjtWarning
        told = self._env.sim.data._data.warning
        return not any(told[k].number for k in (warned.mjWARN_BADQPOS, warned.mjWARN_BADQVEL, warned.mjWARN_BADQACC))

    def _set_fidelity(self, fidelity: str) -> None:
        timestep, _ = FIDELITIES[fidelity]
        self._env.sim.model.opt.timestep = timestep
        self._env.model_timestep = timestep
