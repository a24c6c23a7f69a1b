"""Is this machine ready? Look at everything s2robot stands on, say what is missing and what to type.

    s2robot doctor            a table; exit code 0 if all that matters is in order
    s2robot doctor --fix      install what is missing, then look again

The repairs are in `s2robot.repair`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.table import Table
from rich.text import Text

from s2robot import gl, repair, requirements
from s2robot.errors import S2RobotError
from s2robot.parser import Parser, json_option

OK, NOTE, FAIL = "ok", "note", "fail"
WEIGHTS = Path(__file__).parent / "weights"
_GB = 1e9
_LITTLE_DISK = 5 * _GB  # frames of 120 demonstrations and their features, with room to work
_NO_DISK = 0.5 * _GB
_COLOURS = {OK: "green", NOTE: "yellow", FAIL: "red"}


@dataclass(frozen=True)
class Check:
    """One thing looked at. A "note" is good to know; a "fail" stops something that is installed from working."""

    name: str
    status: str
    found: str
    remedy: str = ""


def diagnose() -> list[Check]:
    """Look at everything; nothing is changed. Takes a few seconds: torch is imported and a frame is drawn."""
    return [
        _python(),
        _torch(),
        *_devices(),
        _weights(),
        *_extras(),
        *_simulator(),
        _disk(Path.cwd()),
        _cores(),
    ]


def main(argv: Sequence[str]) -> int:
    """`s2robot doctor`: returns the exit code."""
    options = _parser().parse_args(argv)
    # With --json, standard output is for the program that reads it.
    talk = Console(stderr=options.json, soft_wrap=True)
    if options.fix:
        repair.fix(talk)
    checks = diagnose()
    healthy = all(check.status != FAIL for check in checks)
    if options.json:
        answer = {"ok": healthy, "checks": [asdict(check) for check in checks]}
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    else:
        _show(checks, talk)
    return 0 if healthy else 1


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="s2robot doctor",
        description="Look at everything s2robot stands on; say what is missing and what to type.",
        epilog="example:\n  s2robot doctor --fix      install headless OpenGL and the simulator, then look again",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fix", action="store_true", help="install what is missing; every command is printed first")
    json_option(parser, "print the findings as JSON")
    return parser


def _show(checks: list[Check], console: Console) -> None:
    table = Table("", "what", "found", box=None, padding=(0, 1))
    for check in checks:
        table.add_row(Text(check.status, _COLOURS[check.status]), Text(check.name), Text(check.found))
    console.print(table)
    for check in checks:
        if check.remedy:
            console.print(Text(f"{check.name}: ", _COLOURS[check.status]) + Text(check.remedy))


def _python() -> Check:
    found = f"{platform.python_version()} ({sys.executable})"
    try:
        allowed = requirements.python_range()
    except S2RobotError as error:
        return Check("python", NOTE, found, str(error))
    if SpecifierSet(allowed).contains(platform.python_version(), prereleases=True):
        return Check("python", OK, found)
    return Check("python", FAIL, found, f"s2robot needs Python {allowed}: make a new environment with one of those")


def _torch() -> Check:
    """torch and torchvision are built as pairs; a torchvision of another torch loses its operators."""
    remedy = "Run: pip install --upgrade --force-reinstall torch torchvision   (both from one index: they are a pair)"
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, OSError, RuntimeError) as error:
        return Check("torch", FAIL, str(error).splitlines()[0], remedy)
    import timm

    return Check("torch", OK, f"{torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}")


def _devices() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError):
        return  # said by _torch
    yield Check("cpu", OK, f"{platform.machine()}, torch uses {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Check(f"cuda:{index}", OK, f"{device.name}, {device.total_memory / _GB:.0f} GB")


def _weights() -> Check:
    files = sorted(WEIGHTS.glob("*.safetensors"))
    remedy = "Run: pip install --force-reinstall --no-deps s2robot   (in a checkout: git checkout s2robot/weights)"
    if not files:
        return Check("weights", FAIL, f"none in {WEIGHTS}", remedy)
    if damaged := _not_as_shipped(files):
        return Check("weights", FAIL, f"{damaged} is not as it was shipped", remedy)
    return Check("weights", OK, ", ".join(f"{file.stem} ({file.stat().st_size / 1e6:.1f} MB)" for file in files))


def _not_as_shipped(files: Sequence[Path]) -> str:
    """The first file that its encoder would refuse; "" where all are whole."""
    try:
        from s2robot import catalogue, seals
    except (ImportError, OSError):
        return ""  # said by _torch
    sums = {encoder.shipped: encoder.sha256 for encoder in catalogue.NAMED.values() if encoder.shipped}
    return next((file.name for file in files if sums.get(file.name, "") not in ("", seals.digest(file))), "")


def _extras() -> Iterator[Check]:
    try:
        names = requirements.extras()
    except S2RobotError:
        return  # said by _python
    for name in names:
        wanted = requirements.needs(name)
        missing = [need.line for need in wanted if not need.found]
        wrong = [need for need in wanted if need.found and not need.fits]
        if wrong:
            found = ", ".join(f"{need.name} {need.found}" for need in wrong)
            yield Check(f"[{name}]", FAIL, f"{found}; needs {', '.join(need.line for need in wrong)}", _pip(name))
        elif missing:
            yield Check(f"[{name}]", NOTE, f"not here: {', '.join(missing)}   ({requirements.pip_line(name)})")
        else:
            yield Check(f"[{name}]", OK, ", ".join(f"{need.name} {need.found}" for need in wanted))


def _pip(extra: str) -> str:
    return f"Run: {requirements.pip_line(extra)}"


def _simulator() -> Iterator[Check]:
    """Offscreen OpenGL, and OpenCV's: robosuite imports it, and its usual build wants libGL.so.1."""
    if importlib.util.find_spec("mujoco") is None:
        yield Check("rendering", NOTE, "mujoco is not installed: no simulator, nothing to render", _pip("sim"))
        return
    try:
        report = gl.probe()
    except S2RobotError as error:
        yield Check("rendering", FAIL, "none", str(error))
    else:
        kind = "software" if report.is_software else "hardware"
        idle = report.is_software and gl.has_nvidia()
        found = f"{report.backend}: {report.renderer} ({kind}), {report.ms:.1f} ms a test frame"
        yield Check(
            "rendering", NOTE if idle else OK, found, gl.IDLE_GPU.format(renderer=report.renderer) if idle else ""
        )
    if why := repair.opencv_failure():
        yield Check("opencv", FAIL, why, f"Run: s2robot doctor --fix   or, as root: {gl.APT_LINE}")


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    status = FAIL if free < _NO_DISK else NOTE if free < _LITTLE_DISK else OK
    remedy = "" if status == OK else f"A demo run takes up to {_LITTLE_DISK / _GB:.0f} GB: work on another disk"
    return Check("disk", status, f"{free / _GB:.1f} GB free at {folder}", remedy)


def _cores() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if usable < 2:
        return Check("cores", NOTE, "1", "Everything works; the demo takes about twice as long as on two cores")
    return Check("cores", OK, str(usable))
