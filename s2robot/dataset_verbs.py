"""The verbs about datasets: `view`, `render`, `convert`, and the rows of `list datasets`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from s2robot import command, dataset_view, files, progress, remote
from s2robot import config as configuration
from s2robot.adapters import lerobot
from s2robot.convert import to_s2robot
from s2robot.errors import InvalidInput
from s2robot.parser import json_option
from s2robot.sources import is_lerobot, open_dataset
from s2robot.stored import Demonstrations

SHOWN = 8  # episodes in the sheet, where none are named
LEAST_CELL, MOST_CELL = 8, 2048  # of a frame there [pixels]


SCALE_THEM = "to train on them, scale them (LeRobot folders: s2robot convert --to s2robot --scale-actions)"


def do_view(argv: Sequence[str]) -> int:
    parser = command.parser(
        "view",
        "Look at a dataset: a table, a contact sheet (a row an episode), and on request a video an episode.",
        "s2robot view runs/lift.hdf5 --episodes 0,3,10-12 --video",
        key="",
    )
    parser.add_argument("dataset", help="an HDF5 file (ours, robomimic's, MimicGen's) or a LeRobot folder")
    parser.add_argument("--episodes", default=None, help=f"which, e.g. 0,3,10-12 (default: {SHOWN} spread over all)")
    parser.add_argument("--moments", type=int, default=8, help="steps of each episode in the sheet (default 8)")
    parser.add_argument("--cell", type=int, default=dataset_view.CELL, help="height of a frame there [pixels]")
    parser.add_argument("--video", action="store_true", help="also an mp4 an episode (a GIF without an encoder)")
    parser.add_argument("--out", default=None, help="folder for the pictures (default: DATASET-view, beside it)")
    json_option(parser)
    options = parser.parse_args(list(argv))
    if options.moments < 1 or not LEAST_CELL <= options.cell <= MOST_CELL:
        raise InvalidInput(
            f"--moments is {options.moments}, --cell {options.cell}; expected at least 1 step, and {LEAST_CELL} to"
            f" {MOST_CELL} pixels"
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # LeRobot: what is missing in a folder is an error, not a download
    dataset, console = open_dataset(options.dataset), Console(stderr=options.json)
    count = len(dataset)
    chosen = dataset_view.choose(options.episodes, count) if options.episodes else dataset_view.spread(count, SHOWN)
    summary = dataset_view.summarize(dataset)
    path = Path(dataset.path.name if remote.is_remote(options.dataset) else options.dataset)
    path = path if path.stem.strip(".") else path.resolve()  # . and .. are called nothing
    out = Path(options.out) if options.out else path.with_name(f"{path.stem}-view")
    pictures: list[Path] = []
    if summary["frame_size"][0]:
        sheet, damaged = dataset_view.contact_sheet(dataset, chosen, options.moments, options.cell)
        summary["damaged"] |= damaged
        with files.atomic(out / "sheet.png") as temporary:
            sheet.save(temporary, format="PNG")
        pictures.append(out / "sheet.png")
        if options.video:
            with progress.bar("video", console) as report:
                written, damaged = dataset_view.write_videos(dataset, chosen, out, report)
            pictures += written
            summary["damaged"] |= damaged
    summary["pictures"] = [str(picture) for picture in pictures]
    if options.json:
        command.tell_json(summary)
    else:
        _tell(summary, console)
    return 1 if summary["damaged"] else 0


def do_render(argv: Sequence[str]) -> int:
    from s2robot.rerender import RenderConfig, render

    parser = command.parser(
        "render",
        "Draw a dataset's frames from its simulator states, at any size, from any camera. Resumable.",
        "s2robot render low_dim.hdf5 --out lift-256.hdf5 --frame_size 256 --cameras agentview,robot0_eye_in_hand",
        key="--quality robosuite",
    )
    parser.add_argument("dataset", help="an HDF5 file with states: robomimic's, MimicGen's or ours")
    parser.add_argument("--out", required=True, help="the HDF5 file to write")
    command.shorthands(parser, frame_size="frame_size", cameras="cameras", quality="quality", model="model")
    options, rest = command.parse(parser, argv)
    config = configuration.load(RenderConfig, None, command.overrides(options, rest))
    console = Console()
    with progress.bar("render", console) as report:
        rendered = render(options.dataset, options.out, config, report)
    dataset, (_, height, width, _) = rendered.dataset, rendered.dataset.frame_shape
    console.print(
        f"{options.out}: {len(dataset)} episodes, {dataset.total} steps, {', '.join(dataset.cameras)} {height}x{width}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    _warn(console, [*rendered.notes, *(f"{name} is left out: {why}" for name, why in rendered.failed.items())])
    return 1 if rendered.failed else 0


def do_convert(argv: Sequence[str]) -> int:
    parser = command.parser(
        "convert",
        "A dataset in another layout: LeRobot's (v3.0, images) or ours. Reads ours, robomimic's, LeRobot's.",
        "s2robot convert runs/lift.hdf5 --to lerobot --out runs/lift-lerobot",
        key="",
    )
    parser.add_argument("dataset", help="an HDF5 file or a LeRobot folder")
    parser.add_argument("--to", required=True, choices=("lerobot", "s2robot"), help="the layout to write")
    parser.add_argument("--out", required=True, help="the folder (lerobot) or HDF5 file (s2robot) to write")
    parser.add_argument("--episodes", default=None, help="which, e.g. 0,3,10-12 (default: all)")
    parser.add_argument("--cameras", default=None, help="which, e.g. top,wrist (default: all)")
    parser.add_argument("--instruction", default="", help='LeRobot\'s task text, e.g. "pick up the {goal} cube"')
    parser.add_argument("--scale-actions", action="store_true", help="map a LeRobot dataset's actions to [-1, 1]")
    parser.add_argument("--features", default=None, metavar="ENCODER", help="LeRobot: with a column of its features")
    options = parser.parse_args(list(argv))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # LeRobot: what is missing in a folder is an error, not a download
    cameras = options.cameras.split(",") if options.cameras else []
    if options.to == "s2robot" and (options.features or options.instruction):
        raise InvalidInput("--features and --instruction are for LeRobot's layout: with --to lerobot")
    source, console = _source(options.dataset, cameras, scale_actions=options.scale_actions), Console()
    if options.to == "s2robot" and cameras and not is_lerobot(options.dataset):
        raise InvalidInput(
            f"{remote.shown(options.dataset)} keeps all its cameras with --to s2robot. Leave --cameras out"
        )
    episodes = dataset_view.choose(options.episodes, len(source)) if options.episodes else None
    with progress.bar("convert", console) as report:
        if options.to == "s2robot":
            dataset, damaged = to_s2robot(source, options.out, episodes=episodes, report=report)
            said = f"{len(dataset)} episodes, {dataset.total} steps, cameras {', '.join(dataset.cameras)}"
        else:
            views = [source.cameras.index(name) for name in cameras if name in source.cameras]  # others: said by export
            rows = _feature_rows(options.dataset, options.features, views) if options.features else None
            damaged = lerobot.export(
                source, options.out, cameras=cameras, episodes=episodes, instruction=options.instruction,
                features=rows, report=report,
            )  # fmt: skip
            said = f"{len(source if episodes is None else episodes) - len(damaged)} episodes for LeRobot"
    console.print(f"{options.out}: {said}", highlight=False, soft_wrap=True)
    _warn(console, [f"{name} is left out: {why}" for name, why in damaged.items()])
    return 1 if damaged else 0


def _source(path: str, cameras: Sequence[str], *, scale_actions: bool) -> Demonstrations:
    """The dataset to convert; what only LeRobot's can be asked is refused for others."""
    if is_lerobot(path):
        return lerobot.LeRobotFolder(path, cameras=cameras, scale_actions=scale_actions)
    if scale_actions:
        raise InvalidInput("--scale-actions is for LeRobot folders: the actions of an HDF5 dataset are in [-1, 1]")
    return open_dataset(path)


