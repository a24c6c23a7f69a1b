"""Images as learning libraries hand them out, and back to the very frames they were made of."""

from __future__ import annotations

import torch
from torch import Tensor

from s2robot.errors import InvalidInput

EXACT = (torch.float16, torch.float32, torch.float64)  # k / 255 comes back as k; in bfloat16 it does not
SLACK = 1e-3  # of rounding, below 0 and above 1


def to_frames(images: Tensor, name: str) -> Tensor:
    """Channels-first images (..., 3, H, W) in [0, 1] to uint8 frames (..., H, W, 3), to the bit.

    Args:
        name: what to call them in an error.

    Raises:
        InvalidInput: they are not RGB, or were normalised already: an encoder does that itself, by its own contract.
    """
    if images.ndim < 3 or images.shape[-3] != 3:
        raise InvalidInput(f"{name} is {tuple(images.shape)}; expected RGB with channels first, (..., 3, H, W)")
    if images.dtype != torch.uint8:
        if images.dtype not in EXACT:
            raise InvalidInput(f"{name} is {images.dtype}; expected float32 in [0, 1]")
        low, high = (float(bound) for bound in images.aminmax())
        if not (low >= -SLACK and high <= 1 + SLACK):  # NaN too
            raise InvalidInput(
                f"{name} lies in [{low:.3g}, {high:.3g}]; expected [0, 1]. The encoder normalises by its own mean and"
                " standard deviation: leave images as they are (LeRobot: VISUAL to IDENTITY; robomimic: no"
                " hdf5_normalize_obs)"
            )
        images = (images * 255).round().clamp(0, 255).to(torch.uint8)
    return images.movedim(-3, -1)
