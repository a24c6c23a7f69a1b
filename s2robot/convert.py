"""Datasets from any layout into ours: `s2robot convert DATASET --to s2robot`.

Every finished episode is a file of its own until all are there, as in collecting: a killed run goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from s2robot import locks, seals
from s2robot.datasets import DemoDataset, EpisodeParts, merge
from s2robot.episodes import Episode
from s2robot.errors import CorruptFile, InvalidInput, S2RobotError
from s2robot.parts import text
from s2robot.sources import control_hz
from s2robot.stored import Demonstrations

Report = Callable[[int, int], None]


def to_s2robot(
    source: Demonstrations,
    path: str | Path,
    *,
    episodes: Sequence[int] | None = None,
    report: Report = lambda done, total: None,
) -> tuple[DemoDataset, dict[str, str]]:
    """Write episodes into our HDF5. A source that says no seeds gets its episodes' numbers for them.

    Returns:
        The dataset, and what could not be read and is left out: {episode: why}.

    Raises:
        Occupied: another process converts into it.
    """
    path = Path(path)
    with locks.alone(path.with_name(f".{path.name}.lock"), str(path)):
        return _to_s2robot(source, path, episodes, report)


def _to_s2robot(
    source: Demonstrations, path: Path, episodes: Sequence[int] | None, report: Report
) -> tuple[DemoDataset, dict[str, str]]:
    if path.exists():
        raise InvalidInput(f"{path} is there already. Convert into another file, or remove it: rm {path}")
    chosen = list(range(len(source)) if episodes is None else episodes)
    said = {k: source.attribute(k, "seed") for k in chosen}
    told = {int(seed) for seed in said.values() if seed is not None and int(seed) >= 0}  # -1: of a file that says none
    has_seeds = len(told) == len(chosen)
    seeds = {k: int(said[k]) if has_seeds else k for k in chosen}
    settings = {"source": str(source.path.absolute()), "steps": source.total, "cameras": source.cameras}
    settings["by"] = "seeds" if has_seeds else "numbers"  # what names an episode's part
    settings["content"] = _content(source, path)  # the same path with other content is another source
    parts = EpisodeParts(path.with_name(path.name + ".parts"), settings | {"env_args": source.env_args})
    with parts.none_left_empty():
        damaged = _write_all(source, seeds, parts, report)
        kept = [seeds[k] for k in chosen if source.name(k) not in damaged]
        if not kept:
            raise S2RobotError(f"Not one episode of {source.path} can be converted: {next(iter(damaged.values()), '')}")
    env_args = dict(source.env_args)
    if not has_seeds:
        env_args |= {"control_hz": control_hz(env_args), "seeds": "numbers of the source's episodes: it says no seeds"}
    return merge(parts, path, env_args, source.cameras, kept), damaged


def _content(source: Demonstrations, path: Path) -> str:
    if not isinstance(source, DemoDataset):
        return _listing(source.path, path)
    try:
        return source.fingerprint
    except CorruptFile:  # what is left of it is converted
        return seals.digest_once(source.path)


def _listing(folder: Path, out: Path) -> str:
    """Of LeRobot's many large files names, sizes and times tell enough. Caches are hidden; `out` may be inside."""
    inside = {path.relative_to(folder): path for path in sorted(_walked(folder)) if path.is_file()}
    ours = (".", out.name)
    there = {
        name: path.stat() for name, path in inside.items() if not any(part.startswith(ours) for part in name.parts)
    }
    told = [(str(name), stat.st_size, stat.st_mtime_ns) for name, stat in there.items()]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _walked(folder: Path) -> Iterator[Path]:
    """All files in it, and in folders that are linked into it, each of them once."""
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in sorted(folders) if os.path.realpath(Path(root, name)) not in seen]
        seen.update(os.path.realpath(Path(root, name)) for name in folders)
        yield from (Path(root, name) for name in names)


def _write_all(source: Demonstrations, seeds: dict[int, int], parts: EpisodeParts, report: Report) -> dict[str, str]:
    """Write what is missing; what could not be read, and why."""
    present, damaged = set(parts.seeds_done()), {}
    for done, (k, seed) in enumerate(seeds.items()):
        report(done, len(seeds))
        if seed not in present:
            try:
                parts.write(_load(source, k, seed))
            except (CorruptFile, InvalidInput) as error:
                if isinstance(error, CorruptFile) and isinstance(source, DemoDataset):
                    damaged[source.name(k)] = error.why  # its remedy is to convert it
                else:
                    damaged[source.name(k)] = str(error)
    report(len(seeds), len(seeds))
    return damaged


def _load(source: Demonstrations, k: int, seed: int) -> Episode:
    """Episode `k` under this seed, held against the digest that was taken when we wrote it, if we did."""
    episode = source.episode(k).load()
    digest = text(source.attribute(k, "s2robot_digest") or "")
    if digest and digest != episode.digest():
        raise CorruptFile(source.path, f"{source.name(k)} is not what was written", "Restore it from a copy")
    return replace(episode, seed=seed)
