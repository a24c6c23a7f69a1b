"""Demonstrations on disk, in robomimic's HDF5 layout, so that its tools read ours and we read its files.

    data                .attrs: total (steps), env_args (JSON: how to make the env again)
    data/demo_k         .attrs: num_samples, seed, success
      obs/<camera>_image    uint8  (L, H, W, 3)    one dataset a camera, chunks of a few rows over SPAN steps
      obs/proprioception, obs/goal (optional), actions, executed_actions, rewards, dones, states (optional)
    mask/train, mask/valid  names of demos

The fields are `s2robot.episodes`' own. Collecting writes every finished episode as a file (`EpisodeParts`);
`merge` makes one dataset of them. Frames have gzip's first level, which h5py brings, so that robomimic reads it, over
chunks in which what stood still for SPAN steps is stored once: a standing camera's frames come to 0.11 of their size,
the wrist's to 0.37 (a frame a chunk, 0.37 both; lzf, as quick, 0.52; on three episodes of Lift at 256 px). Every row
has a checksum, every episode a digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from s2robot.episodes import FIELDS, Episode, number_problem, split_episodes
from s2robot.errors import CorruptFile, InvalidInput
from s2robot.files import atomic, plain, reserve, sweep
from s2robot.parts import (
    HDF5_FORMAT,
    PLACES,
    ROW_CHECKSUMS,
    SPAN,
    EpisodeParts,
    check_digest,
    in_memory,
    read_part,
    reading,
    row_checksums,
    text,
)
from s2robot.stored import StoredEpisode

CACHE = 8 << 20  # bytes a camera: one span of steps stays unpacked while its frames are read one by one

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
            _merge_into(file, parts, seeds, dict(env_args), list(camera_names))
            _write_mask(file, len(seeds), valid_fraction)
    parts.remove()
    return DemoDataset(path)


def write_dataset(
    path: str | Path, episodes: Iterable[Episode], env_args: Mapping[str, Any], camera_names: Sequence[str]
) -> DemoDataset:
    """Write episodes that are at hand, in the order given; their seeds must differ."""
    parts = EpisodeParts(f"{path}.parts")
    seeds = []
    for episode in episodes:
        parts.write(episode)
        seeds.append(episode.seed)
    return merge(parts, path, env_args, camera_names, seeds)


class DemoDataset:
    """A file of demonstrations, ours or robomimic's, read lazily. It may be pickled, and used after a fork."""

    def __init__(self, path: str | Path) -> None:
        """Open `path` for reading.

        Raises:
            InvalidInput: there is no such file.
            CorruptFile: it is no dataset, is damaged, or has no camera images.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise InvalidInput(f"No demonstrations at {path}. Make some: s2robot collect Lift --out {path}")
        self._handle: tuple[int, h5py.File] | None = None
        with self._reading("the file"):
            data = self._file["data"]
            self._names = sorted(data, key=lambda name: (int("0" + re.sub(r"\D", "", name)), name))
            if not self._names:
                raise ValueError("it has no episodes")
            self.lengths = tuple(_length(data[name]) for name in self._names)
            self.env_args: dict[str, Any] = json.loads(data.attrs.get("env_args", "{}"))
            self._digests = [text(data[name].attrs.get("s2robot_digest", "")) for name in self._names]
            self._digest = text(data.attrs.get("s2robot_digest", ""))
            self.cameras = tuple(json.loads(data.attrs.get("s2robot_cameras", "null")) or self._find_cameras())
            self._check_header()
            self.frame_shape = self._find_frame_shape()  # V H W 3

    def _find_cameras(self) -> list[str]:
        return [key.removesuffix("_image") for key in sorted(self._group(0).get("obs", {})) if key.endswith("_image")]

    def _find_frame_shape(self) -> tuple[int, ...]:
        obs = self._group(0).get("obs", {})
        if not self.cameras or f"{self.cameras[0]}_image" not in obs:
            raise CorruptFile(
                self.path,
                f"it has no camera images; its observations are {', '.join(sorted(obs)) or 'none'}",
                f"Draw them from its states: s2robot render {self.path} --out NEW.hdf5",
            )
        return (len(self.cameras), *obs[f"{self.cameras[0]}_image"].shape[1:])

    def _check_header(self) -> None:
        if self._digest and self._digest != _header_digest(self.env_args, self.cameras, self.lengths, self._digests):
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

    def __reduce__(self) -> tuple[type[DemoDataset], tuple[Path]]:
        return type(self), (self.path,)

    @property
    def total(self) -> int:
        """Steps in all episodes together."""
        return sum(self.lengths)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 that changes with the content. Cheap for our own files: digests were taken at writing."""
        if not self._digest:
            return _file_digest(self.path)
        for k in range(len(self)):
            with self._reading_episode(k):
                self._frame_datasets(k)  # the shapes are what the header says
        return self._digest

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
        try:
            wanted = np.atleast_1d(np.arange(length)[slice(None) if steps is None else steps])  # (n,)
        except (IndexError, TypeError) as error:
            raise InvalidInput(f"Steps {steps!r} asked of episode {k}, which has 0 to {length - 1}") from error
        out = np.empty((len(wanted), *self.frame_shape), np.uint8)
        with self._reading_episode(k):
            for view, images in enumerate(self._frame_datasets(k)):
                if len(wanted) and np.ptp(wanted) < SPAN * len(wanted):  # one read is quicker than many
                    first = wanted.min()
                    out[:, view] = images[first : wanted.max() + 1][wanted - first]
                else:
                    for row, step in enumerate(wanted):
                        out[row, view] = images[step]
                self._check_rows(images, out[:, view], wanted)
        return out

    def field(self, k: int, name: str) -> NDArray[Any]:
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
            if problem := number_problem(name, value):
                raise ValueError(f"{name} {problem}")
            return value

    def attribute(self, k: int, name: str) -> Any:
        """An attribute of episode `k`, or None."""
        with self._reading_episode(k):
            return self._group(k).attrs.get(name)

    def has(self, k: int, name: str) -> bool:
        """Is field `name` of episode `k` in the file itself?"""
        with self._reading_episode(k):
            return PLACES[name] in self._group(k)

    def verify(self) -> None:
        """Read everything and hold every episode against its digest: a thorough check, after copying for instance.

        Raises:
            CorruptFile: names the first episode that is not what was written.
        """
        for k, digest in enumerate(self._digests):
            episode = self.episode(k).load()
            with self._reading_episode(k):
                check_digest(episode, digest or episode.digest())

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
            self._handle = (os.getpid(), h5py.File(self.path, "r", rdcc_nbytes=CACHE))
        return self._handle[1]

    def _group(self, k: int) -> h5py.Group:
        return self._file["data"][self._names[k]]

    def _frame_datasets(self, k: int) -> list[h5py.Dataset]:
        expected, obs = (self.lengths[k], *self.frame_shape[1:]), self._group(k)["obs"]
        found = [obs[f"{camera}_image"] for camera in self.cameras]
        for camera, images in zip(self.cameras, found, strict=True):
            if images.dtype != np.uint8 or images.shape != expected or images.shape[-1:] != (3,):
                raise ValueError(f"{camera}_image is {images.dtype} {images.shape}; expected uint8 RGB {expected}")
        return found

    def _check_rows(self, stored: h5py.Dataset, values: NDArray[Any], rows: Any = slice(None)) -> None:
        if self._digest and not np.array_equal(stored.attrs[ROW_CHECKSUMS][rows], row_checksums(values)):
            raise ValueError(f"{stored.name} is not what was written")

    def _reading(self, what: str) -> contextlib.AbstractContextManager[None]:
        return reading(self.path, what, "Restore it from a copy, or collect it again")

    def _reading_episode(self, k: int) -> contextlib.AbstractContextManager[None]:
        return self._reading(f"episode {self._names[k]}")


