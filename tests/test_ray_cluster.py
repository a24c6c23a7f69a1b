"""A real Ray cluster of several nodes on this machine: the same bits as without it, whatever becomes of its nodes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s2robot.collect import CollectConfig, collect
from s2robot.encoder import EncoderConfig
from s2robot.launchers import HERE, Launcher
from s2robot.policies.bc_mlp import BCConfig
from s2robot.ray_launcher import RayLauncher
from s2robot.rollouts import EvalConfig, evaluate
from s2robot.store import encode_dataset
from s2robot.training import TrainConfig, train

ray = pytest.importorskip("ray", reason="pip install 's2robot[ray]'")
pytestmark = [pytest.mark.sim, pytest.mark.slow]
ENCODER = EncoderConfig(random_weights=True, scales=(1,))
COLLECT = CollectConfig(task="Reach", demos=4, frame_size=64)
EVAL = EvalConfig(episodes=4, fidelity="fast")
ROOT = Path(__file__).resolve().parents[1]
Told = Callable[..., None]


class Cluster:
    """Nodes of one CPU each; the head has none, so whatever is done is done by them."""

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster as Nodes

        self.real = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.add() for _ in range(nodes)]
        self.launcher = RayLauncher(self.real.address)

    def add(self, **what: int) -> Any:
        for _ in range(2):  # Ray gives a node 30 s to start, which a busy machine may not
            with contextlib.suppress(Exception):
                return self.real.add_node(**(what or {"num_cpus": 1}))
        return self.real.add_node(**(what or {"num_cpus": 1}))

    def kill_one(self) -> None:
        self.real.remove_node(self.nodes.pop(), allow_graceful=False)

    def close(self) -> None:
        ray.shutdown()
        self.real.shutdown()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Cluster]]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made: list[Cluster] = []

    def make(nodes: int) -> Cluster:
        made.append(Cluster(nodes))
        return made[0]

    yield make
    for each in made:
        each.close()


def quiet(*_: Any) -> None:
    pass


def outcome(folder: Path, policy: Path | None, launcher: Launcher, told: Callable[[], Told] = lambda: quiet) -> Any:
    """Collect, encode, evaluate: the bits of it all. Without a policy, one is made."""
    dataset = collect(COLLECT, folder / "demos.hdf5", told(), launcher)
    store = encode_dataset(dataset.path, ENCODER, folder / "features", stride=4, workers=launcher, progress=told())
    if policy is None:
        policy = train(dataset, store, ENCODER, BCConfig(), TrainConfig(steps=5, batch=8), folder / "policy")
    results = evaluate(policy, EVAL, folder / "episodes.jsonl", told(), launcher)
    paths = [dataset.path, store.folder / "map.npy", store.folder / "cls.npy"]
    bits = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return {**bits, "episodes": [(r.seed, r.success, r.steps, r.reward, r.weights) for r in results]}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("local")
    return folder, outcome(folder, None, HERE)  # as processes do: tests/test_rollouts.py, tests/test_store.py


@pytest.mark.parametrize("nodes", [1, 3])
def test_any_number_of_nodes_gives_the_bits_of_this_machine(
    local: tuple[Path, Any], cluster: Callable[[int], Cluster], tmp_path: Path, nodes: int
) -> None:
    assert outcome(tmp_path, local[0] / "policy", cluster(nodes).launcher) == local[1]


def test_nodes_killed_in_the_middle_change_no_bit(
    local: tuple[Path, Any], cluster: Callable[[int], Cluster], tmp_path: Path
) -> None:
    nodes, killed = cluster(4), []

    def told() -> Told:
        here: list[int] = []

        def tell(done: int, *_: Any) -> None:
            if done and not here:  # of each verb the first time that anything is done
                here.append(done)
                nodes.kill_one()
                killed.append(done)

        return tell

    assert outcome(tmp_path, local[0] / "policy", nodes.launcher, told) == local[1]
    assert len(killed) == 3  # whether the last node had anything to do just then is up to Ray


def test_a_node_that_sees_no_disk_of_ours_gives_the_same_bits(
    local: tuple[Path, Any], cluster: Callable[[int], Cluster], tmp_path: Path
) -> None:
    nodes = cluster(0)
    hidden = Path(local[0]).parent  # all of pytest's folders are empty there
    join = f"mount -t tmpfs none {hidden} && exec {sys.executable} -m ray.scripts.scripts start --num-cpus 1 --block"
    command = ["unshare", "-m", "sh", "-c", f"{join} --address={nodes.real.address}"]
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("no right to make a mount namespace here")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as node:
        try:
            assert outcome(tmp_path, local[0] / "policy", nodes.launcher) == local[1]
        finally:
            node.terminate()


def test_cpus_feed_a_gpu_without_changing_a_bit(
    local: tuple[Path, Any], cluster: Callable[[int], Cluster], tmp_path: Path
) -> None:
    """Ray is told of a GPU that is none, so it places workers as with one."""
    nodes = cluster(1)
    nodes.add(num_cpus=0, num_gpus=1)
    store = encode_dataset(local[0] / "demos.hdf5", ENCODER, tmp_path, stride=4, workers=nodes.launcher)
    bits = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.folder.glob("*.npy")}
    assert bits.items() <= local[1].items()


def test_runs_on_a_cluster_are_those_trained_here(
    local: tuple[Path, Any], cluster: Callable[[int], Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s2robot.cli import main

    nodes = cluster(2)
    monkeypatch.setenv("RAY_ADDRESS", nodes.real.address)
    words = [
        "train",
        str(local[0] / "demos.hdf5"),
        "--seeds",
        "0,1",
        "--steps",
        "12",
        "--encoder.random_weights",
        "true",
    ]
    words += ["--encoder.scales", "1", "--encode.stride", "4", "--validate", "1", "--train.snapshots", "1"]
    assert main([*words, "--out", str(tmp_path / "here")]) == 0
    assert main([*words, "--out", str(tmp_path / "there"), "--launcher", "ray"]) == 0
    for seed in (0, 1):
        names = [
            f"seed-{seed}/{name}/policy.safetensors" for name in ("policy", "policy/snapshots/000009", "best/policy")
        ]
        for name in names:
            assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_a_study_on_a_cluster_finds_what_it_finds_here(
    local: tuple[Path, Any], cluster: Callable[[int], Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_study import RUN, written

    from s2robot import cli, files

    monkeypatch.setenv("RAY_ADDRESS", cluster(2).real.address)
    run = {**RUN, "encoder": {"random_weights": True, "scales": [1]}}
    source = written(tmp_path / "small.yaml", arms={"a": {}, "b": {"policy": {"chunk": 4}}}, run=run, seeds=[0])
    words = ["study", source, "--data", str(local[0] / "demos.hdf5")]
    assert cli.main([*words, "--out", str(tmp_path / "here")]) == 0
    assert cli.main([*words, "--out", str(tmp_path / "there"), "--launcher", "ray"]) == 0
    here, there = (files.read_json(tmp_path / name / "results.json")["rows"] for name in ("here", "there"))
    assert [row["successes"] for row in here] == [row["successes"] for row in there]
    assert (tmp_path / "there" / "b" / "seed-0" / "policy" / "done").exists()
