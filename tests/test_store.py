"""Stored features: the encoder's own numbers, whatever was killed, however many worked on them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s2robot.datasets import DemoDataset, Episode, write_dataset
from s2robot.encoding import BATCH
from s2robot.errors import CorruptFile, InvalidInput, OutOfSpace, S2RobotError
from s2robot.files import read_jsonl
from s2robot.store import FeatureStore, encode_dataset
from s2robot.types import Features

LENGTHS = [3, BATCH + 2, 1, 5, 4]


def make_dataset(path: Path, lengths: list[int] = LENGTHS, seed: int = 0) -> DemoDataset:
    def episode(k: int, length: int) -> Episode:
        rng = np.random.default_rng([seed, k])
        frames = rng.integers(0, 256, (length, 2, 16, 16, 3), dtype=np.uint8)
        zeros = np.zeros((length, 2), np.float32)
        return Episode(k, True, frames, zeros, zeros, zeros, zeros[:, 0])

    return write_dataset(path, [episode(*pair) for pair in enumerate(lengths)], {"env_name": "Lift"}, ["a", "b"])


@dataclass(frozen=True)
class FakeConfig:
    """An encoder with the interface of the real one, quick, and with trouble on demand."""

    seed: int = 0
    delay: float = 0.0
    trouble: str = ""
    flag: str = "/nonexistent"  # while this file is there, the trouble strikes on episodes of BATCH + 2 steps

    def build(self, device: str | None = None) -> FakeEncoder:
        return FakeEncoder(self)


class FakeEncoder:
    channels = 6

    def grid_of(self, frame: tuple[int, int]) -> tuple[int, int]:
        return 4, 4

    def __init__(self, config: FakeConfig) -> None:
        self.config = config
        self.fingerprint = f"fake {config.seed}"
        self.weights = torch.randn(48, 96, generator=torch.Generator().manual_seed(config.seed))

    def memory(self) -> FakeEncoder:
        return self

    def forget(self) -> None:
        pass

    def __call__(self, frames: np.ndarray) -> Features:
        time.sleep(self.config.delay)
        if len(frames) == BATCH and Path(self.config.flag).exists():
            self.make_trouble()
        values = torch.from_numpy(frames).float().flatten(2) / 255  # (B, V, 768)
        maps = (values[..., :48] @ self.weights).unflatten(2, (6, 4, 4))
        if self.config.trouble == "overflow":
            maps = maps * 1e6
        return Features(maps, maps.flatten(3).transpose(2, 3), values[..., 48:54])

    def make_trouble(self) -> None:
        if self.config.trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.config.trouble == "ours":
            raise CorruptFile("a/b", "it is bad", "Do this")
        if self.config.trouble == "theirs":
            raise ZeroDivisionError("oh")


def content(store: FeatureStore) -> dict[str, Any]:
    index = {**store.index, "encoder": None}  # its delay and troubles
    return index | {name: (store.folder / name).read_bytes() for name in ("map.npy", "cls.npy")}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "a.hdf5")


@pytest.fixture(scope="module")
def unkilled(dataset: DemoDataset, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return encode_dataset(dataset.path, FakeConfig(), tmp_path_factory.mktemp("store"), workers=1)


@pytest.fixture(autouse=True)
def no_worker_stays() -> Iterator[None]:
    yield
    for process in multiprocessing.active_children():  # told to end, it may still be on its way on a busy machine
        process.join(timeout=20)
    assert multiprocessing.active_children() == []


def test_one_and_two_workers_give_the_encoders_own_numbers(tmp_path: Path) -> None:
    from s2robot.encoder import EncoderConfig  # slow to import; the workers of the other tests need not

    dataset, config = make_dataset(tmp_path / "a.hdf5", [3, 1, 2]), EncoderConfig("s2robot-tiny", random_weights=True)
    one, two = (encode_dataset(dataset.path, config, tmp_path / f"{n}", workers=n) for n in (1, 2))
    assert content(one) == content(two)
    features = config.build()(dataset.frames(0))
    assert np.allclose(one.map[:3], features.map.numpy(), atol=5e-3)
    assert np.allclose(one.cls[:3], features.cls.numpy(), atol=5e-3)
    assert one.encoder["name"] == "s2robot-tiny"
    one.verify()


@pytest.mark.parametrize("stride", [1, 3])
def test_every_row_is_the_step_it_says(dataset: DemoDataset, tmp_path: Path, stride: int) -> None:
    encoder, told = FakeConfig().build(), []
    store = encode_dataset(
        dataset.path, FakeConfig(), tmp_path, stride=stride, workers=1, progress=lambda *state: told.append(state)
    )
    for k, length in enumerate(LENGTHS):
        rows, steps = store.rows(k)
        assert steps.tolist() == list(range(0, length, stride))
        features = encoder(dataset.frames(k, steps))
        assert np.array_equal(store.map[rows], features.map.half().numpy())
        assert np.array_equal(store.cls[rows], features.cls.half().numpy())
    assert store.map.shape == (len(store), 2, 6, 4, 4)
    assert (store.stride, store.cameras, store.dataset_fingerprint) == (stride, ("a", "b"), dataset.fingerprint)
    assert told[0] == (0, len(store))
    assert told[-1] == (len(store), len(store))
    with pytest.raises(InvalidInput, match=r"No episode 5 .* it has 0 to 4"):
        store.rows(5)
    with pytest.raises(ValueError, match="read-only"):
        store.map[0] = 0


def test_a_finished_store_is_opened_not_made(unkilled: FeatureStore, dataset: DemoDataset) -> None:
    before = (unkilled.folder / "map.npy").stat().st_mtime_ns
    again = encode_dataset(dataset.path, FakeConfig(trouble="overflow"), unkilled.folder.parent)
    assert again.folder == unkilled.folder
    assert (unkilled.folder / "map.npy").stat().st_mtime_ns == before
    assert np.array_equal(np.load(unkilled.folder / "map.npy"), again.map)
    assert np.array_equal(pickle.loads(pickle.dumps(again)).map, unkilled.map)


def test_other_weights_data_or_stride_are_another_folder(dataset: DemoDataset, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "b.hdf5", seed=1)
    made = [
        encode_dataset(dataset.path, FakeConfig(), tmp_path, workers=1),
        encode_dataset(dataset.path, FakeConfig(seed=1), tmp_path, workers=1),
        encode_dataset(other.path, FakeConfig(), tmp_path, workers=1),
        encode_dataset(dataset.path, FakeConfig(), tmp_path, workers=1, stride=2),
    ]
    assert len({store.folder for store in made}) == 4
    moved = shutil.copy(dataset.path, tmp_path / "moved.hdf5")
    assert encode_dataset(moved, FakeConfig(), tmp_path).folder == made[0].folder


ENCODE = """
import multiprocessing, signal, sys, test_store
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started deaf to it
if __name__ == "__main__":
    def tell(*state):
        print(*[process.pid for process in multiprocessing.active_children()], flush=True)
    dataset, root, workers = sys.argv[1:]
    test_store.encode_dataset(dataset, test_store.FakeConfig(delay=0.1), root, workers=int(workers), progress=tell)
