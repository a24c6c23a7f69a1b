"""One demonstration as arrays: what it must look like, its digest, and how episodes are dealt into splits.

    frames            uint8    (L, V, H, W, 3)   what the policy saw at each of L steps
    proprioception    float32  (L, Q)
    actions           float32  (L, M)            labels, [-1, 1]: the expert's clean action
    executed_actions  float32  (L, M)            what was really sent, with noise, [-1, 1]
    rewards           float32  (L,)
    states            float64  (L, X)            optional: simulator states before each step
    goal              float32  (L, G)            optional: what to do, the same in every row

Pure: nothing here touches a disk. `s2robot.datasets` puts these into files and reads them back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.errors import InvalidInput

Floats = NDArray[np.float32]

FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "frames": ("uint8", ("L", "V", "H", "W", "3")),
    "proprioception": ("float32", ("L", "Q")),
    "actions": ("float32", ("L", "M")),
    "executed_actions": ("float32", ("L", "M")),
    "rewards": ("float32", ("L",)),
    "states": ("float64", ("L", "X")),
    "goal": ("float32", ("L", "G")),
}
_AS = {"frames": "RGB from 0 to 255; of floats in [0, 1]: (255 * frames).round().astype(np.uint8)"}


@dataclass(frozen=True, eq=False)
class Episode:
    """One demonstration of L steps; see the module's table. Row t is what was seen and what was then done."""

    seed: int
    success: bool
    frames: NDArray[np.uint8]  # (L, V, H, W, 3)
    proprioception: Floats  # (L, Q)
    actions: Floats  # (L, M)
    executed_actions: Floats  # (L, M)
    rewards: Floats  # (L,)
    states: NDArray[np.float64] | None = None  # (L, X)
    goal: Floats | None = None  # (L, G)

    def __len__(self) -> int:
        return len(self.actions)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The fields that are there, by name, in the table's order."""
        arrays = {name: getattr(self, name) for name in FIELDS}
        return {name: np.asarray(value) for name, value in arrays.items() if value is not None}

    def validate(self) -> None:
        """Hold every field against its dtype, shape and range.

        Raises:
            InvalidInput: names the episode's seed, the field, what it is and what it should be.
        """
        said = f"Episode of seed {self.seed}:"
        if self.seed < 0:
            raise InvalidInput(f"{said} expected the seed to be an integer >= 0, which the environment was reset with")
        for name, value in self.arrays().items():
            dtype, axes = FIELDS[name]
            if str(value.dtype) != dtype or value.ndim != len(axes):
                raise InvalidInput(
                    f"{said} {name} is {value.dtype} {value.shape}; expected {dtype} ({', '.join(axes)}): "
                    + _AS.get(name, f"np.asarray({name}, np.{dtype})")
                )
            if len(value) != len(self) or value.size == 0:
                raise InvalidInput(
                    f"{said} {name} is {value.shape}; expected {len(self)} rows, like actions, none empty"
                )
            if problem := number_problem(name, value):
                raise InvalidInput(f"{said} {name} {problem}")
        if self.frames.shape[-1] != 3:
            raise InvalidInput(f"{said} frames are {self.frames.shape}; expected RGB in the last axis, (L, V, H, W, 3)")
        if self.actions.shape != self.executed_actions.shape:
            raise InvalidInput(
                f"{said} executed_actions are {self.executed_actions.shape}; expected {self.actions.shape}, as actions."
                " Without noise, give actions twice"
            )

    def digest(self) -> str:
        """sha256 of the content, whatever way it is stored."""
        sha = hashlib.sha256(f"seed={self.seed} success={int(self.success)}".encode())
        for name, value in self.arrays().items():
            sha.update(f" {name} {value.dtype.str} {value.shape} ".encode())
            sha.update(np.ascontiguousarray(value).data)
        return sha.hexdigest()


def number_problem(name: str, value: NDArray[Any], *, any_range: bool = False) -> str | None:
    """What is wrong with the numbers of field `name`, in words, if anything is; `any_range`: for who only looks."""
    if value.dtype.kind != "f":
        return None
    finite = np.isfinite(value)
    if not finite.all():
        step = int(np.argwhere(~finite)[0][0])
        return f"holds NaN or infinity, first at step {step}: {value[step]}"
    outside = np.abs(value) > 1
    if name.endswith("actions") and outside.any() and not any_range:
        step = int(np.argwhere(outside)[0][0])
        return f"leaves [-1, 1], first at step {step}: {value[step]}. Scale or clip it: np.clip({name}, -1, 1)"
    return None


def split_episodes(count: int, valid_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Deal episodes 0..count-1 to (training, validation), both ascending.

    A fraction above 0 gives validation at least one episode; training always keeps one.
    """
    if not 0 <= valid_fraction < 1:
        raise InvalidInput(f"valid_fraction is {valid_fraction}; expected 0 <= valid_fraction < 1, for example 0.1")
    valid_count = min(max(round(valid_fraction * count), int(valid_fraction > 0)), max(count - 1, 0))
    order = np.random.default_rng(seed).permutation(count).tolist()
    return sorted(order[valid_count:]), sorted(order[:valid_count])


def hold_alike(episode: Episode, camera_names: Sequence[str], shapes: dict[str, tuple[int, ...]]) -> None:
    """Hold an episode against the cameras and the shapes of a step; those of the first are put down."""
    episode.validate()
    if episode.frames.shape[1] != len(camera_names):
        raise InvalidInput(
            f"Episode of seed {episode.seed} has {episode.frames.shape[1]} views; camera_names are"
            f" {list(camera_names)}, and expected one for each"
        )
    found = {name: value.shape[1:] for name, value in episode.arrays().items()}
    shapes.update({} if shapes else found)
    for name in sorted(found.keys() | shapes.keys()):
        if found.get(name) != shapes.get(name):
            raise InvalidInput(
                f"Episode of seed {episode.seed}: {name} of a step is {found.get(name, 'missing')}, and in the first"
                f" episode {shapes.get(name, 'missing')}; expected the same of all"
            )
