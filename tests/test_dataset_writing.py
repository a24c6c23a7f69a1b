"""Episodes on their way into a file: nothing is written over, taken in from elsewhere, or left behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_datasets import CAMERAS, ENV_ARGS, make_episode, write

from s2robot.datasets import DemoDataset, EpisodeParts, write_dataset
from s2robot.errors import InvalidInput


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    before = write(tmp_path / "a.hdf5", [1, 2]).path.read_bytes()
    with pytest.raises(InvalidInput, match="is there already"):
        write(tmp_path / "a.hdf5", [3])
    assert (tmp_path / "a.hdf5").read_bytes() == before


@pytest.mark.parametrize(
    ("episodes", "said"),
    [
        (lambda: [make_episode(1), make_episode(2, actions=np.zeros((9, 9), np.float32))], "."),
        (lambda: [make_episode(1), make_episode(2, goal=None)], "goal of a step is missing, and in the first"),
        (lambda: [make_episode(1, frames=make_episode(1).frames[:, :1])], r"seed 1 has 1 views; camera_names are \["),
        (
            lambda: [make_episode(1, frames=make_episode(1).frames / np.float32(255))],
            r"of floats in \[0, 1\]: \(255 \* frames\)",
        ),
        (lambda: [make_episode(1), make_episode(1)], "Two episodes have the seed 1"),
        (lambda: [make_episode(1), {}], "Episode 1 is a dict"),
        (list, "No episodes"),
    ],
)
def test_what_is_no_dataset_leaves_nothing_behind(episodes: Callable[[], Any], said: str, tmp_path: Path) -> None:
    """A later collection into that file would take the first for its own."""
    with pytest.raises(InvalidInput, match=said):
        write_dataset(tmp_path / "a.hdf5", episodes(), ENV_ARGS, CAMERAS)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InvalidInput, match=r"a name for each view, e\.g\. \['top'\]"):
        write_dataset(tmp_path / "a.hdf5", [make_episode(1)], ENV_ARGS, "top")


def test_parts_of_nobody_are_not_taken_in(tmp_path: Path) -> None:
    parts = EpisodeParts(tmp_path / "a.hdf5.parts")
    parts.write(make_episode(1))
    with pytest.raises(InvalidInput, match=r"1 episodes of nobody knows what.*rm -r"):
        EpisodeParts(parts.folder, {"task": "Lift"})


def test_settings_that_nothing_was_made_by_bind_nobody(tmp_path: Path) -> None:
    EpisodeParts(tmp_path / "parts", {"frame_size": 100_000})
    EpisodeParts(tmp_path / "parts", {"frame_size": 64}).write(make_episode(1))
    with pytest.raises(InvalidInput, match="frame_size: 64 there, 32 now"):
        EpisodeParts(tmp_path / "parts", {"frame_size": 32})


def test_the_documents_way_to_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs/datasets.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "datasets.md", "exec"), made := {})
    assert len(made["dataset"]) == 5 and made["dataset"].cameras == ("front", "wrist")
    np.testing.assert_array_equal(DemoDataset("my-robot.hdf5").episode(3).actions, made["recorded"](3)["actions"])
