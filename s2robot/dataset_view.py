"""A dataset to look at: a summary in numbers, a contact sheet, and a video an episode.

What is damaged is named and passed by; the rest is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from s2robot import video
from s2robot.errors import CorruptFile, InvalidInput, MissingExtra, require
from s2robot.files import atomic
from s2robot.pictures import CANVAS, INK, TEXT
from s2robot.sources import control_hz, goal_words, task_name, version_differences
from s2robot.stored import Demonstrations

CELL = 112  # pixels a frame is high in the sheet
GAP, CAPTION = 4, 24
DAMAGED_INK = (255, 140, 120)

Report = Callable[[int, int], None]


def choose(text: str, count: int) -> list[int]:
    """Episode numbers of "0,3,10-12"; every one must be there.

    Raises:
        InvalidInput: no such list, or no such episode.
    """
    chosen: list[int] = []
    for word in text.replace(" ", "").split(","):
        first, dash, last = word.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise InvalidInput(f"--episodes is {text!r}; expected numbers and ranges, e.g. 0,3,10-12")
        chosen += range(int(first), int(last or first) + 1)
    if not chosen or max(chosen) >= count:
        raise InvalidInput(f"--episodes is {text!r}; there are {count} episodes, 0 to {count - 1}")
    return list(dict.fromkeys(chosen))


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` numbers spread evenly over 0..count-1, first and last included; all where there are no more."""
    chosen: list[int] = np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int)).tolist()
    return chosen


def summarize(dataset: Demonstrations) -> dict[str, Any]:
    """What is in a dataset. Reads everything but the frames."""
    low, high = np.inf, -np.inf
    successes, outside, damaged = 0, 0, {}
    for k in range(len(dataset)):
        try:
            actions = dataset.field(k, "actions", any_range=True)  # (L, M)
            low, high = np.minimum(low, actions.min(axis=0)), np.maximum(high, actions.max(axis=0))
            successes += dataset.episode(k).success
            outside += bool(np.abs(actions).max(initial=0) > 1)
        except CorruptFile as error:
            damaged[dataset.name(k)] = str(error)
    env_args, lengths = dataset.env_args, dataset.lengths
    names = list(env_args.get("action_names", [])) or [f"action {m}" for m in range(np.size(low))]
    ranges = zip(names, np.atleast_1d(low).tolist(), np.atleast_1d(high).tolist(), strict=False)
    return {
        "path": str(dataset.path),
        "task": task_name(env_args),
        "episodes": len(dataset),
        "steps": dataset.total,
        "lengths": [min(lengths), float(np.median(lengths)), max(lengths)],
        "control_hz": control_hz(env_args),
        "cameras": list(dataset.cameras),
        "frame_size": list(dataset.frame_shape[1:3]),
        "successes": successes,
        "actions": {name: [lower, upper] for name, lower, upper in ranges if np.isfinite(lower)},
        "outside": outside,  # episodes of which actions leave [-1, 1]
        "damaged": damaged,
        "versions": version_differences(env_args),
    }


def contact_sheet(
    dataset: Demonstrations, episodes: Sequence[int], moments: int = 8, cell: int = CELL
) -> tuple[Image.Image, dict[str, str]]:
    """A row an episode: its cameras below each other, `moments` steps from first to last side by side.

    Returns the sheet, and what could not be read: {episode: why}.
    """
    views, height, width, _ = dataset.frame_shape
    if not views or not height:
        raise InvalidInput(f"{dataset.path} has no images. Draw them: s2robot render {dataset.path} --out NEW.hdf5")
    size = (max(1, round(cell * width / height)), cell)
    row_height = CAPTION + views * (cell + GAP)
    sheet = Image.new("RGB", (GAP + moments * (size[0] + GAP), len(episodes) * row_height + GAP), CANVAS)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    damaged = {}
    for row, k in enumerate(episodes):
        top = row * row_height
        try:
            steps = spread(dataset.lengths[k], moments)
            cells, caption, ink = _cells(dataset.frames(k, steps), size), _caption(dataset, k), INK
        except CorruptFile as error:
            damaged[dataset.name(k)] = str(error)
            cells, caption, ink = [], f"{k}: {dataset.name(k)} is damaged", DAMAGED_INK
        draw.text((GAP, top + CAPTION // 2), caption, fill=ink, font=font, anchor="lm")
        for column, views_of_step in enumerate(cells):
            for view, picture in enumerate(views_of_step):
                sheet.paste(picture, (GAP + column * (size[0] + GAP), top + CAPTION + view * (cell + GAP)))
    return sheet, damaged


def write_videos(
    dataset: Demonstrations, episodes: Sequence[int], folder: Path, report: Report = lambda done, total: None
) -> tuple[list[Path], dict[str, str]]:
    """An mp4 an episode, cameras side by side; a GIF where no H.264 encoder is installed.

    Returns the paths, and what could not be read: {episode: why}.
    """
    written, damaged = [], {}
    for done, k in enumerate(episodes):
        report(done, len(episodes))
        try:
            frames = dataset.frames(k)  # (L, V, H, W, 3)
        except CorruptFile as error:
            damaged[dataset.name(k)] = str(error)
            continue
        strips = np.concatenate(list(frames.transpose(1, 0, 2, 3, 4)), axis=2)  # (L, H, V*W, 3)
        written.append(write_clip(folder / f"episode-{k:04d}", strips, control_hz(dataset.env_args)))
    report(len(episodes), len(episodes))
    return written, damaged


def write_clip(stem: Path, frames: NDArray[np.uint8], fps: int) -> Path:
    """Write (L, H, W, 3) to STEM.mp4, or STEM.gif where PyAV or its H.264 encoder is missing."""
    if _has_encoder():
        return video.write_video(stem.with_name(f"{stem.name}.mp4"), frames, fps)
    path = stem.with_name(f"{stem.name}.gif")
    first, *others = (Image.fromarray(frame).quantize(dither=Image.Dither.NONE) for frame in frames)
    with atomic(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
    return path


def _has_encoder() -> bool:
    try:
        av = require("av", extra="video", purpose="Writing videos")
    except MissingExtra:
        return False
    return "libx264" in av.codecs_available


def _cells(frames: NDArray[np.uint8], size: tuple[int, int]) -> list[list[Image.Image]]:
    """(n, V, H, W, 3) -> for each step, a picture a view."""
    return [[Image.fromarray(view).resize(size, Image.Resampling.LANCZOS) for view in step] for step in frames]


def _caption(dataset: Demonstrations, k: int) -> str:
    episode = dataset.episode(k)
    words = [f"{k}: {dataset.name(k)}", f"{len(episode)} steps", "success" if episode.success else "failure"]
    words += [f"seed {episode.seed}"] if episode.seed >= 0 else []
    words += [f"goal {goal_words(dataset.env_args, episode.goal[0])}"] if episode.goal is not None else []
    return ", ".join(words)
