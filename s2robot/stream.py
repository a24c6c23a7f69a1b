"""One camera's live feed: what did not change is not encoded again.

A camera that does not move sees most of a table as it was a moment ago. A stream keeps each tile as the backbone saw
it, and its answer; a tile that comes again takes the answer it had. With `tolerance=0` that is exact: only tiles whose
every pixel, after resizing, is the very same are reused, so the features are the encoder's own to the last bit that
its batch size leaves fixed (1e-4, see `Encoder`).

A real camera never gives the same pixels twice. `tolerance` then says how far the pixels of a tile may be from those
it was encoded from (mean absolute difference, in [0, 255]) to be taken as unchanged. What that costs is measured, not
hoped: every `AUDIT_EVERY`-th frame is also encoded in full, and `statistics()` reports the error found.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot.errors import InvalidInput
from s2robot.preprocess import check_frames, cut_tiles
from s2robot.types import Features

if TYPE_CHECKING:
    from s2robot.encoder import Encoder
    from s2robot.scales import Size

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
    """

    def __init__(self, encoder: Encoder, camera: str, tolerance: float = 0.0) -> None:
        if not 0 <= tolerance <= 255:
            raise InvalidInput(f"tolerance is {tolerance}; expected a mean pixel difference from 0 (exact) to 255")
        self.encoder, self.camera, self.tolerance = encoder, camera, tolerance
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget every tile and all statistics: a new episode, or the camera was moved."""
        with self._lock:
            self._of: tuple[Size, str, torch.device] | None = None  # what the tiles kept are of
            self._seen: list[Tensor] = []  # of every scale (T, 3, h, w): pixels as they were when encoded
            self._answers: list[tuple[Tensor, Tensor]] = []
            self._frames = self._tiles = self._encoded = 0
            self._errors: list[float] = []

    def __call__(self, frame: NDArray[np.uint8] | Tensor) -> Features:
        """Encode the next frame, (H, W, 3) uint8 RGB; features have B = V = 1."""
        batch = check_frames(frame)
        if batch.shape[:2] != (1, 1):
            raise InvalidInput(f"A stream takes one frame at a time, (H, W, 3); got {tuple(frame.shape)}")
        with self._lock:
            return self._next(batch)

    def statistics(self) -> StreamStatistics:
        """How much was reused, and at what error."""
        with self._lock:
            reused = 1 - self._encoded / self._tiles if self._tiles else 0.0
            errors = self._errors if self.tolerance else [0.0]
            worst, mean = (max(errors), sum(errors) / len(errors)) if errors else (None, None)
            return StreamStatistics(self._frames, self._tiles, reused, worst, mean)

    def _next(self, batch: Tensor) -> Features:
        encoder = self.encoder
        size = (batch.shape[2], batch.shape[3])
        plan = encoder.plan(size)
        with encoder.computing():
            tiles = cut_tiles(encoder.upload(batch), plan, encoder.contract, encoder.mean, encoder.std)
            now = (size, encoder.fingerprint, encoder.device)
            if self._of != now:
                answers = encoder.run(tiles)
                self._of, self._seen, self._answers = now, tiles, answers
                encoded = plan.tiles
            else:
                encoded = self._renew(tiles)
            self._frames, self._tiles, self._encoded = (
                self._frames + 1,
                self._tiles + plan.tiles,
                self._encoded + encoded,
            )
            features = encoder.assemble(self._answers, plan, 1, 1)
            if self.tolerance and self._frames % AUDIT_EVERY == 0:
                full = encoder.assemble(encoder.run(tiles), plan, 1, 1).map
                self._errors.append(float((features.map - full).norm() / full.norm()))
            return features

    def _renew(self, tiles: list[Tensor]) -> int:
        """Encode the tiles that changed, in one batch a tile size; return how many."""
        changed = [self._changed(now, before).nonzero()[:, 0] for now, before in zip(tiles, self._seen, strict=True)]
        scales = [k for k, rows in enumerate(changed) if len(rows)]
        answers = self.encoder.run([tiles[k][changed[k]] for k in scales]) if scales else []
        seen, kept = list(self._seen), list(self._answers)
        for k, (prefix, grid) in zip(scales, answers, strict=True):
            rows = changed[k]
            # Never in place: features already handed out may be views of these.
            seen[k] = seen[k].index_copy(0, rows, tiles[k][rows]) if self.tolerance else tiles[k]  # the same, if exact
            kept[k] = (kept[k][0].index_copy(0, rows, prefix), kept[k][1].index_copy(0, rows, grid))
        self._seen, self._answers = seen, kept  # together: whatever raises above leaves no tile with another's answer
        return sum(len(rows) for rows in changed)

    def _changed(self, now: Tensor, before: Tensor) -> Tensor:
        """(T,) bool."""
        if not self.tolerance:
            return (now != before).flatten(1).any(dim=1)
        pixels = (now - before).abs() * self.encoder.std * 255
        return pixels.flatten(1).mean(dim=1) > self.tolerance
