"""The one table of everything that flows through s2robot: keys, dtypes, shapes, ranges, units.

Letters, used in every docstring and at every line end:

    B batch    V views (cameras)    T tiles    H W frame pixels    P tile size in pixels
    N tokens   D backbone width     S scales   h w token grid      A action chunk length
    Q proprioception fields         G goal fields                  M action dimensions    K privileged fields

    key               dtype    shape           range      unit / meaning
    frames            uint8    (V, H, W, 3)    [0, 255]   RGB, top row first, one frame per camera
    proprioception    float32  (Q,)            finite     named fields, metres and radians (see the task)
    goal              float32  (G,)            finite     optional; what to do, e.g. a one-hot colour
    depth             float32  (V, H, W)       > 0        on request; distance along the camera's axis [m]
    segmentation      uint8    (V, H, W)       [0, 255]   on request; index into the environment's `segment_names`
    privileged        float32  (K,)            finite     on request; the simulator's state, `privileged_names`
    action            float32  (M,)            [-1, 1]    controller input of one control step
    action chunk      float32  (A, M)          [-1, 1]    the next A actions, first to execute first

Other modules refer to this one; none restates it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from s2robot.errors import InvalidInput

if TYPE_CHECKING:
    import torch  # takes seconds and half a gigabyte: a process that only simulates goes without

FRAMES = "frames"
PROPRIOCEPTION = "proprioception"
GOAL = "goal"
DEPTH = "depth"
SEGMENTATION = "segmentation"
PRIVILEGED = "privileged"

Observation = Mapping[str, NDArray[Any]]
"""One observation: the keys of the table above, without a batch axis."""


@dataclass(frozen=True)
class KeySpec:
    """What one key of an observation must look like."""

    dtype: str
    axes: tuple[str, ...]
    required: bool
    meaning: str


OBSERVATION_KEYS: dict[str, KeySpec] = {
    FRAMES: KeySpec("uint8", ("V", "H", "W", "3"), True, "RGB frames, one per camera, top row first"),
    PROPRIOCEPTION: KeySpec("float32", ("Q",), True, "robot state, fields named by the task"),
    GOAL: KeySpec("float32", ("G",), False, "what to do"),
    DEPTH: KeySpec("float32", ("V", "H", "W"), False, "distance along each camera's axis [m]"),
    SEGMENTATION: KeySpec("uint8", ("V", "H", "W"), False, "what each pixel shows"),
    PRIVILEGED: KeySpec("float32", ("K",), False, "the simulator's state, which no policy may see"),
}


@dataclass(frozen=True)
class Features:
    """Multi-scale features of a batch of frames. Scales are concatenated on channels, coarse first.

    map:    (B, V, D*S, h, w)
    tokens: (B, V, h*w, D*S)   the same numbers as `map`, row-major over the grid
    cls:    (B, V, D*S)        prefix tokens averaged over each scale's tiles
    """

    map: torch.Tensor
    tokens: torch.Tensor
    cls: torch.Tensor


@runtime_checkable
class Policy(Protocol):
    """What every policy is: observations in, action chunks out.

    execute: how many actions of a chunk to execute before looking again, 1 to A.
    seconds: wall time of the last `act` by stage ("encode", "act"), for latency tables.
    """

    execute: int
    seconds: dict[str, float]

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """Return the next action chunk, (A, M) float32 in [-1, 1]."""
        ...

    def reset(self) -> None:
        """Forget the episode so far."""
        ...


def check_execute(steps: int, *, chunk: int, trained: int, context: int) -> None:
    """Hold how many actions a policy shall execute before looking again against how it was trained.

    Args:
        chunk: actions that it gives a look.
        trained: control steps between two looks in training.
        context: looks that it decides by.

    Raises:
        InvalidInput: more than a chunk has, fewer than one, or looks would lie otherwise than in training.
    """
    if not 1 <= steps <= chunk:
        raise InvalidInput(f"execute is {steps}; this policy's chunks have {chunk} actions")
    if context > 1 and trained % steps:
        raise InvalidInput(
            f"execute is {steps}; this policy decides by {context} looks {trained} steps apart, so it must divide"
            f" {trained}"
        )


def check_observation(observation: Observation) -> None:
    """Hold one observation against `OBSERVATION_KEYS`.

    Raises:
        InvalidInput: a key is missing or unknown, or has the wrong dtype, shape or a NaN.
    """
    if not isinstance(observation, Mapping):
        raise InvalidInput(f"An observation is a {type(observation).__name__}; expected a dict with {FRAMES!r}")
    unknown = set(observation) - set(OBSERVATION_KEYS)
    if unknown:
        raise InvalidInput(f"Unknown observation keys {sorted(unknown)}. Known: {', '.join(OBSERVATION_KEYS)}")
    for key, spec in OBSERVATION_KEYS.items():
        if key not in observation:
            if spec.required:
                raise InvalidInput(f"Observation lacks {key!r}. It has: {', '.join(sorted(observation))}")
            continue
        value = observation[key]
        if not isinstance(value, np.ndarray):
            raise InvalidInput(f"Observation {key!r} is a {type(value).__name__}; expected a numpy array")
        if str(value.dtype) != spec.dtype or value.ndim != len(spec.axes):
            raise InvalidInput(
                f"Observation {key!r} is {value.dtype} {value.shape}; expected {spec.dtype} ({', '.join(spec.axes)}): "
                f"{spec.meaning}"
            )
        if key == FRAMES and value.shape[-1] != 3:
            raise InvalidInput(f"Frames have {value.shape[-1]} channels in the last axis; expected RGB, (V, H, W, 3)")
        if spec.dtype == "float32" and not np.isfinite(value).all():
            raise InvalidInput(f"Observation {key!r} holds NaN or infinity: {value}")
