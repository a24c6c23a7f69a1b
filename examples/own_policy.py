"""A policy kind of your own: one linear layer on what the views show. Features, batches and acting are s2robot's.

pip install --editable examples                 # its name: the entry point in examples/pyproject.toml
s2robot collect Lift --demos 20 --out runs/lift.hdf5
python examples/own_policy.py runs/lift.hdf5 runs/lift-linear      # or: s2robot train --kind linear; s2robot eval
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s2robot.cli import main
from s2robot.compression import Shapes
from s2robot.policies.neck import Neck, NeckConfig, masked_mean


@dataclass(frozen=True)
class LinearConfig(NeckConfig):
    """Hyper-parameters: options of the command line, as --policy.shrink 1e-3."""

    shrink: float = 1e-4  # weight of the sum of squared coefficients


class LinearNetwork(Neck):
    """The last looks to a chunk of actions."""

    def __init__(self, config: LinearConfig, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        self.head = nn.Linear(config.context * self.look_width, config.chunk * shapes.actions)

    def predict(self, looks: Tensor, noise: torch.Generator) -> Tensor:
        """looks (B, T, W) -> the chunk to act by, (B, A, M)."""
        return self.head(looks.flatten(1)).unflatten(1, (self.config.chunk, self.shapes.actions))

    def loss(self, looks: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """Squared error to the expert's actions (B, T, A, M) after the last look, where valid (B, T, A) is 1."""
        error = (self.predict(looks, torch.Generator()) - actions[:, -1]).square()
        return masked_mean(error, valid[:, -1]) + self.config.shrink * self.head.weight.square().sum()


CONFIG, NETWORK = LinearConfig, LinearNetwork  # what s2robot looks for in the module that an entry point names

if __name__ == "__main__":
    data, out, *more = sys.argv[1:]
    steps, episodes = (*more, "1500", "20")[:2]
    sys.exit(
        main(["train", data, "--kind", "linear", "--out", out, "--steps", steps])
        or main(["eval", out, "--episodes", episodes, "--fidelity", "fast"])
    )
