"""Many episodes into one file: `s2robot.datasets.merge` says what it looks like.

All lists come first and the episodes after them, each beside its own headers, so that a file that is cut short still
says what it had and keeps what lies before the cut (`s2robot.remains`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from s2robot.episodes import split_episodes
from s2robot.errors import InvalidInput
from s2robot.files import plain
from s2robot.parts import EpisodeParts, read_part, text

LISTED = {"num_samples": "i8", "seed": "i8", "success": "?", "s2robot_digest": "S64"}  # attributes of every demo
_LIST = "s2robot_episodes"


def write_lists(
    file: h5py.File,
    parts: EpisodeParts,
    seeds: Sequence[int],
    env_args: dict[str, Any],
    cameras: list[str],
    valid_fraction: float,
) -> None:
    """Write all but the episodes themselves, of which each gets an empty group.

    Raises:
        CorruptFile: a part is damaged; names its seed.
    """
    rows = []
    for seed in seeds:
        with parts.open(seed) as part:
            rows.append(tuple(part.attrs[name] for name in LISTED))
    table = np.array(rows, list(LISTED.items()))
    lengths, digests = table["num_samples"].tolist(), [text(digest) for digest in table["s2robot_digest"]]
    env_args = plain({"type": 1, "env_kwargs": {}} | env_args)  # type 1 is robosuite, for robomimic
    data = file.create_group("data")
    data.attrs["total"] = sum(lengths)
    # Text of fixed length: HDF5 keeps other text in a heap without checksums, and may read a damaged one for ever.
    data.attrs["env_args"] = np.bytes_(json.dumps(env_args, sort_keys=True))
    data.attrs["s2robot_cameras"] = np.bytes_(json.dumps(cameras))
    data.attrs["s2robot_digest"] = np.bytes_(header_digest(env_args, cameras, lengths, digests))
    # The attributes of the demos, once more: HDF5 moves those of a group behind what is later put into the group.
    file.create_dataset(_LIST, data=table, chunks=table.shape, fletcher32=True)
    for name, demos in zip(("train", "valid"), split_episodes(len(seeds), valid_fraction, seed=0), strict=True):
        file.create_dataset(f"mask/{name}", data=np.array([f"demo_{k}" for k in demos], dtype="S"))
    for k in range(len(seeds)):
        data.create_group(f"demo_{k}")


def read_list(file: h5py.File) -> dict[str, dict[str, Any]]:
    """Attributes of every demo by its name, without opening one; {} where the file has no list."""
    table = file[_LIST][()] if _LIST in file else []
    return {f"demo_{k}": {name: row[name] for name in LISTED} for k, row in enumerate(table)}


def copy_episodes(data: h5py.Group, parts: EpisodeParts, seeds: Sequence[int], cameras: Sequence[str]) -> None:
    """Put the episodes into their groups.

    Raises:
        InvalidInput: they have not all the same shapes, or not these cameras.
        CorruptFile: a part is damaged; names its seed.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for k, seed in enumerate(seeds):
        data.file.flush()  # only now does HDF5 find a place for all that was written: beside each other
        with parts.open(seed) as part:
            episode = read_part(part)  # so that damage shows while the episode can still be collected again
            found = {name: value.shape[1:] for name, value in episode.arrays().items()}
            shapes = shapes or found
            if found != shapes or found["frames"][0] != len(cameras):
                raise InvalidInput(
                    f"Episode of seed {seed} has shapes {found}; expected those of seed {seeds[0]}, {shapes}, and a"
                    f" view for each of the cameras {cameras}. Collect all anew, in one setting: rm -r {parts.folder}"
                )
            _copy_part(part, data[f"demo_{k}"], cameras)


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


def header_digest(
    env_args: Mapping[str, Any], cameras: Sequence[str], lengths: Sequence[int], digests: Iterable[str]
) -> str:
    """sha256 of all that a file says besides its episodes, and of their digests."""
    header = json.dumps(["s2robot demonstrations 1", env_args, [*cameras], [*lengths], [*digests]], sort_keys=True)
    return hashlib.sha256(header.encode()).hexdigest()
