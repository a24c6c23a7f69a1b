"""A replay buffer of features: float16, and every observation once.

Stable-Baselines3's `DictReplayBuffer` keeps the dtype of each key, float16 as well, and every observation twice: as one
step's last and as the next one's first. Here it stands once. What a step ended with is kept apart only where the next
step did not begin with it, which is found by comparing them and not by what `done` says: ends of episodes, resets
between two calls of `learn`, the newest step at the ring's seam.

`save` and `load` write plain arrays. Stable-Baselines3's own `save_replay_buffer` works too; it is a pickle, which runs
code when it is read: load your own only.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from s2robot import seals
from s2robot.adapters.features import FEATURES
from s2robot.errors import CorruptFile, InvalidInput, UnknownName, require
from s2robot.files import atomic
from s2robot.machine import free_memory
from s2robot.parts import DAMAGE

_PURPOSE = "Training with Stable-Baselines3"
require("stable_baselines3", extra="rl", purpose=_PURPOSE)
_buffers: Any = require("stable_baselines3.common.buffers", extra="rl", purpose=_PURPOSE)
_preprocessing: Any = require("stable_baselines3.common.preprocessing", extra="rl", purpose=_PURPOSE)

NOT_KEPT = -1  # the next observation is the next row's
GROWTH = 64  # ends that are made room for at once, at least
SCALARS = ("rewards", "dones", "timeouts")

Arrays = dict[str, NDArray[Any]]


class FeatureReplayBuffer(_buffers.DictReplayBuffer):  # type: ignore[misc]
    """`DictReplayBuffer` in half its memory or less; every row can be sampled, each with its own next observation.

    Args:
        half: keys kept in float16 whatever dtype they come in; float16 ones stay so anyway. Default: `features`.
        others: those of `DictReplayBuffer`.

    Raises:
        InvalidInput: memory does not hold so many; later, an observation with NaN, or with more than float16 holds.
    """

    pos: int
    full: bool
    observations: Arrays  # each (rows, n_envs, ...)

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        device: Any = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        half: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(observation_space, spaces.Dict):
            raise InvalidInput(f"Observations are {observation_space}; this buffer is for a Dict with features")
        if optimize_memory_usage:
            raise InvalidInput("optimize_memory_usage=True: this buffer keeps every observation once already")
        # Past DictReplayBuffer, which would make room for all observations twice.
        _buffers.BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        rows = (self.buffer_size, n_envs)
        self.half = tuple(half) if half is not None else tuple(key for key in observation_space if key == FEATURES)
        dtypes = kept_dtypes(observation_space, self.half)
        _must_fit(transition_bytes(observation_space, action_space, half=self.half), self.buffer_size * n_envs)
        self.observations = {key: np.zeros((*rows, *self.obs_shape[key]), dtypes[key]) for key in dtypes}
        self.actions = np.zeros((*rows, self.action_dim), self._maybe_cast_dtype(action_space.dtype))
        for name in SCALARS:
            setattr(self, name, np.zeros(rows, np.float32))
        self._end = np.full(rows, NOT_KEPT, np.int32)  # of each row, where in `_ends` its next observation is
        self._ends: Arrays = {key: np.zeros((0, *self.obs_shape[key]), dtypes[key]) for key in dtypes}
        self._free: list[int] = []
        self._pending: Arrays = {}  # the newest row's next observations, (n_envs, ...)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays now, what episodes ended with included."""
        arrays = [*self.observations.values(), self.actions, *(getattr(self, name) for name in SCALARS), self._end]
        return sum(array.nbytes for array in [*arrays, *self._ends.values(), *self._pending.values()])

    def add(
        self, obs: Arrays, next_obs: Arrays, action: NDArray[Any], reward: Any, done: Any, infos: list[dict[str, Any]]
    ) -> None:
        """One step of every environment; observations (n_envs, ...) by key."""
        now, after = self._kept(obs), self._kept(next_obs)
        self._settle(now)
        self._release(self.pos)
        for key, value in now.items():
            self.observations[key][self.pos] = value
        self.actions[self.pos] = np.asarray(action).reshape(self.n_envs, self.action_dim)
        self.rewards[self.pos], self.dones[self.pos] = reward, done
        if self.handle_timeout_termination:
            self.timeouts[self.pos] = [info.get("TimeLimit.truncated", False) for info in infos]
        self._pending = after
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0

    def reset(self) -> None:
        super().reset()
        self._end[:] = NOT_KEPT
        self._free, self._pending = list(range(len(next(iter(self._ends.values()))))), {}

    def _get_samples(self, batch_inds: NDArray[Any], env: Any = None) -> Any:
        envs = np.random.randint(0, self.n_envs, len(batch_inds))  # noqa: NPY002 - the state SB3 seeds
        seen = {key: array[batch_inds, envs] for key, array in self.observations.items()}
        after = self.next_of(batch_inds, envs)
        rewards = self.rewards[batch_inds, envs].reshape(-1, 1)
        dones = self.dones[batch_inds, envs] * (1 - self.timeouts[batch_inds, envs])
        return _buffers.DictReplayBufferSamples(
            observations={key: self.to_torch(value) for key, value in self._normalize_obs(seen, env).items()},
            actions=self.to_torch(self.actions[batch_inds, envs]),
            next_observations={key: self.to_torch(value) for key, value in self._normalize_obs(after, env).items()},
            dones=self.to_torch(dones.reshape(-1, 1)),
            rewards=self.to_torch(self._normalize_reward(rewards, env)),
        )

    def next_of(self, rows: NDArray[Any], envs: NDArray[Any]) -> Arrays:
        """What followed these steps, (n, ...) by key."""
        end = self._end[rows, envs]
        kept, newest = end != NOT_KEPT, rows == (self.pos - 1) % self.buffer_size
        after = {key: array[(rows + 1) % self.buffer_size, envs] for key, array in self.observations.items()}
        for key, value in after.items():
            value[kept] = self._ends[key][end[kept]]
            value[newest] = self._pending[key][envs[newest]]
        return after

    def save(self, path: str | Path) -> None:
        """One .npz file of plain arrays, all at once or not at all."""
        size = self.size()
        arrays = {name: getattr(self, name)[:size] for name in ("actions", *SCALARS, "_end")}
        for prefix, part in (("observations", self.observations), ("ends", self._ends), ("pending", self._pending)):
            arrays |= {f"{prefix}/{key}": value[:size] if part is self.observations else value
                       for key, value in part.items()}  # fmt: skip
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, pos=self.pos, full=self.full, free=np.array(self._free, np.int64), **arrays)

    def load(self, path: str | Path) -> None:
        """Put back what `save` wrote; this buffer must have been made alike.

        Raises:
            CorruptFile: a file that cannot be read.
            InvalidInput: other keys, shapes, dtypes, sizes or numbers of environments.
        """
        seals.check_zip(Path(path), "Restore it from a copy")
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as inside:
                found = {name: inside[name] for name in inside.files}
            size = self.buffer_size if found["full"] else int(found["pos"])
            self._fits(path, found, size)
        except InvalidInput:
            raise
        except (*DAMAGE, EOFError, zipfile.BadZipFile, zlib.error, struct.error) as error:
            raise CorruptFile(path, str(error), "It should be what FeatureReplayBuffer.save wrote") from error
        self.reset()
        for name in ("actions", *SCALARS, "_end"):
            getattr(self, name)[:size] = found[name]
        for key, array in self.observations.items():
            array[:size] = found[f"observations/{key}"]
        self._ends = {key: found[f"ends/{key}"] for key in self._ends}
        self._pending = {key: found[f"pending/{key}"] for key in self._ends if f"pending/{key}" in found}
        self._free, self.full = found["free"].tolist(), bool(found["full"])
        self.pos = int(found["pos"])

    def _kept(self, observation: Arrays) -> Arrays:
        """Observations (n_envs, ...) as they are kept."""
        kept = {}
        for key, array in self.observations.items():
            came = np.asarray(observation[key])
            with np.errstate(over="ignore"):  # said below
                kept[key] = came.reshape(self.n_envs, *self.obs_shape[key]).astype(array.dtype)
            if array.dtype == np.float16 and not np.isfinite(kept[key]).all():
                problem = "holds NaN" if np.isnan(came).any() else f"reaches {np.abs(came).max():.3g}, beyond float16"
                raise InvalidInput(f"Observation {key!r} {problem}; the environment should not give such")
            if array.dtype.kind == "f" and np.isnan(kept[key]).any():
                raise InvalidInput(f"Observation {key!r} holds NaN; the environment should not give such")
        return kept

    def _settle(self, now: Arrays) -> None:
        """Of environments that did not go on from where they were, keep what the newest step ended with."""
        if not self._pending:
            return
        same = np.ones(self.n_envs, bool)
        for key, value in now.items():
            same &= (value == self._pending[key]).reshape(self.n_envs, -1).all(axis=1)
        for k in np.flatnonzero(~same):
            if not self._free:
                self._grow()
            place = self._free.pop()
            self._end[self.pos - 1, k] = place
            for key, array in self._ends.items():
                array[place] = self._pending[key][k]

    def _release(self, row: int) -> None:
        """A row is overwritten: so may be what it ended with."""
        self._free += [int(place) for place in self._end[row] if place != NOT_KEPT]
        self._end[row] = NOT_KEPT

    def _grow(self) -> None:
        old = len(next(iter(self._ends.values())))
        more = max(GROWTH, old // 4)
        for key, array in self._ends.items():
            self._ends[key] = np.concatenate([array, np.zeros((more, *array.shape[1:]), array.dtype)])
        self._free += list(range(old, old + more))

    def _fits(self, path: str | Path, found: Arrays, size: int) -> None:
        ours = {name: getattr(self, name)[:size] for name in ("actions", *SCALARS, "_end")}
        ours |= {f"observations/{key}": array[:size] for key, array in self.observations.items()}
        for name, array in ours.items():
            came = found[name]
            if (came.shape, came.dtype) != (array.shape, array.dtype):
                raise InvalidInput(
                    f"{path} holds {name} {came.dtype} {came.shape}; this buffer has {array.dtype} {array.shape}:"
                    " make it for the same spaces, size and number of environments"
                )
        last = found["_end"].max(initial=NOT_KEPT)
        for key, array in self._ends.items():
            came = found[f"ends/{key}"]
            if (came.shape[1:], came.dtype) != (array.shape[1:], array.dtype) or last >= len(came):
                raise ValueError(f"the ends of {key} are {came.dtype} {came.shape}")


def _must_fit(each: int, count: int) -> None:
    """The system gives more memory than there is, and ends the process once the buffer has filled it."""
    free = free_memory()
    if free is not None and each * count > free:
        raise InvalidInput(
            f"{count} steps of {each} bytes are {each * count / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are"
            f" free: buffer_size={free // each} or less (--learn.buffer), or fewer components (--sight.components)"
        )


def kept_dtypes(observation_space: spaces.Dict, half: Sequence[str] = ()) -> dict[str, np.dtype[Any]]:
    """What a replay buffer keeps each key as.

    Raises:
        UnknownName: a key in `half` that is not observed.
    """
    for key in half:
        if key not in observation_space.spaces:
            raise UnknownName("observation", key, observation_space.spaces)
    return {key: np.dtype(np.float16 if key in half else space.dtype) for key, space in observation_space.items()}


def transition_bytes(
    observation_space: spaces.Dict, action_space: spaces.Space[Any], *, half: Sequence[str] | None = None
) -> int:
    """Bytes of one step of one environment in a replay buffer, exactly.

    Args:
        half: for a `FeatureReplayBuffer`, its argument of that name; None for a `DictReplayBuffer`. What episodes end
            with is another observation each in the former.
    """
    shapes, dtypes = _preprocessing.get_obs_shape(observation_space), kept_dtypes(observation_space, half or ())
    looks = sum(int(np.prod(shapes[key])) * dtypes[key].itemsize for key in dtypes)
    action = np.dtype(_buffers.ReplayBuffer._maybe_cast_dtype(action_space.dtype))
    actions = int(_preprocessing.get_action_dim(action_space)) * action.itemsize
    return looks * (2 if half is None else 1) + actions + 4 * len(SCALARS) + (0 if half is None else 4)
