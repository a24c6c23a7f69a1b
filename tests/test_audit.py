"""What the packages may never do, by their syntax trees: run what a file or message holds, time by a wall clock."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path for folder in ("s2robot", "envs", "policies", "configs", "examples") for path in (ROOT / folder).rglob("*.py")
    if not {"build", "__pycache__"} & set(path.parts)
)  # fmt: skip

# What runs code that it reads, or may.
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
CALLS = {
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.jit.load",
    "torch.package",
    "read_pickle",
}
CALLS |= {f"{name}.load" for name in ("SAC", "PPO", "TD3", "DQN", "A2C", "DDPG", "TQC", "RecurrentPPO", "VecNormalize")}
CALLS |= {"load_from_zip_file", "load_from_pkl", "load_replay_buffer", "file_utils.policy_from_checkpoint"}
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
WRITTEN_JUST_NOW = {("s2robot/export.py", "torch.export.load")}  # to compare with the encoder; the file is its own

# A wall clock jumps: it may tell when something was, never how long it took.
WALL = {"time.time", "time.time_ns", "datetime.datetime.now", "datetime.now", "datetime.utcnow", "time.localtime"}
MOMENTS = {"s2robot/pretrain_log.py", "s2robot/locks.py", "s2robot/adapters/serve_metrics.py"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def unsafe(path: Path, source: str) -> Iterator[str]:
    """Lines that may run what a file holds."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"line {node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES)
    for name, node in calls(tree):
        safe = SAFE.get(name)
        given = {each.arg: each.value for each in node.keywords}
        if safe and not (isinstance(value := given.get(safe[0]), ast.Constant) and value.value is safe[1]):
            yield f"line {node.lineno}: {name} without {safe[0]}={safe[1]}"
        listed = {name, name.rpartition(".")[2]} & CALLS or name in ("eval", "exec", "torch.export.load")
        if listed and (path.as_posix(), name) not in WRITTEN_JUST_NOW:
            yield f"line {node.lineno}: {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run_and_nothing_is_timed_by_a_wall_clock(path: Path) -> None:
    here, source = path.relative_to(ROOT), path.read_text(encoding="utf-8")
    assert not list(unsafe(here, source))
    timed = [f"line {node.lineno}: {name}" for name, node in calls(ast.parse(source)) if name in WALL]
    assert not timed or here.as_posix() in MOMENTS


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from dill import loads", "torch.load(p)", "torch.load(p, weights_only=False)", "eval(text)",
        "torch.load(p, weights_only=flag)", "np.load(p)", "np.load(p, allow_pickle=True)", "yaml.load(text)",
        "yaml.unsafe_load(text)", "SAC.load(path)", "model.load_replay_buffer(path)", "pd.read_pickle(path)",
        "torch.export.load(path)", "torch.jit.load(path)",
    ],
)  # fmt: skip
def test_this_would_be_found(line: str) -> None:
    assert list(unsafe(Path("s2robot/x.py"), line))
    assert not list(unsafe(Path("s2robot/x.py"), "torch.load(p, weights_only=True); yaml.safe_load(t); json.load(f)"))


def test_the_list_of_vulnerabilities_says_when_it_was_not_reached() -> None:
    if importlib.util.find_spec("pip_audit") is None:
        pytest.skip("pip-audit is not installed")
    nowhere = {"PATH": "", "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci/audit.py")], env=nowhere, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "not reached" in done.stdout


@pytest.mark.parametrize(
    ("pip_audit", "code", "words"),
    [
        ("raise SystemExit('a bug of its own')", 1, "a bug of its own"),
        ("print('{}')", 1, "no list"),
        ("import requests; raise requests.exceptions.ReadTimeout('slow')", 0, "not reached"),
        ('print(\'{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}\')', 0, "1 of 1 packages"),
        (None, 1, "no list"),
    ],
)
def test_only_a_network_that_is_away_passes_for_nothing_known(
    tmp_path: Path, pip_audit: str | None, code: int, words: str
) -> None:
    (tmp_path / "pip_audit").mkdir()
    (tmp_path / "pip_audit" / "__init__.py").touch()  # with nothing beside it: not installed
    if pip_audit is not None:
        (tmp_path / "pip_audit" / "__main__.py").write_text(pip_audit)
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci/audit.py")],
        env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code and words in done.stdout
