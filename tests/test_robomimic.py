"""robomimic's own dataset class reads our files as they are; its files are read in tests/test_datasets.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from other_python import run_there
from test_datasets import CAMERAS, make_episode, write

try:
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset
except ImportError:
    SequenceDataset = None
here = pytest.mark.skipif(SequenceDataset is None, reason="robomimic is not installed")

SEEDS = [5, 2, 9, 4]
LOW_DIM, RGB = ["proprioception", "goal"], [f"{camera}_image" for camera in CAMERAS]
KEYS = ["actions", "executed_actions", "rewards", "dones"]


@pytest.mark.slow
def test_all_of_this_in_an_environment_that_has_robomimic() -> None:
    assert "passed" in run_there("robomimic", "test_robomimic.py")


def opened(path: Path, **options: Any) -> Any:
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": LOW_DIM, "rgb": RGB}})
    usual = {"obs_keys": LOW_DIM + RGB, "dataset_keys": KEYS, "load_next_obs": False}
    return SequenceDataset(hdf5_path=str(path), **(usual | options))


@here
@pytest.mark.parametrize("cache", [None, "low_dim", "all"])
def test_robomimics_own_class_reads_every_row_to_the_bit(cache: str | None, tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5", SEEDS).close()  # robomimic asks for SWMR
    theirs = opened(tmp_path / "a.hdf5", hdf5_cache_mode=cache)
    rows = [(seed, step) for seed in SEEDS for step in range(len(make_episode(seed)))]
    assert (theirs.n_demos, len(theirs)) == (4, len(rows))
    for k, (seed, step) in enumerate(rows):
        item, episode = theirs[k], make_episode(seed)
        for view, key in enumerate(RGB):
            images = np.asarray(item["obs"][key])[0]
            if images.shape[0] == 3:  # robomimic's floats, channels first
                images = (images.transpose(1, 2, 0) * 255).round()
            assert np.array_equal(images, episode.frames[step, view])
        for name in LOW_DIM:
            assert np.array_equal(np.asarray(item["obs"][name])[0], getattr(episode, name)[step])
        for name in ("actions", "executed_actions"):
            assert np.array_equal(item[name][0], getattr(episode, name)[step])
        assert item["rewards"][0] == episode.rewards[step]
        assert item["dones"][0] == (step == len(episode) - 1)


@here
def test_sequences_stacks_and_splits_work(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5", SEEDS).close()
    lengths = {}
    for split in ("train", "valid"):
        theirs = opened(tmp_path / "a.hdf5", seq_length=3, frame_stack=2, filter_by_attribute=split)
        lengths[split] = theirs.n_demos
        item = theirs[0]
        assert np.asarray(item["actions"]).shape[0] >= 3
        assert np.asarray(item["obs"][RGB[0]]).shape[0] == 2 + 3 - 1
    assert lengths == {"train": 3, "valid": 1}


@here
def test_a_dataloader_with_workers_reads_it(tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    write(tmp_path / "a.hdf5", SEEDS).close()
    batches = list(DataLoader(opened(tmp_path / "a.hdf5"), batch_size=4, num_workers=2))
    assert sum(len(batch["actions"]) for batch in batches) == sum(len(make_episode(seed)) for seed in SEEDS)


def test_frames_are_plain_hdf5_with_a_filter_that_h5py_brings(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5", [5]).close()
    with h5py.File(tmp_path / "a.hdf5", "r", swmr=True, libver="latest") as file:  # as robomimic opens it
        images = file["data/demo_0/obs/agentview_image"]
        assert (images.dtype, images.shape, images.compression) == (np.uint8, (4, 8, 8, 3), "gzip")
        assert np.array_equal(images[()], make_episode(5).frames[:, 0])
        assert "next_obs" not in file["data/demo_0"]  # docs/datasets.md says what that means
