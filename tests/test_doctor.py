"""What the doctor sees, and what it would run to repair it. Nothing is installed here."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from s2robot import doctor, gl, osmesa, repair, requirements
from s2robot.errors import RenderingUnavailable, S2RobotError, UnknownName, UsageError

METADATA = """Metadata-Version: 2.4
Name: s2robot
Version: 0.1.0
Requires-Python: >=3.10,<3.13
Requires-Dist: numpy<3,>=1.26
Provides-Extra: sim
Requires-Dist: s2robot-no-such-simulator==1.5.2; extra == "sim"
Requires-Dist: numpy>=1; extra == "sim"
Provides-Extra: old
Requires-Dist: numpy<1; extra == "old"
Provides-Extra: osmesa
Requires-Dist: s2robot-no-such-wheel<2; sys_platform != "amiga" and extra == "osmesa"
Requires-Dist: amiga-gl; sys_platform == "amiga" and extra == "osmesa"
"""
REPORT = gl.GLReport("egl", "llvmpipe", True, 1.5)


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation with known requirements, whatever this checkout's is."""
    folder = tmp_path / "s2robot-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA)
    monkeypatch.setattr(requirements, "_distribution", lambda: metadata.Distribution.at(folder))


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which everything that is installed works."""
    monkeypatch.setattr(gl, "probe", lambda: REPORT)
    monkeypatch.setattr(repair, "opencv_failure", lambda: "")
    monkeypatch.setattr(requirements, "extras", lambda: ["sim", "osmesa"])


class Machine:
    """A machine that runs no command, but remembers each; `on` says which one changes what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.renders = False
        self.commands: list[str] = []
        self.on: dict[str, Callable[[], int]] = {}
        self.programs = {"apt-get", "sudo"}
        self.printed = io.StringIO()
        monkeypatch.setattr(subprocess, "run", self._run)
        monkeypatch.setattr(shutil, "which", lambda name: name if name in self.programs else None)
        monkeypatch.setattr(gl, "probe", self._probe)
        monkeypatch.setattr(gl, "choose", lambda: "egl")
        monkeypatch.setattr(repair, "opencv_failure", lambda: "" if self.renders else "ImportError: libGL.so.1")
        monkeypatch.setattr(metadata, "version", self._version)
        monkeypatch.setattr(os, "geteuid", lambda: 0)

    def fix(self) -> None:
        repair.fix(Console(file=self.printed, width=1000))

    def become_rendering(self) -> int:
        self.renders = True
        return 0

    def _probe(self) -> gl.GLReport:
        if not self.renders:
            raise RenderingUnavailable("nothing renders")
        return REPORT

    def _run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert options["timeout"] > 0
        line = " ".join(command)
        self.commands.append(line)
        code = next((act() for word, act in self.on.items() if word in line), 0)
        return subprocess.CompletedProcess(command, code, "", "noise\nERROR: no route to the index\nhint")

    @staticmethod
    def _version(name: str) -> str:
        if name.startswith("s2robot-no-such"):
            raise metadata.PackageNotFoundError(name)
        return "4.11.0.86"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_requirements_come_from_the_installed_metadata() -> None:
    assert [need.name for need in requirements.needs()] == ["numpy"]
    simulator, numpy = requirements.needs("sim")
    assert (simulator.line, simulator.found, simulator.fits) == ("s2robot-no-such-simulator==1.5.2", "", False)
    assert numpy.fits
    assert not requirements.needs("old")[0].fits
    assert [need.name for need in requirements.needs("osmesa")] == ["s2robot-no-such-wheel"]
    with pytest.raises(UnknownName, match="Did you mean 'osmesa'"):
        requirements.needs("osmeza")


def test_a_local_build_fits_its_public_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.5.2+cpu")
    assert requirements.needs("sim")[0].fits


def test_diagnose_names_what_is_there_and_what_is_not(healthy: None) -> None:
    checks = {check.name: check for check in doctor.diagnose()}
    assert {"python", "torch", "cpu", "weights", "rendering", "disk", "cores"} <= set(checks)
    assert checks["[sim]"].status == doctor.NOTE
    assert "pip install 's2robot[sim]'" in checks["[sim]"].found
    assert "egl: llvmpipe (software)" in checks["rendering"].found or "not installed" in checks["rendering"].found
    assert "s2robot-tiny (5.7 MB)" in checks["weights"].found


