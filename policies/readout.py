"""From a token map to a few numbers: where things are, and what they look like there.

Averaging a token map (or reading CLS alone) throws the position of a cube away; a learned spatial read-out
keeps it. Each query attends over one view's tokens and returns the expected grid position of its attention
(a spatial softmax, Finn et al. 2016, "Deep Spatial Autoencoders") and the value found there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SpatialReadout(nn.Module):
    """Attention pooling with positions, separate weights for each view.

    Args:
        views, channels, grid: of the projected feature map (B, V, C, h, w).
        queries: how many things each view may look for.
        goal: fields of the goal; what is looked for then depends on it.
        key_width, value_width: of each query's comparison and of what it brings back.
    """

    def __init__(
        self,
        views: int,
        channels: int,
        grid: tuple[int, int],
        *,
        queries: int,
        key_width: int,
        value_width: int,
        goal: int = 0,
    ) -> None:
        super().__init__()
        height, width = grid
        self.keys = nn.ModuleList([nn.Linear(channels, key_width) for _ in range(views)])
        self.values = nn.ModuleList([nn.Linear(channels, value_width) for _ in range(views)])
        self.queries = nn.Parameter(torch.randn(views, queries, key_width) / key_width**0.5)
        self.wanted = nn.Linear(goal, views * queries * key_width, bias=False) if goal else None
        self.positions = nn.Parameter(torch.zeros(views, height * width, key_width))
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("coordinates", torch.stack([x, y], dim=-1).reshape(-1, 2), persistent=False)
        self.width = views * queries * (value_width + 2)

    def forward(self, maps: Tensor, goal: Tensor) -> Tensor:
        """maps (B, V, C, h, w), goal (B, G) -> (B, V * queries * (value_width + 2))."""
        queries = (
            self.queries if self.wanted is None else self.queries + self.wanted(goal).unflatten(1, self.queries.shape)
        )
        tokens = maps.flatten(3).transpose(2, 3)  # (B, V, N, C)
        found = []
        for view in range(tokens.shape[1]):
            seen = tokens[:, view]  # (B, N, C)
            keys = self.keys[view](seen) + self.positions[view]
            attention = (queries[..., view, :, :] @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5).softmax(
                dim=-1
            )  # (B, K, N)
            found += [attention @ self.values[view](seen), attention @ self.coordinates]
        return torch.cat([part.flatten(1) for part in found], dim=1)


class ConvReadout(nn.Module):
    """Two small convolutions and a linear layer over all places, separate for each view: as wide as `SpatialReadout`.

    What is seen where has a weight of its own, so it can tell what no single token shows, and needs more
    demonstrations to learn it. The goal scales and shifts channels (Perez et al. 2018, "FiLM"). It compares
    nothing: `key_width` is how many channels the convolutions have.
    """

    def __init__(
        self,
        views: int,
        channels: int,
        grid: tuple[int, int],
        *,
        queries: int,
        key_width: int,
        value_width: int,
        goal: int = 0,
    ) -> None:
        super().__init__()
        inner = key_width
        self.enter = nn.ModuleList([nn.Conv2d(channels, inner, 3, padding=1) for _ in range(views)])
        self.deeper = nn.ModuleList([nn.Conv2d(inner, inner, 3, padding=1) for _ in range(views)])
        each = queries * (value_width + 2)
        self.leave = nn.ModuleList([nn.Linear(inner * grid[0] * grid[1], each) for _ in range(views)])
        self.wanted = nn.Linear(goal, 2 * inner) if goal else None
        self.width = views * each

    def forward(self, maps: Tensor, goal: Tensor) -> Tensor:
        """maps (B, V, C, h, w), goal (B, G) -> (B, V * queries * (value_width + 2))."""
        found = []
        for view in range(maps.shape[1]):
            seen = self.enter[view](maps[:, view])  # (B, 32, h, w)
            if self.wanted is not None:
                scale, shift = self.wanted(goal)[..., None, None].chunk(2, dim=1)
                seen = seen * (1 + scale) + shift
            seen = self.deeper[view](nn.functional.gelu(seen))
            found.append(self.leave[view](nn.functional.gelu(seen).flatten(1)))
        return torch.cat(found, dim=1)


class FlatReadout(nn.Module):
    """All numbers of the map as they are: nothing to learn, wide, and for the goal what is behind must care.

    For a policy with a bottleneck behind it.
    """

    def __init__(self, views: int, channels: int, grid: tuple[int, int], **unused: int) -> None:
        super().__init__()
        self.width = views * channels * grid[0] * grid[1]

    def forward(self, maps: Tensor, goal: Tensor) -> Tensor:
        """maps (B, V, C, h, w) -> (B, V*C*h*w)."""
        return maps.flatten(1)


Readout = SpatialReadout | ConvReadout | FlatReadout
READOUTS: dict[str, type[Readout]] = {"attention": SpatialReadout, "conv": ConvReadout, "flat": FlatReadout}
