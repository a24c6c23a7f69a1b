"""What each scale is worth to a trained policy: how its loss on held-out episodes grows without it.

Compressed tokens have mean zero, so a scale that is set to zero says nothing of this frame but what all frames have in
common. The policy was trained with all scales, so this is what it makes of them, not what another one, trained without
a scale, would lose: that is `s2robot demo --baselines` and `s2robot compare`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s2robot.samples import Samples


@torch.no_grad()
def by_scale(network: Any, samples: Samples, rows: Tensor, names: Sequence[str]) -> dict[str, Any] | None:
    """Loss on these rows with all scales, and without each: {"all": ..., "without": {name: ...}}; None without rows,
    where scales are fused, or where samples are frames."""
    if not len(rows) or len(names) < 2 or network.shapes.scales != len(names) or network.reads_frames:
        return None
    device = next(network.eval().parameters()).device
    groups = len(names)

    def loss(left_out: int | None) -> float:
        total = 0.0
        for part in rows.split(256):
            batch = samples.take(part, device)
            if left_out is not None:
                split = batch.seen.unflatten(3, (groups, -1)).clone()  # (B, T, V, S, c, h, w)
                split[:, :, :, left_out] = 0
                batch = batch._replace(seen=split.flatten(3, 4))
            torch.manual_seed(0)  # a flow draws times and noise
            total += float(network.batch_loss(batch)) * len(part)
        return total / len(rows)

    with torch.random.fork_rng(devices=[]):
        return {"all": loss(None), "without": {name: loss(k) for k, name in enumerate(names)}}
