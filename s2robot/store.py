"""Features on disk: encode a dataset once, then train any number of policies on it in seconds.

    <root>/<16 hex>/        named by what decides the numbers, so stale features cannot be
      map.npy               float16 (F, V, D*S, h, w)    one row an encoded step, episodes one after another; beyond a
                                                         gigabyte in several files, see `s2robot.shards`
      cls.npy               float16 (F, V, D*S)
      index.json            each row's episode and step; encoder, dataset, stride, shapes
      journal.jsonl         episodes whose rows are safely on disk, with their sha256
      done                  empty, written last

A run that was killed at any moment goes on from its journal. The bits do not depend on the number of workers.
Augmented versions of the frames (`s2robot.augment`) are stores of their own beside the plain one, with the same rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from s2robot import locks, remote
from s2robot.augment import Augmentation
from s2robot.datasets import DemoDataset
from s2robot.encoding import Task, encode_episodes, half_bytes, refuse_to_start_in_a_starting_process
from s2robot.errors import CorruptFile, InvalidInput
from s2robot.files import JsonLines, atomic, plain, read_json, read_jsonl, reserve, sweep, write_json
from s2robot.launchers import Launcher
from s2robot.shards import Sharded, cut, shards

if TYPE_CHECKING:
    from s2robot.encoder import Encoder, EncoderConfig

Progress = Callable[[int, int], None]
Encode = Callable[[list[int]], Generator[dict[str, Any], None, None]]
STORE_VERSION = 1
_ARRAYS = ("map", "cls")
_WORDS = ("done", "index.json", "journal.jsonl")  # the files that are no array's


class FeatureStore:
    """A finished store, opened for reading; its arrays are memory-mapped and cost no memory until used."""

    def __init__(self, folder: str | Path, versions: Sequence[FeatureStore] = ()) -> None:
        """Open the store in `folder`. Of one behind an address such as s3://bucket/features/0123456789abcdef each file
        is fetched when it is first read, see `s2robot.remote`.

        Args:
            versions: stores of the same steps in other looks, for training to choose from.

        Raises:
            InvalidInput: there is none, it was not finished, or a version has other steps or another encoder.
            CorruptFile: its files are not what its index says.
        """
        self.address = str(folder)
        self._far = remote.is_remote(folder)
        self.folder = remote.folder(self.address, _WORDS) if self._far else Path(folder)
        if not (self.folder / "done").is_file():
            state = (
                "was not finished: encode again, it goes on where it stopped"
                if self.folder.is_dir()
                else "is not there"
            )
            raise InvalidInput(f"The feature store {remote.shown(str(folder))} {state}. Type: s2robot encode --help")
        self.index = _read_index(self.folder)
        self.version: int = self.index.get("augmented", {"version": 0})["version"]  # 0: of the frames as they are
        self.stride: int = self.index["stride"]
        self.cameras: tuple[str, ...] = tuple(self.index["cameras"])
        self.encoder: dict[str, Any] = self.index["encoder"]
        self.encoder_fingerprint: str = self.index["encoder_fingerprint"]
        self.dataset_fingerprint: str = self.index["dataset_fingerprint"]
        self.episodes = np.array(self.index["episode"], np.int64)  # (F,)
        self.steps = np.array(self.index["step"], np.int64)  # (F,)
        self.map = self._array("map")  # (F, V, D*S, h, w)
        self.cls = self._array("cls")  # (F, V, D*S)
        self.versions = tuple(versions)
        for version in versions:
            if _identity(version.index) != _identity(self.index):
                raise InvalidInput(
                    f"{version.folder} is no version of {remote.shown(str(folder))}: it has another dataset,"
                    " encoder or stride. Make one: s2robot encode --versions 1"
                )

    def _array(self, name: str) -> Any:
        files = shards(self.index, name)
        if self._far:
            return Sharded(files, lambda shard: _open_array(remote.local(f"{self.address}/{shard.file}"), shard.shape))
        opened = [_open_array(self.folder / shard.file, shard.shape) for shard in files]
        return opened[0] if len(files) == 1 else Sharded(files, lambda shard: opened[files.index(shard)])

    def __len__(self) -> int:
        return len(self.steps)

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[str | Path, tuple[FeatureStore, ...]]]:
        where = self.address if self._far else self.folder
        return FeatureStore, (where, self.versions)  # a pickled memory map would carry all its numbers

    def rows(self, episode: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of `map` and `cls` that belong to `episode`, and the step of each.  (n,), (n,)"""
        rows = np.flatnonzero(self.episodes == episode)
        if len(rows) == 0:
            raise InvalidInput(f"No episode {episode} in {self.folder}; it has 0 to {self.episodes[-1]}")
        return rows, self.steps[rows]

    def verify(self, episodes: Sequence[int] | None = None) -> None:
        """Read these episodes (default: all) and hold them against the journal's digests, as training does first.

        Raises:
            CorruptFile: names the first episode whose numbers changed.
        """
        path = self.folder / "journal.jsonl"
        known = {line["episode"]: line for line in (read_jsonl(path) if path.is_file() else [])}
        for episode in range(self.episodes[-1] + 1) if episodes is None else episodes:
            rows, _ = self.rows(episode)
            if (line := known.get(episode)) is None:
                raise _corrupt(self.folder, f"journal.jsonl says nothing of episode {episode}")
            for name in _ARRAYS:
                data = getattr(self, name)[rows[0] : rows[-1] + 1]
                if hashlib.sha256(data.tobytes()).hexdigest() != line[name]:
                    raise _corrupt(self.folder, f"the {name} features of episode {episode} changed on disk")


