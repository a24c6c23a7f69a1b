"""Durable writing: whole files or none, however the process or the disk ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from s2robot import files
from s2robot.errors import CorruptFile, InvalidInput, OutOfSpace, S2RobotError
from s2robot.files import JsonLines, atomic, explain_full_disk, plain, read_json, read_jsonl, reserve, sweep, write_json

resource = pytest.importorskip("resource")  # not on Windows
BIG = np.zeros(400_000, np.uint8)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 100 kB: the kernel refuses as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with atomic(target) as temporary:
            temporary.write_text(text)
            assert temporary.parent == target.parent
            assert not target.exists() or target.read_text() != text
        assert target.read_text() == text
    assert names(target.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_atomic_keeps_the_old_file_when_the_body_fails(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a").write_text("old")

    def fail() -> None:
        with atomic(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_kill_inside_atomic_keeps_the_old_file_and_sweep_removes_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    code = (
        "import sys, time; from s2robot.files import atomic\n"
        "with atomic(sys.argv[1]) as t:\n    t.write_text('half'); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(names(tmp_path)) == 2
        assert sweep(tmp_path) == []  # its owner is alive
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "a").read_text() == "old"
    (left,) = tmp_path.glob("a.tmp-*")
    assert left.name.endswith(f"-{process.pid}") and sweep(tmp_path) == [left]
    assert names(tmp_path) == ["a"]


def test_what_is_left_in_folders_within_goes_where_that_is_asked_for(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    left = tmp_path / "snapshots" / "000160" / f"policy.json.tmp-{files._HERE}-{process.pid}"
    left.parent.mkdir(parents=True)
    left.touch()
    assert sweep(tmp_path) == [] and sweep(tmp_path, deep=True) == [left]
    assert left.parent.is_dir() and not left.exists()


def test_sweep_knows_its_own_open_files_from_a_namesakes_leftovers(tmp_path: Path) -> None:
    namesake = f"old.tmp-{files._HERE}-{os.getpid()}"
    (tmp_path / namesake).mkdir()  # of a process that had our pid, in another life of this container
    (tmp_path / "notes.tmp-draft").touch()
    (tmp_path / f"results.tmp-{os.getpid()}").mkdir()  # somebody's own
    (tmp_path / "b.tmp-another-machine-4294967").touch()  # on a disk that it shares with us
    with atomic(tmp_path / "a") as temporary:
        temporary.touch()
        assert sweep(tmp_path) == [tmp_path / namesake]
    kept = ["a", "b.tmp-another-machine-4294967", "notes.tmp-draft", f"results.tmp-{os.getpid()}"]
    assert names(tmp_path) == kept


def test_two_threads_at_one_file_do_not_write_into_each_others(tmp_path: Path) -> None:
    with atomic(tmp_path / "a") as first:
        first.write_text("first")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_buffered, tmp_path / "a").result()
        written = (tmp_path / "a").read_bytes()
        assert first.read_text() == "first"
        assert sweep(tmp_path) == []
    assert (tmp_path / "a").read_text() == "first" != written.decode(errors="replace")
    left = files.temporary_of(tmp_path / "b", 2).name.replace(f"-{os.getpid()}", "-4194304")
    (tmp_path / left).touch()
    assert [path.name for path in sweep(tmp_path)] == [left] and names(tmp_path) == ["a"]


def _buffered(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, BIG)


WRITERS: dict[str, Callable[[Path], object]] = {
    "plain": lambda path: path.write_bytes(BIG.tobytes()),
    "numpy tofile": BIG.tofile,
    "numpy save": _buffered,
    "torch": lambda path: torch.save(torch.from_numpy(BIG), path),
    "safetensors": lambda path: save_file({"a": BIG}, path),
    "reserve": lambda path: reserve(path, BIG.nbytes),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_out_of_space_and_leaves_the_old_file_alone(
    tmp_path: Path, small_disk: None, writer: str
) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(OutOfSpace, match=r"bytes \(.* MB\) are free there.*df -h"), atomic(tmp_path / "a") as temporary:
        WRITERS[writer](temporary)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        OSError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')"),  # h5py
        RuntimeError("Can't decrement id ref count (errno = 122, error message = 'Disk quota exceeded')"),  # h5py
    ],
)
def test_every_wording_of_a_full_disk_is_understood(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OutOfSpace) as caught, explain_full_disk(tmp_path / "a"):
        raise error
    assert caught.value.errno == errno.ENOSPC


def test_reserved_space_is_real_and_what_was_written_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"head")
    reserve(tmp_path / "a", 1 << 20)
    status = (tmp_path / "a").stat()
    assert status.st_size == 1 << 20
    assert status.st_blocks * 512 >= 1 << 20  # not a hole
    assert (tmp_path / "a").read_bytes() == b"head" + bytes((1 << 20) - 4)


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), explain_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(ValueError, match="No space left on device"), explain_full_disk(tmp_path):
        raise ValueError("No space left on device")  # a message about something else


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_where_nothing_may_be_written_is_said_and_what_else_is_forbidden_is_not_that(
    tmp_path: Path, number: int
) -> None:
    with pytest.raises(S2RobotError, match=r"cannot be written: no\. Write elsewhere"), atomic(tmp_path / "a") as path:
        raise OSError(number, "no", str(path))
    with pytest.raises(OSError, match="another") as told, atomic(tmp_path / "a"):
        raise OSError(number, "no", "another")
    assert not isinstance(told.value, S2RobotError) and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", fails)
    with pytest.raises(S2RobotError, match="cannot be written: Read-only file system"), atomic(tmp_path / "a" / "b"):
        pass


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "é"], "b": {"c": []}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_plain_makes_json_of_what_programs_hold() -> None:
    value = {"p": Path("a/b"), "x": np.float32(0.5), "y": np.arange(3), "z": (float("nan"), np.inf), 3: {2, 1}}
    assert plain(value) == {"p": "a/b", "x": 0.5, "y": [0, 1, 2], "z": [None, None], "3": [1, 2]}
    with pytest.raises(InvalidInput, match="Cannot write object as JSON"):
        plain({"a": object()})


def test_damaged_json_is_corrupt_or_json_but_nothing_else(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.json", np.random.default_rng(0)
    write_json(path, {"weights": [1.5, 2.5], "name": "café", "nested": {"deep": [None, True]}})
    whole = path.read_bytes()
    corrupt = 0
    for _ in range(60):
        data = bytearray(whole)
        data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data[: rng.integers(1, len(data) + 1)])
        try:
            read_json(path)
        except CorruptFile:
            corrupt += 1
    assert corrupt > 40
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(CorruptFile):
        read_json(path)


def test_json_lines_survive_a_kill_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    records = [{"step": step, "loss": step / 7, "note": "é"} for step in range(3)]
    with JsonLines(path) as lines:
        for record in records:
            lines.write(record)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = read_jsonl(path)
        assert kept == records[: len(kept)]
        with JsonLines(path) as lines:
            lines.write({"step": 9})
        assert read_jsonl(path) == [*kept, {"step": 9}]
        last = b'{"step":9,"crc32":"d9c02799"}\n'
        assert path.read_bytes().endswith(b"\n" + last if kept else last)


def test_json_lines_drop_what_a_full_disk_tore(tmp_path: Path, small_disk: None) -> None:
    path = tmp_path / "m.jsonl"
    with JsonLines(path, durable=True) as lines:
        lines.write({"a": "x" * 60_000})
        for _ in range(2):
            with pytest.raises(OutOfSpace):
                lines.write({"b": "y" * 60_000})
        lines.write({"c": 1})
    assert [list(record) for record in read_jsonl(path)] == [["a"], ["c"]]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"a":1}\n{"b"\n{"c":1}\n')
    with pytest.raises(CorruptFile, match=r"line 2 is not a JSON object.*sed -i 2d"):
        read_jsonl(path)


def test_json_lines_are_on_disk_after_every_write(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "m.jsonl") as lines:
        lines.write({"loss": float("nan")})
        assert json.loads((tmp_path / "m.jsonl").read_text()) == {"loss": None, "crc32": "16817c31"}
