"""Where the frames are in somebody's observations, and what these become when features take their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from s2robot.adapters.features import FEATURES, FrameFeatures
from s2robot.errors import InvalidInput, UnknownName
from s2robot.types import FRAMES

Batch = Any  # what a batch of observations is: an array (B, ...), or a dict of such


class Cameras:
    """Finds frames in a space and in batches of its observations, and puts features in their place.

        Dict with `frames` (V, H, W, 3)    features (V, ...) beside the other keys
        Dict with keys (H, W, 3)           the same, one view a key, in the order of `cameras`
        Box (H, W, 3) or (V, H, W, 3)      features alone, (V, ...)

    Args:
        space: of single observations.
        cameras: keys; default: `frames`, or else every key that holds uint8 RGB.
        key: what to call the features in a Dict.

    Raises:
        InvalidInput: no frames (their keys are listed), or frames of several sizes.
        UnknownName: a camera that is no key.
    """

    def __init__(self, space: spaces.Space[Any], cameras: Sequence[str] = (), key: str = FEATURES) -> None:
        if isinstance(cameras, str):
            raise InvalidInput(f"cameras is {cameras!r}; expected several names, e.g. ({cameras!r},)")
        self.space, self.key = space, key
        self.keys = _keys(space, tuple(cameras))
        sizes = {name: part.shape[-3:] for name, part in self._parts().items()}
        if len(set(sizes.values())) > 1:
            raise InvalidInput(
                f"The cameras differ in size: {sizes}. Wrap twice: cameras=(NAME,), key={FEATURES + '_name'!r}"
            )
        height, width, _ = next(iter(sizes.values()))
        self.frame = (int(height), int(width))
        self.views = sum(1 if len(part.shape) == 3 else part.shape[0] for part in self._parts().values())
        if isinstance(space, spaces.Dict) and key in set(space) - set(self.keys):
            raise InvalidInput(f"The observation has a key {key!r} already: give the features another, key=NAME")

    def featured(self, features: FrameFeatures) -> spaces.Space[Any]:
        """The space of single observations with features: their bounds are those of finite numbers."""
        shape = features.shape(self.views, self.frame)
        most = np.finfo(features.dtype).max
        box = spaces.Box(-most, most, shape, features.dtype.type)
        if not isinstance(self.space, spaces.Dict):
            return box
        others = {name: part for name, part in self.space.items() if name not in self.keys}
        return spaces.Dict({**others, self.key: box})

    def frames(self, batch: Batch) -> NDArray[np.uint8]:
        """Frames of a batch of observations, (B, V, H, W, 3)."""
        arrays = [np.asarray(batch[name]) for name in self.keys] if self.keys else [np.asarray(batch)]
        views = [array[:, None] if array.ndim == 4 else array for array in arrays]
        stacked: NDArray[np.uint8] = views[0] if len(views) == 1 else np.concatenate(views, axis=1)
        return stacked

    def replaced(self, batch: Batch, features: NDArray[Any]) -> Batch:
        """The batch (B, ...) with these features (B, V, ...) instead of frames.

        Raises:
            InvalidInput: another key holds NaN.
        """
        if not self.keys:
            return features
        others = {name: value for name, value in batch.items() if name not in self.keys}
        for name, value in others.items():
            if np.asarray(value).dtype.kind == "f" and np.isnan(value).any():
                raise InvalidInput(f"Observation {name!r} holds NaN: {value}. The simulation may have run away")
        return {**others, self.key: features}

    def _parts(self) -> dict[str, spaces.Box]:
        return {name: self.space[name] for name in self.keys} if self.keys else {"": self.space}  # type: ignore[dict-item, index]


def encoded(cameras: Cameras, features: FrameFeatures, batch: Batch, last: Sequence[Any]) -> tuple[Batch, list[Any]]:
    """A batch of observations (B, ...), and single ones of episodes that ended, at one call of the encoder."""
    frames = cameras.frames(batch)
    ended = [cameras.frames(batched(one)) for one in last]
    found = features(np.concatenate([frames, *ended]) if ended else frames)
    tail = found[len(frames) :]
    ends = [unbatched(cameras.replaced(batched(one), tail[k : k + 1])) for k, one in enumerate(last)]
    return cameras.replaced(batch, found[: len(frames)]), ends


def batched(one: Any) -> Batch:
    """A single observation as a batch of one."""
    return {k: np.asarray(v)[None] for k, v in one.items()} if isinstance(one, Mapping) else np.asarray(one)[None]


def unbatched(batch: Batch) -> Any:
    """The first of a batch of observations."""
    return {k: v[0] for k, v in batch.items()} if isinstance(batch, Mapping) else batch[0]


def _keys(space: spaces.Space[Any], cameras: tuple[str, ...]) -> tuple[str, ...]:
    """Which keys hold frames; none of a plain Box."""
    if not isinstance(space, spaces.Dict):
        if not _shows(space) or cameras:
            raise InvalidInput(
                f"{f'cameras={cameras} of' if cameras else 'No frames in'} {_short(space)}; expected a Box (H, W, 3) or"
                f" (V, H, W, 3) of uint8, or a Dict with such{_advice(space)}"
            )
        return ()
    for name in cameras:
        if name not in space.spaces:
            raise UnknownName("camera", name, space.spaces)
    found = cameras or ((FRAMES,) if FRAMES in space.spaces else tuple(k for k, v in space.items() if _shows(v)))
    wrong = [name for name in found if not _shows(space[name])]
    if wrong or not found:
        raise InvalidInput(
            f"No frames in {', '.join(map(repr, wrong)) or 'this observation'}. It has: "
            + ", ".join(f"{name} {_short(part)}" for name, part in space.items())
            + "; expected a key with uint8 (H, W, 3) or (V, H, W, 3)"
            + "".join({_advice(part) for part in space.values()} - {""})
        )
    return found


def _shows(space: spaces.Space[Any]) -> bool:
    """Whether this may be RGB frames."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    return len(space.shape) in (3, 4) and space.shape[-1] == 3


def _short(space: spaces.Space[Any]) -> str:
    return f"{space.dtype} {space.shape}" if isinstance(space, spaces.Box) else str(space)


def _advice(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Box) and len(space.shape) == 3 and space.shape[0] == 3:
        return ". The colours come first: give them last, with gymnasium.wrappers.TransformObservation"
    return ""
