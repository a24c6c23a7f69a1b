"""LeRobot datasets, format v3.0, written and read by LeRobot itself (`pip install 's2robot[lerobot]'`).

    observation.images.<camera>      image    (H, W, 3)   PNG, the same bits
    observation.state                float32  (Q,)        proprioception, its fields by name
    observation.environment_state    float32  (G,)        the goal, where the task has one: policies take it as input
    action                           float32  (M,)        labels
    next.reward, next.done, next.success
    executed_action, simulator_state, seed                what else an episode has; no policy takes these as input
    observation.s2_features          float32  (V*D*S,)    on request: the encoder's cls of every camera

meta/s2robot.json keeps what LeRobot has no place for: env_args, the order of cameras, each episode's digest. Importing
a folder that we wrote gives the same episodes, to the digest; others are read by the names above.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.episodes import FIELDS, Episode, number_problem
from s2robot.errors import CorruptFile, InvalidInput, S2RobotError, UnknownName, require
from s2robot.files import atomic_folder, read_json, write_json
from s2robot.parts import reading
from s2robot.sources import INFO, channels_last, control_hz, goal_words, task_name
from s2robot.stored import Demonstrations, StoredEpisode

OWN = "meta/s2robot.json"
IMAGES = "observation.images."
COLUMNS = {
    "proprioception": "observation.state",
    "actions": "action",
    "executed_actions": "executed_action",
    "rewards": "next.reward",
    "states": "simulator_state",
    "goal": "observation.environment_state",
}
FEATURES = "observation.s2_features"
GOAL_WORDS = "{goal}"  # in an instruction: the episode's goal comes there
SPARE = 32 << 20  # bytes that must stay free
REPO = "local/s2robot"  # LeRobot wants a name on its hub; nothing is looked up there

Report = Callable[[int, int], None]
FeatureRows = Callable[[int], NDArray[np.float32]]


def _lerobot() -> Any:
    purpose = "Reading and writing LeRobot datasets"
    require("lerobot", extra="lerobot", purpose=purpose)
    return require("lerobot.datasets.lerobot_dataset", extra="lerobot", purpose=purpose).LeRobotDataset


def export(
    dataset: Demonstrations,
    out: str | Path,
    *,
    cameras: Sequence[str] = (),
    episodes: Sequence[int] | None = None,
    instruction: str = "",
    features: FeatureRows | None = None,
    report: Report = lambda done, total: None,
) -> dict[str, str]:
    """Write episodes as a LeRobot folder, all at once: a run that is stopped leaves nothing.

    Args:
        cameras: some of the dataset's (default: all).
        instruction: LeRobot's task text; "{goal}" in it becomes the goal in words. Default: the task's name and goal.
        features: rows (L, F) of episode k, to ride along as a column.

    Returns:
        What could not be read and is left out: {episode: why}.
    """
    out, lerobot = Path(out), _lerobot()
    if out.exists():
        raise InvalidInput(f"{out} is there already. Convert into another folder, or remove it: rm -r {out}")
    if unknown := set(re.findall(r"\{\w*\}", instruction)) - {GOAL_WORDS}:
        raise InvalidInput(f"The instruction has {', '.join(sorted(unknown))}; only {GOAL_WORDS} is filled in")
    names = list(cameras or dataset.cameras)
    views = [_view(dataset, camera) for camera in names]
    chosen = list(range(len(dataset)) if episodes is None else episodes)
    kept: list[dict[str, Any]] = []
    damaged: dict[str, str] = {}
    with _quiet(), atomic_folder(out) as folder:
        with _Target(lerobot, folder, names, dataset.env_args) as target:
            for done, k in enumerate(chosen):
                report(done, len(chosen))
                try:
                    whole = dataset.episode(k).load()
                except CorruptFile as error:
                    damaged[dataset.name(k)] = error.why
                    continue
                episode = replace(whole, frames=whole.frames[:, views])
                text = _instruction(dataset.env_args, episode, instruction)
                target.add(episode, text, features(k) if features else None)
                kept.append({"seed": episode.seed, "success": bool(episode.success), "digest": episode.digest()})
        if not kept:
            raise S2RobotError(f"Not one episode of {dataset.path} can be read: {next(iter(damaged.values()), '')}")
        write_json(folder / OWN, {"env_args": dataset.env_args, "cameras": names, "episodes": kept})
    report(len(chosen), len(chosen))
    return damaged


class _Target:
    """A LeRobot dataset under way, made with its first episode; its files are closed whatever happens."""

    def __init__(self, lerobot: Any, folder: Path, cameras: list[str], env_args: dict[str, Any]) -> None:
        self._lerobot, self._folder, self._cameras, self._env_args = lerobot, folder, cameras, env_args
        self._dataset: Any = None

    def __enter__(self) -> _Target:
        return self

    def __exit__(self, *_: object) -> None:
        if self._dataset is not None:  # else its destructor writes into a folder that is gone
            self._dataset.finalize()

    def add(self, episode: Episode, text: str, rows: NDArray[np.float32] | None) -> None:
        """One episode, step by step, as LeRobot takes it."""
        if self._dataset is None:
            specs, robot = _specs(episode, self._cameras, self._env_args, rows), self._env_args.get("robot")
            fps = control_hz(self._env_args)
            self._dataset = self._lerobot.create(
                REPO, fps, specs, root=self._folder, robot_type=robot, use_videos=False
            )  # fmt: skip
        # LeRobot prints what goes wrong when it writes an image, and goes on.
        if shutil.disk_usage(self._folder).free < 2 * episode.frames.nbytes + SPARE:
            raise OSError(errno.ENOSPC, "No space left on device")
        arrays = {COLUMNS[name]: value for name, value in episode.arrays().items() if name != "frames"}
        for step in range(len(episode)):
            last = step == len(episode) - 1
            row: dict[str, Any] = {key: np.atleast_1d(value[step]) for key, value in arrays.items()}
            row |= {f"{IMAGES}{camera}": episode.frames[step, view] for view, camera in enumerate(self._cameras)}
            row |= {"next.done": np.array([last]), "next.success": np.array([last and bool(episode.success)])}
            row |= {"seed": np.array([episode.seed], np.int64), "task": text}
            self._dataset.add_frame(row | ({} if rows is None else {FEATURES: rows[step]}))
        self._dataset.save_episode()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """LeRobot draws a bar an episode, and takes its statistics of booleans with a warning."""
    bars = require("datasets", extra="lerobot", purpose="Writing LeRobot datasets")
    bars.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Converting input from bool", RuntimeWarning)
            yield
    finally:
        bars.enable_progress_bars()


def _view(dataset: Demonstrations, camera: str) -> int:
    if camera not in dataset.cameras:
        raise UnknownName("camera", camera, dataset.cameras)
    return dataset.cameras.index(camera)


def _instruction(env_args: dict[str, Any], episode: Episode, text: str) -> str:
    goal = "" if episode.goal is None else goal_words(env_args, episode.goal[0])
    return text.replace(GOAL_WORDS, goal) if text else f"{task_name(env_args) or 'task'} {goal}".strip()


def _specs(
    episode: Episode, cameras: list[str], env_args: dict[str, Any], rows: NDArray[np.float32] | None
) -> dict[str, dict[str, Any]]:
    """LeRobot's description of every column."""
    shape = tuple(episode.frames.shape[2:])
    axes = ["height", "width", "channels"]
    specs: dict[str, dict[str, Any]] = {
        f"{IMAGES}{camera}": {"dtype": "image", "shape": shape, "names": axes} for camera in cameras
    }
    named = {"proprioception": "proprioception_names", "actions": "action_names", "executed_actions": "action_names"}
    for name, value in episode.arrays().items():
        if name != "frames":
            width = value.shape[1:] or (1,)
            fields = list(env_args.get(named.get(name, ""), []))
            names = fields if len(fields) == width[0] else [f"{name}_{field}" for field in range(width[0])]
            specs[COLUMNS[name]] = {"dtype": FIELDS[name][0], "shape": width, "names": names}
    for key, dtype in (("next.done", "bool"), ("next.success", "bool"), ("seed", "int64")):
        specs[key] = {"dtype": dtype, "shape": (1,), "names": None}
    if rows is not None:
        specs[FEATURES] = {"dtype": "float32", "shape": rows.shape[1:], "names": None}
    return specs


