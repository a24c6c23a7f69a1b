"""Demonstrations on disk, in robomimic's HDF5 layout, so that its tools read ours and we read its files.

    data                .attrs: total (steps), env_args (JSON: how to make the env again)
    data/demo_k         .attrs: num_samples, seed, success
      obs/<camera>_image    uint8  (L, H, W, 3)    one dataset a camera, chunks of a few rows over SPAN steps
      obs/proprioception, obs/goal (optional), actions, executed_actions, rewards, dones, states (optional)
    mask/train, mask/valid  names of demos
    s2robot_episodes        attributes of every demo once more: all lists come first, so that a cut file still has them

The fields are `s2robot.episodes`' own. Collecting writes every finished episode as a file (`EpisodeParts`);
`merge` makes one dataset of them. Frames have gzip's first level, which h5py brings, so that robomimic reads it, over
chunks in which what stood still for SPAN steps is stored once: a standing camera's frames come to 0.11 of their size,
the wrist's to 0.37 (a frame a chunk, 0.37 both; lzf, as quick, 0.52; on three episodes of Lift at 256 px). Every row
has a checksum, every episode a digest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from s2robot import locks, remote, seals
from s2robot.episodes import FIELDS, Episode, hold_alike, number_problem, split_episodes
from s2robot.errors import CorruptFile, InvalidInput
from s2robot.files import atomic, reserve, sweep
from s2robot.merging import LISTED, copy_episodes, header_digest, read_list, write_lists
from s2robot.packed import check_rows, pack, read_steps
from s2robot.parts import HDF5_FORMAT, PLACES, EpisodeParts, check_digest, in_memory, reading, text
from s2robot.remains import find_lost, open_hdf5
from s2robot.stored import StoredEpisode

CACHE = 8 << 20  # bytes a camera: one span of steps stays unpacked while its frames are read one by one
_log = logging.getLogger(__name__)

__all__ = ["DemoDataset", "Episode", "EpisodeParts", "StoredEpisode", "merge", "write_dataset"]

ROBOMIMIC_PROPRIOCEPTION = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


def merge(
    parts: EpisodeParts,
    path: str | Path,
    env_args: Mapping[str, Any],
    camera_names: Sequence[str],
    seeds: Sequence[int] | None = None,
    *,
    valid_fraction: float = 0.1,
) -> DemoDataset:
    """Make one dataset of the parts, in the order of `seeds` (default: all, ascending), then remove the parts.

    The same episodes give the same content, whoever collected them and in whatever order.
    """
    path, done = Path(path), parts.seeds_done()
    seeds = done if seeds is None else list(seeds)
    if not seeds or len(set(seeds)) != len(seeds) or not set(seeds) <= set(done):
        raise InvalidInput(
            f"Cannot merge seeds {seeds} of {parts.folder}; expected some of those done, each once: {done}."
            f" Missing: {sorted(set(seeds) - set(done))}. Collect first"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    with atomic(path) as temporary:
        temporary.write_bytes(in_memory(lambda file: None))
        # HDF5 crashes on a full disk, so it gets its space beforehand. Chunks are copied as they are and every part
        # brings headers of its own, so this is more than the merged file needs; closing it gives the rest back.
        reserve(temporary, sum(parts.path(seed).stat().st_size + 4096 for seed in seeds) + (1 << 20))
        with h5py.File(temporary, "r+", **HDF5_FORMAT) as file:
            write_lists(file, parts, seeds, dict(env_args), list(camera_names), valid_fraction)
            copy_episodes(file["data"], parts, seeds, list(camera_names))
    parts.remove()
    return DemoDataset(path)


def write_dataset(
    path: str | Path, episodes: Iterable[Episode], env_args: Mapping[str, Any], camera_names: Sequence[str]
) -> DemoDataset:
    """Write episodes that are at hand, in the order given, to a new file.

    Args:
        env_args: what is known of how they were made, e.g. {"task": "Lift", "robot": "Panda", "control_hz": 20}.
        camera_names: of their views V, in order.

    Raises:
        InvalidInput: the file is there, there are no episodes, their seeds do not differ, or one does not fit the
            others; or a collection into this file was begun, and would be lost.
        Occupied: another process writes it.
    """
    path = Path(path)
    if isinstance(camera_names, str):
        raise InvalidInput(f"camera_names is {camera_names!r}; expected a name for each view, e.g. [{camera_names!r}]")
    if len(set(camera_names)) < len(camera_names):
        raise InvalidInput(f"camera_names are {list(camera_names)}; expected each once")
    if path.exists():
        raise InvalidInput(f"{path} is there already. Write into another file, or remove it: rm {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.alone(path.with_name(f".{path.name}.lock"), str(path)):
        parts = EpisodeParts(f"{path}.parts")
        if parts.is_held:
            raise InvalidInput(
                f"{parts.folder} holds episodes of an unfinished collection into {path}. Finish it, choose another"
                f" file, or give it up: rm -r {parts.folder}"
            )
        seeds: dict[int, None] = {}  # in the order given
        shapes: dict[str, tuple[int, ...]] = {}
        try:
            for episode in episodes:
                if not isinstance(episode, Episode):
                    raise InvalidInput(
                        f"Episode {len(seeds)} is a {type(episode).__name__}; expected s2robot's Episode"
                    )
                if episode.seed in seeds:
                    raise InvalidInput(
                        f"Two episodes have the seed {episode.seed}; expected one each, by which they go"
                    )
                hold_alike(episode, camera_names, shapes)
                parts.write(episode)
                seeds[episode.seed] = None
            if not seeds:
                raise InvalidInput(f"No episodes were given for {path}")
            return merge(parts, path, env_args, camera_names, list(seeds))
        except BaseException:
            parts.remove()
            raise


class DemoDataset:
    """A file of demonstrations, ours or robomimic's, read lazily. It may be pickled, and used after a fork.

    Of one that was cut short all episodes are listed; those in `lost` cannot be read, the others are whole.
    """

    _REPAIR = "s2robot convert {path} --to s2robot --out {out}"  # leaves out what is damaged

    def __init__(self, path: str | Path) -> None:
        """Open `path` for reading; behind an address such as s3://bucket/a.hdf5 it is fetched first (`s2robot.remote`).

        Raises:
            InvalidInput: there is no such file.
            CorruptFile: it is no dataset, is damaged, has no camera images, or was cut short in its first episode.
        """
        self.address = str(path)
        self.path = remote.local(path)
        if self.path.is_dir():
            raise InvalidInput(
                f"{path} is a folder, not a file of demonstrations. Those in it: s2robot list datasets {path}"
            )
        if not self.path.is_file():
            out = path if self.path.suffix else "runs/demos.hdf5"
            raise InvalidInput(f"No demonstrations at {path}. Make some: s2robot collect Lift --out {out}")
        seals.check_sum(self.path, "Restore it from a copy")
        self._handle: tuple[int, h5py.File] | None = None
        with self._reading("the file"):
            data = self._file["data"]
            self._names = sorted(data, key=lambda name: (int("0" + re.sub(r"\D", "", name)), name))
            if not self._names:
                raise ValueError("it has no episodes")
            self.env_args: dict[str, Any] = json.loads(data.attrs.get("env_args", "{}"))
            self._digest = text(data.attrs.get("s2robot_digest", ""))
            self.lost = find_lost(data, self._names, self.path.stat().st_size)
            self.first = next(k for k in range(len(self)) if k not in self.lost)  # the first that is whole
            self._attributes = self._find_attributes()
            self.lengths = tuple(int(found["num_samples"]) for found in self._attributes)
            if not self._digest:  # edited, and its mark dropped: what was said of its episodes holds no more
                self._attributes = [{**found, "s2robot_digest": b""} for found in self._attributes]
            self._digests = [text(found.get("s2robot_digest", "")) for found in self._attributes]
            self.cameras = tuple(json.loads(data.attrs.get("s2robot_cameras", "null")) or self._find_cameras())
            self._check_header()
            self.frame_shape = self._find_frame_shape()  # V H W 3
        self._warn()

    def _find_attributes(self) -> list[dict[str, Any]]:
        """What is said of every episode; of one that is lost, what the list at the beginning of our files says."""
        listed = read_list(self._file) if self._digest else {}
        for k, name in enumerate(self._names):
            if name not in listed and k not in self.lost:
                demo = self._file["data"][name]
                listed[name] = {key: demo.attrs[key] for key in LISTED if key in demo.attrs}
                listed[name]["num_samples"] = _length(demo)
        return [listed.get(name, {"num_samples": 0}) for name in self._names]

    def _warn(self) -> None:
        if self.lost:
            names = ", ".join(self._names[k] for k in self.lost[:3]) + (", ..." if len(self.lost) > 3 else "")
            _say_once(
                f"{self.path} was cut short: {len(self.lost)} of its {len(self)} episodes are lost ({names})."
                f" Make a clean file of the rest: {self._repair()}"
            )

    def _repair(self) -> str:
        """The command that makes a clean file of what is whole."""
        paths = (self.path, self.path.with_name(f"{self.path.stem}-rest.hdf5"))
        return self._REPAIR.format(path=shlex.quote(str(paths[0])), out=shlex.quote(str(paths[1])))

    def _find_cameras(self) -> list[str]:
        obs = self._group(self.first).get("obs", {})
        return [key.removesuffix("_image") for key in sorted(obs) if key.endswith("_image")]

    def _find_frame_shape(self) -> tuple[int, ...]:
        obs = self._group(self.first).get("obs", {})
        if not self.cameras or f"{self.cameras[0]}_image" not in obs:
            raise CorruptFile(
                self.path,
                f"it has no camera images; its observations are {', '.join(sorted(obs)) or 'none'}",
                f"Draw them from its states: s2robot render {self.path} --out NEW.hdf5",
            )
        sizes = {
            camera: tuple(obs[f"{camera}_image"].shape[1:3]) for camera in self.cameras if f"{camera}_image" in obs
        }
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{camera} {'x'.join(map(str, size))}" for camera, size in sizes.items())
            raise InvalidInput(
                f"The cameras of {self.path} differ in size ({told}); expected one. Draw them again from its states:"
                f" s2robot render {shlex.quote(str(self.path))} --frame_size {min(min(sizes.values()))} --out NEW.hdf5"
            )
        return (len(self.cameras), *obs[f"{self.cameras[0]}_image"].shape[1:])

    def _check_header(self) -> None:
        if self._digest and self._digest != header_digest(self.env_args, self.cameras, self.lengths, self._digests):
            raise CorruptFile(
                self.path,
                "its header does not fit its episodes: damaged, or edited since it was written",
                'Collect it again. To use an edited file as it is, drop the mark: python -c "import h5py;'
                f" del h5py.File('{self.path}', 'a')['data'].attrs['s2robot_digest']\"",
            )

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[StoredEpisode]:
        return (self.episode(k) for k in range(len(self)))

    def __reduce__(self) -> tuple[type[DemoDataset], tuple[str | Path]]:
        return type(self), (self.address if remote.is_remote(self.address) else self.path,)

    @property
    def total(self) -> int:
        """Steps in all episodes together."""
        return sum(self.lengths)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 that changes with the content. Cheap for our own files: digests were taken at writing."""
        for k in range(len(self)):
            with self._reading_episode(k):
                self._frame_datasets(k)  # the shapes are what the header says
        return self._digest or seals.digest(self.path)

    def episode(self, k: int) -> StoredEpisode:
        """Episode `k`; its arrays are read when asked for."""
        if not 0 <= k < len(self):
            raise InvalidInput(f"No episode {k} in {self.path}; it has 0 to {len(self) - 1}")
        return StoredEpisode(self, k)

    def name(self, k: int) -> str:
        """What the file calls episode `k`, e.g. demo_0."""
        self.episode(k)
        return str(self._names[k])

    def frames(self, k: int, steps: int | slice | Sequence[int] | NDArray[Any] | None = None) -> NDArray[np.uint8]:
        """Frames of some steps of episode `k`, in the order asked (default: all).  (n, V, H, W, 3)"""
        length = len(self.episode(k))
        with self._reading_episode(k):
            stored = self._frame_datasets(k)
            try:
                wanted = np.atleast_1d(np.arange(length)[slice(None) if steps is None else steps])  # (n,)
            except (IndexError, TypeError) as error:
                raise InvalidInput(f"Steps {steps!r} asked of episode {k}, which has 0 to {length - 1}") from error
            out = read_steps(stored, wanted)
            for view, images in enumerate(stored):
                self._check_rows(images, out[:, view], wanted)
        return out

    def packed(self, k: int) -> bytes:
        """All frames of episode `k` for `s2robot.packed.PackedFrames`, which need not be where this file is."""
        with self._reading_episode(k):
            return pack(self._frame_datasets(k), checked=bool(self._digest))

    def field(self, k: int, name: str, *, any_range: bool = False) -> NDArray[Any]:
        """Any field of episode `k` but its frames, whole and checked; what robomimic lacks is made up for."""
        dtype, axes = FIELDS[name]
        with self._reading_episode(k):
            group = self._group(k)
            if PLACES[name] in group:
                value = group[PLACES[name]][()]
                self._check_rows(group[PLACES[name]], value)
            elif name == "proprioception":
                value = np.concatenate([group["obs"][key][()] for key in ROBOMIMIC_PROPRIOCEPTION], axis=1)
            elif name == "rewards":
                value = np.zeros(self.lengths[k])
            else:  # without noise, what was executed is what was labelled
                value = group["actions" if name == "executed_actions" else PLACES[name]][()]
            with np.errstate(over="ignore"):  # what overflows becomes infinite, and is found below
                value = np.asarray(value, dtype)
            if value.ndim != len(axes) or len(value) != self.lengths[k]:
                raise ValueError(f"{name} is {value.shape}; expected {self.lengths[k]} rows, ({', '.join(axes)})")
            if problem := number_problem(name, value, any_range=any_range):
                raise ValueError(f"{name} {problem}")
            return value

    def attribute(self, k: int, name: str) -> Any:
        """An attribute of episode `k`, or None; of an episode that is lost too, where our files list it."""
        if name in LISTED:
            return self._attributes[k].get(name)
        with self._reading_episode(k):
            return self._group(k).attrs.get(name)

    def has(self, k: int, name: str) -> bool:
        """Is field `name` of episode `k` in the file itself?"""
        with self._reading_episode(k):
            return PLACES[name] in self._group(k)

    def about(self, k: int) -> tuple[Path, str, str]:
        """What an error says of episode `k`: the file, the episode, the way out."""
        remedy = f"Restore it from a copy, or make a clean file of the rest: {self._repair()}"
        return self.path, f"episode {self._names[k]}", remedy

    def verify(self) -> None:
        """Read everything and hold every episode against its digest: a thorough check, after copying for instance.

        Raises:
            CorruptFile: names the first episode that is not what was written.
        """
        for k, known in enumerate(self._digests):
            episode = self.episode(k).load()
            with self._reading_episode(k):
                check_digest(episode, known or episode.digest())

    def split(self, valid_fraction: float = 0.1, seed: int = 0) -> tuple[list[int], list[int]]:
        """Episode indices for (training, validation), dealt by whole episodes."""
        return split_episodes(len(self), valid_fraction, seed)

    def close(self) -> None:
        """Close the file until the next read. robomimic asks for SWMR, so it cannot open a file that is open here."""
        if self._handle is not None and self._handle[0] == os.getpid():
            self._handle[1].close()
        self._handle = None

    @property
    def _file(self) -> h5py.File:
        if self._handle is None or self._handle[0] != os.getpid():  # an HDF5 handle must not be shared over a fork
            self._handle = (os.getpid(), open_hdf5(self.path, rdcc_nbytes=CACHE))
        return self._handle[1]

    def _group(self, k: int) -> h5py.Group:
        if k in self.lost:
            raise ValueError("it was lost when the file was cut short")
        return self._file["data"][self._names[k]]

    def _frame_datasets(self, k: int) -> list[h5py.Dataset]:
        expected, obs = (self.lengths[k], *self.frame_shape[1:]), self._group(k)["obs"]
        found = [obs[f"{camera}_image"] for camera in self.cameras]
        for camera, images in zip(self.cameras, found, strict=True):
            if images.dtype != np.uint8 or images.shape != expected or images.shape[-1:] != (3,):
                raise ValueError(f"{camera}_image is {images.dtype} {images.shape}; expected uint8 RGB {expected}")
        return found

    def _check_rows(self, stored: h5py.Dataset, values: NDArray[Any], rows: Any = slice(None)) -> None:
        if self._digest:
            check_rows(stored, values, rows)

    def _reading(self, what: str) -> contextlib.AbstractContextManager[None]:
        return reading(self.path, what, "Restore it from a copy, or collect it again")

    def _reading_episode(self, k: int) -> contextlib.AbstractContextManager[None]:
        return reading(*self.about(k))


def _length(demo: h5py.Group) -> int:
    """Steps of an episode; robosuite's own recordings do not say. 0 for one that a killed recording left empty."""
    return int(demo.attrs.get("num_samples", 0) or (len(demo["actions"]) if "actions" in demo else 0))


@cache
def _say_once(warning: str) -> None:
    """Files are opened again and again, and by worker processes too."""
    if multiprocessing.parent_process() is None:
        _log.warning(warning)
