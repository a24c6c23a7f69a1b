"""Which datasets lie below a folder: `s2robot list datasets`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2robot import files
from s2robot.clips import DEMONSTRATIONS
from s2robot.datasets import DemoDataset
from s2robot.errors import CorruptFile, InvalidInput, S2RobotError, in_words
from s2robot.remains import open_hdf5
from s2robot.sources import INFO, StateDataset, channels_last, is_dataset, is_lerobot, task_name

PASSED_BY = (".parts", "site-packages", "node_modules")  # folders that end so are not looked into


@dataclass(frozen=True)
class Found:
    """One dataset, a line of the list."""

    name: str  # its path below the folder that was asked
    layout: str  # s2robot, robomimic, lerobot
    task: str
    episodes: int
    steps: int
    cameras: str
    mb: float  # on disk
    note: str = ""


def find_datasets(folder: str | Path) -> list[Found]:
    """Every dataset in a folder and its folders, by name; what is damaged is in the list, with the reason."""
    root = Path(folder)
    if not root.is_dir():
        raise InvalidInput(f"No folder {folder}. Give one, e.g. s2robot list datasets runs")
    return [described for path in _candidates(root) if (described := describe(path, root))]


def describe(path: Path, root: Path) -> Found | None:
    """The line of one dataset; None for an HDF5 file that is something else."""
    name = str(path.relative_to(root)) if path != root else str(path)
    try:
        return _lerobot(path, name) if path.is_dir() else _hdf5(path, name)
    except S2RobotError as error:
        return Found(name, "?", "", 0, 0, "", _megabytes(path), f"damaged: {error}")


def _candidates(root: Path) -> Iterator[Path]:
    for folder, inside, names in os.walk(root):
        here = Path(folder)
        if is_lerobot(here):
            inside.clear()
            yield here
            continue
        inside[:] = sorted(
            name for name in inside if not (name.startswith(".") or name.endswith(PASSED_BY) or ".tmp-" in name)
        )
        yield from (here / name for name in sorted(names) if Path(name).suffix.lower() in DEMONSTRATIONS)


def _hdf5(path: Path, name: str) -> Found | None:
    try:
        with open_hdf5(path) as file:
            if not is_dataset(file):
                return None
            ours = "s2robot_digest" in file["data"].attrs
    except (OSError, RuntimeError, KeyError) as error:
        words = in_words(error, 120)
        raise CorruptFile(path, f"no HDF5 file, or cut short ({words})", "Restore it from a copy") from error
    plain = StateDataset(path)
    try:
        if plain.has_frames:
            cameras, note = _cameras(path)
        else:
            cameras, note = "", f"no images; draw them: s2robot render {path}"
        if plain.lost:
            note = f"cut short, {len(plain.lost)} episodes lost; {note}".rstrip("; ")
        layout = "s2robot" if ours else "robomimic"
        task = task_name(plain.env_args)
        return Found(name, layout, task, len(plain), plain.total, cameras, _megabytes(path), note)
    finally:
        plain.close()


def _cameras(path: Path) -> tuple[str, str]:
    """What cameras a file has, and what is to be said of them."""
    try:
        dataset = DemoDataset(path)
    except InvalidInput as error:  # they differ in size: nothing is damaged
        return "", str(error)
    _, height, width, _ = dataset.frame_shape
    dataset.close()
    return f"{', '.join(dataset.cameras)} {height}x{width}", ""


def _lerobot(path: Path, name: str) -> Found:
    info: dict[str, Any] = files.read_json(path / INFO, "Restore it from a copy")
    try:
        features = info["features"].items()
        views = {key.rpartition(".")[2]: spec for key, spec in features if spec["dtype"] in ("image", "video")}
        sizes = {camera: channels_last(spec)[:2] for camera, spec in views.items()}
        cameras = ", ".join(f"{camera} {'x'.join(map(str, size))}" for camera, size in sizes.items())
        episodes, steps, task = (
            int(info["total_episodes"]),
            int(info["total_frames"]),
            str(info.get("robot_type") or ""),
        )
        note = f"LeRobot {info['codebase_version']}, {info['fps']} Hz"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFile(path / INFO, f"not LeRobot's ({error!r})", "Restore it from a copy") from error
    ours = path / "meta/s2robot.json"
    if ours.is_file():
        task = task_name(files.read_json(ours, "Convert the dataset again").get("env_args", {}))
    return Found(name, "lerobot", task, episodes, steps, cameras, _megabytes(path), note)


def _megabytes(path: Path) -> float:
    inside = path.rglob("*") if path.is_dir() else [path]
    return round(sum(file.stat().st_size for file in inside if file.is_file()) / 1e6, 1)