def test_json_is_the_only_thing_on_standard_output(healthy: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    assert {"name", "status", "found", "remedy"} == set(answer["checks"][0])


@pytest.mark.usefixtures("healthy")
def test_a_failure_is_exit_code_1_and_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mujoco")

    def broken() -> gl.GLReport:
        raise RenderingUnavailable(f"No offscreen OpenGL [here]. Run: {gl.APT_LINE}")

    monkeypatch.setattr(gl, "probe", broken)
    assert doctor.main([]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert f"rendering: No offscreen OpenGL [here]. Run: {gl.APT_LINE}" in printed


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize("nvidia", [True, False])
def test_a_gpu_that_stands_idle_is_noted(nvidia: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.setattr(gl, "has_nvidia", lambda: nvidia)
    (rendering,) = (check for check in doctor.diagnose() if check.name == "rendering")
    assert rendering.status == (doctor.NOTE if nvidia else doctor.OK)
    assert ("libnvidia-gl" in rendering.remedy) == nvidia


@pytest.mark.usefixtures("healthy")
def test_missing_weights_and_wrong_versions_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "WEIGHTS", tmp_path / "nowhere")
    monkeypatch.setattr(requirements, "extras", lambda: ["old"])
    failed = {check.name: check for check in doctor.diagnose() if check.status == doctor.FAIL}
    assert set(failed) == {"weights", "[old]"}
    assert "numpy<1" in failed["[old]"].found


def test_damaged_weights_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = doctor.WEIGHTS / "s2robot-tiny.safetensors"
    (tmp_path / whole.name).write_bytes(whole.read_bytes())
    monkeypatch.setattr(doctor, "WEIGHTS", tmp_path)
    assert doctor._weights().status == doctor.OK
    (tmp_path / whole.name).write_bytes(whole.read_bytes()[:-1] + b"x")
    check = doctor._weights()
    assert check.status == doctor.FAIL and "not as it was shipped" in check.found and "pip install" in check.remedy


def test_an_uninstalled_checkout_is_said_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.undo()
    monkeypatch.setattr(metadata, "distribution", absent)
    assert "pip install -e" in doctor._python().remedy
    assert list(doctor._extras()) == []


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        doctor.main(["--help"])
    assert stop.value.code == 0
    assert "s2robot doctor --fix" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"--fixx. See: s2robot doctor --help"):
        doctor.main(["--fixx"])


def test_fix_installs_the_simulator_then_system_gl(machine: Machine) -> None:
    machine.on["libegl1"] = machine.become_rendering
    machine.fix()
    pip, update, install = machine.commands
    assert pip.endswith("-m pip install s2robot-no-such-simulator==1.5.2")
    assert update == "apt-get update -qq"
    assert install == f"env DEBIAN_FRONTEND=noninteractive {gl.APT_LINE}"
    for command in machine.commands:
        assert f"$ {command}" in machine.printed.getvalue()


def test_fix_does_nothing_more_where_frames_are_drawn(machine: Machine) -> None:
    machine.renders = True
    machine.fix()
    assert len(machine.commands) == 1  # the simulator


def test_fix_uses_sudo_when_it_asks_for_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    machine.on["libegl1"] = machine.become_rendering
    machine.fix()
    assert machine.commands[-1] == f"sudo -n env DEBIAN_FRONTEND=noninteractive {gl.APT_LINE}"


@pytest.mark.parametrize("obstacle", ["no apt-get", "sudo asks", "apt-get fails"])
def test_fix_falls_back_to_the_wheel(machine: Machine, monkeypatch: pytest.MonkeyPatch, obstacle: str) -> None:
    if obstacle == "no apt-get":
        machine.programs.remove("apt-get")
    elif obstacle == "sudo asks":
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        machine.on["sudo -n true"] = lambda: 1
    else:
        machine.on["libegl1"] = lambda: 100
    machine.on["headless"] = machine.become_rendering
    machine.fix()
    wheel, opencv = machine.commands[-2:]
    assert wheel.endswith("-m pip install --no-deps s2robot-no-such-wheel<2")
    assert opencv.endswith("install --no-deps --force-reinstall opencv-python-headless==4.11.0.86")


def test_fix_without_a_way_prints_the_one_line(machine: Machine) -> None:
    machine.on["apt-get"] = machine.on["s2robot-no-such-wheel"] = lambda: 1
    with pytest.raises(RenderingUnavailable) as error:
        machine.fix()
    assert str(error.value).endswith(f"As root, type: {gl.APT_LINE}")
    assert "\n" not in str(error.value)


def test_no_network_is_one_clear_line(machine: Machine) -> None:
    machine.on["pip install"] = lambda: 1
    with pytest.raises(S2RobotError) as error:
        machine.fix()
    assert "no route to the index" in str(error.value)
    assert "Is there a network?" in str(error.value)
    assert "noise" not in str(error.value)


def test_the_wheel_named_here_is_the_one_in_the_extra() -> None:
    """Against the real metadata when this checkout is installed."""
    try:
        lines = metadata.requires("s2robot") or []
    except metadata.PackageNotFoundError:
        pytest.skip("s2robot is not installed")
    assert any(line.startswith(osmesa.WHEEL) and "osmesa" in line for line in lines)


def test_it_works_where_what_others_need_is_missing(tmp_path: Path) -> None:
    """The verb that says what is missing needs none of it."""
    code = "import sys; sys.modules['draccus'] = None; from s2robot import cli; cli.main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "This is a bug" not in done.stderr and "cores" in done.stdout, done.stderr