def _feature_rows(path: str, encoder: str, views: Sequence[int]) -> Callable[[int], NDArray[np.float32]]:
    """Rows (L, V*D*S) of an episode: cls of these cameras, or of all; encoded once and kept beside the dataset."""
    from s2robot.encoder import EncoderConfig
    from s2robot.store import encode_dataset

    config = configuration.load(EncoderConfig, None, ["--name", encoder])
    store = encode_dataset(path, config, remote.beside(path, "features"))

    def rows(k: int) -> NDArray[np.float32]:
        cls: NDArray[np.float32] = np.asarray(store.cls[store.rows(k)[0]], np.float32)  # (L, V, D*S)
        return cls[:, views or slice(None)].reshape(len(cls), -1)

    return rows


def _warn(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _tell(summary: dict[str, Any], console: Console) -> None:
    shortest, median, longest = summary["lengths"]
    height, width = summary["frame_size"]
    views = f"{', '.join(summary['cameras'])}: {height}x{width}" if height else "none; draw them: s2robot render --help"
    ranges = (f"{name} [{low:.3g}, {high:.3g}]" for name, (low, high) in summary["actions"].items())
    lines = {
        "dataset": summary["path"],
        "task": summary["task"] or "not said",
        "episodes": f"{summary['episodes']}, of which {summary['successes']} succeeded",
        "steps": f"{summary['steps']} at {summary['control_hz']} Hz; an episode has "
        + (f"{shortest} to {longest}, half of them at most {median:g}" if shortest < longest else str(shortest)),
        "cameras": views,
        "actions": ", ".join(ranges),
        "versions": "; ".join(summary["versions"]),
        "pictures": ", ".join(summary["pictures"]),
    }
    for name, words in lines.items():
        if words:
            console.print(f"{name:<9} {words}", highlight=False, markup=False, soft_wrap=True)
    _warn(console, [f"damaged   {name}: {why}" for name, why in summary["damaged"].items()])
    if summary["outside"]:
        _warn(console, [f"range     actions of {summary['outside']} episodes leave [-1, 1]: {SCALE_THEM}"])


def dataset_rows(folder: str) -> list[dict[str, Any]]:
    """What `s2robot list datasets` prints."""
    from s2robot.shelf import find_datasets

    return [dataclasses.asdict(found) for found in find_datasets(folder)]