class LeRobotFolder:
    """A LeRobot dataset, ours or anybody's, as `Demonstrations`.

    Args:
        cameras: some of the dataset's, all of one size (default: all).
        scale_actions: map each action's range over the dataset to [-1, 1]; the range is kept in `env_args`.
    """

    def __init__(self, path: str | Path, *, cameras: Sequence[str] = (), scale_actions: bool = False) -> None:
        self.path = Path(path)
        lerobot = _lerobot()
        with self._reading("the dataset"):
            self._dataset = lerobot(REPO, root=self.path)
            meta = self._dataset.meta
            self._specs: dict[str, Any] = meta.features
            own = read_json(self.path / OWN) if (self.path / OWN).is_file() else {}
            starts = np.asarray(meta.episodes["dataset_from_index"])
            stops = np.asarray(meta.episodes["dataset_to_index"])
            self._spans = list(zip(starts.tolist(), stops.tolist(), strict=True))
            self._rows = self._dataset.hf_dataset.with_format(None)
        self._own: list[dict[str, Any]] = own.get("episodes", [])
        self._chosen = bool(cameras) or scale_actions  # then it is not what was written, on purpose
        self.lengths = tuple(stop - start for start, stop in self._spans)
        known = [key.removeprefix(IMAGES) for key in meta.camera_keys]
        self.cameras = tuple(cameras or own.get("cameras") or known)
        for camera in self.cameras:
            if camera not in known:
                raise UnknownName("camera", camera, known)
        self.frame_shape = (len(self.cameras), *self._frame_size())
        self.env_args: dict[str, Any] = own.get("env_args") or self._foreign_env_args()
        self._scale = self._action_range() if scale_actions else None

    def _frame_size(self) -> tuple[int, ...]:
        sizes = {camera: channels_last(self._specs[self._key(camera)]) for camera in self.cameras}
        if len(set(sizes.values())) > 1:
            raise InvalidInput(f"The cameras of {self.path} differ in size: {sizes}. Choose some: --cameras NAME,NAME")
        return next(iter(sizes.values()), (0, 0, 3))

    def _foreign_env_args(self) -> dict[str, Any]:
        fields = {}
        for name, key in (("action_names", "action"), ("proprioception_names", "observation.state")):
            names = self._specs.get(key, {}).get("names")
            fields[name] = [str(field) for field in names] if isinstance(names, list) else []
        tasks = sorted(map(str, self._dataset.meta.tasks.index))
        return {"control_hz": self._dataset.meta.fps, "robot": self._dataset.meta.robot_type, "tasks": tasks, **fields}

    def _action_range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        low, high = (np.asarray(self._dataset.meta.stats["action"][bound], np.float64) for bound in ("min", "max"))
        high = np.where(high > low, high, low + 1)  # what never moves becomes -1
        self.env_args["action_range"] = [low.tolist(), high.tolist()]
        return low, high

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[StoredEpisode]:
        return (self.episode(k) for k in range(len(self)))

    @property
    def total(self) -> int:
        """Steps in all episodes together."""
        return sum(self.lengths)

    def name(self, k: int) -> str:
        """LeRobot numbers its episodes."""
        return f"episode {k}"

    def episode(self, k: int) -> StoredEpisode:
        """Episode `k`; its arrays are read when asked for."""
        if not 0 <= k < len(self):
            raise InvalidInput(f"No episode {k} in {self.path}; it has 0 to {len(self) - 1}")
        return StoredEpisode(self, k)

    def frames(self, k: int, steps: int | slice | Sequence[int] | NDArray[Any] | None = None) -> NDArray[np.uint8]:
        """Frames of some steps of episode `k` (default: all); videos are decoded by LeRobot.  (n, V, H, W, 3)"""
        wanted = np.atleast_1d(np.arange(self.lengths[k])[slice(None) if steps is None else steps]) + self._spans[k][0]
        with self._reading(self.name(k)):
            out = np.empty((len(wanted), *self.frame_shape), np.uint8)
            for view, camera in enumerate(self.cameras):
                out[:, view] = self._images(self._key(camera), wanted)
            return out

    def field(self, k: int, name: str, *, any_range: bool = False) -> NDArray[Any]:
        """Any field of episode `k` but its frames; zeros for missing rewards, actions for missing executed ones."""
        dtype, axes = FIELDS[name]
        key, length = COLUMNS[name], self.lengths[k]
        with self._reading(self.name(k)):
            if name == "executed_actions" and key not in self._specs:
                return self.field(k, "actions")
            if name == "rewards" and key not in self._specs:
                return np.zeros(length, dtype)
            value = self._column(key, k)
            if name.endswith("actions") and self._scale:
                low, high = self._scale
                value = 2 * (value - low) / (high - low) - 1
            value = np.asarray(value, dtype).reshape(length, *(() if len(axes) == 1 else (-1,)))
            if problem := number_problem(name, value, any_range=any_range):
                hint = " (or convert with --scale-actions)" if name.endswith("actions") else ""
                raise ValueError(f"{name} {problem}{hint}")
            return value

    def has(self, k: int, name: str) -> bool:
        """Is field `name` there?"""
        return COLUMNS[name] in self._specs

    def attribute(self, k: int, name: str) -> Any:
        """Seed, success or our digest of episode `k`; None where the dataset does not say."""
        if name == "s2robot_digest":
            known = len(self._own) == len(self) and not self._chosen
            return self._own[k].get("digest") if known else None
        key = {"seed": "seed", "success": "next.success"}.get(name, "")
        if key not in self._specs:
            return None
        with self._reading(self.name(k)):
            return self._column(key, k).max()

    def _key(self, camera: str) -> str:
        return f"{IMAGES}{camera}" if f"{IMAGES}{camera}" in self._specs else camera

    def _column(self, key: str, k: int) -> NDArray[Any]:
        start, stop = self._spans[k]
        return np.asarray(self._rows.select_columns([key])[start:stop][key])

    def _images(self, key: str, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self._specs[key]["dtype"] == "image":
            return np.stack([np.asarray(image.convert("RGB")) for image in self._rows.select_columns([key])[rows][key]])
        decoded = self._decoded(key, rows)
        frames: NDArray[np.uint8] = (np.stack(decoded).transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
        return frames

    def _decoded(self, key: str, rows: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Frames of a video, (3, H, W) in [0, 1]: by torchcodec, or by PyAV where it finds no FFmpeg."""
        problem: Exception | None = None
        for backend in (self._dataset.video_backend, "pyav"):
            self._dataset.video_backend = backend
            try:
                return [np.asarray(self._dataset[int(row)][key]) for row in rows]
            except (ImportError, AttributeError, RuntimeError) as error:
                problem = error
        raise S2RobotError(
            f"LeRobot cannot decode the videos of {self.path} here ({' '.join(str(problem).split())[:120]}). It wants a"
            " torchcodec that fits torch, and FFmpeg's libraries; or torchvision below 0.26 and av"
        ) from problem

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        damage = require("datasets", extra="lerobot", purpose="Reading LeRobot datasets").exceptions.DatasetsError
        with reading(self.path / INFO, what, "Restore it from a copy, or convert it again"):
            try:
                yield
            except damage as error:
                raise ValueError(str(error)) from error