"""


@contextlib.contextmanager
def encoding(script: Path, dataset: DemoDataset, root: Path, workers: int) -> Iterator[tuple[Any, list[int]]]:
    """A real process in the middle of encoding, and its workers."""
    script.write_text(ENCODE)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path.cwd())])}
    command = [sys.executable, str(script), str(dataset.path), str(root), str(workers)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=env, text=True, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        lines = [process.stdout.readline() for _ in range(2)]  # told at the start, and after an episode
        yield process, [int(pid) for pid in lines[-1].split()]


def gone(pid: int) -> bool:
    """No such process, or one that is dead and not yet buried."""
    with contextlib.suppress(FileNotFoundError):
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    return True


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Does it come true? A worker that was still importing torch takes its time to notice."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bits(
    dataset: DemoDataset, unkilled: FeatureStore, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    for workers in (1, 2):
        with encoding(tmp_path / "encode.py", dataset, root, workers) as (process, pids):
            process.send_signal(signal.SIGKILL)
        assert len(pids) == (workers if workers > 1 else 0)
        assert eventually(lambda: all(map(gone, pids)))  # workers do not outlive the one who asked
        with pytest.raises(InvalidInput, match="goes on where it stopped"):
            FeatureStore(root / unkilled.folder.name)
    told: list[tuple[int, int]] = []
    store = encode_dataset(dataset.path, FakeConfig(), root, workers=1, progress=lambda *state: told.append(state))
    assert told[0][0] > 0  # it did not start afresh
    assert content(store) == content(unkilled)
    store.verify()


def test_ctrl_c_stops_everything_and_is_told_once(dataset: DemoDataset, unkilled: FeatureStore, tmp_path: Path) -> None:
    with encoding(tmp_path / "encode.py", dataset, tmp_path / "store", 2) as (process, pids):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        errors = process.stderr.read()
    assert errors.count("KeyboardInterrupt") == 1
    assert len(pids) == 2
    assert all(map(gone, pids))
    assert content(encode_dataset(dataset.path, FakeConfig(), tmp_path / "store", workers=1)) == content(unkilled)


@pytest.mark.parametrize("cut", ["empty", "torn", "no index", "short map"])
def test_what_a_kill_may_leave_is_finished_or_made_again(
    dataset: DemoDataset, unkilled: FeatureStore, tmp_path: Path, cut: str
) -> None:
    folder = Path(shutil.copytree(unkilled.folder, tmp_path / unkilled.folder.name))
    (folder / "done").unlink()
    journal = folder / "journal.jsonl"
    damage = {
        "empty": journal.unlink,
        "torn": lambda: os.truncate(journal, journal.stat().st_size - 30),
        "no index": (folder / "index.json").unlink,
        "short map": lambda: os.truncate(folder / "map.npy", 200),
    }
    damage[cut]()
    store = encode_dataset(dataset.path, FakeConfig(), tmp_path, workers=1)
    assert content(store) == content(unkilled)
    assert sorted(line["episode"] for line in read_jsonl(journal)) == list(range(len(LENGTHS)))


def test_a_damaged_journal_is_said_and_nothing_is_made_again(
    dataset: DemoDataset, unkilled: FeatureStore, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(unkilled.folder, tmp_path / unkilled.folder.name))
    (folder / "done").unlink()
    journal, before = folder / "journal.jsonl", (folder / "map.npy").stat().st_mtime_ns
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0].replace(b"episode", b"episodf"), *lines[1:]]))
    with pytest.raises(CorruptFile, match=r"journal\.jsonl.*line 1.*Delete that line"):
        encode_dataset(dataset.path, FakeConfig(), tmp_path, workers=1)
    assert (folder / "map.npy").stat().st_mtime_ns == before
    journal.write_bytes(b"".join(lines[1:]))  # as is advised
    assert content(encode_dataset(dataset.path, FakeConfig(), tmp_path, workers=1)) == content(unkilled)


def test_a_dying_worker_stops_all_with_a_reason_and_loses_nothing(
    dataset: DemoDataset, unkilled: FeatureStore, tmp_path: Path
) -> None:
    (tmp_path / "flag").touch()
    config = FakeConfig(trouble="kill", flag=str(tmp_path / "flag"))
    with pytest.raises(S2RobotError, match=r"A worker process died.*memory.*episode 1.*kept"):
        encode_dataset(dataset.path, config, tmp_path, workers=2)
    assert multiprocessing.active_children() == []
    store = encode_dataset(dataset.path, replace(config, trouble=""), tmp_path, workers=1)
    assert np.array_equal(store.map, unkilled.map)


@pytest.mark.parametrize(
    ("trouble", "kind", "message"),
    [("ours", CorruptFile, "Cannot read a/b: it is bad"), ("theirs", ZeroDivisionError, "oh")],
)
def test_an_error_in_a_worker_arrives_as_what_it_was(
    dataset: DemoDataset, tmp_path: Path, trouble: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        encode_dataset(dataset.path, FakeConfig(trouble=trouble, flag=str(tmp_path)), tmp_path, workers=2)
    assert type(caught.value) is kind


def test_features_beyond_half_precision_are_refused(dataset: DemoDataset, tmp_path: Path) -> None:
    with pytest.raises(S2RobotError, match=r"map features of episode 0 are NaN or beyond half precision"):
        encode_dataset(dataset.path, FakeConfig(trouble="overflow"), tmp_path, workers=1)


def test_a_full_disk_shows_before_anything_is_encoded(
    dataset: DemoDataset, unkilled: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(FakeEncoder, "__call__", lambda *_: pytest.fail("encoded"))
    try:
        for size in (1000, 10_000):  # of the arrays' 9 kB and 0.7 kB; the index comes with 60 kB of settings
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            with pytest.raises(OutOfSpace):
                encode_dataset(dataset.path, FakeConfig(flag="x" * 60_000), tmp_path, workers=1)
            assert list((tmp_path / unkilled.folder.name).iterdir()) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    monkeypatch.undo()
    folder, holes = tmp_path / unkilled.folder.name, []

    def look(*_: int) -> None:
        files = [(folder / name).stat() for name in ("map.npy", "cls.npy")]
        holes.append(any(file.st_blocks * 512 < file.st_size for file in files))

    store = encode_dataset(dataset.path, FakeConfig(), tmp_path, workers=1, progress=look)
    assert content(store) == content(unkilled)
    assert not any(holes)  # all its space was taken before the first batch


def test_a_damaged_store_is_corrupt_or_right_but_never_wrong(unkilled: FeatureStore, tmp_path: Path) -> None:
    rng, corrupt = np.random.default_rng(0), 0
    for k in range(72):
        folder = Path(shutil.copytree(unkilled.folder, tmp_path / str(k)))
        path = folder / ("map.npy", "cls.npy", "index.json", "journal.jsonl")[k % 4]
        data = bytearray(path.read_bytes())
        at = int(rng.integers(len(data)))
        if k % 8 < 4:
            data = data[:at]
        else:
            data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            store = FeatureStore(folder)
            store.verify()
            assert np.array_equal(store.map, unkilled.map)
            assert np.array_equal(store.cls, unkilled.cls)
            assert store.index == unkilled.index
        except CorruptFile:
            corrupt += 1
    assert corrupt > 50
    (tmp_path / "0" / "map.npy").unlink()
    with pytest.raises(CorruptFile, match=r"map\.npy is missing\. Delete the folder, it will be made again: rm -r"):
        FeatureStore(tmp_path / "0")


def test_a_script_without_a_main_guard_is_told_and_does_not_hang(
    dataset: DemoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)  # as when it is imported
    with pytest.raises(S2RobotError, match="Put the call under `if __name__ == '__main__':`"):
        encode_dataset(dataset.path, FakeConfig(), tmp_path, workers=2)


def test_two_at_once_share_the_work(dataset: DemoDataset, unkilled: FeatureStore, tmp_path: Path) -> None:
    config, stores = FakeConfig(delay=0.05), []

    def encode() -> None:
        stores.append(encode_dataset(dataset.path, config, tmp_path, workers=1))

    threads = [threading.Thread(target=encode) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [content(store)["map.npy"] for store in stores] == [content(unkilled)["map.npy"]] * 2
    assert len(read_jsonl(stores[0].folder / "journal.jsonl")) == len(LENGTHS)


@pytest.mark.parametrize("setting", [{"stride": 0}, {"workers": 0}])
def test_impossible_settings_are_refused(dataset: DemoDataset, tmp_path: Path, setting: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="expected whole numbers from 1 on"):
        encode_dataset(dataset.path, FakeConfig(), tmp_path, **setting)


def test_a_store_that_is_done_is_read_where_none_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(tmp_path / "a.hdf5")
    made = encode_dataset(dataset.path, FakeConfig(), tmp_path / "features", workers=1)

    def refuse(*arguments: object, **others: object) -> None:
        raise OSError("Read-only file system")

    monkeypatch.setattr("s2robot.locks.alone", refuse)
    assert content(encode_dataset(dataset.path, FakeConfig(), tmp_path / "features", workers=1)) == content(made)
