"""One camera's live feed: what did not change is not encoded again.

A camera that does not move sees most of a table as it was a moment ago. A stream keeps the frame that each tile was
cut from, and the backbone's answer; while the pixels that a tile is made of stay as they were, it takes the answer it
had, and is neither resized nor normalised. With `tolerance=0` that is exact: only tiles whose every pixel is the very
same are reused, so the features are the encoder's own to the last bit that its batch size leaves fixed (1e-4, see
`Encoder`). In int8 that is no bit: its scale of activations is that of the whole batch, and a tile alone differs by
some 0.3 % from the same among others, so the error is measured there too.

A real camera never gives the same pixels twice. `tolerance` then says how far a tile's pixels in the frame may be from
those it was encoded from (mean absolute difference, in [0, 255]) to be taken as unchanged. What that costs is measured,
not hoped: every `AUDIT_EVERY`-th frame is also encoded in full, and `statistics()` reports the error found.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot.camera_watch import CameraWatch, WatchConfig
from s2robot.errors import InvalidInput, S2RobotError
from s2robot.preprocess import check_frames, tile_sources
from s2robot.types import Features

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from s2robot.encoder import Encoder
    from s2robot.scales import Plan, Size

AUDIT_EVERY = 50


@dataclass(frozen=True)
class StreamStatistics:
    """What a stream has done since it was made or reset.

    reused: share of tiles that were not encoded, 0 to 1.
    error: of reused features, where a tolerance allows any: the largest and the mean over the audited frames of
        |features - full| / |full|; None before the first audit, 0 when exact.
    """

    frames: int
    tiles: int
    reused: float
    worst_error: float | None
    mean_error: float | None


class Stream:
    """A live feed of one camera: call it on every frame, in order. Safe to call from several threads.

    Args:
        encoder: shared by any number of streams.
        camera: a name, for messages.
        tolerance: mean absolute difference of a tile's pixels [0 to 255] that counts as no change; 0 is exact.
        watch: what to do about blank and frozen frames, see `camera_watch`; default: nothing.
    """

    def __init__(self, encoder: Encoder, camera: str, tolerance: float = 0.0, watch: WatchConfig | None = None) -> None:
        if not 0 <= tolerance <= 255:
            raise InvalidInput(f"tolerance is {tolerance}; expected a mean pixel difference from 0 (exact) to 255")
        self.encoder, self.camera, self.tolerance = encoder, camera, tolerance
        self._lock = threading.Lock()
        self.watch = None if watch is None else CameraWatch(camera, watch)
        self.reset()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def reset(self) -> None:
        """Forget every tile and all statistics: a new episode, or the camera was moved."""
        with self._lock:
            self._forget()
            if self.watch:
                self.watch.reset()
            self._frames = self._tiles = self._encoded = 0
            self._errors: list[float] = []

    def __call__(self, frame: NDArray[np.uint8] | Tensor) -> Features:
        """Encode the next frame, (H, W, 3) uint8 RGB; features have B = V = 1.

        Raises:
            S2RobotError: the frame is blank or frozen, and `watch` says to hold or stop.
        """
        batch = check_frames(frame)
        if batch.shape[:2] != (1, 1):
            raise InvalidInput(f"A stream takes one frame at a time, (H, W, 3); got {tuple(frame.shape)}")
        with self._lock:
            if self.watch:
                before = self.watch.fault
                self.watch.saw(np.asarray(batch[0, 0].cpu()))
                if self.watch.fault and not before:  # said once, however long it lasts
                    _log.warning("%s", self.watch.fault)
                if problem := self.watch.problem:
                    raise S2RobotError(f"Not encoded: {problem}")
            return self._next(batch)

    def statistics(self) -> StreamStatistics:
        """How much was reused, and at what error."""
        with self._lock:
            reused = 1 - self._encoded / self._tiles if self._tiles else 0.0
            errors = self._errors if self._audited else [0.0]
            worst, mean = (max(errors), sum(errors) / len(errors)) if errors else (None, None)
            return StreamStatistics(self._frames, self._tiles, reused, worst, mean)

    @property
    def _audited(self) -> bool:
        """Whether a tile encoded earlier, with others, may have other features than it would have now."""
        return bool(self.tolerance) or self.encoder.config.precision == "int8"

    def _forget(self) -> None:
        self._of: tuple[Size, str, torch.device] | None = None  # what the tiles kept are of
        self._seen: list[list[NDArray[np.uint8]]] = []  # of every tile of every scale, the frame it was encoded from
        self._answers: list[tuple[Tensor, Tensor]] = []

    def _next(self, batch: Tensor) -> Features:
        encoder = self.encoder
        frame = np.array(batch[0, 0].cpu())  # a copy: cameras write the next frame into the same memory, even now
        if batch.device.type == "cpu":
            batch = torch.from_numpy(frame)[None, None]  # what is encoded is what the next one is compared with
        size = (frame.shape[0], frame.shape[1])
        plan = encoder.plan(size)
        with encoder.computing():
            now = (size, encoder.fingerprint, encoder.device)
            changed = self._changed(frame, plan) if self._of == now else _all(plan)
            if self._of != now:
                self._forget()
            self._renew(batch, frame, plan, changed)
            self._of = now
            self._frames, self._tiles = self._frames + 1, self._tiles + plan.tiles
            self._encoded += sum(map(len, changed))
            features = encoder.assemble(self._answers, plan, 1, 1)
            if self._audited and self._frames % AUDIT_EVERY == 0:
                full = encoder.assemble(encoder.run(encoder.cut(batch, plan)), plan, 1, 1).map
                self._errors.append(float((features.map - full).norm() / full.norm()))
            return features

    def _renew(self, batch: Tensor, frame: NDArray[np.uint8], plan: Plan, changed: list[list[int]]) -> None:
        """Encode the tiles that changed, in one batch a tile size."""
        scales = [k for k, rows in enumerate(changed) if rows]
        tiles = self.encoder.cut(batch, plan, changed)
        answers = self.encoder.run([tiles[k] for k in scales]) if scales else []
        if self._of is None:
            seen, kept = [[frame] * scale.tiles for scale in plan.scales], answers
        else:
            seen, kept = [list(frames) for frames in self._seen], list(self._answers)
            for k, (prefix, grid) in zip(scales, answers, strict=True):
                rows = torch.tensor(changed[k], device=grid.device)
                # Never in place: features already handed out may be views of these.
                kept[k] = (kept[k][0].index_copy(0, rows, prefix), kept[k][1].index_copy(0, rows, grid))
                for row in changed[k]:
                    seen[k][row] = frame
        self._seen, self._answers = seen, kept  # together: whatever raises above leaves no tile with another's answer

    def _changed(self, frame: NDArray[np.uint8], plan: Plan) -> list[list[int]]:
        """Of every scale, the tiles whose pixels are not those they were encoded from."""
        boxes = tile_sources((frame.shape[0], frame.shape[1]), plan, self.encoder.contract)
        return [
            [t for t, (box, seen) in enumerate(zip(*pair, strict=True)) if self._differ(frame[box], seen[box])]
            for pair in zip(boxes, self._seen, strict=True)
        ]

    def _differ(self, now: NDArray[np.uint8], before: NDArray[np.uint8]) -> bool:
        """Whether two parts of frames, (h, w, 3), differ by more than the tolerance."""
        if not self.tolerance or not now.size:
            return bool((now != before).any())
        return float(np.abs(now.astype(np.int16) - before).mean()) > self.tolerance


def _all(plan: Plan) -> list[list[int]]:
    return [list(range(scale.tiles)) for scale in plan.scales]
