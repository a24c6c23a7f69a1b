"""Parcels: a folder arrives as it was, without what is of one process; whatever a kill cuts short can go on."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from pathlib import Path

import pytest

from s2robot import files
from s2robot.parcels import Parcel


def filled(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def ended() -> int:
    """A process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_folder_travels_whole(tmp_path: Path) -> None:
    there, here = filled(tmp_path / "there", "policy/done", "policy/state.pt", "log.jsonl"), tmp_path / "here"
    before = Parcel.of(there)
    assert set(before.contents) == {"policy/done", "policy/state.pt", "log.jsonl"}
    with before.unpacked() as folder:
        (folder / "policy/state.pt").unlink()
        (folder / "policy/new").write_bytes(b"\x00")
        after = Parcel.of(folder)
    assert not folder.exists()
    before.put(here)
    after.put(here, instead_of=before)
    assert Parcel.of(here) == after
    assert set(Parcel.of(there, ["log.jsonl", "none"]).contents) == {"log.jsonl"}


def test_locks_and_unfinished_files_stay_where_they_are(tmp_path: Path) -> None:
    living, dead = (f"policy/state.pt.tmp-{files._HERE}-{process}" for process in (os.getppid(), ended()))
    folder = filled(tmp_path, "policy/a.pt", ".lock", "policy/.lock", ".log.jsonl.lock", f"{living}/x", dead)
    assert set(Parcel.of(folder).contents) == {"policy/a.pt"}
    assert set(Parcel.of(folder, ["policy/**/*"]).contents) == {"policy/a.pt"}
    assert (folder / living).exists() and not (folder / dead).exists() and (folder / "policy/.lock").exists()


def test_what_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    folder = filled(tmp_path, "policy/old", "policy/changed", "policy/lost")
    before = Parcel.of(folder)
    then = (folder / "policy/old").stat().st_ino
    (folder / "policy/lost").unlink()
    Parcel({**before.contents, "policy/changed": b"new"}).put(folder, instead_of=before)
    assert (folder / "policy/old").stat().st_ino == then
    assert Parcel.of(folder).contents == {**before.contents, "policy/changed": b"new"}


def test_files_arrive_in_an_order_that_a_kill_may_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights before what says which they are, `done` after all of policy/, and what was measured after the weights."""
    names = ["best/policy/policy.json", "best/policy/policy.safetensors", "episodes-fast.jsonl", "policy/done"]
    names += ["policy/policy.json", "policy/policy.safetensors", "policy/snapshots/000009/policy.json"]
    seen: list[str] = []
    true = files.atomic

    def noted(path: Path) -> object:
        seen.append(path.relative_to(tmp_path).as_posix())
        if seen[-1] == "policy/done":
            assert not (tmp_path / "policy/state.pt").exists() and (tmp_path / "policy/policy.json").exists()
        return true(path)

    before = Parcel.of(filled(tmp_path, "policy/state.pt", "policy/policy.safetensors"))
    monkeypatch.setattr(files, "atomic", noted)
    Parcel(dict.fromkeys(names, b"")).put(tmp_path, instead_of=before)
    assert sorted(seen) == sorted(names)
    for first, then in (
        ("policy/policy.safetensors", "policy/policy.json"),
        ("policy/snapshots/000009/policy.json", "policy/done"),
        ("policy/done", "episodes-fast.jsonl"),
        ("policy/done", "best/policy/policy.safetensors"),
        ("best/policy/policy.safetensors", "best/policy/policy.json"),
    ):
        assert seen.index(first) < seen.index(then)


def test_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    begin, gone = f"s2robot-{platform.node()}", ended()
    names = [f"{begin}-{os.getppid()}-a/x", f"s2robot-another.host-{gone}-a/x", f"other-{gone}-a/x", "s2robot-old/x"]
    filled(tmp_path, *names, f"{begin}-{gone}-a/policy/x")
    with Parcel({"a": b"1"}).unpacked() as outer, Parcel({"a": b"2"}).unpacked() as inner:
        assert (outer / "a").read_bytes() == b"1" and (inner / "a").read_bytes() == b"2"
        assert outer.name.startswith(f"{begin}-{os.getpid()}-")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(name.split("/")[0] for name in names)
