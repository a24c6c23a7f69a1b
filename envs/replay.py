"""Stored states drawn again: ours in the task they came from, others in the model their file carries.

TaskReplay    a task of ours; the frames are those of the recording, to the bit, at equal size and quality
ModelReplay   MuJoCo's XML of each episode (robosuite's `model_file`), assets looked up where they are installed;
              or, for a file without any, robosuite's own task of that name as it is installed here
"""

from __future__ import annotations

import inspect
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from s2robot.envs import has_spec_sheet, make_env
from s2robot.envs.bridge import FIDELITIES, RobosuiteEnv
from s2robot.envs.physics import place_bodies, put_state
from s2robot.envs.quiet import quiet
from s2robot.envs.renderer import FrameRenderer
from s2robot.errors import InvalidInput, S2RobotError, in_words, require

if TYPE_CHECKING:
    from s2robot.rerender import RenderConfig

ASSET_PACKAGES = ("robosuite", "mimicgen", "robosuite_task_zoo", "robocasa", "libero")
NOT_THE_MODEL = (  # arguments of a robosuite task that say nothing of what is to be seen, and differ between versions
    "controller_configs", "camera_names", "camera_heights", "camera_widths", "camera_depths", "camera_segmentations",
    "has_renderer", "has_offscreen_renderer", "use_camera_obs", "use_object_obs", "render_camera", "renderer",
    "renderer_config", "render_gpu_device_id", "reward_shaping", "reward_scale", "ignore_done", "hard_reset", "seed",
    "horizon",
)  # fmt: skip
SITES, BODIES = ("gripper0_right_grip_site", "gripper0_grip_site"), ("robot0_right_hand",)


class Replayed(NamedTuple):
    """One episode drawn again."""

    frames: NDArray[np.uint8]  # (L, V, H, W, 3)
    proprioception: NDArray[np.float32]  # (L, Q), for files that have none
    starts_alike: bool  # the first state is the one that the episode's seed gives here


class Replay(Protocol):
    """Draws episodes, one after another."""

    cameras: tuple[str, ...]

    def draw(self, states: NDArray[np.float64], seed: int, model_file: str) -> Replayed:
        """All states (L, X) of one episode."""
        ...

    def close(self) -> None: ...


def make_replay(env_args: Mapping[str, Any], settings: RenderConfig) -> Replay:
    """What draws the states of a dataset with these `env_args`."""
    if env_args.get("fidelity") in FIDELITIES and has_spec_sheet(env_args.get("task", "")):
        return TaskReplay(env_args, settings)
    return ModelReplay(env_args, settings)


class TaskReplay:
    """States of one of our tasks, drawn as the recording drew them."""

    def __init__(self, env_args: Mapping[str, Any], settings: RenderConfig) -> None:
        self._env: RobosuiteEnv = make_env(
            env_args["task"],
            robot=env_args.get("robot"),
            fidelity=env_args["fidelity"],
            cameras=settings.cameras or None,
            frame_size=settings.frame_size,
            quality=settings.quality,
        )
        self.cameras = self._env.cameras

    def draw(self, states: NDArray[np.float64], seed: int, model_file: str) -> Replayed:
        """`seed` sets what no state holds, such as where a task has put what is fixed."""
        self._env.reset(seed=max(seed, 0))
        alike = states.shape[1:] == self._env.state().shape and np.allclose(states[0], self._env.state(), atol=1e-9)
        frames, proprioception = [], []
        for state in states:
            frames.append(self._env.show(state))
            proprioception.append(self._env.proprioception())
        return Replayed(np.stack(frames), np.stack(proprioception), bool(alike))

    def close(self) -> None:
        self._env.close()


