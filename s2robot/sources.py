"""Datasets of any kind that is read here, opened by path.

    our HDF5, robomimic's, MimicGen's        `DemoDataset`; without images `StateDataset`
    a LeRobot folder (meta/info.json)        `s2robot.adapters.lerobot.LeRobotFolder`, which needs the package lerobot

All of them have `cameras`, `lengths`, `env_args`, `frame_shape`, `episode(k)` and `frames(k, steps)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from s2robot import registry, remote, seals
from s2robot.datasets import ROBOMIMIC_PROPRIOCEPTION, DemoDataset
from s2robot.errors import InvalidInput, UnknownName
from s2robot.parts import text
from s2robot.stored import Demonstrations

INFO = "meta/info.json"  # every LeRobot folder has it
CONTROL_HZ = 20  # robosuite's, where a file does not say


class StateDataset(DemoDataset):
    """A file of demonstrations that may have no images: everything but the frames is read from it."""

    _REPAIR = "s2robot render {path} --out {out}"

    def _warn(self) -> None:
        """What is lost is named where it is asked for: `open_dataset` opens a file with images once more."""

    def _find_cameras(self) -> list[str]:
        return []

    def _find_frame_shape(self) -> tuple[int, ...]:
        return (0, 0, 0, 3)

    def has_proprioception(self, k: int) -> bool:
        """Has episode `k` ours, or what robomimic keeps in its place?"""
        with self._reading_episode(k):
            obs = self._group(k).get("obs", {})
            return "proprioception" in obs or all(key in obs for key in ROBOMIMIC_PROPRIOCEPTION)

    def model_file(self, k: int) -> str:
        """MuJoCo's XML of episode `k`, as robosuite stores it; "" where there is none."""
        return text(self.attribute(k, "model_file") or "")

    @cached_property
    def fingerprint(self) -> str:
        """sha256 that changes with the content, frames aside in our own files."""
        return self._digest or seals.digest(self.path)

    @property
    def has_frames(self) -> bool:
        """Has the first episode that is whole an image?"""
        with self._reading_episode(self.first):
            obs = self._group(self.first).get("obs", {})
            return any(key.endswith("_image") for key in obs)


def is_lerobot(path: str | Path) -> bool:
    """Is this a LeRobot dataset, v2 or v3?"""
    return (Path(path) / INFO).is_file()


def open_dataset(path: str | Path) -> Demonstrations:
    """Open a dataset; one without images as a `StateDataset`.

    Raises:
        InvalidInput: nothing there, or a folder that is no dataset.
        CorruptFile: it is no dataset, or is damaged.
    """
    path = path if remote.is_remote(path) else Path(path)
    if is_lerobot(path):
        return import_module("s2robot.adapters.lerobot").LeRobotFolder(path)  # type: ignore[no-any-return]
    if isinstance(path, Path) and path.is_dir():
        raise InvalidInput(
            f"{path} is a folder without {INFO}: no dataset. To see what is in it: s2robot list datasets {path}"
        )
    plain = StateDataset(path)
    return DemoDataset(path) if plain.has_frames else plain


def goal_words(env_args: Mapping[str, Any], goal: NDArray[np.float32]) -> str:
    """A goal (G,) in words: "red" where it is one-hot in a task of ours, else its numbers."""
    with suppress(UnknownName):
        names = registry.get_task(task_name(env_args)).goal_names
        if len(names) == len(goal) and np.count_nonzero(goal) == 1:
            return str(names[int(np.argmax(goal))])
    return " ".join(f"{value:g}" for value in goal)


def control_hz(env_args: Mapping[str, Any]) -> int:
    """Control steps a second."""
    kwargs = env_args.get("env_kwargs") or {}
    return round(float(env_args.get("control_hz") or kwargs.get("control_freq") or CONTROL_HZ))


def task_name(env_args: Mapping[str, Any]) -> str:
    """Our name of the task, or robosuite's; "" where the file does not say."""
    return str(env_args.get("task") or env_args.get("env_name") or "")


def version_differences(env_args: Mapping[str, Any]) -> list[str]:
    """In words: versions a dataset was made with that are not the ones installed here."""
    made_with = {"robosuite": env_args.get("env_version"), **(env_args.get("versions") or {})}
    differences = []
    for name in ("robosuite", "mujoco"):
        there = made_with.get(name)
        if there is None:
            continue
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if str(there) != here:
            differences.append(f"made with {name} {there}, here is {here}")
    return differences


def is_dataset(file: h5py.File) -> bool:
    """Does an HDF5 file have the layout of demonstrations?"""
    return isinstance(file.get("data"), h5py.Group) and any(
        isinstance(demo, h5py.Group) for demo in file["data"].values()
    )


def channels_last(spec: Mapping[str, Any]) -> tuple[int, ...]:
    """(H, W, 3) of a camera, which some datasets write as (3, H, W); what is read is the same."""
    shape, names = tuple(spec["shape"]), spec.get("names")
    leads = str(names[0]).startswith("channel") if names else shape[0] == 3 != shape[-1]
    return (*shape[1:], shape[0]) if leads else shape
