"""A feature store three times as large as the memory a process may use trains there, to the same bits as elsewhere.

pytest tests/test_larger_than_memory.py -s      also says at what share of the speed without a limit
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s2robot.datasets import Episode, write_dataset
from s2robot.encoding import BATCH
from s2robot.store import FeatureStore, encode_dataset
from s2robot.types import Features

pytestmark = pytest.mark.slow
LIMIT = 1 << 30
EPISODES, STEPS, CHANNELS = 340, 100, 384  # 98 kB a step, as the default encoder's

TRAIN = """
import json, sys, numpy, torch
from pathlib import Path
from s2robot import samples
from s2robot.datasets import DemoDataset
from s2robot.encoder import EncoderConfig
from s2robot.policies.bc_mlp import BCConfig
from s2robot.encoding import BATCH
from s2robot.store import FeatureStore
from s2robot.training import TrainConfig, train
dataset, store, out, components = sys.argv[1:]
torch.set_num_threads(1)
made = []
samples.OnDisk = lambda *what, kind=samples.OnDisk: made.append(what) or kind(*what)
config = TrainConfig(steps=150, batch=64, valid_fraction=0.01)
source = FeatureStore(store)
train(DemoDataset(dataset), source, EncoderConfig(scales=(1,)), BCConfig(components=int(components)), config, Path(out))
rows = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
rate = (rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["seconds"] - rows[0]["seconds"])
print(json.dumps({"rate": rate, "disk": bool(made)}))
"""


BLOCK = torch.rand(BATCH, 2, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0)).half()


@dataclass(frozen=True)
class WideConfig:
    """An encoder that costs next to nothing and gives much."""

    def build(self, device: str | None = None) -> Wide:
        return Wide()


class Wide:
    channels, fingerprint = CHANNELS, "wide"

    def grid_of(self, frame: tuple[int, int]) -> tuple[int, int]:
        return 8, 8

    def memory(self) -> Wide:
        return self

    def forget(self) -> None:
        pass

    def __call__(self, frames: np.ndarray) -> Features:
        maps = BLOCK[: len(frames)].roll(int(frames.sum()) % CHANNELS, dims=2)
        return Features(maps, maps.flatten(3).transpose(2, 3), maps[..., 0, 0])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, FeatureStore]]:
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (EPISODES, STEPS, 2, 8, 8, 3), dtype=np.uint8)
    floats = rng.uniform(-1, 1, (EPISODES, STEPS, 4)).astype(np.float32)
    episodes = [Episode(k, True, frames[k], floats[k], floats[k], floats[k], floats[k, :, 0]) for k in range(EPISODES)]
    dataset = write_dataset(folder / "demos.hdf5", episodes, {"env_name": "Lift"}, ["a", "b"])
    store = encode_dataset(dataset.path, WideConfig(), folder / "features", workers=1)
    assert store.map.nbytes > 3 * LIMIT and len(list(store.folder.glob("map-*.npy"))) > 1
    yield dataset.path, store
    for path in store.folder.glob("*.npy"):  # three gigabytes
        path.unlink()


@contextlib.contextmanager
def limited(size: int) -> Iterator[Path]:
    """A control group whose processes may use so much memory, pages of files included."""
    root = Path("/sys/fs/cgroup")
    older = (root / "memory").is_dir()
    group = (root / "memory" if older else root) / f"s2robot-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no right to make a control group here: {error}")
    try:
        limit = group / ("memory.limit_in_bytes" if older else "memory.max")
        if not limit.exists():
            pytest.skip("control groups here do not count memory")
        limit.write_text(str(size))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def trained(made: tuple[Path, FeatureStore], out: Path, components: int, group: Path | None) -> dict[str, Any]:
    dataset, store = made
    for path in store.folder.glob("*.npy"):  # what is in memory already would count for nobody
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    words = [sys.executable, "-c", TRAIN, str(dataset), str(store.folder), str(out), str(components)]
    if group:
        words = ["sh", "-c", f'echo $$ > {group}; exec "$@"', "sh", *words]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize(("components", "disk"), [(16, False), (128, True)])
def test_it_trains_to_the_same_bits(
    made: tuple[Path, FeatureStore], tmp_path: Path, components: int, disk: bool
) -> None:
    free = trained(made, tmp_path / "free", components, None)
    with limited(LIMIT) as group:
        tight = trained(made, tmp_path / "tight", components, group)
    assert (free["disk"], tight["disk"]) == (False, disk)
    policies = [(tmp_path / name / "policy.safetensors").read_bytes() for name in ("free", "tight")]
    assert policies[0] == policies[1]
    print(f"\n{components} components, samples {'on disk' if disk else 'in memory'}: {free['rate']:.1f} steps/s with"
          f" memory enough, {tight['rate']:.1f} in 1 GiB: {100 * tight['rate'] / free['rate']:.0f} %")  # fmt: skip
