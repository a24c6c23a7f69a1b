"""What a run tells: numbers that add up, a folder that explains itself, TensorBoard where it is installed."""

from __future__ import annotations

import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_runs import TINY, folder_with_frames

from s2robot import bench, files, pretrain, pretrain_log
from s2robot.pretrain_cost import multiply_adds
from s2robot.pretrain_log import Journal, percent_of_peak
from s2robot.ranks import Ranks

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 100 GFLOP/s, which need not be measured."""
    monkeypatch.setattr(bench, "matmul_peak", lambda device, precision: 100.0)
    monkeypatch.setattr(pretrain, "LOG_EVERY", 3)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pretrain_log, "time", clock)
    return clock


def test_a_run_folder_explains_itself(tmp_path: Path) -> None:
    pretrain.pretrain(TINY, folder_with_frames(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"recipe.json", "starts.jsonl", "metrics.jsonl", "state.pt", "pictures", "s2robot-tiny.safetensors"}
    (start,) = files.read_jsonl(tmp_path / "starts.jsonl")
    assert (start["step"], start["processes"], start["device"]) == (0, 1, "cpu")
    assert {"machine", "versions", "git", "command", "time"} <= start.keys()
    assert torch.__version__.startswith(start["versions"]["torch"])
    rows = files.read_jsonl(tmp_path / "metrics.jsonl")
    trained, valid = ([row for row in rows if key in row] for key in ("loss", "valid_base"))
    assert [row["step"] for row in trained] == [3, 6, 9, 12]
    assert [row["step"] for row in valid] == [5, 10, 12]
    assert all(row["images_per_second"] > 0 and row["percent_of_peak"] > 0 for row in trained)
    assert all({"valid_base", "valid_tile"} <= row.keys() for row in valid)


def test_each_checkpoint_leaves_a_picture_of_the_same_views(tmp_path: Path) -> None:
    pretrain.pretrain(TINY, folder_with_frames(tmp_path))
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == ["0000005.png", "0000010.png", "0000012.png"]
    columns = []
    for path in pictures:
        picture = Image.open(path)
        assert picture.size == (3 * 32 + 2 * 4, 8 * 32 + 7 * 4)
        columns.append([picture.crop((x, 0, x + 32, picture.height)).tobytes() for x in (0, 36, 72)])
    assert columns[0][:2] == columns[2][:2]
    assert columns[0][2] != columns[2][2]


def test_a_resumed_run_says_so(tmp_path: Path) -> None:
    def kill(done: int, total: int, note: str) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(TINY, folder_with_frames(tmp_path), kill)
    pretrain.pretrain(TINY, tmp_path)
    assert [start["step"] for start in files.read_jsonl(tmp_path / "starts.jsonl")] == [0, 5]


def test_speed_leaves_out_what_is_not_training(tmp_path: Path, clock: Clock) -> None:
    config = replace(TINY, batch=10, steps=100)
    with Journal(config, tmp_path, 20, Ranks(), CPU) as journal:
        clock.now += 4.0
        journal.rested(2.0)
        journal.step(30, 0.5, 1e-3)
        clock.now += 5.0
        journal.step(40, 0.25, 1e-3)
        assert journal.note(60, 0.25) == "loss 0.250, 44 images/s, 0:00:09 left"  # 40 steps in 9 s, 40 to go
    rows = files.read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["images_per_second"] for row in rows] == [50.0, 20.0]
    assert [row["seconds"] for row in rows] == [4.0, 9.0]


def test_validation_is_not_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    validate = pretrain.validate

    def slow(*arguments: Any) -> dict[str, float]:
        time.sleep(0.1)
        return validate(*arguments)

    monkeypatch.setattr(pretrain, "validate", slow)
    monkeypatch.setattr(Journal, "rested", lambda self, seconds: rests.append(seconds))
    pretrain.pretrain(TINY, folder_with_frames(tmp_path))
    assert len(rests) == 3
    assert min(rests) >= 0.1


def test_the_share_of_the_peak_is_of_all_processes() -> None:
    one = percent_of_peak(TINY, 1000.0, CPU)
    assert one == pytest.approx(100 * 2 * multiply_adds(TINY) * 1000 / 100e9)
    assert percent_of_peak(TINY, 1000.0, CPU, world=4) == pytest.approx(one / 4)


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    with Journal(TINY, tmp_path, 0, Ranks(1, 2, 1), CPU) as journal:
        journal.step(3, 0.5, 1e-3)
    assert list(tmp_path.iterdir()) == []


def test_numbers_go_to_tensorboard_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            told.append((Path(folder).name, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, value, step))

        def close(self) -> None:
            told.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    pretrain.pretrain(TINY, folder_with_frames(tmp_path))
    assert told[0] == ("tensorboard", 1)
    assert told[-1] == "closed"
    names = {name for name, _, _ in told[1:-1]}
    assert names == {"loss", "lr", "images_per_second", "percent_of_peak", "valid/base", "valid/tile"}
    losses = {step: value for name, value, step in told[1:-1] if name == "loss"}
    rows = {row["step"]: row["loss"] for row in files.read_jsonl(tmp_path / "metrics.jsonl") if "loss" in row}
    assert losses == rows
