"""Every example runs as its docstring says, with small arguments. A new one is a file, a line of `CASES`, and one of
docs/examples.md."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from s2robot import cli, video
from s2robot.collect import CollectConfig, collect

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PLUGINS = ("own_vit.py", "own_task.py", "own_policy.py")  # which examples/pyproject.toml makes known by name


class Case(NamedTuple):
    """How to run an example.

    words: its arguments; "{clip}", "{demos}", "{onnx}", "{openvino}", "{out}" become paths made for it.
    prints: what it must say.
    packages: it is skipped without them.
    marks: of pytest.
    """

    words: tuple[str, ...]
    prints: tuple[str, ...]
    packages: tuple[str, ...] = ()
    marks: tuple[pytest.MarkDecorator, ...] = ()


SIM = (pytest.mark.sim,)
CASES: dict[str, Case] = {
    "encode_video.py": Case(("{clip}", "--frames", "4", "--out", "{out}"), ("4 frames, map (384,", " Hz"), ("av",)),
    "own_training_loop.py": Case(("{demos}", "--epochs", "2", "--stride", "8"), ("epoch 1: ",), (), SIM),
    "own_vit.py": Case((), ("multiscale_forward: tokens (2, 65, 192)", "map (2, 1, 192, 8, 11)")),
    "own_task.py": Case(("1",), ("1 of 1 pushed over the line",), (), SIM),
    "own_policy.py": Case(("{demos}", "{out}", "20", "1"), (" of 1 succeeded",), (), SIM),
    "sb3_ppo.py": Case(("--steps", "16", "--envs", "1", "--out", "{out}"), ("fps",), ("stable_baselines3",), SIM),
    "onnxruntime_alone.py": Case(("{onnx}",), ("tokens  (1, 1, 88, 384) float32", "ms a frame"), ("onnxruntime",)),
    "openvino_alone.py": Case(("{openvino}",), ("tokens  (1, 1, 88, 384) float32", "ms a frame"), ("openvino", "onnx")),
}
ELSEWHERE = ("ros2_robot.py",)  # which tests/test_ros2.py runs beside its node
ALONE = ("onnxruntime_alone.py", "openvino_alone.py")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the examples' own distribution was installed into."""
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("installed")
    copy = shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    quietly = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    words = ["-m", "pip", "install", *quietly, "--target", str(folder / "site"), str(copy)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site"


class Made:
    """What examples are given, each made when one asks for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> Path:
        path = self.folder / {"clip": "clip.mp4", "onnx": "e.onnx", "openvino": "e.xml"}.get(name, f"{name}.hdf5")
        if not path.exists():
            getattr(self, f"_{name}")(path)
        return path

    def _clip(self, path: Path) -> None:
        frames = np.random.default_rng(0).integers(0, 256, (5, 120, 160, 3), dtype=np.uint8)
        video.write_video(path, frames)

    def _demos(self, path: Path) -> None:
        collect(CollectConfig(demos=2, fidelity="fast", frame_size=256, workers=1), path)

    def _onnx(self, path: Path, kind: str = "onnx") -> None:
        words = ["export", "s2robot-tiny", "--to", kind, "--frame", "120x160", "--scales", "1,2", "--json"]
        assert cli.main([*words, "--out", str(path)]) == 0

    def _openvino(self, path: Path) -> None:
        self._onnx(path, "openvino")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


def run(words: list[str], *folders: Path) -> str:
    """A process of its own with this checkout, and these folders, on its path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*folders, ROOT)))}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [pytest.param(name, marks=case.marks) for name, case in CASES.items()])
def test_an_example_runs(
    name: str, made: Made, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    for package in case.packages:
        pytest.importorskip(package)
    paths: Mapping[str, Any] = _Lazily(made, tmp_path / "out.npz")
    words = [word.format_map(paths) for word in case.words]
    site = [request.getfixturevalue("installed")] if name == "own_policy.py" else []
    said = run([str(EXAMPLES / name), *words], *site)
    for each in case.prints:
        assert each in said
    if name == "encode_video.py":
        features = np.load(tmp_path / "out.npz")
        assert features["map"].shape == (4, 384, 8, 11) and features["cls"].shape == (4, 384)


class _Lazily(dict[str, Path]):
    """Words of a case to paths."""

    def __init__(self, made: Made, out: Path) -> None:
        super().__init__(out=out)
        self._made = made

    def __missing__(self, name: str) -> Path:
        return self._made[name]


@pytest.mark.sim
@pytest.mark.slow
def test_installed_examples_are_known_by_name(installed: Path) -> None:
    listed = run(["-m", "s2robot.cli", "list", "--json"], installed)
    assert listed.count('"distribution": "s2robot-examples"') == 3 and '"broken"' not in listed
    code = "import s2robot; e = s2robot.load_encoder('own-vit', random_weights=True); print(e.backbone.distribution)"
    assert run(["-c", code], installed).strip() == "s2robot-examples"


def test_there_is_a_case_and_a_line_of_the_docs_for_each() -> None:
    files = sorted(file.name for file in EXAMPLES.glob("*.py"))
    assert files == sorted([*CASES, *ELSEWHERE])
    page = (ROOT / "docs" / "examples.md").read_text()
    for name in files:
        assert f"(../examples/{name})" in page
        first, *rest = ast.get_docstring(ast.parse((EXAMPLES / name).read_text()), clean=False).split("\n\n", 1)  # type: ignore[union-attr]
        assert f"python examples/{name}" in rest[0], f"{name}: {first}"


@pytest.mark.parametrize("name", ALONE)
def test_what_runs_alone_imports_nothing_of_ours(name: str) -> None:
    tree = ast.parse((EXAMPLES / name).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert names == {"json", "numpy", "sys", "time", name.removesuffix("_alone.py")}
