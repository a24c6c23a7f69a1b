"""Where the frames to pre-train on come from; stored once in the run folder, squares of `frame_size` pixels.

    frames.npy      uint8 (n, H, H, 3), mapped into memory, never read whole
    footage.json    what they are; `held_out`: how many of the first are kept for validation

Rendered scenes, or what `source` names: a folder of images, videos and demonstrations (`s2robot.clips`), or the
frames.npy of another run, used where it is. Held out are whole episodes and videos, so that no frame is trained on
whose neighbour is in the validation; of folders of images, runs by name, which are neighbours where the images are
frames of one video.
"""

from __future__ import annotations

import functools
import itertools
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot import clips, files, registry, seals, workers
from s2robot.errors import InvalidInput, S2RobotError
from s2robot.progress import Told
from s2robot.recipe import PretrainConfig

_log = logging.getLogger(__name__)

EPISODES_A_PIECE = 16  # rendered and kept together
HELD_OUT = 50  # one frame in so many
NAMED = 20  # unreadable files that footage.json names
Item = tuple[int, Any]  # a piece's number, and what it is made of


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


def gather(config: PretrainConfig, out: Path, progress: Told) -> Footage:
    """The frames of a run; made the first time, in pieces that survive a kill.

    Raises:
        S2RobotError: the source holds nothing that can be read.
    """
    path = out / "frames.npy"
    if Path(config.source).suffix == ".npy":
        footage = open_footage(Path(config.source), config.frame_size)
        _hold(out / "source.txt", seals.digest_once(Path(config.source)), config.source)
        if config.frames < len(footage.train):
            _log.warning(
                "%s: the first %d of its %d training frames are used. All: --frames %d",
                config.source, config.frames, len(footage.train), len(footage.train),
            )  # fmt: skip
            return Footage(footage.frames[: footage.held_out + config.frames], footage.held_out)
        return footage
    if not path.exists():
        _make(config, path, progress)
    shutil.rmtree(_parts(path), ignore_errors=True)  # after a kill too that came once the file was there
    return open_footage(path, config.frame_size)


def open_footage(path: Path, frame_size: int) -> Footage:
    """Map a file of frames into memory."""
    if not path.is_file():
        raise InvalidInput(f"No frames at {path}. Leave --source out to render, or give the frames.npy of a run")
    seals.check_sum(path, "Delete it, and it is made again")
    try:
        frames: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InvalidInput(f"{path} holds no frames ({error}). Delete it, and it is made again") from error
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


def whole_episodes(lengths: Iterable[int], frames: int) -> int:
    """How many of `frames` frames to hold out: one in HELD_OUT, rounded down to whole episodes, at least one of them.

    If that one is more than a tenth of all, it is split by time, and its first frames are held out.
    """
    held_out = 0
    for length in lengths:
        if held_out and held_out + length > frames // HELD_OUT:
            break
        held_out += length
    return held_out if held_out <= frames // 10 else max(1, frames // HELD_OUT)


def _hold(kept: Path, digest: str, source: str) -> None:
    """What frames are made of is what it was when they were begun.

    Raises:
        InvalidInput: it has changed since.
    """
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic(kept) as temporary:
            temporary.write_text(f"{digest}\n", encoding="utf-8")
    elif kept.read_text(encoding="utf-8").strip() != digest:
        raise InvalidInput(
            f"{source} has changed since {kept.parent} was begun from it: frames of both would be mixed. Put it back,"
            f" or begin again: rm -r {kept.parent}"
        )


