"""Augmented versions of a dataset: stores of their own beside the plain one, and training that draws from all."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_store import BATCH, FakeConfig, content, make_dataset

from s2robot import cli, files, machine, training
from s2robot.augment import Augmentation, augment
from s2robot.datasets import DemoDataset, Episode, write_dataset
from s2robot.encoder import EncoderConfig
from s2robot.errors import InvalidInput
from s2robot.lesson import Lesson
from s2robot.policies.bc_mlp import BCConfig
from s2robot.policies.bc_rnn import RNNConfig
from s2robot.policies.neck import Neck
from s2robot.samples import Batch
from s2robot.settings import SETTINGS
from s2robot.store import FeatureStore, encode_dataset
from s2robot.training import TrainConfig, train

TINY = EncoderConfig("timm:test_vit", random_weights=True, sizes=(32, 64))
SHORT = TrainConfig(steps=12, batch=16, checkpoint_every=5, valid_fraction=0.25)


class Killed(Exception):
    """What a test stops with."""


def killed_after(count: int) -> Callable[..., None]:
    calls = iter(range(count))

    def report(*_: Any) -> None:
        if next(calls, None) is None:
            raise Killed

    return report


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    """For the encoder that only pretends."""
    return make_dataset(tmp_path_factory.mktemp("noise") / "a.hdf5")


@pytest.fixture(scope="module")
def three(noise: DemoDataset) -> FeatureStore:
    """The plain store with two versions."""
    return encode_dataset(noise.path, FakeConfig(), noise.path.parent / "three", versions=2, workers=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    """Four episodes of 64 px, of 5 to 8 steps; the first number of proprioception says which step of which it is."""
    folder = tmp_path_factory.mktemp("versions")
    return write_dataset(folder / "demos.hdf5", [_episode(k, 5 + k) for k in range(4)], {"task": "Lift"}, ["a", "b"])


@pytest.fixture(scope="module")
def store(dataset: DemoDataset) -> FeatureStore:
    return encode_dataset(dataset.path, TINY, dataset.path.parent / "features", versions=2, workers=1)


def _episode(seed: int, length: int) -> Episode:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (length, 2, 8, 8, 3)).astype(np.uint8).repeat(8, axis=2).repeat(8, axis=3)
    actions = rng.uniform(-1, 1, (length, 4)).astype(np.float32)
    state = rng.normal(size=(length, 5)).astype(np.float32)
    state[:, 0] = 100 * seed + np.arange(length)
    return Episode(seed, True, frames, state, actions, actions.copy(), np.zeros(length, np.float32), None)


def test_a_version_holds_the_features_of_its_frames(noise: DemoDataset, three: FeatureStore) -> None:
    encoder = FakeConfig().build()
    assert [store.version for store in (three, *three.versions)] == [0, 1, 2]
    for store in (three, *three.versions):
        store.verify()
        for k in range(len(noise)):
            rows, steps = store.rows(k)
            features = encoder(augment(noise.frames(k, steps), Augmentation(), store.version, k))
            np.testing.assert_array_equal(store.map[rows], features.map.half().numpy())
    assert [store.version for store in pickle.loads(pickle.dumps(three)).versions] == [1, 2]


def test_the_plain_store_is_what_and_where_it_always_was(
    noise: DemoDataset, three: FeatureStore, tmp_path: Path
) -> None:
    for store in (three, encode_dataset(noise.path, FakeConfig(), tmp_path, workers=1)):
        name = hashlib.sha256(json.dumps([1, "fake 0", noise.fingerprint, 1]).encode()).hexdigest()[:16]
        assert store.folder.name == name
        assert "augmented" not in store.index
    assert content(store) == content(three)
    assert store.versions == ()


def test_stores_are_named_by_strengths_and_version(noise: DemoDataset, three: FeatureStore) -> None:
    root, names = three.folder.parent, {store.folder for store in (three, *three.versions)}
    assert len(names) == 3
    other = encode_dataset(noise.path, FakeConfig(), root, versions=1, augment=Augmentation(gain=0.06), workers=1)
    assert other.folder == three.folder
    assert other.versions[0].folder not in names
    assert other.versions[0].index["augmented"]["gain"] == 0.06
    refuse = FakeConfig(trouble="overflow")  # it would fail if it encoded
    fewer = encode_dataset(noise.path, refuse, root, versions=1, workers=1)
    assert fewer.versions[0].folder == three.versions[0].folder


def test_killed_in_a_version_it_goes_on_to_the_same_bits_with_any_number_of_workers(
    noise: DemoDataset, three: FeatureStore, tmp_path: Path
) -> None:
    with pytest.raises(Killed):  # in the second version
        encode_dataset(noise.path, FakeConfig(), tmp_path, versions=2, workers=1, progress=killed_after(17))
    told: list[tuple[int, int]] = []
    again = encode_dataset(
        noise.path, FakeConfig(), tmp_path, versions=2, workers=2, progress=lambda *state: told.append(state)
    )
    for ours, theirs in zip((again, *again.versions), (three, *three.versions), strict=True):
        assert content(ours) == content(theirs)
    total = 3 * len(three)
    assert told[0][0] > 2 * len(three) and told[-1] == (total, total)  # two of three were there, and a part of the last
    assert told == sorted(told) and {state[1] for state in told} == {total}
    two = encode_dataset(noise.path, FakeConfig(), tmp_path / "two", versions=2, workers=2)
    assert [content(store) for store in two.versions] == [content(store) for store in three.versions]


def test_tiles_of_what_stands_still_are_encoded_once_in_a_version_too() -> None:
    frames = np.broadcast_to(_episode(0, 1).frames, (BATCH, 2, 64, 64, 3))
    memory = TINY.build("cpu").memory()
    counts = []
    for version in (0, 1):
        memory.forget()
        before = memory.encoded
        memory(augment(frames, Augmentation(), version, 0))
        counts.append(memory.encoded - before)
    assert counts[0] == counts[1] < memory.tiles / 2 / 4


def test_what_is_no_version_is_refused(noise: DemoDataset, three: FeatureStore, tmp_path: Path) -> None:
    sparse = encode_dataset(noise.path, FakeConfig(), tmp_path, stride=2, workers=1)
    with pytest.raises(InvalidInput, match=r"is no version of .* another dataset, encoder or stride"):
        FeatureStore(three.folder, [sparse])
    with pytest.raises(InvalidInput, match="versions is -1"):
        encode_dataset(noise.path, FakeConfig(), tmp_path, versions=-1)


@dataclass
class Seen:
    """What networks were shown: of every batch the versions (B, T) and the steps (B, T), as numbers."""

    train: list[tuple[Any, Any]]
    valid: list[tuple[Any, Any]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Features say which version they are of, and nothing else."""
    found, loss = Seen([], []), Neck.batch_loss

    def kept(self: Any, source: Any, rows: Any) -> torch.Tensor:
        grid = (self.shapes.views, self.shapes.scales * self.compression.components, *self.shapes.grid)
        return torch.full((len(rows), *grid), source.version, dtype=torch.float16)

    def spy(self: Any, batch: Any) -> torch.Tensor:
        numbers = batch.seen.flatten(2)
        assert torch.equal(numbers.amin(2), numbers.amax(2))
        of = found.train if self.training else found.valid
        of.append((numbers[..., 0].int().tolist(), batch.proprioception[..., 0].int().tolist()))
        return loss(self, batch)

    monkeypatch.setattr(Neck, "kept", kept)
    monkeypatch.setattr(Neck, "batch_loss", spy)
    return found


