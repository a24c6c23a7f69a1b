"""What a number was measured on: machine, versions, revision."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from s2robot import memory_limits, workers

PACKAGES = ("s2robot", "torch", "timm", "numpy", "mujoco", "robosuite", "gymnasium")


def provenance() -> dict[str, Any]:
    """What a result says of where it came from."""
    return {"machine": machine(), "versions": versions(), "git": git_revision()}


def machine() -> dict[str, str | int | float | None]:
    """CPU, cores, memory, GPU, Python, platform."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "cores": workers.cores(),
        "memory_gib": _memory(),
        "gpu": gpu,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Versions of what decides the numbers; a package that is not installed is left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def resident_mb(process: int) -> float | None:
    """Memory of a process that is in RAM now [MB], pages it shares included; None where nobody tells."""
    if importlib.util.find_spec("psutil"):
        return float(importlib.import_module("psutil").Process(process).memory_info().rss) / 1e6
    try:
        pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def free_memory() -> int | None:
    """Bytes that could be filled without swapping, by this process where it may use less; None where nobody tells."""
    rooms = [memory_limits.room()]
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        rooms.append(next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")))
    return min((room for room in rooms if room is not None), default=None)


def git_revision() -> str | None:
    """The checkout's revision, with "+" if it has uncommitted changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        revision = _git(here, "rev-parse", "--short", "HEAD")
        return revision + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        line = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()[0]
        return round(int(line.split()[1]) / 2**20, 1)
    except (OSError, IndexError, ValueError):
        return None
