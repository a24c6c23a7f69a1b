"""Where the frames to pre-train on come from; stored once in the run folder, squares of `frame_size` pixels.

    frames.npy      uint8 (n, H, H, 3), mapped into memory, never read whole
    footage.json    what they are; `held_out`: how many of the first are kept for validation

Held out are whole episodes, so that no frame is trained on whose neighbour is in the validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot import files, registry, workers
from s2robot.errors import InvalidInput
from s2robot.recipe import PretrainConfig

Progress = Callable[[int, int, str], None]
EPISODES_A_PIECE = 16  # rendered and kept together
HELD_OUT = 50  # one frame in so many


@dataclass(frozen=True)
class Footage:
    """Frames (n, H, H, 3), of which the first `held_out` are for validation."""

    frames: NDArray[np.uint8]
    held_out: int

    @property
    def train(self) -> NDArray[np.uint8]:
        return self.frames[self.held_out :]

    @property
    def valid(self) -> NDArray[np.uint8]:
        return self.frames[: self.held_out]


def gather(config: PretrainConfig, out: Path, progress: Progress) -> Footage:
    """The frames of a run; made the first time, in pieces that survive a kill."""
    path = out / "frames.npy"
    if not path.exists():
        render(config, path, progress)
    return open_footage(path, config.frame_size)


def open_footage(path: Path, frame_size: int) -> Footage:
    """Map a file of frames into memory."""
    frames: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    wanted = (frame_size, frame_size, 3)
    if frames.dtype != np.uint8 or frames.shape[1:] != wanted or len(frames) < 2:
        raise InvalidInput(
            f"{path} holds {frames.dtype} {frames.shape}; expected uint8 (n, {', '.join(map(str, wanted))}), n 2 or "
            f"more. Set --frame_size to its size, or delete it"
        )
    about = path.with_name("footage.json")
    held_out = int(files.read_json(about)["held_out"]) if about.exists() else max(1, len(frames) // HELD_OUT)
    if not 0 < held_out < len(frames):
        raise InvalidInput(f"{about} holds out {held_out} of {len(frames)} frames; expected some, and not all")
    return Footage(frames, held_out)


def render(config: PretrainConfig, path: Path, progress: Progress) -> None:
    """Render scenes into `path`: the same frames whatever the number of workers or interruptions."""
    pieces = path.with_suffix(".parts")
    pieces.mkdir(exist_ok=True)
    files.sweep(pieces)
    lengths: dict[int, list[int]] = {}
    for piece in sorted(pieces.glob("*.npz")):
        with np.load(piece) as saved:
            lengths[int(piece.stem)] = saved["lengths"].tolist()
    todo = (number for number in count() if number not in lengths)
    make = partial(registry.scene_sampler, config.frame_size, config.seed, config.scenes)
    results = workers.work(make, partial(_render_piece, pieces), todo, config.workers)
    try:
        while (ready := sum(map(sum, _unbroken(lengths)))) < config.frames:
            progress(ready, config.frames, "rendering")
            number, found = next(results)
            lengths[number] = found
    finally:
        results.close()
    used = _unbroken(lengths)
    episodes = [length for piece in used for length in piece]
    about = {"source": f"{config.scenes} scenes, rendered", "frames": config.frames}
    files.write_json(path.with_name("footage.json"), about | {"held_out": whole_episodes(episodes, config.frames)})
    save_frames(path, (_frames_of(_piece(pieces, k)) for k in range(len(used))), config.frames, config.frame_size)
    for piece in pieces.iterdir():
        piece.unlink()
    pieces.rmdir()
    progress(config.frames, config.frames, "rendering")


def whole_episodes(lengths: Iterable[int], frames: int) -> int:
    """How many of `frames` frames to hold out: one in HELD_OUT, rounded down to whole episodes, at least one of them.

    One episode alone is split in two by time.
    """
    held_out = 0
    for length in lengths:
        if held_out and held_out + length > frames // HELD_OUT:
            break
        held_out += length
    return held_out if held_out < frames else max(1, frames // HELD_OUT)


def save_frames(path: Path, blocks: Iterable[NDArray[np.uint8]], frames: int, frame_size: int) -> None:
    """Write blocks (n, H, H, 3) one after another as one array of `frames` frames, never holding more than a block."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (frames, frame_size, frame_size, 3)}
    missing = frames
    with files.atomic(path) as temporary, temporary.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[no-untyped-call]
        for block in blocks:
            part = np.ascontiguousarray(block[:missing])
            stream.write(part.data)
            missing -= len(part)
    assert missing == 0


def _unbroken(lengths: dict[int, list[int]]) -> list[list[int]]:
    """The pieces from the first on, up to the first that is not there yet."""
    whole: list[list[int]] = []
    while len(whole) in lengths:
        whole.append(lengths[len(whole)])
    return whole


def _render_piece(folder: Path, sampler: Any, number: int) -> list[int]:
    episodes = [sampler.episode(EPISODES_A_PIECE * number + k) for k in range(EPISODES_A_PIECE)]
    lengths = [len(episode) for episode in episodes]
    with files.atomic(_piece(folder, number)) as temporary, temporary.open("wb") as stream:
        np.savez(stream, frames=np.concatenate(episodes), lengths=lengths)
    return lengths


def _piece(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npz"


def _frames_of(piece: Path) -> NDArray[np.uint8]:
    with np.load(piece) as saved:
        frames: NDArray[np.uint8] = saved["frames"]
    return frames
