"""What the tests of weights files share: weights to write down, and what s2robot makes of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s2robot.backbones import load_backbone
from s2robot.catalogue import blueprint, find_encoder
from s2robot.checkpoints import load_weights
from s2robot.errors import CheckpointMismatch

State = dict[str, Tensor]


def drawn(name: str, seed: int = 5) -> State:
    """Random weights of an encoder under timm's names, with no value at its rest."""
    generator = torch.Generator().manual_seed(seed)
    rest = load_backbone(name, random_weights=True).model.state_dict()
    return {key: value + torch.randn(value.shape, generator=generator) / 50 for key, value in rest.items()}


def hollow(shapes: State, **replaced: tuple[int, ...]) -> State:
    """A state dict of the same shapes that takes no room: one number, seen many times."""
    number = torch.zeros(())
    return {key: number.expand(replaced.get(key, tuple(value.shape))) for key, value in shapes.items()}


def shapes_of(name: str) -> State:
    return dict(blueprint(name)[0].state_dict())


def check(name: str, expected: State, file: Path) -> None:
    """The file under the name gives exactly these weights."""
    loaded = load_backbone(name, checkpoint=file).model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected), file


def refusal(name: str, content: Any, folder: Path) -> str:
    """What s2robot says of a file under a name; the model has no memory, so any size is cheap."""
    torch.save(content, folder / "given.pth")
    with pytest.raises(CheckpointMismatch) as caught:
        load_weights(blueprint(name)[0], folder / "given.pth", find_encoder(name), blueprint(name)[1])
    return str(caught.value)
