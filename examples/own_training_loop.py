"""Frozen features into a network and a training loop of your own: no frame is encoded twice, none while training.

s2robot collect Lift --demos 20 --out runs/lift.hdf5
python examples/own_training_loop.py runs/lift.hdf5
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from s2robot.datasets import DemoDataset
from s2robot.encoder import EncoderConfig
from s2robot.store import encode_dataset

parser = argparse.ArgumentParser()
parser.add_argument("dataset")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--stride", type=int, default=2, help="encode every n-th step")
options = parser.parse_args()


class Grasp(nn.Module):
    """Where to move, from what both cameras show: a convolution over the tokens, then a linear layer."""

    def __init__(self, channels: int, views: int, grid: int, actions: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, 32, 1)
        self.act = nn.Linear(views * 32 * grid, actions)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        small = self.squeeze(maps.flatten(0, 1)).relu()  # (B*V, 32, h, w)
        return self.act(small.reshape(len(maps), -1))


if __name__ == "__main__":  # encoding starts processes, and each of them reads this file
    dataset = DemoDataset(options.dataset)
    root = Path(options.dataset).parent / "features"
    store = encode_dataset(options.dataset, EncoderConfig("s2robot-tiny"), root, stride=options.stride)
    maps, actions = [], []
    for k in range(len(dataset)):
        rows, steps = store.rows(k)
        maps.append(store.map[rows])  # (n, V, C, h, w) float16
        actions.append(dataset.episode(k).actions[steps])  # (n, M)
    seen, wanted = torch.from_numpy(np.concatenate(maps)).float(), torch.from_numpy(np.concatenate(actions))
    network = Grasp(seen.shape[2], seen.shape[1], seen.shape[3] * seen.shape[4], wanted.shape[1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for epoch in range(options.epochs):
        losses = []
        for batch, labels in DataLoader(TensorDataset(seen, wanted), batch_size=64, shuffle=True):
            loss = (network(batch) - labels).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        print(f"epoch {epoch}: mean absolute error {np.mean(losses):.4f}")
