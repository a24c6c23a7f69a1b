"""The command line: exit codes, one-line errors, help with an example."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from s2robot import cli
from s2robot.errors import MissingExtra, OutOfSpace, RenderingUnavailable, S2RobotError, UsageError, require


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([verb, "--help"])
    assert exit_.value.code == 0
    assert f"s2robot {verb}" in capsys.readouterr().out.split("xample", 1)[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["dmeo"], "Did you mean 'demo'"),
        (["collect", "--demos", "3", "--out", "x.hdf5"], "The following arguments are required: task. See: s2robot"),
        (["collect", "Lift", "--demos", "3"], "required: --out. See: s2robot collect --help"),
        (["eval", "--episodes", "3"], "required: run"),
        (["export", "s2robot-tiny", "--to", "onx"], "Argument --to: invalid choice: 'onx'"),
        (["compare"], "required: arms"),
        (["compare", "nowhere", "nowhere-either"], "No folder nowhere"),
        (
            ["train", "x.hdf5", "--out", "o", "--steps", "5", "--train.steps", "6"],
            "--train.steps is there twice, once by its short name",
        ),
        (["train", "Lift", "--out", "o"], "s2robot collect Lift --out runs/demos.hdf5"),
        (["demo", "--no-install", "--collect.demoz", "3"], "Did you mean '--collect.demos'"),
        (["demo", "--no-install", "--stpes", "3"], "Did you mean '--train.steps'"),
        (["demo", "--no-install", "--config", "nosuch"], "Unknown config"),
        (["collect", "Lfit", "--out", "x.hdf5"], "Did you mean 'Lift'"),
        (["encode", "nowhere.hdf5"], "No demonstrations at"),
        (["eval", "nowhere"], "Train one"),
        (["report", "nowhere"], "No folder nowhere"),
        (["train", "nowhere.hdf5", "--out", "o"], "No demonstrations at"),
        (["train", "nowhere.hdf5"], "Add --out"),
        (["train", "nowhere.hdf5", "--out", "o", "--collect.demos", "3"], "--collect.demos is not read here"),
        (["train", "nowhere.hdf5", "--out", "o", "--eval.episodes=3"], "s2robot eval --help"),
        (["collect", "Lift", "--task", "Reach", "--out", "x.hdf5"], "--task beside Lift"),
        (["export", "s2robot-tiny", "--name=vit-small", "--to", "onnx"], "--name beside s2robot-tiny"),
        (["export", "s2robot-tiny", "--to", "onnx", "--engine", "openvino"], "Leave --engine out"),
        (["eval", "nowhere", "--engine", "foo"], "Unknown engine 'foo'"),
        (["eval", "nowhere", "--precision", "fp23"], "Unknown precision 'fp23'. Did you mean 'fp32'"),
        (["view", "x.hdf5", "--moments", "0"], "--moments is 0"),
        (["view", "x.hdf5", "--cell", "-3"], "--cell -3"),
        (["list", "tasks", "/nope"], "s2robot list datasets /nope"),
        (["rl", "rl-raech"], "Did you mean 'rl-reach'"),
        (["bench", "soak", "nope"], "No policy in nope"),
        (["bench", "soak", "nope", "--run", "other"], "--run beside nope"),
        (["encode", "nowhere.hdf5", "--augment.crop", "2"], "crop is 2"),
        (["encode", "x.hdf5", "--name", "s2robot-tyni"], "No demonstrations"),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.strip().count("\n") == 0
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (S2RobotError("it broke"), 1),
        (UsageError("not so"), 2),
        (RenderingUnavailable("no GL"), 1),
        (MissingExtra("x", "sim", "This"), 1),
        (OutOfSpace("full"), 1),
        (KeyboardInterrupt(), 1),
        (ZeroDivisionError("a bug"), 1),
        (OSError(28, "No space left on device"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_has_its_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["demo"]) == code
    assert "Traceback" not in capsys.readouterr().err
    before = logging.getLogger("s2robot").level
    assert cli.main(["demo", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err
    assert logging.getLogger("s2robot").level == before


def test_list_is_readable_by_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "encoders", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["encoders"]
    assert any(row["name"] == "s2robot-tiny" for row in rows)


def test_weights_to_begin_with_are_looked_for_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pretrain", "--out", str(tmp_path / "run"), "--init", "nope"]) == 1
    assert "Cannot read nope" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # whose recipe would bind the next try


def test_a_row_is_a_line_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    """`s2robot list encoders | grep NAME` finds all that is said of it."""
    assert cli.main(["list", "tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    from s2robot.envs import TASKS

    for task in TASKS.values():
        assert sum(line.startswith(f"{task.name} ") and task.success in line for line in lines) == 1


def test_version_and_bare_call(capsys: pytest.CaptureFixture[str]) -> None:
    import s2robot

    assert cli.main(["--version"]) == 0
    assert s2robot.__version__ in capsys.readouterr().out
    assert cli.main([]) == 2
    assert "s2robot demo" in capsys.readouterr().out


def test_a_missing_extra_names_its_pip_line() -> None:
    with pytest.raises(MissingExtra, match=r"pip install 's2robot\[sim\]'"):
        require("no_such_package_at_all", extra="sim", purpose="A test")
