"""Several critics at once, each with layer normalisation: those of RLPD (Ball et al. 2023) and REDQ (Chen et al. 2021).

Layer normalisation keeps a critic from promising much where no data is; an ensemble, of which each target takes the
least of a few, keeps all of them from agreeing on too much. All members are computed by the same matrix products.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """E multi-layer perceptrons of one output: (B, inputs) -> (E, B)."""

    def __init__(self, members: int, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        sizes = [inputs, *widths, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in itertools.pairwise(sizes):
            bound = before**-0.5  # as nn.Linear draws
            self.weights.append(nn.Parameter(torch.empty(members, before, after).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(members, 1, after).uniform_(-bound, bound)))
        self.gains = nn.ParameterList([nn.Parameter(torch.ones(members, 1, width)) for width in widths])
        self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(members, 1, width)) for width in widths])

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.expand(len(self.weights[0]), *inputs.shape)  # (E, B, inputs)
        last = len(self.weights) - 1
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if k < last:
                x = torch.relu(nn.functional.layer_norm(x, x.shape[-1:]) * self.gains[k] + self.shifts[k])
        return x[..., 0]
