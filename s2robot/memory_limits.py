"""What a container or a Slurm job may still fill: its control group's limit, of which /proc/meminfo knows nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NONE = 1 << 60  # as large a limit is none: that is how version 1 says so


class _Names(NamedTuple):
    """Files of a group, and in its memory.stat the pages of files, which give way."""

    limit: str
    used: str
    files: tuple[str, str]


_VERSION_1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_VERSION_2 = _Names("memory.max", "memory.current", ("inactive_file", "active_file"))


def room(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes this process's group and all that it is in leave; None without a limit."""
    found = []
    for folder, names in _groups(root, membership):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number, the outermost group has none
            limit = int((folder / names.limit).read_text(encoding="ascii"))
            if limit < NONE:
                lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
                said = dict(line.split() for line in lines)
                used = int((folder / names.used).read_text(encoding="ascii"))
                found.append(limit - used + sum(int(said.get(name, 0)) for name in names.files))
    return max(0, min(found)) if found else None


def _groups(root: Path, membership: Path) -> Iterator[tuple[Path, _Names]]:
    """Our group of memory and those it is in, outwards. In a container they begin at its own."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, names = (root / "memory", _VERSION_1) if controllers else (root, _VERSION_2)
        group = top / path.lstrip("/")
        while group != top:
            yield group, names
            group = group.parent
        yield top, names
