"""The choice of offscreen OpenGL, and that each choice renders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from s2robot import gl, osmesa
from s2robot.errors import MissingExtra, RenderingUnavailable, UnknownName

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM", gl.CHOICE)

RENDER = """
from s2robot import gl
backend = gl.prepare()
assert gl.prepare() == backend
import mujoco
model = mujoco.MjModel.from_xml_string(gl._SCENE)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    renderer.update_scene(data)
    print(backend, renderer.render().mean())
"""


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Linux environment in which nothing is chosen yet."""
    monkeypatch.setattr(sys, "platform", "linux")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def works(bare: pytest.MonkeyPatch) -> set[str]:
    """Backends that pretend to work; tests put names in."""
    names: set[str] = set()

    def attempt(backend: str) -> gl.GLReport:
        if backend not in names:
            raise RenderingUnavailable(f"{backend}: broken")
        return gl.GLReport(backend, "pretended", True, 1.0)

    bare.setattr(gl, "_try", attempt)
    bare.setattr("importlib.util.find_spec", lambda name: object())
    return names


def render(code: str = RENDER, **variables: str) -> str:
    """Run code in a fresh process where nothing is chosen yet but `variables`."""
    clean = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("first", range(len(gl.CANDIDATES)))
def test_the_first_that_renders_is_taken(works: set[str], first: int) -> None:
    works.update(gl.CANDIDATES[first:])
    assert gl.choose() == gl.CANDIDATES[first]


def test_mujoco_gl_is_honoured(works: set[str], bare: pytest.MonkeyPatch) -> None:
    works.update(gl.CANDIDATES)
    bare.setenv("MUJOCO_GL", "osmesa")
    assert gl.choose() == "osmesa"
    works.remove("osmesa")
    assert gl.choose() == "osmesa-wheel"
    works.remove("osmesa-wheel")
    with pytest.raises(RenderingUnavailable, match="MUJOCO_GL=osmesa allows no other; unset it"):
        gl.choose()
    bare.setenv("MUJOCO_GL", "glfw")
    assert gl.choose() == "glfw"


def test_children_do_not_try_again(works: set[str], bare: pytest.MonkeyPatch) -> None:
    bare.setenv(gl.CHOICE, "osmesa-wheel")
    bare.setenv("MUJOCO_GL", "osmesa")
    assert gl.choose() == "osmesa-wheel"  # though nothing would render
    works.add("egl")
    bare.setenv("MUJOCO_GL", "egl")  # set by hand since: the choice is stale
    assert gl.choose() == "egl"


