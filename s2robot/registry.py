"""Names to things that live on the other side of an import: tasks, policies, scenes.

The encoder side never imports a simulator or a policy; it names them here, as strings, and they are
imported when asked for. Those of other distributions: `s2robot.plugins`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from s2robot import plugins
from s2robot.errors import InvalidInput, UnknownName

if TYPE_CHECKING:
    from s2robot.envs.bridge import RobosuiteEnv
    from s2robot.envs.plain import PlainRobosuite
    from s2robot.envs.probe_scenes import ProbeScenes
    from s2robot.envs.replay import Replay
    from s2robot.envs.task import TaskSpec
    from s2robot.envs.vector import VectorEnv
    from s2robot.rerender import RenderConfig
    from s2robot.types import Policy

POLICIES = {
    "bc-mlp": "s2robot.policies.bc_mlp",
    "bc-rnn": "s2robot.policies.bc_rnn",
    "act": "s2robot.policies.act",
    "flow": "s2robot.policies.flow",
}
"""Policy kind -> module with `CONFIG`, its hyper-parameters, and `NETWORK`, a `policies.neck.Neck`."""

PIXEL_POLICIES = {
    "cnn": "s2robot.policies.cnn",
    "finetune": "s2robot.policies.finetune",
}
"""The same of kinds that read frames, without a feature store: `NETWORK` is a `policies.pixels.PixelNetwork`."""

KINDS = {**POLICIES, **PIXEL_POLICIES}

ACTORS = {
    "rl": "s2robot.policies.rl_actor",
    "rl-pixels": "s2robot.policies.rl_pixels",
    "rl-privileged": "s2robot.policies.rl_privileged",
    "rl-ibrl": "s2robot.policies.rl_picker",
}
"""The same of policies that reinforcement learning leaves: they act, and `s2robot train` does not know them."""

ALGORITHMS = {
    "ppo": "s2robot.policies.ppo",
    "sac": "s2robot.policies.sac",
    "rlpd": "s2robot.policies.rlpd",
    "ibrl": "s2robot.policies.ibrl",
}
"""Reinforcement learning algorithm -> module with `CONFIG`, its hyper-parameters, and `make`, its learner."""

RENAMED = {"bc": "bc-mlp"}
"""What kinds were called when older run folders were written -> what they are called now."""


def make_env(name: str, **options: Any) -> RobosuiteEnv:
    """Make a task's environment by name; see `s2robot.envs.make_env`."""
    return importlib.import_module("s2robot.envs").make_env(name, **options)  # type: ignore[no-any-return]


def make_vec_env(name: str, n: int, **options: Any) -> VectorEnv:
    """Make n environments of a task by name, a process each; see `s2robot.envs.vector`."""
    return importlib.import_module("s2robot.envs").make_vec_env(name, n, **options)  # type: ignore[no-any-return]


def check_manner(fidelity: str, shift: str) -> None:
    """Raises UnknownName or InvalidInput where there is no such fidelity or shift; see `s2robot.envs.bridge`."""
    importlib.import_module("s2robot.envs.bridge").check_manner(fidelity, shift)


def check_drawing(size: int, quality: str) -> None:
    """Raises InvalidInput or UnknownName where frames cannot be drawn so; see `s2robot.envs.renderer`."""
    importlib.import_module("s2robot.envs.renderer").check_drawing(size, quality)


def make_plain(name: str, frame_size: int = 0) -> PlainRobosuite:
    """A task as robosuite alone gives it; see `s2robot.envs.plain`."""
    return importlib.import_module("s2robot.envs.plain").PlainRobosuite(name, frame_size)  # type: ignore[no-any-return]


def simulator_versions() -> dict[str, str]:
    """Of what simulates, for datasets to say."""
    return importlib.import_module("s2robot.envs.quiet").versions()  # type: ignore[no-any-return]


SCENES = {"lift": "s2robot.envs.scenes", "workspace": "s2robot.envs.workspace"}
"""Kind of scenes to pre-train on -> module with `SceneSampler`."""


class Scenes(Protocol):
    """Randomised robot scenes, drawn episode by episode."""

    def episode(self, index: int) -> NDArray[np.uint8]:
        """Frames (n, H, W, 3) that depend on the seed and this index alone."""
        ...

    def close(self) -> None: ...