def encode_dataset(
    dataset_path: str | Path,
    encoder_config: EncoderConfig,
    root: str | Path,
    *,
    stride: int = 1,
    versions: int = 0,
    augment: Augmentation | None = None,
    workers: int | Launcher | None = None,
    progress: Progress | None = None,
) -> FeatureStore:
    """Encode every `stride`-th step of a dataset, or open the store if that was done before.

    Args:
        root: the store is a folder in here, named by a hash of encoder, dataset and stride. Behind an address such as
            s3://bucket/features it is stored when it is done, and looked for first.
        versions: further stores, each of all frames in another look, which become the store's `versions`. They are
            in `root` too, named by a hash of their look as well; the first of many are those of few.
        augment: how far these looks go; default: `Augmentation()`.
        workers: processes, each with one thread: two of them beat one with two threads. Default: one a core, fewer for
            little work, and one alone where there is a CUDA device. Or who else encodes, see `s2robot.launchers`.
        progress: told (rows done, rows in all), of all stores together, after every episode.

    Raises:
        OutOfSpace: before anything is encoded, if the whole store does not fit; of a version, before it is begun.
    """
    if stride < 1 or (isinstance(workers, int) and workers < 1):
        raise InvalidInput(f"stride is {stride} and workers {workers}; expected whole numbers from 1 on, or no workers")
    if versions < 0:
        raise InvalidInput(f"versions is {versions}; expected how many other looks to add, 0 or more")
    refuse_to_start_in_a_starting_process()
    dataset = DemoDataset(dataset_path)
    encoder = encoder_config.build()
    plain_index, augment = _make_index(dataset, encoder, encoder_config, stride), augment or Augmentation()
    made: list[str | Path] = []
    for version in range(versions + 1):
        index = {**plain_index, "augmented": augment.identity(version)} if version else plain_index
        address = f"{str(root).rstrip('/')}/{_key(index)}"
        far = remote.is_remote(address)
        if far and remote.exists(f"{address}/done"):
            made.append(address)
            continue
        if far and not remote.is_writable(address):
            far, address = False, str(remote.kept(address))
        folder = remote.outgoing(address) if far else Path(address).absolute()
        task = Task(folder, dataset.path, encoder_config, index, encoder, version, augment)
        encode = partial(encode_episodes, task, workers=workers)
        _complete(task, len(dataset), encode, progress and partial(_tell, progress, version, versions + 1))
        if far:
            remote.store(folder, address)
        made.append(folder)
    return FeatureStore(made[0], [FeatureStore(folder) for folder in made[1:]])


def _tell(progress: Progress, version: int, of: int, rows: int, total: int) -> None:
    progress(version * total + rows, of * total)


def _complete(task: Task, episodes: int, encode: Encode, progress: Progress | None) -> None:
    """Make a task's store, or what lacks of it. One that is done is only read: it may lie where none may write."""
    if (task.folder / "done").is_file():
        return
    with locks.alone(task.folder / ".lock", str(task.folder), wait=True):  # who was first has done the work
        if not (task.folder / "done").is_file():
            sweep(task.folder)
            done = _prepare(task.folder, task.index)
            _encode(task, [k for k in range(episodes) if k not in done], encode, progress)
            with atomic(task.folder / "done") as temporary:
                temporary.touch()