class ModelReplay:
    """States of any robosuite model, drawn in the XML that comes with each episode."""

    def __init__(self, env_args: Mapping[str, Any], settings: RenderConfig) -> None:
        self.cameras = tuple(settings.cameras) or ("agentview", "robot0_eye_in_hand")
        self._env_args, self._settings = env_args, settings
        self._xml: str | None = None  # of the model that is loaded
        self._renderer: FrameRenderer | None = None

    def draw(self, states: NDArray[np.float64], seed: int, model_file: str) -> Replayed:
        """In `model_file`; in robosuite's own model of the task where that is empty."""
        self._load(model_file if self._settings.model == "file" else "")
        assert self._renderer is not None
        frames, proprioception = [], []
        for state in states:
            put_state(self._model, self._data, state)
            place_bodies(self._model, self._data)
            frames.append(self._renderer.render())
            proprioception.append(self._proprioception())
        return Replayed(np.stack(frames), np.stack(proprioception), True)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _load(self, xml: str) -> None:
        """Robosuite draws the sizes of some objects anew for every episode: each has a model of its own."""
        import mujoco

        if self._xml == xml and self._renderer is not None:
            return
        self.close()
        if xml:
            try:
                self._model = mujoco.MjModel.from_xml_string(with_assets_from_here(xml))
            except (ValueError, ET.ParseError) as error:
                words = in_words(error)
                raise S2RobotError(
                    f"MuJoCo {mujoco.__version__} cannot load the episode's model_file ({words})."
                    " To draw with the task of the robosuite that is installed here: --model suite"
                ) from error
        else:
            self._model = _suite_model(self._env_args)
        self._data, self._xml = mujoco.MjData(self._model), xml
        look = (self._settings.frame_size, self._settings.quality)
        self._renderer = FrameRenderer(self._model, self._data, self.cameras, *look)

    def _proprioception(self) -> NDArray[np.float32]:
        """robomimic's usual: gripper position [m], hand quaternion (x, y, z, w), finger joints [m]."""
        import mujoco

        model, data = self._model, self._data
        sites = [data.site(name).xpos for name in SITES if _has(model, mujoco.mjtObj.mjOBJ_SITE, name)]
        bodies = [data.body(name).xquat for name in BODIES if _has(model, mujoco.mjtObj.mjOBJ_BODY, name)]
        names = [model.joint(j).name for j in range(model.njnt)]
        fingers = [data.joint(name).qpos for name in names if name.startswith("gripper0")]
        if not (sites and bodies and fingers):
            raise InvalidInput("The model has no robot0 with a gripper, and the file no proprioception")
        quaternion = np.roll(bodies[0], -1)  # MuJoCo's begins with w
        state: NDArray[np.float32] = np.concatenate([sites[0], quaternion, *fingers]).astype(np.float32)
        return state


def with_assets_from_here(xml: str) -> str:
    """Point meshes and textures at the packages installed here: paths are those of the machine that recorded.

    Raises:
        S2RobotError: files that no package here has.
    """
    root = ET.fromstring(xml)
    missing = []
    for element in root.iter():
        if element.tag in ("mesh", "texture", "hfield", "skin") and (old := element.get("file")):
            found = _find_asset(old)
            if found is None:
                missing.append(old)
            else:
                element.set("file", found)
    if missing:
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise S2RobotError(
            f"The episode's model_file wants files that no package here has: {listed}. Install the version of robosuite"
            " (or mimicgen, robocasa) it was made with, or draw with the task of the one that is here: --model suite"
        )
    return ET.tostring(root, encoding="unicode")


def _find_asset(old: str) -> str | None:
    parts = old.replace("\\", "/").split("/")
    for place in range(len(parts) - 1, -1, -1):
        if parts[place] in ASSET_PACKAGES and (package := find_spec(parts[place])) and package.origin:
            path = Path(package.origin).parent.joinpath(*parts[place + 1 :])
            if path.is_file():
                return str(path)
    return old if Path(old).is_file() else None


def _suite_model(env_args: Mapping[str, Any]) -> Any:
    """The model of robosuite's task of that name, in the version installed here."""
    name = str(env_args.get("env_name") or "")
    suite = require("robosuite", extra="sim", purpose=f"Drawing states of {name or 'a task without a name'}")
    if name not in suite.ALL_ENVIRONMENTS:
        raise S2RobotError(
            f"The episodes carry no model_file, and robosuite {suite.__version__} has no task {name!r} to draw them in"
        )
    given = {key: value for key, value in (env_args.get("env_kwargs") or {}).items() if key not in NOT_THE_MODEL}
    known = inspect.signature(suite.environments.base.REGISTERED_ENVS[name].__init__).parameters
    kwargs = {"robots": env_args.get("robot", "Panda")} | {key: value for key, value in given.items() if key in known}
    with quiet():
        env = suite.make(
            name, has_renderer=False, has_offscreen_renderer=False, use_camera_obs=False, seed=0, **kwargs
        )  # fmt: skip
    return env.sim.model._model


def _has(model: Any, kind: Any, name: str) -> bool:
    import mujoco

    return bool(mujoco.mj_name2id(model, kind, name) >= 0)
