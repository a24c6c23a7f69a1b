"""Training on several accelerators or machines: one process each, started by torchrun.

    torchrun --nproc-per-node 8 -m s2robot.cli pretrain --out runs/large ...
    torchrun --nproc-per-node 8 -m s2robot.cli train runs/lift.hdf5 --kind finetune --out runs/lift-fine

Each process computes its share of every batch, gradients are averaged, and the first process alone writes. The run
folder must be on a disk that all of them see.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from s2robot import engines, locks

# Longer than any rendering or validation, for which the others wait. When one fails, torchrun ends them all.
PATIENCE = datetime.timedelta(days=2)


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int = 0
    world: int = 1
    local: int = 0  # on this machine
    beside: int = 1  # processes on this machine

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` things, of which there are as many for each."""
        size = count // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def mean(self, numbers: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.world > 1:
            dist.all_reduce(numbers)
            numbers /= self.world
        return numbers

    def combine(self, parameters: Iterable[Tensor], loss: Tensor, weight: Tensor) -> Tensor:
        """Make gradients of a share those of the whole batch; return its loss.

        weight: how many numbers the share's loss is the mean of.
        """
        if self.world == 1:
            return loss.detach()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        mine = torch.cat([*(each.flatten() for each in gradients), loss.detach().reshape(1)]) * weight
        whole = torch.cat([mine, weight.reshape(1).to(mine)])
        dist.all_reduce(whole)
        whole /= whole[-1].clone()
        for each, part in zip(gradients, whole.split([each.numel() for each in gradients] + [2]), strict=False):
            each.copy_(part.view_as(each))
        return whole[-2]

    def share_out(self, module: torch.nn.Module) -> None:
        """Give all the first's parameters and buffers, which another machine may have rounded otherwise."""
        if self.world > 1:
            for value in module.state_dict().values():
                dist.broadcast(value, 0)

    def alone(self, folder: Path) -> contextlib.AbstractContextManager[None]:
        """Hold the lock of a run's folder: of several processes of one run the first does."""
        return locks.alone(folder / ".lock", str(folder)) if self.is_first else contextlib.nullcontext()

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.world > 1:
            dist.barrier()


def find() -> Ranks:
    """What torchrun says; one process where nobody says anything."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    if any(name not in os.environ for name in names):
        return Ranks()
    return Ranks(*(int(os.environ.get(name, "1")) for name in (*names[:3], "LOCAL_WORLD_SIZE")))


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Meet the other processes; part from them at the end."""
    here = find()
    if here.world == 1:
        yield here
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield here
    finally:
        dist.destroy_process_group()


def own_device(name: str) -> torch.device:
    """`auto`: CUDA when there is one, else the CPU; of several, this process's own."""
    device = engines.find_device(None if name == "auto" else name)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", find().local)
        torch.cuda.set_device(device)
    return device