@pytest.mark.parametrize("policy", [BCConfig(), RNNConfig(context=3, execute=2, chunk=4)])
def test_windows_are_seen_in_all_versions_and_each_in_one_alone(
    dataset: DemoDataset, store: FeatureStore, seen: Seen, policy: Any, tmp_path: Path
) -> None:
    train(dataset, store, TINY, policy, SHORT, tmp_path)
    windows = [window for versions, _ in seen.train for window in versions]
    assert all(len(set(window)) == 1 for window in windows)
    counts = np.bincount([window[0] for window in windows], minlength=3)
    assert len(counts) == 3 and counts.min() > len(windows) / 6  # each as likely
    held_out = {version for versions, _ in seen.valid for window in versions for version in window}
    assert seen.valid and held_out == {0}


def test_versions_change_no_row_that_is_drawn(
    dataset: DemoDataset, store: FeatureStore, seen: Seen, tmp_path: Path
) -> None:
    plain = FeatureStore(store.folder)
    for name, source in (("with", store), ("without", plain)):
        train(dataset, source, TINY, BCConfig(), SHORT, tmp_path / name)
    steps = [steps for _, steps in seen.train]
    assert steps[: SHORT.steps] == steps[SHORT.steps :]
    rows, _ = Lesson(dataset, plain, TINY, BCConfig(), SHORT).split()
    for step in range(SHORT.steps):  # the rule that there was before there were versions
        generator = torch.Generator().manual_seed(SHORT.seed * 1_000_003 + step)
        drawn = rows[torch.randint(len(rows), (SHORT.batch,), generator=generator)].numpy()
        expected = 100 * plain.episodes[drawn] + plain.steps[drawn]
        assert [window[0] for window in steps[step]] == expected.tolist()


