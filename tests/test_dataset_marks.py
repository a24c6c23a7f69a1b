"""Files that people edit, and collections under way: nothing is called damaged that is not, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from test_datasets import make_episode, write

from s2robot.datasets import DemoDataset, EpisodeParts
from s2robot.encoder import EncoderConfig
from s2robot.errors import CorruptFile, InvalidInput
from s2robot.packed import PackedFrames
from s2robot.store import encode_dataset


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


def test_an_episode_without_steps_is_named_where_it_is_to_be_encoded(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "theirs.hdf5", "w") as file:
        for k, length in enumerate((3, 0)):
            demo = file.create_group(f"data/demo_{k}")
            demo["actions"] = np.zeros((length, 7), np.float32)
            demo["obs/agentview_image"] = np.zeros((length, 64, 64, 3), np.uint8)
    encoder = EncoderConfig("timm:test_vit", random_weights=True, sizes=(32, 64))
    with pytest.raises(CorruptFile, match="demo_1 has no steps"):
        encode_dataset(tmp_path / "theirs.hdf5", encoder, tmp_path / "features", workers=1)


def test_a_collection_that_was_begun_is_not_lost_to_a_dataset_of_its_name(tmp_path: Path) -> None:
    begun = EpisodeParts(tmp_path / "a.hdf5.parts", {"task": "Lift"})
    begun.write(make_episode(7))
    with pytest.raises(InvalidInput, match="unfinished collection"):
        write(tmp_path / "a.hdf5", [0])
    assert begun.seeds_done() == [7] and not (tmp_path / "a.hdf5").exists()
    left = EpisodeParts(tmp_path / "b.hdf5.parts")  # of a killed `write_dataset`
    left.write(make_episode(0))
    assert len(write(tmp_path / "b.hdf5", [0, 1])) == 2
