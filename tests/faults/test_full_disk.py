"""A disk that fills up at any write of every long verb: a real file system, of which less and less is left free.

What was good before stays good, the error names a path and how much is free, and when there is space again the same
command goes on to the bits of a run that had space all along.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from materials import Materials
from processes import run_verb
from verbs import VERBS, Verb

pytestmark = [pytest.mark.faults, pytest.mark.sim]

SIZE = 64 << 20
SCALE = float(os.environ.get("S2ROBOT_FAULTS_SCALE", "1"))
TRIES = {"collect": 5, "encode": 10, "train": 8, "pretrain": 8, "eval": 4, "study": 3, "rl": 3}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("name", list(VERBS))
def test_a_verb_that_meets_a_full_disk_goes_on_when_there_is_space(
    name: str, made: Materials, disk: Path, tmp_path: Path, count: Callable[..., None]
) -> None:
    count("full disk", name)  # lost, until it is known better
    verb, log = VERBS[name], tmp_path / "log"
    out, most = disk / "out", _needs(verb, made, disk / "out", log)
    expected = verb.result(out)
    # The inputs that a verb reads lie elsewhere; only what it writes is short of space.
    rng, tries = np.random.default_rng(3), max(2, round(SCALE * TRIES[name]))
    outcomes: Counter[str] = Counter()
    for number in range(tries):
        shutil.rmtree(out)
        out.mkdir()
        verb.prepare(made, out)
        free = round((number + float(rng.random())) / tries * most)
        ballast = _fill(disk, free)
        log.write_text("")
        code = run_verb(verb.words(made, out), log)
        ballast.unlink()
        said = " ".join(log.read_text().split())
        if code:
            assert code == 1 and "free" in said and ("No space left" in said or "needs" in said), f"{free} B: {said}"
            assert str(disk) in said.replace(" ", ""), said
            assert not list(out.rglob("*.tmp-*")), f"left behind: {list(out.rglob('*.tmp-*'))}"
        outcomes["said so" if code else "had enough"] += 1
        code = run_verb(verb.words(made, out), log)
        assert code == 0, f"{free} bytes free, then enough: {log.read_text()[-2000:]}"
        assert verb.result(out) == expected, f"{free} bytes free, then enough: other bits"
    count("full disk", name, outcomes)


def _needs(verb: Verb, made: Materials, out: Path, log: Path) -> int:
    """Bytes that a run takes beyond what it found, at most; a run that has them all."""
    out.mkdir()
    verb.prepare(made, out)
    before = _used(out)
    assert run_verb(verb.words(made, out), log) == 0, log.read_text()[-2000:]
    return int(1.1 * (_used(out) - before)) + 8192


def _used(folder: Path) -> int:
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def _fill(disk: Path, free: int) -> Path:
    """A file that leaves `free` bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(4096, SIZE - _used(disk) - free - 4096))
    return ballast