def test_without_versions_nothing_is_different(dataset: DemoDataset, store: FeatureStore, tmp_path: Path) -> None:
    plain = FeatureStore(store.folder)
    asked = encode_dataset(dataset.path, TINY, store.folder.parent, versions=0, workers=1)
    for name, source in (("plain", plain), ("asked", asked), ("versions", store)):
        train(dataset, source, TINY, BCConfig(), SHORT, tmp_path / name)
    weights = {name: (tmp_path / name / "policy.safetensors").read_bytes() for name in ("plain", "asked", "versions")}
    assert weights["plain"] == weights["asked"] != weights["versions"]
    network = Lesson(dataset, plain, TINY, BCConfig(), TrainConfig()).network()
    samples = training.gather(dataset, plain, network, range(4), tmp_path)
    assert samples.versions == 1
    rows, device = torch.tensor([3, 0, 11]), torch.device("cpu")
    as_always = [getattr(samples, name)[samples.window[rows]] for name in Batch._fields]
    for batch in (samples.take(rows, device), samples.take(rows, device, torch.zeros(3, dtype=torch.int64))):
        assert all(map(torch.equal, batch, as_always))


def test_compression_and_normalisation_know_the_plain_version_alone(
    dataset: DemoDataset, store: FeatureStore, tmp_path: Path
) -> None:
    found = []
    for name, source in (("with", store), ("without", FeatureStore(store.folder))):
        weights = load_file(train(dataset, source, TINY, BCConfig(), SHORT, tmp_path / name) / "policy.safetensors")
        found.append({key: value for key, value in weights.items() if key.startswith(("compression", "propriocep"))})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 4
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_a_resumed_run_with_versions_ends_with_the_same_weights(
    dataset: DemoDataset, store: FeatureStore, tmp_path: Path
) -> None:
    whole = train(dataset, store, TINY, BCConfig(), SHORT, tmp_path / "whole")
    with pytest.raises(Killed):
        train(dataset, store, TINY, BCConfig(), SHORT, tmp_path / "killed", progress=killed_after(7))
    resumed = train(dataset, store, TINY, BCConfig(), SHORT, tmp_path / "killed")
    assert (resumed / "policy.safetensors").read_bytes() == (whole / "policy.safetensors").read_bytes()


def test_a_policy_of_other_versions_is_not_given_for_another(
    dataset: DemoDataset, store: FeatureStore, tmp_path: Path
) -> None:
    plain, other = FeatureStore(store.folder), FeatureStore(store.folder, store.versions[1:])
    train(dataset, plain, TINY, BCConfig(), SHORT, tmp_path / "plain")
    settings = files.read_json(tmp_path / "plain" / SETTINGS)
    del settings["versions"]  # as it was before there were any
    files.write_json(tmp_path / "plain" / SETTINGS, settings)
    train(dataset, plain, TINY, BCConfig(), SHORT, tmp_path / "plain")
    train(dataset, store, TINY, BCConfig(), SHORT, tmp_path / "versions")
    for name, source in (("plain", store), ("versions", plain), ("versions", other)):
        with pytest.raises(InvalidInput, match=r"learned with other settings \(versions: "):
            train(dataset, source, TINY, BCConfig(), SHORT, tmp_path / name)


def test_versions_that_memory_does_not_hold_are_read_from_disk_to_the_same_bits(
    dataset: DemoDataset, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    kept = train(dataset, store, TINY, BCConfig(), SHORT, tmp_path / "memory") / "policy.safetensors"
    assert not caplog.text
    monkeypatch.setattr(machine, "free_memory", lambda: 1000)
    read = train(dataset, store, TINY, BCConfig(), SHORT, tmp_path / "disk") / "policy.safetensors"
    assert "of 78 steps takes" in caplog.text and "--encode.versions" in caplog.text
    assert kept.read_bytes() == read.read_bytes()
    assert not list((tmp_path / "disk").glob("seen*"))


def test_the_command_line_encodes_versions_and_trains_on_them(
    dataset: DemoDataset, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "demos.hdf5"
    path.write_bytes(dataset.path.read_bytes())
    words = ["--name", "timm:test_vit", "--random_weights", "true", "--sizes", "32,64"]
    assert cli.main(["encode", str(path), "--versions", "2", "--stride", "2", *words]) == 0
    made = sorted((tmp_path / "features").iterdir())
    assert len(made) == 3 and "version 2" in capsys.readouterr().out
    sources = []
    monkeypatch.setattr(training, "train", lambda dataset, source, *_, **__: sources.append(source))
    dotted = [f"--encoder.{word[2:]}" if word.startswith("--") else word for word in words]
    command = ["train", str(path), "--out", str(tmp_path / "run"), "--encode.versions", "2", *dotted]
    assert cli.main(command) == 0
    assert sorted((tmp_path / "features").iterdir()) == made
    assert [version.version for version in sources[0].versions] == [1, 2]
    assert cli.main([*command, "--encode.augment.shift", "0.6"]) == 2
    assert "shift is 0.6; expected a share" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["cnn", "finetune"])
def test_policies_that_read_frames_refuse_versions(
    kind: str, dataset: DemoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(dataset.path), "--kind", kind, "--encode.versions", "2", "--out", str(tmp_path / "run")]
    assert cli.main([*command, "--train.steps", "1", "--train.batch", "1"]) == 2
    error = capsys.readouterr().err
    assert f"{kind} reads frames" in error and "--policy.shift" in error
    assert not (tmp_path / "run").exists()