def scene_sampler(frame_size: int, seed: int, scenes: str = "lift") -> Scenes:
    """Randomised robot scenes to pre-train on.

    Raises:
        UnknownName: with the nearest kind there is.
    """
    if scenes not in SCENES:
        raise UnknownName("kind of scenes", scenes, SCENES)
    return importlib.import_module(SCENES[scenes]).SceneSampler(frame_size, seed)  # type: ignore[no-any-return]


def probe_scenes(frame_size: int, seed: int) -> ProbeScenes:
    """Scenes with their ground truth; see `s2robot.envs.probe_scenes`."""
    return importlib.import_module("s2robot.envs.probe_scenes").ProbeScenes(frame_size, seed)  # type: ignore[no-any-return]


def replay(env_args: Mapping[str, Any], settings: RenderConfig) -> Replay:
    """What draws stored states again; see `s2robot.envs.replay`."""
    return importlib.import_module("s2robot.envs.replay").make_replay(env_args, settings)  # type: ignore[no-any-return]


def policy_module(kind: str) -> Any:
    """The module of a policy kind, of ours or of a plug-in.

    Raises:
        UnknownName: with the nearest kind there is.
        BrokenPlugin: a plug-in of that name cannot be used.
    """
    kind = RENAMED.get(kind, kind)
    if kind in KINDS or kind in ACTORS:
        return importlib.import_module({**KINDS, **ACTORS}[kind])
    if found := PLUGINS.get(kind):
        return found.value
    raise UnknownName("policy", kind, (*KINDS, *PLUGINS.names()), "s2robot list policies")


def algorithm(name: str) -> Any:
    """The module of a reinforcement learning algorithm.

    Raises:
        UnknownName: with the nearest there is.
    """
    if name not in ALGORITHMS:
        raise UnknownName("algorithm", name, ALGORITHMS)
    return importlib.import_module(ALGORITHMS[name])


def reads_frames(kind: str) -> bool:
    """Whether policies of a kind read frames, and go without a feature store."""
    kind = RENAMED.get(kind, kind)
    return kind in PIXEL_POLICIES if kind in KINDS else bool(policy_module(kind).NETWORK.reads_frames)


def readouts() -> dict[str, Any]:
    """What reads a map, by name: `s2robot.policies.readout`."""
    found: dict[str, Any] = importlib.import_module("s2robot.policies.readout").READOUTS
    return found


def acting() -> Any:
    """A trained network behind its encoder: `s2robot.policies.acting`."""
    return importlib.import_module("s2robot.policies.acting")


def wrappers() -> Any:
    """Policies around policies: `s2robot.policies.wrappers`."""
    return importlib.import_module("s2robot.policies.wrappers")


def policy_kind(config: object) -> str:
    """The kind whose hyper-parameters these are."""
    for kind in KINDS:
        if type(config) is policy_module(kind).CONFIG:
            return kind
    others = {found.plugin.name: found.value for found in PLUGINS.usable()}
    for kind, module in others.items():
        if type(config) is module.CONFIG:
            return kind
    raise InvalidInput(f"{type(config).__name__} is no policy's; known: {', '.join((*KINDS, *others))}")


def _owner(kind: str) -> str:
    return "s2robot" if kind in KINDS or kind in RENAMED else ""


def _fault(kind: str, module: Any) -> str:
    missing = [name for name in ("CONFIG", "NETWORK") if not hasattr(module, name)]
    if missing:
        return f"it has no {' and no '.join(missing)}; expected a module with both, as s2robot.policies.bc_mlp"
    neck = importlib.import_module("s2robot.policies.neck")
    for name, parent in (("CONFIG", neck.NeckConfig), ("NETWORK", neck.Neck)):
        value = getattr(module, name)
        if not isinstance(value, type) or not issubclass(value, parent) or inspect.isabstract(value):
            return (
                f"its {name} is {value!r}; expected a whole class that extends s2robot.policies.neck.{parent.__name__}"
            )
    module.CONFIG()
    return ""


PLUGINS = plugins.Group("policies", "policy", _owner, _fault)


def load_policy(folder: str | Path, **options: Any) -> Policy:
    """Load a trained policy from its run folder; see `s2robot.trained.load_policy` for the options."""
    return importlib.import_module("s2robot.trained").load_policy(folder, **options)  # type: ignore[no-any-return]


def get_task(name: str, robot: str | None = None) -> TaskSpec:
    """The spec sheet of a task; see `s2robot.envs.get_task`."""
    return importlib.import_module("s2robot.envs").get_task(name, robot)  # type: ignore[no-any-return]
