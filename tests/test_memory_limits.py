"""What a container leaves us is read as the kernel writes it, of either version."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2robot import machine
from s2robot.memory_limits import room

V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file 100\ntotal_active_file 20\nrss 7\n")
V2 = ("memory.max", "memory.current", "anon 7\ninactive_file 100\nactive_file 20\n")


def group(folder: Path, names: tuple[str, str, str], limit: str, used: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip((*names[:2], "memory.stat"), (limit, f"{used}\n", names[2]), strict=True):
        (folder / name).write_text(value)


@pytest.mark.parametrize(
    ("names", "line", "top"), [(V1, "4:cpu,memory:/job/1\n3:pids:/x", "memory"), (V2, "0::/job/1", ".")]
)
def test_the_tightest_of_the_groups_around_us_counts(
    tmp_path: Path, names: tuple[str, str, str], line: str, top: str
) -> None:
    (tmp_path / "mine").write_text(line)
    assert room(tmp_path, tmp_path / "mine") is None
    group(tmp_path / top / "job/1", names, "max" if names is V2 else str((1 << 63) - 4096), 500)
    assert room(tmp_path, tmp_path / "mine") is None
    group(tmp_path / top / "job", names, "9000", 500)
    assert room(tmp_path, tmp_path / "mine") == 9000 - 500 + 120
    group(tmp_path / top / "job/1", names, "700", 500)
    assert room(tmp_path, tmp_path / "mine") == 320
    assert room(tmp_path, tmp_path / "none") is None


def test_an_older_kernel_counts_fewer_kinds_of_pages(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("0::/job\n")
    group(tmp_path / "job", (*V2[:2], "anon 7\ninactive_file 100\n"), "9000", 500)
    assert room(tmp_path, tmp_path / "mine") == 9000 - 500 + 100


def test_this_machine_says_something() -> None:
    free = machine.free_memory()
    assert free is None or 0 < free < 1 << 50