def test_unknown_names_are_said(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("MUJOCO_GL", "elg")
    with pytest.raises(UnknownName, match=r"Unknown MUJOCO_GL 'elg'\. Did you mean 'egl'"):
        gl.choose()
    bare.delenv("MUJOCO_GL")
    bare.setenv(gl.CHOICE, "vulkan")
    with pytest.raises(UnknownName, match="osmesa-wheel"):
        gl.choose()


def test_nothing_renders_names_reasons_and_ways_out(works: set[str]) -> None:
    assert not works
    with pytest.raises(RenderingUnavailable) as error:
        gl.choose()
    for word in ("egl: broken", "osmesa: broken", "s2robot doctor --fix", gl.APT_LINE, osmesa.WHEEL):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_missing_has_its_package_named(bare: pytest.MonkeyPatch) -> None:
    bare.setattr(gl, "_LIBRARIES", {"egl": ("libNone.so.1",), "osmesa": ("libNeither.so.8",)})
    bare.setattr(osmesa, "is_installed", lambda: False)
    bare.setattr("importlib.util.find_spec", lambda name: object())
    gl._try.cache_clear()
    with pytest.raises(RenderingUnavailable) as error:
        gl.choose()
    for word in ("libNone.so.1 is not installed (apt: libegl1)", "(apt: libosmesa6)", f"osmesa-wheel: {osmesa.WHEEL}"):
        assert word in str(error.value)


def test_settling_leaves_the_choice_to_children(works: set[str], bare: pytest.MonkeyPatch) -> None:
    works.add("osmesa")
    bare.setenv(gl.CHOICE, "")  # put back afterwards
    bare.delenv(gl.CHOICE)
    assert gl.settle() == "osmesa" == os.environ[gl.CHOICE]
    assert "MUJOCO_GL" not in os.environ  # this process is as it was
    works.clear()
    assert gl.settle() == "osmesa"  # nobody tries again


@pytest.mark.parametrize(("renderer", "nvidia", "warned"), [
    ("llvmpipe (LLVM 15.0.6, 256 bits)", True, True),
    ("llvmpipe (LLVM 15.0.6, 256 bits)", False, False),
    ("NVIDIA H100 80GB HBM3/PCIe/SSE2", True, False),
])  # fmt: skip
def test_a_gpu_that_stands_idle_is_said_once(
    renderer: str, nvidia: bool, warned: bool, bare: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bare.setenv(gl.TOLD, "")  # put back afterwards
    bare.delenv(gl.TOLD)
    bare.setattr(gl, "has_nvidia", lambda: nvidia)
    for _ in range(2):
        gl.warn_if_slow(renderer)
    assert caplog.text.count("draws on the CPU (llvmpipe") == warned
    assert (gl.TOLD in os.environ) == warned  # children hold their peace
    assert ("libnvidia-gl" in caplog.text) == warned


@pytest.mark.parametrize(("device", "smi", "found"), [
    (True, None, True),
    (False, None, False),
    (False, "echo 'GPU 0: NVIDIA GeForce RTX 4090'", True),  # as in WSL
    (False, "echo 'No devices found.'", False),  # an image made for a GPU, without one
    (False, "exit 9", False),
])  # fmt: skip
def test_whether_there_is_a_gpu(
    device: bool, smi: str | None, found: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if device:
        tmp_path.joinpath("nvidia0").touch()
    tmp_path.joinpath("nvidiactl").touch()  # the driver's, GPU or not
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{smi}\n")
    program.chmod(0o755)
    monkeypatch.setattr(gl, "_DEVICES", tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: str(program) if smi else None)
    assert gl.has_nvidia.__wrapped__() == found


def test_without_mujoco_the_extra_is_named(bare: pytest.MonkeyPatch) -> None:
    bare.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"s2robot\[sim\]"):
        gl.choose()


def test_other_systems_have_one_backend(bare: pytest.MonkeyPatch) -> None:
    bare.setattr(sys, "platform", "darwin")
    assert gl.choose() == "cgl"


def test_a_failed_trial_says_why(bare: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    bare.setattr(gl, "_missing", lambda backend: "")
    bare.setattr(gl, "_TRIAL", "raise ValueError('of {backend}')")
    with pytest.raises(RenderingUnavailable, match=r"^egl: ValueError: of egl$"):
        gl._try.__wrapped__("egl")
    bare.setattr(gl, "_TRIAL", "import time; time.sleep(60)")
    bare.setattr(gl, "_TRIAL_SECONDS", 0.2)
    with pytest.raises(RenderingUnavailable, match=r"no frame within 0\.2 s"):
        gl._try.__wrapped__("egl")


@pytest.mark.sim
def test_probe_reports_the_renderer() -> None:
    report = gl.probe()
    assert report.renderer
    assert report.ms > 0
    assert report.is_software == ("llvmpipe" in report.renderer or "softpipe" in report.renderer)


@pytest.mark.sim
@pytest.mark.parametrize("before", ["", "import mujoco", "import s2robot.envs"])
def test_a_prepared_process_renders(before: str) -> None:
    backend, mean = render(f"{before}\n{RENDER}").split()
    assert backend in gl.CANDIDATES
    assert 30 < float(mean) < 220


@pytest.mark.sim
def test_opengl_imported_for_another_platform_is_an_error() -> None:
    code = "from OpenGL import platform\nfrom s2robot import gl\ngl.prepare()"
    chosen = gl.choose()
    other = "osmesa" if chosen == "egl" else "egl"
    answer = render(code, **{gl.CHOICE: chosen, "PYOPENGL_PLATFORM": other})
    assert "before anything imports OpenGL" in answer or "ImportError" in answer  # the other may not even load


@pytest.mark.sim
@pytest.mark.slow
def test_the_wheel_renders_what_the_system_renders(tmp_path: Path) -> None:
    """Installs the wheel next to, not into, this environment."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(tmp_path), osmesa.WHEEL]
    if subprocess.run(command, capture_output=True, timeout=600, check=False).returncode != 0:
        pytest.skip(f"{osmesa.WHEEL} cannot be installed here")
    backend, mean = render(PYTHONPATH=str(tmp_path), **{gl.CHOICE: "osmesa-wheel"}).split()
    assert backend == "osmesa-wheel"
    _, system = render().split()
    assert float(mean) == pytest.approx(float(system), rel=0.03)
