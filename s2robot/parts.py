"""Finished episodes of a collection under way: one small HDF5 file each, named by seed.

A killed collection loses only the episode it was in; the next run asks `seeds_done()` and goes on. When all are
there, `s2robot.datasets.merge` copies their compressed chunks as they are into one dataset.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from s2robot.episodes import FIELDS, Episode
from s2robot.errors import CorruptFile, InvalidInput, S2RobotError, in_words
from s2robot.files import atomic, is_full_disk, plain, read_json, sweep, temporary_of, write_json

HDF5_FORMAT: dict[str, Any] = {"libver": ("v110", "v110")}  # read by HDF5 >= 1.10 (2016); its metadata has checksums
PLACES = {name: name for name in FIELDS if name != "frames"} | {
    name: f"obs/{name}" for name in ("proprioception", "goal")
}
ROW_CHECKSUMS = "s2robot_crc32"
SPAN = 8  # steps in one chunk of frames; with four rows of pixels gzip's window of 32 KiB holds what did not move
_ROWS = 4
_FRAME_FILTERS: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "fletcher32": True}
DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)
"""What h5py and numpy raise on a damaged file."""


class EpisodeParts:
    """Finished episodes of a collection under way, one file each, named by seed.

    A killed collection loses only the episode it was in. The next run asks `seeds_done()` and goes on.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None = None) -> None:
        """`settings` (task, sizes, noise, ...) stay with the parts: a run with others is refused, not mixed in."""
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        if settings is not None:
            self._hold_to(json.loads(json.dumps(plain(settings))))

    def _hold_to(self, settings: dict[str, Any]) -> None:
        path, done = self.folder / "settings.json", self.seeds_done()
        if not done:  # nothing was made by what it says
            write_json(path, settings)
            return
        if not path.exists():
            raise InvalidInput(
                f"{self.folder} holds {len(done)} episodes of nobody knows what: it says no settings. Remove it, or"
                f" write elsewhere: rm -r {self.folder}"
            )
        kept = read_json(path, remedy=f"Start the collection afresh: rm -r {self.folder}")
        if kept != settings:
            names = sorted(name for name in {*kept, *settings} if kept.get(name) != settings.get(name))
            changes = ", ".join(f"{name}: {kept.get(name)!r} there, {settings.get(name)!r} now" for name in names)
            raise InvalidInput(
                f"{self.folder} holds episodes of an unfinished collection with other settings ({changes})."
                f" Finish it with those, or start afresh: rm -r {self.folder}"
            )

    @property
    def is_held(self) -> bool:
        """Are they of a collection, which said how it is made?"""
        return (self.folder / "settings.json").exists()

    def path(self, seed: int) -> Path:
        """Where the episode of `seed` is or will be."""
        return self.folder / f"seed-{seed}.hdf5"

    def seeds_done(self) -> list[int]:
        """Seeds whose episodes are safely on disk, ascending."""
        names = (re.fullmatch(r"seed-(\d+)\.hdf5", path.name) for path in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def write(self, episode: Episode, texts: Mapping[str, str] | None = None) -> None:
        """Put one finished episode on disk, whole or not at all; `texts` become attributes of its group."""
        self.keep(episode.seed, pack_episode(episode, texts))

    def keep(self, seed: int, image: bytes) -> None:
        """Put on disk what `pack_episode` made of the episode of `seed`."""
        with atomic(self.path(seed)) as temporary:
            temporary.write_bytes(image)

    def read(self, seed: int) -> Episode:
        """Read one episode back and hold it against its digest."""
        with self.open(seed) as group:
            return read_part(group)

    def successes(self) -> dict[int, bool]:
        """For every seed done, whether its episode succeeded. Quick: no frames are read."""
        found = {}
        for seed in self.seeds_done():
            with self.open(seed) as group:
                found[seed] = bool(group.attrs["success"])
        return found

    def texts(self, seed: int) -> set[str]:
        """What was written beside the episode of `seed`, by name."""
        with self.open(seed) as group:
            return set(group.attrs)

    @contextlib.contextmanager
    def open(self, seed: int) -> Iterator[h5py.Group]:
        """The open group of one episode; what is damaged in it becomes `CorruptFile`."""
        path = self.path(seed)
        if not path.exists():
            raise InvalidInput(f"No episode of seed {seed} in {self.folder}. Seeds done: {self.seeds_done()}")
        remedy = f"Collect again, it is made anew, after: rm {path}"
        with reading(path, f"the episode of seed {seed}", remedy), h5py.File(path, "r") as file:
            yield file["episode"]

    @contextlib.contextmanager
    def none_left_empty(self) -> Iterator[None]:
        """Remove the folder where what happens inside fails before one episode is done: nothing was begun."""
        try:
            yield
        except BaseException:
            if not self.seeds_done():
                self.remove()
            raise

    def remove(self) -> None:
        """Remove all parts; the folder goes in one move, so a kill in here leaves no half of a collection."""
        doomed = temporary_of(self.folder)
        self.folder.replace(doomed)
        shutil.rmtree(doomed)


def pack_episode(episode: Episode, texts: Mapping[str, str] | None = None) -> bytes:
    """The file of one finished episode, as a worker hands it over."""
    episode.validate()
    return in_memory(lambda file: _write_episode(file.create_group("episode"), episode, texts or {}))


def in_memory(fill: Callable[[h5py.File], None]) -> bytes:
    """An HDF5 file as bytes: Python writes them, for HDF5 itself crashes the interpreter on a full disk.

    Not by HDF5's own driver for memory: what that of h5py before 3.16 gives back cannot be read.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", **HDF5_FORMAT) as file:
        fill(file)
    return buffer.getvalue()


def _write_episode(group: h5py.Group, episode: Episode, texts: Mapping[str, str]) -> None:
    """Write a part: the layout of a demo, but with numbers for camera names."""
    for view in range(episode.frames.shape[1]):
        images = episode.frames[:, view]  # (L, H, W, 3)
        chunks = (min(SPAN, len(images)), min(_ROWS, images.shape[1]), *images.shape[2:])
        dataset = group.create_dataset(f"obs/{view}", data=images, chunks=chunks, **_FRAME_FILTERS)
        dataset.attrs[ROW_CHECKSUMS] = row_checksums(images)
    dones = np.arange(len(episode)) == len(episode) - 1  # (L,)
    arrays = {PLACES[name]: value for name, value in episode.arrays().items() if name != "frames"}
    for name, value in (arrays | {"dones": dones.astype(np.int64)}).items():
        dataset = group.create_dataset(name, data=value, chunks=value.shape, fletcher32=True)
        dataset.attrs[ROW_CHECKSUMS] = row_checksums(value)
    group.attrs["num_samples"] = len(episode)
    group.attrs["seed"] = episode.seed
    group.attrs["success"] = bool(episode.success)
    group.attrs["s2robot_digest"] = np.bytes_(episode.digest())
    for name, value in texts.items():
        group.attrs[name] = np.bytes_(value.encode())


def read_part(group: h5py.Group) -> Episode:
    views = sum(name.isdigit() for name in group["obs"])
    frames = np.stack([group[f"obs/{view}"][()] for view in range(views)], axis=1)
    fields = {name: group[place][()] for name, place in PLACES.items() if place in group}
    episode = Episode(int(group.attrs["seed"]), bool(group.attrs["success"]), frames, **fields)
    check_digest(episode, text(group.attrs["s2robot_digest"]))
    return episode


def row_checksums(values: NDArray[Any]) -> NDArray[np.uint32]:
    """crc32 of every row. HDF5's own checksum of a chunk takes a hole, all zeros, for whole."""
    return np.array([zlib.crc32(np.ascontiguousarray(row).data) for row in values], np.uint32)


def check_digest(episode: Episode, digest: str) -> None:
    if episode.digest() != digest:
        raise ValueError("its content is not what was written")


def text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@contextlib.contextmanager
def reading(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Whatever h5py or numpy stumble over inside becomes `CorruptFile`."""
    try:
        yield
    except S2RobotError:
        raise
    except DAMAGE as error:
        if is_full_disk(error):
            raise
        reason = in_words(error) or type(error).__name__
        raise CorruptFile(path, f"{what} is damaged or no demonstration ({reason})", f"{remedy}.") from error
