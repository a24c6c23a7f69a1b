"""Distributions to be found by their entry points: a `.dist-info` folder beside a module, as pip leaves them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

Install = Callable[..., Path]

TASK = """
from dataclasses import replace
from s2robot.envs import lift
TASK = replace(lift.TASK, name="Hoist")
"""
POLICY = """
from dataclasses import dataclass
from s2robot.policies import bc_mlp
@dataclass(frozen=True)
class PlainConfig(bc_mlp.BCConfig):
    hidden: int = 16
class PlainNetwork(bc_mlp.BCNetwork):
    pass
CONFIG, NETWORK = PlainConfig, PlainNetwork
"""
ENCODER = """
import torch
from torch import nn
from s2robot.catalogue import ImageContract, NamedEncoder
from s2robot.own_models import OwnModel
CONTRACT = ImageContract(
    size=32, patch=8, width=6, prefix_tokens=0, class_token=False, heads=0, depth=0, mean=(0.5,) * 3, std=(0.5,) * 3,
    interpolation="area", antialias=True,
)
class Conv(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 8, stride=8), nn.BatchNorm2d(6))
        self.register_buffer("shift", torch.tensor(0.25), persistent=False)
    def forward(self, images):
        return super().forward(images) + self.shift
def make(pretrained):
    if pretrained:
        torch.manual_seed(1)
    return Conv()
ENCODER = NamedEncoder("acme-conv", OwnModel(make, CONTRACT), "MIT", "acme")
"""
SOURCES = {"encoders": ENCODER, "tasks": TASK, "policies": POLICY}
NAMES = {"encoders": "acme-conv", "tasks": "Hoist", "policies": "plain"}
ATTRIBUTES = {"encoders": ":ENCODER", "tasks": ":TASK", "policies": ""}


def write_distribution(
    folder: Path, name: str, modules: Mapping[str, str], entries: Mapping[str, Mapping[str, str]], version: str = "1.0"
) -> Path:
    """Modules by their names, and entry points {group without "s2robot.": {name: "module:attribute"}}."""
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        line
        for group, named in entries.items()
        for line in (f"[s2robot.{group}]", *(f"{key} = {value}" for key, value in named.items()), "")
    ]
    (about / "entry_points.txt").write_text("\n".join(lines))
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(dedent(source))
    return folder


def write_one(folder: Path, group: str, source: str = "", name: str = "", distribution: str = "") -> Path:
    """A distribution of one plug-in; by default acme-GROUP with one that works."""
    distribution = distribution or f"acme-{group}"
    module = distribution.replace("-", "_")
    entry = {group: {name or NAMES[group]: f"{module}{ATTRIBUTES[group]}"}}
    return write_distribution(folder, distribution, {module: source or SOURCES[group]}, entry)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`write_one` into a folder of its own on the path; what is imported from there is forgotten again."""
    before = set(sys.modules)

    def put(group: str, source: str = "", name: str = "", distribution: str = "") -> Path:
        folder = write_one(tmp_path / f"{distribution}-{group}", group, source, name, distribution)
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()
        return folder

    yield put
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]