def save_frames(path: Path, blocks: Iterable[NDArray[np.uint8]], frames: int, frame_size: int) -> None:
    """Write blocks (n, H, H, 3) one after another as one array of `frames` frames, never holding more than a block."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (frames, frame_size, frame_size, 3)}
    missing = frames
    with files.atomic(path) as temporary:
        with temporary.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[no-untyped-call]
            for block in blocks:
                part = np.ascontiguousarray(block[:missing])
                stream.write(part.data)
                missing -= len(part)
        assert missing == 0
        files.write_sum(path, temporary)


def _make(config: PretrainConfig, path: Path, progress: Told) -> None:
    """Fill `path`: the same frames whatever the number of workers or interruptions."""
    folder = _parts(path)
    make, answer, items, what = _plan(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    done = {int(record.stem): files.read_json(record) for record in folder.glob("*.json")}
    for _ in _pieces(config, make, answer, items, done):
        ready, skipped = _count(done), sum(piece["skipped"] for piece in done.values())
        progress(min(ready, config.frames), config.frames, f"{what}{f', {skipped} skipped' if skipped else ''}")
    used = _unbroken(done)
    frames = min(_count(done), config.frames)
    about = _about(config, used, frames)
    if frames < 2:
        shutil.rmtree(folder)
        why = f" The first: {about['unreadable'][0]}" if about["unreadable"] else ""
        raise S2RobotError(f"{config.source} gave {frames} frames; expected 2 or more. Files that could not be read: "
                           f"{about['skipped']}.{why}")  # fmt: skip
    files.write_json(path.with_name("footage.json"), about)
    save_frames(path, (_read(folder, number, config) for number in range(len(used))), frames, config.frame_size)


def _parts(path: Path) -> Path:
    return path.with_suffix(".parts")


def _plan(config: PretrainConfig, folder: Path) -> tuple[Callable[[], Any], Callable[[Any, Item], Any], Any, str]:
    """What makes a worker's tool, what makes a piece with it, the pieces' items in order, and what to call it."""
    if not config.source:
        make = functools.partial(registry.scene_sampler, config.frame_size, config.seed, config.scenes)
        numbers = itertools.count(0, EPISODES_A_PIECE)
        episodes = (range(first, first + EPISODES_A_PIECE) for first in numbers)
        return make, functools.partial(_render, config, folder), enumerate(episodes), "rendering"
    found = clips.find_clips(Path(config.source), config.seed)
    _hold(folder / "listing.txt", clips.listing(found), config.source)
    return _no_tool, functools.partial(_read_clip, config, folder), enumerate(found), "reading"


def _pieces(
    config: PretrainConfig,
    make: Callable[[], Any],
    answer: Callable[[Any, Item], Any],
    items: Iterable[Item],
    done: dict[int, Any],
) -> Iterator[int]:
    """Make pieces until there are frames enough or items no more; `done` grows, and each new number is yielded."""
    todo = (item for item in items if item[0] not in done)
    results = workers.work(make, answer, todo, config.workers)
    try:
        while _count(done) < config.frames and (result := next(results, None)) is not None:
            (number, _), record = result
            done[number] = record
            yield number
    finally:
        results.close()


def _render(config: PretrainConfig, folder: Path, sampler: Any, item: Item) -> dict[str, Any]:
    number, episodes = item
    return _keep(folder, number, (sampler.episode(k) for k in episodes))


def _read_clip(config: PretrainConfig, folder: Path, tool: None, item: Item) -> dict[str, Any]:
    number, clip = item
    reading, rng = clips.Reading(), np.random.default_rng((config.seed, number))
    frames = itertools.islice(clips.read_clip(clip, config, rng, reading), config.frames)
    return _keep(folder, number, [(frame[None] for frame in frames)], reading)


def _keep(folder: Path, number: int, episodes: Iterable[Any], reading: clips.Reading | None = None) -> dict[str, Any]:
    """Write the frames of some episodes, each an array (n, H, H, 3) or arrays to be joined; then their record."""
    lengths = []
    with files.atomic(folder / f"{number:06d}.raw") as temporary, temporary.open("wb") as stream:
        for episode in episodes:
            lengths.append(0)
            for block in [episode] if isinstance(episode, np.ndarray) else episode:
                stream.write(np.ascontiguousarray(block).data)
                lengths[-1] += len(block)
    reading = reading or clips.Reading()
    record = {"lengths": lengths, "skipped": len(reading.skipped), "enlarged": reading.enlarged}
    record["unreadable"] = reading.skipped[:NAMED]
    files.write_json(folder / f"{number:06d}.json", record)
    return record


def _read(folder: Path, number: int, config: PretrainConfig) -> NDArray[np.uint8]:
    path, shape = folder / f"{number:06d}.raw", (-1, config.frame_size, config.frame_size, 3)
    if not path.stat().st_size:  # nothing to map
        return np.empty((0, *shape[1:]), np.uint8)
    frames: NDArray[np.uint8] = np.memmap(path, np.uint8, "r").reshape(shape)
    return frames


def _about(config: PretrainConfig, used: list[Any], frames: int) -> dict[str, Any]:
    """What footage.json says."""
    lengths = [length for piece in used for length in piece["lengths"]]
    return {
        "source": config.source or f"{config.scenes} scenes, rendered",
        "frames": frames,
        "held_out": whole_episodes(lengths, frames),
        "clips": len(lengths),
        "enlarged": sum(piece["enlarged"] for piece in used),
        "skipped": sum(piece["skipped"] for piece in used),
        "unreadable": [text for piece in used for text in piece["unreadable"]][:NAMED],
    }


def _unbroken(done: dict[int, Any]) -> list[Any]:
    """The pieces from the first on, up to the first that is not there yet."""
    return [done[number] for number in itertools.takewhile(done.__contains__, itertools.count())]


def _count(done: dict[int, Any]) -> int:
    return sum(sum(piece["lengths"]) for piece in _unbroken(done))


def _no_tool() -> None:
    """Files need nothing made beforehand."""
