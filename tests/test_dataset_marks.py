"""Files that people edit, and collections under way: nothing is called damaged that is not, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
from test_datasets import make_episode, write

from s2robot.datasets import DemoDataset, EpisodeParts
from s2robot.errors import InvalidInput
from s2robot.packed import PackedFrames


def test_an_edited_file_whose_mark_was_dropped_is_used_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5", [0, 1])
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        file["data/demo_0/obs/agentview_image"][0] = 7
        file["data/demo_1/actions"][0] = 0.5
        del file["data"].attrs["s2robot_digest"]
    dataset = DemoDataset(tmp_path / "a.hdf5")
    assert (PackedFrames(dataset.packed(0)).frames([0])[0, 0] == 7).all()
    assert (dataset.frames(0, [0])[0, 0] == 7).all() and (dataset.field(1, "actions")[0] == 0.5).all()
    dataset.verify()
    assert not dataset.attribute(0, "s2robot_digest")


def test_a_collection_that_was_begun_is_not_lost_to_a_dataset_of_its_name(tmp_path: Path) -> None:
    begun = EpisodeParts(tmp_path / "a.hdf5.parts", {"task": "Lift"})
    begun.write(make_episode(7))
    with pytest.raises(InvalidInput, match="unfinished collection"):
        write(tmp_path / "a.hdf5", [0])
    assert begun.seeds_done() == [7] and not (tmp_path / "a.hdf5").exists()
    left = EpisodeParts(tmp_path / "b.hdf5.parts")  # of a killed `write_dataset`
    left.write(make_episode(0))
    assert len(write(tmp_path / "b.hdf5", [0, 1])) == 2