def _encode(task: Task, todo: list[int], encode: Encode, progress: Progress | None) -> None:
    rows_of = Counter(task.index["episode"])
    total = len(task.index["step"])
    rows = total - sum(rows_of[k] for k in todo)
    with JsonLines(task.folder / "journal.jsonl", durable=True) as journal:
        if progress:
            progress(rows, total)
        with contextlib.closing(encode(todo)) as lines:  # closing it stops the workers
            for line in lines:
                journal.write(line)
                rows += rows_of[line["episode"]]
                if progress:
                    progress(rows, total)


def _make_index(dataset: DemoDataset, encoder: Encoder, config: EncoderConfig, stride: int) -> dict[str, Any]:
    """All that the store will hold but its numbers."""
    steps = [list(range(0, length, stride)) for length in dataset.lengths]
    views, count = len(dataset.cameras), sum(map(len, steps))
    _, height, width, _ = dataset.frame_shape
    index = {
        "version": STORE_VERSION,
        "encoder": config,
        "encoder_fingerprint": encoder.fingerprint,
        "dataset": remote.shown(dataset.address),
        "dataset_fingerprint": dataset.fingerprint,
        "cameras": dataset.cameras,
        "stride": stride,
        "dtype": "float16",
        "map_shape": (count, views, encoder.channels, *encoder.grid_of((height, width))),
        "cls_shape": (count, views, encoder.channels),
        "episode": [k for k, of_episode in enumerate(steps) for _ in of_episode],
        "step": [step for of_episode in steps for step in of_episode],
    }
    made: dict[str, Any] = plain(index)
    return {**made, **({"shards": starts} if (starts := cut(made, _ARRAYS)) else {})}


def _key(index: dict[str, Any]) -> str:
    identity = _identity(index)
    if "augmented" in index:  # the names of plain stores are older than this, and stay
        identity.append(index["augmented"])
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _identity(index: dict[str, Any]) -> list[Any]:
    return [index[name] for name in ("version", "encoder_fingerprint", "dataset_fingerprint", "stride")]


def _prepare(folder: Path, index: dict[str, Any]) -> set[int]:
    """Find how far a former run came, or lay out fresh files. Returns the episodes already done."""
    files, fits = [shard for name in _ARRAYS for shard in shards(index, name)], False
    with contextlib.suppress(CorruptFile, OSError):
        kept = _read_index(folder)
        for shard in files:
            _open_array(folder / shard.file, shard.shape)
        fits = all(kept.get(name) == index[name] for name in index.keys() - {"encoder", "dataset"})  # files may move
    if fits:
        journal = folder / "journal.jsonl"  # a damaged one is said: it may stand for hours
        return {line["episode"] for line in read_jsonl(journal)} if journal.exists() else set()
    # The journal goes first and the index comes last, so that neither ever speaks of arrays that are not there.
    for name in ("journal.jsonl", "index.json", *(path.name for path in folder.glob("*.npy"))):
        (folder / name).unlink(missing_ok=True)
    try:
        for shard in files:
            with atomic(folder / shard.file) as temporary:
                temporary.write_bytes(_npy_header(shard.shape))
                reserve(temporary, half_bytes(shard.shape) + len(_npy_header(shard.shape)))
        write_json(folder / "index.json", {**index, "digest": _index_digest(index)}, indent=None)
    except BaseException:
        for shard in files:  # one may have found its space: it must not keep it
            (folder / shard.file).unlink(missing_ok=True)
        raise
    return set()


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    if not path.is_file():
        raise _corrupt(folder, "index.json is missing")
    index = read_json(path, remedy=_remedy(folder))
    if not isinstance(index, dict) or index.pop("digest", None) != _index_digest(index):
        raise _corrupt(folder, "index.json is not what was written")
    return index


def _index_digest(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _npy_header(shape: list[int]) -> bytes:
    """A .npy header of 128 bytes whatever the numpy: its own pads differently from version to version."""
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"


def _open_array(path: Path, shape: list[int]) -> NDArray[np.float16]:
    header = _npy_header(shape)
    if not path.is_file():
        raise _corrupt(path.parent, f"{path.name} is missing")
    size, expected = path.stat().st_size, half_bytes(shape) + len(header)
    with path.open("rb") as file:
        if size != expected or file.read(len(header)) != header:
            raise _corrupt(
                path.parent, f"{path.name} has {size} bytes; expected {expected}, for float16 {tuple(shape)}"
            )
    return np.memmap(path, np.dtype("<f2"), "r", len(header), tuple(shape))


def _corrupt(folder: Path, why: str) -> CorruptFile:
    return CorruptFile(folder, why, _remedy(folder))


def _remedy(folder: Path) -> str:
    return f"Delete the folder, it will be made again: rm -r {folder}"
