"""Small heads on frozen features: principal axes, ridge, logistic, spatial softmax, one linear layer a token.

Each is fitted on `fit` rows; strengths and the step to stop at are chosen on `valid` rows. What a head is to be
tested on does not come in here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RIDGE_STRENGTHS = tuple(10.0**power for power in range(-6, 3))  # times the mean eigenvalue
LOGISTIC_STRENGTHS = tuple(10.0**power for power in range(0, -7, -1))  # of rows of length 1; strong first


@dataclass(frozen=True)
class PrincipalAxes:
    """Tokens turned to their principal axes, strongest first, and brought to unit variance along each.

    Encoders differ in the size and spread of what they give; heads that learn by steps must not feel that.
    """

    mean: Tensor  # (C,)
    axes: Tensor  # (C, k)

    @classmethod
    def of(cls, tokens: Tensor, most: int | None = None) -> PrincipalAxes:
        """tokens (m, C); the first `most` axes, or all. Axes of (nearly) no variance are not blown up."""
        mean = tokens.mean(dim=0)
        centred = (tokens - mean).double()
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(tokens))  # weakest first
        kept = axes.flip(1)[:, :most]
        spread = (variances.flip(0)[:most].clamp(min=0) + 1e-4 * variances.mean() + 1e-12).sqrt()
        return cls(mean, (kept / spread).float())

    def __call__(self, maps: Tensor) -> Tensor:
        """(n, C, h, w) to (n, k, h, w)."""
        return torch.einsum("nchw,ck->nkhw", maps, self.axes) - (self.mean @ self.axes)[:, None, None]


@dataclass(frozen=True)
class Linear:
    """x (n, d) to (n, outputs); strength is the penalty that was chosen."""

    mean: Tensor  # (d,)
    weights: Tensor  # (d, outputs)
    bias: Tensor  # (outputs,)
    strength: float

    def __call__(self, x: Tensor) -> Tensor:
        return ((x.to(self.weights.dtype) - self.mean) @ self.weights + self.bias).float()


def fit_ridge(
    fit: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    error: Callable[[Tensor, Tensor], Tensor],
    strengths: tuple[float, ...] = RIDGE_STRENGTHS,
) -> Linear:
    """Ridge regression on standardised columns, min |X W - Y|^2 + s |W|^2, the strength s of least validation error.

    One eigendecomposition, of the smaller of X X^T and X^T X, serves every strength.
    """
    x, y = fit[0].double(), fit[1].double()
    mean, spread, offset = x.mean(dim=0), _spread(x.double()), y.mean(dim=0)
    x, y = (x - mean) / spread, y - offset
    wide = x.shape[1] > x.shape[0]
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    turned = vectors.T @ (y if wide else x.T @ y)
    found: list[tuple[float, Linear]] = []
    for strength in strengths:
        penalty = strength * float(values.clamp(min=0).mean())
        solved = vectors @ (turned / (values.clamp(min=0) + penalty)[:, None])
        weights = (x.T @ solved if wide else solved) / spread[:, None]
        head = Linear(mean, weights, offset, strength)
        found.append((float(error(head(valid[0]), valid[1])), head))
    return min(found, key=lambda pair: pair[0])[1]


def fit_logistic(
    fit: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    classes: int,
    strengths: tuple[float, ...] = LOGISTIC_STRENGTHS,
    *,
    balanced: bool = True,
) -> Linear:
    """Multinomial logistic regression on standardised columns; the strength of least validation loss.

    Classes weigh the same however often they occur, so that chance is 1 / classes; unless `balanced` is False, for who
    counts right answers.
    """
    mean, scale = fit[0].mean(dim=0), _spread(fit[0]) * fit[0].shape[1] ** 0.5
    x, labels = (fit[0] - mean) / scale, fit[1]
    often = torch.bincount(labels, minlength=classes).clamp(min=1)
    weight = len(labels) / (classes * often.float()) if balanced else None
    weights = torch.zeros(x.shape[1], classes, requires_grad=True, device=x.device)
    bias = torch.zeros(classes, requires_grad=True, device=x.device)
    found: list[tuple[float, Linear]] = []
    for strength in strengths:  # strong first: each starts from the one before

        def objective(penalty: float = strength) -> Tensor:
            return F.cross_entropy(x @ weights + bias, labels, weight) + penalty / 2 * weights.square().sum()

        _minimise(objective, [weights, bias])
        head = Linear(mean, (weights / scale[:, None]).detach().clone(), bias.detach().clone(), strength)
        found.append((float(F.cross_entropy(head(valid[0]), valid[1], weight)), head))
    return min(found, key=lambda pair: pair[0])[1]


class SpatialHead(nn.Module):
    """Where things are: queries attend over a map, and a small network reads where they landed and what is there.

    Each query's attention becomes its expected place (a spatial softmax, Finn et al. 2016) and the value found there.
    """

    coordinates: Tensor  # (h * w, 2), in [-1, 1]

    def __init__(self, channels: int, grid: tuple[int, int], outputs: int, queries: int = 16, width: int = 32) -> None:
        super().__init__()
        self.keys, self.values = nn.Linear(channels, width), nn.Linear(channels, 8)
        self.queries = nn.Parameter(torch.randn(queries, width) / width**0.5)
        self.places = nn.Parameter(torch.zeros(math.prod(grid), width))
        self.read = nn.Sequential(nn.Linear(queries * 10, 64), nn.GELU(), nn.Linear(64, outputs))
        y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in grid), indexing="ij")
        self.register_buffer("coordinates", torch.stack([x, y], dim=-1).reshape(-1, 2), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """maps (b, C, h, w) to (b, outputs)."""
        tokens = maps.flatten(2).transpose(1, 2)  # (b, N, C)
        keys = self.keys(tokens) + self.places
        attention = (self.queries @ keys.transpose(1, 2)).softmax(dim=-1)  # (b, queries, N)
        found = torch.cat([attention @ self.coordinates, attention @ self.values(tokens)], dim=-1)
        answer: Tensor = self.read(found.flatten(1))
        return answer


class DenseHead(nn.Module):
    """One linear layer a token, then bilinear upsampling: maps (b, C, h, w) to (b, outputs, side, side).

    The layer is learned along principal axes, which changes how fast it learns and nothing of what it can say.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, axes: PrincipalAxes, outputs: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(axes.axes.shape[1], outputs) * 0.01)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("mean", axes.mean, persistent=False)
        self.register_buffer("axes", axes.axes, persistent=False)
        self.side = side

    def forward(self, maps: Tensor) -> Tensor:
        matrix = self.axes @ self.weight  # (C, outputs)
        each = F.conv2d(maps, matrix.T[:, :, None, None], self.bias - self.mean @ matrix)
        return F.interpolate(each, size=(self.side, self.side), mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Schedule:
    """How heads that learn by steps learn."""

    steps: int
    batch: int
    lr: float
    every: int  # steps between two looks at the validation scenes


def train_by_steps(
    head: nn.Module,
    loss: Callable[[Tensor], Tensor],
    valid_error: Callable[[], float],
    count: int,
    schedule: Schedule,
    seed: int,
) -> int:
    """Adam with a cosine; leaves the head as it was at the look of least validation error, and returns that step.

    loss: of the rows given, out of `count`.
    """
    order = _endless_rows(count, schedule.batch, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam(head.parameters(), lr=schedule.lr)
    best_error, best_step, best = math.inf, 0, copy.deepcopy(head.state_dict())
    for step in range(1, schedule.steps + 1):
        optimizer.param_groups[0]["lr"] = schedule.lr * (0.5 + 0.5 * math.cos(math.pi * (step - 1) / schedule.steps))
        optimizer.zero_grad(set_to_none=True)
        loss(next(order)).backward()
        optimizer.step()
        if step % schedule.every == 0 or step == schedule.steps:
            with torch.no_grad():
                error = valid_error()
            if error < best_error:
                best_error, best_step, best = error, step, copy.deepcopy(head.state_dict())
    head.load_state_dict(best)
    return best_step


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Initial weights from `seed`; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _endless_rows(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    size = min(batch, count)
    while True:
        for rows in torch.randperm(count, generator=generator).split(size):
            if len(rows) == size:
                yield rows


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of each column; 1 for columns that do not vary."""
    spread = x.std(dim=0, correction=0)
    return torch.where(spread > 1e-8, spread, torch.ones_like(spread))


def _minimise(objective: Callable[[], Tensor], variables: list[Tensor]) -> None:
    solver = torch.optim.LBFGS(variables, max_iter=40, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> float:
        solver.zero_grad()
        value = objective()
        value.backward()
        return float(value.detach())

    solver.step(closure)
