"""What needs a package that is not there says by which extra it comes: one line of `NEEDS` each."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from s2robot.errors import MissingExtra

ROOT = Path(__file__).resolve().parents[1]


class Need(NamedTuple):
    """Calling `function` of `module` without `package` must name `extra`."""

    module: str
    function: str
    extra: str
    package: str
    arguments: tuple[Any, ...] = ()
    settings: dict[str, Any] = {}  # noqa: RUF012 - read alone


CPU = ("fp32", torch.device("cpu"))
NEEDS = (
    Need("s2robot.adapters.lerobot", "LeRobotFolder", "lerobot", "lerobot", ("nowhere",)),
    Need("s2robot.adapters.lerobot", "export", "lerobot", "lerobot", (None, "nowhere")),
    Need("s2robot.engines", "pick", "export", "onnxruntime", ("onnxruntime", *CPU)),
    Need("s2robot.engines", "pick", "openvino", "openvino", ("openvino", *CPU)),
    Need("s2robot.video", "write_video", "video", "av", ("nowhere.mp4", np.zeros((1, 8, 8, 3), np.uint8))),
    Need("s2robot.registry", "make_env", "sim", "robosuite", ("Lift",), {"render_frames": False}),
)


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: f"{need.module}.{need.function} {need.package}")
def test_what_is_missing_comes_with_its_pip_line(need: Need, monkeypatch: pytest.MonkeyPatch) -> None:
    function = getattr(importlib.import_module(need.module), need.function)  # this alone needs no package
    monkeypatch.setitem(sys.modules, need.package, None)  # as if it were not installed
    with pytest.raises(MissingExtra) as caught:
        function(*need.arguments, **need.settings)
    assert caught.value.extra == need.extra and need.package in str(caught.value)
    assert f"Run: pip install 's2robot[{need.extra}]'" in str(caught.value)


@pytest.mark.parametrize("name", ["lerobot_policy", "robomimic"])
def test_what_is_made_of_a_stacks_classes_names_its_extra_when_imported(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = name.partition("_")[0]
    for module in [module for module in sys.modules if module.split(".")[0] == extra]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(MissingExtra, match=rf"pip install 's2robot\[{extra}\]'"):
        importlib.import_module(f"s2robot.adapters.{name}")


@pytest.mark.parametrize("extra", sorted({need.extra for need in NEEDS}))
def test_the_extra_that_is_named_is_there(extra: str) -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(f"{extra} = [")]