def _merge_into(
    file: h5py.File, parts: EpisodeParts, seeds: Sequence[int], env_args: dict[str, Any], cameras: list[str]
) -> None:
    data = file.create_group("data")
    shapes: dict[str, tuple[int, ...]] = {}
    digests, lengths = [], []
    for k, seed in enumerate(seeds):
        with parts.open(seed) as part:
            episode = read_part(part)  # so that damage shows while the episode can still be collected again
            found = {name: value.shape[1:] for name, value in episode.arrays().items()}
            shapes = shapes or found
            if found != shapes or found["frames"][0] != len(cameras):
                raise InvalidInput(
                    f"Episode of seed {seed} has shapes {found}; expected those of seed {seeds[0]}, {shapes}, and a"
                    f" view for each of the cameras {cameras}. Collect all anew, in one setting: rm -r {parts.folder}"
                )
            _copy_part(part, data.create_group(f"demo_{k}"), cameras)
            digests.append(text(part.attrs["s2robot_digest"]))
            lengths.append(len(episode))
    env_args = {"type": 1, "env_kwargs": {}} | env_args  # type 1 is robosuite, for robomimic
    data.attrs["total"] = sum(lengths)
    # Text of fixed length: HDF5 keeps other text in a heap without checksums, and may read a damaged one for ever.
    data.attrs["env_args"] = np.bytes_(json.dumps(plain(env_args), sort_keys=True))
    data.attrs["s2robot_cameras"] = np.bytes_(json.dumps(cameras))
    data.attrs["s2robot_digest"] = np.bytes_(_header_digest(plain(env_args), cameras, lengths, digests))


def _copy_part(part: h5py.Group, demo: h5py.Group, cameras: Sequence[str]) -> None:
    """Copy chunks as they are: nothing is compressed twice."""
    obs = demo.create_group("obs")
    for view, camera in enumerate(cameras):
        part.copy(f"obs/{view}", obs, f"{camera}_image")
    for name in ("proprioception", "goal"):
        if name in part["obs"]:
            part.copy(f"obs/{name}", obs)
    for name in part:
        if name != "obs":
            part.copy(name, demo)
    for name, value in part.attrs.items():
        demo.attrs[name] = value


def _write_mask(file: h5py.File, count: int, valid_fraction: float) -> None:
    for name, demos in zip(("train", "valid"), split_episodes(count, valid_fraction, seed=0), strict=True):
        file.create_dataset(f"mask/{name}", data=np.array([f"demo_{k}" for k in demos], dtype="S"))


def _header_digest(
    env_args: Mapping[str, Any], cameras: Sequence[str], lengths: Sequence[int], digests: Sequence[str]
) -> str:
    header = json.dumps(["s2robot demonstrations 1", env_args, [*cameras], [*lengths], [*digests]], sort_keys=True)
    return hashlib.sha256(header.encode()).hexdigest()


def _length(demo: h5py.Group) -> int:
    """Steps of an episode; robosuite's own recordings do not say. 0 for one that a killed recording left empty."""
    return int(demo.attrs.get("num_samples", 0) or (len(demo["actions"]) if "actions" in demo else 0))


def _file_digest(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
