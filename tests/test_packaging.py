"""What is installed is what is meant: the files of wheel and sdist, the public names, the way imports point."""

from __future__ import annotations

import ast
import contextlib
import email
import importlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import s2robot
from s2robot.errors import MissingExtra

ROOT = Path(__file__).resolve().parents[1]
MOVED = ("configs", "envs", "policies")  # top-level folders that install inside s2robot
SIMULATORS = {"lerobot", "mujoco", "rclpy", "robomimic", "robosuite", "stable_baselines3"}
OPTIONAL = SIMULATORS | {"av", "msgpack", "onnx", "onnxruntime", "onnxscript", "openvino", "tensorboard", "websockets"}
CORE = {  # what `pip install s2robot` brings; everything else is an extra's
    "draccus", "fsspec", "gymnasium", "h5py", "numpy", "packaging", "pillow", "pyyaml", "rich", "safetensors", "timm",
    "torch", "torchvision",
}  # fmt: skip
EXTEND = (
    "s2robot/adapters/lerobot_policy/",
    "s2robot/adapters/robomimic.py",
    "s2robot/adapters/sb3",
    "policies/ibrl.py",
    "policies/rlpd.py",
)  # made of a stack's own classes
RENDERS = {"gl.py"}  # measures mujoco's own renderer, in a child process
TIES_ALL_TOGETHER = {"cli.py", "demo.py", "verbs.py"}  # may name a policy's configuration; a task only when asked for


def sources(*folders: str) -> list[Path]:
    """Python files, each once: the links inside s2robot/ lead to folders that are named themselves."""
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py") if file == file.resolve())


def imports(file: Path, *, at_import_time: bool = False) -> Iterator[str]:
    """Absolute modules a file imports; on request only those that its own import runs."""
    skipped: set[ast.AST] = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):  # parents come before children
        body_is_late = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for_checkers = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if at_import_time and (body_is_late or for_checkers or node in skipped):
            skipped.update(ast.iter_child_nodes(node))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def extends(file: Path) -> bool:
    """Is this an adapter that cannot be imported without its stack?"""
    return str(file.relative_to(ROOT)).startswith(EXTEND)


def run(code: str) -> str:
    """Run code in a fresh interpreter on this checkout."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist of this checkout, and the wheel made from that sdist."""
    pytest.importorskip("build")
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("s2robot", *MOVED, "tests"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, copy)
    out = copy / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_wheel_holds_every_module_and_data_file_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = sources("s2robot", *MOVED)
    files += [*ROOT.glob("configs/*.yaml"), *ROOT.glob("s2robot/weights/*"), ROOT / "s2robot/py.typed"]
    names = {str(file.relative_to(ROOT)) for file in files}
    assert inside == {name if name.startswith("s2robot/") else f"s2robot/{name}" for name in names}


def test_pip_install_brings_the_core_alone(dist: Path) -> None:
    """As the wheel's own metadata has it."""
    (wheel,) = dist.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (about,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    lines = email.message_from_bytes(archive.read(about)).get_all("Requires-Dist") or []
    found = [Requirement(line) for line in lines]
    core = {each.name: each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})}
    assert set(core) == CORE
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    said = [
        Requirement(line) for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ]
    assert {each.name: each.specifier for each in said} == {name: each.specifier for name, each in core.items()}


def test_sdist_can_be_worked_with(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert {"Makefile", "CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "pyproject.toml"} <= names
    assert {"envs/__init__.py", "tests/smoke.py", "tests/test_packaging.py"} <= names
    assert not [name for name in names if name.startswith(tuple(f"s2robot/{folder}/" for folder in MOVED))]


def test_links_lead_to_the_folders() -> None:
    """They serve an uninstalled checkout and type checkers; git on Windows writes them as text files."""
    for name in MOVED:
        assert (ROOT / "s2robot" / name).resolve() == ROOT / name


def test_public_names_are_sorted_and_there() -> None:
    assert s2robot.__all__ == sorted(s2robot.__all__)
    for name in s2robot.__all__:
        assert getattr(s2robot, name) is not None
    with pytest.raises(AttributeError, match="load_encoder"):
        s2robot.load_encodr  # noqa: B018


@pytest.mark.parametrize("file", sources("s2robot", *MOVED, "tests"), ids=lambda file: str(file.relative_to(ROOT)))
def test_checkout_folders_are_never_imported_by_their_own_name(file: Path) -> None:
    assert not [module for module in imports(file) if module.split(".")[0] in MOVED]


@pytest.mark.parametrize("file", sources("s2robot"), ids=lambda file: file.stem)
def test_the_encoder_side_imports_no_simulator(file: Path) -> None:
    """Not even inside functions. Tasks and policies are reached by name, when asked for."""
    if file.name not in RENDERS and not extends(file):
        assert not [module for module in imports(file) if module.split(".")[0] in SIMULATORS]
    eager = list(imports(file, at_import_time=True))
    assert not [module for module in eager if module.startswith("s2robot.envs")]
    if file.name not in TIES_ALL_TOGETHER:
        assert not [module for module in eager if module.startswith("s2robot.policies")]


@pytest.mark.parametrize("file", sources("envs", "policies"), ids=lambda file: str(file.relative_to(ROOT)))
def test_importing_a_task_or_a_policy_imports_no_simulator(file: Path) -> None:
    assert not [module for module in imports(file, at_import_time=True) if module.split(".")[0] in SIMULATORS]


def test_every_module_imports() -> None:
    for file in sources("s2robot", *MOVED):
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts if parts[0] == "s2robot" else ("s2robot", *parts)).removesuffix(".__init__")
        with contextlib.suppress(*([MissingExtra] if extends(file) else [])):
            importlib.import_module(name)


def test_importing_s2robot_imports_no_optional_package() -> None:
    """Nor do all its public names together, though they import torch and timm."""
    names = "import s2robot, sys; [getattr(s2robot, name) for name in s2robot.__all__]; print(*sys.modules)"
    assert not OPTIONAL & {module.split(".")[0] for module in run(names).split()}


def test_no_public_name_is_a_modules_name_too() -> None:
    """`import s2robot.rollout` would put a module where the function of that name was."""
    modules = {path.stem for path in (ROOT / "s2robot").iterdir()}
    assert not modules & set(s2robot.__all__)


def test_import_is_quick_and_brings_no_simulator() -> None:
    """`load_encoder` too: naming it imports the whole encoder side."""
    timed = "import sys, time; start = time.perf_counter(); {what}; print(time.perf_counter() - start, *sys.modules)"
    ratios = []
    while len(ratios) < 3 and (not ratios or ratios[-1] > 2):  # a busy machine may spoil one comparison
        floor, *_ = run(timed.format(what="import torch, timm")).split()
        seconds, *modules = run(timed.format(what="import s2robot; s2robot.load_encoder")).split()
        assert not SIMULATORS & {module.split(".")[0] for module in modules}
        ratios.append(float(seconds) / float(floor))
    assert min(ratios) <= 2
    seconds, *modules = run(timed.format(what="import s2robot")).split()
    assert "torch" not in modules
    assert float(seconds) < 1


def test_no_tuple_is_named_and_generic_at_once() -> None:
    """Python 3.10 cannot make one; ruff and mypy, though told of 3.10, let it pass."""
    for file in sources("s2robot", "envs", "policies", "tests"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            assert len(bases) < 2 or not {"NamedTuple", "typing.NamedTuple"} & set(bases), f"{file}: {bases}"
