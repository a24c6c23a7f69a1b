"""The S2 encoder inside robomimic: its registry, its networks, its training script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from other_python import ROOT, run_there
from test_datasets import CAMERAS, make_episode, write

from s2robot.datasets import DemoDataset
from s2robot.encoder import EncoderConfig
from s2robot.errors import CheckpointMismatch, InvalidInput, UnknownName

try:
    from robomimic.config import config_factory
    from robomimic.models.obs_nets import obs_encoder_factory
    from robomimic.scripts.train import train
    from robomimic.utils import file_utils, obs_utils

    from s2robot.adapters.robomimic import S2Core
except ImportError:
    S2Core = None
here = pytest.mark.skipif(S2Core is None, reason="robomimic is not installed")

SEEDS = [5, 2, 9, 4]
RGB = [f"{camera}_image" for camera in CAMERAS]
KWARGS: dict[str, Any] = {"encoder": {"name": "s2robot-tiny", "scales": [1]}, "feature_dimension": 12}


@pytest.mark.slow
def test_all_of_this_in_an_environment_that_has_robomimic() -> None:
    assert "passed" in run_there("robomimic", "test_robomimic_core.py")


def images(seed: int, view: int) -> Any:
    """Frames of an episode as robomimic hands them to a network, (L, 3, H, W) floats."""
    return torch.as_tensor(obs_utils.process_frame(make_episode(seed).frames[:, view], channel_dim=3, scale=255.0))


@here
def test_its_maps_are_the_encoders_own_of_the_very_frames() -> None:
    core, frames = S2Core((3, 8, 8), **KWARGS), make_episode(5).frames
    shown: list[torch.Tensor] = []
    core._remembered = lambda given, make: shown.append(given) or make(given)
    core(images(5, 1))
    assert np.array_equal(shown[0], frames[:, 1])
    expected = EncoderConfig(scales=(1.0,)).build("cpu")(frames[:, 1]).map[:, 0]
    torch.testing.assert_close(core.maps(shown[0]), expected, atol=1e-4, rtol=0)


@here
def test_robomimic_finds_it_by_name_and_one_encoder_serves_all_cameras() -> None:
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"rgb": RGB, "low_dim": ["proprioception"]}})
    settings = {
        "core_class": "S2Core",
        "core_kwargs": KWARGS,
        "obs_randomizer_class": None,
        "obs_randomizer_kwargs": {},
    }
    plain = {"core_class": None, "core_kwargs": {}, "obs_randomizer_class": None, "obs_randomizer_kwargs": {}}
    shapes = {"proprioception": [5], **{key: [3, 8, 8] for key in RGB}}
    net = obs_encoder_factory(shapes, encoder_kwargs={"rgb": settings, "low_dim": plain})
    assert net.output_shape() == [5 + 2 * 12]
    given = {key: images(5, view) for view, key in enumerate(RGB)}
    assert net({"proprioception": torch.zeros(4, 5), **given}).shape == (4, 29)
    one, other = (net.obs_nets[key] for key in RGB)
    assert one.encoder is other.encoder and "frozen=s2robot-tiny" in repr(net)


@here
@pytest.mark.parametrize("read", ["places", "linear"])
def test_the_head_learns_and_the_encoder_stays_as_it_was(read: str) -> None:
    torch.manual_seed(0)
    core, wanted = S2Core((3, 8, 8), read=read, **KWARGS), torch.randn(6, 12)
    assert core.output_shape() == [12]
    core.train()
    kept = {key: value.clone() for key, value in core.encoder.state_dict().items()}
    optimizer = torch.optim.Adam(core.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = (core(images(7, 0)) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not core.encoder.training and core._remembered.made == 6  # 40 times the same frames
    assert all(torch.equal(value, kept[key]) for key, value in core.encoder.state_dict().items())
    assert not [parameter for parameter in core.encoder.parameters() if parameter.requires_grad or parameter.grad]
    assert {name.split(".")[0] for name, _ in core.named_parameters()} == {"enter", "leave"}
    assert set(core.state_dict()) >= {"fingerprint"} and len(core.state_dict()) == 7


def configured(path: Path, out: Path, **changes: Any) -> Any:
    """robomimic's config of examples/robomimic_bc.json, with less to do."""
    said = json.loads((ROOT / "examples/robomimic_bc.json").read_text(encoding="utf-8"))
    said["train"] |= {"data": str(path), "output_dir": str(out), "num_epochs": 2, "batch_size": 4, "cuda": False}
    said["experiment"] |= {"epoch_every_n_steps": 12, "validation_epoch_every_n_steps": 1}
    said["experiment"]["save"]["every_n_epochs"] = 2
    said["observation"]["encoder"]["rgb"]["core_kwargs"] = KWARGS
    config = config_factory("bc")
    with config.values_unlocked():
        config.update(said)
        config.algo.optim_params.policy.learning_rate.initial = 1e-3
        for key, value in changes.items():
            *sections, last = key.split(".")
            part = config
            for section in sections:
                part = part[section]
            part[last] = value
    config.lock()
    return config


RNN = {"algo.rnn.enabled": True, "algo.rnn.horizon": 3, "train.seq_length": 3, "algo.gmm.enabled": True}


@here
@pytest.mark.parametrize("changes", [{}, RNN], ids=["bc", "bc-rnn-gmm"])
def test_robomimics_own_script_trains_two_epochs_and_its_checkpoint_acts(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.hdf5", SEEDS).close()
    train(configured(tmp_path / "a.hdf5", tmp_path / "out", **changes), torch.device("cpu"))
    said = capsys.readouterr().out
    found = [float(part.split(",")[0]) for part in said.split('"Loss": ')[1:]]
    first, _, second, _ = found  # training and validation of each epoch
    assert second < first
    (file,) = (tmp_path / "out").rglob("*.pth")
    state = torch.load(file, weights_only=False)["model"]
    assert not [key for key in state if "backbone" in key] and [key for key in state if key.endswith("fingerprint")]
    policy, saved = file_utils.policy_from_checkpoint(ckpt_path=str(file), device=torch.device("cpu"))
    policy.start_episode()
    episode = make_episode(5)
    seen = {key: images(5, view)[0].numpy() for view, key in enumerate(RGB)}
    assert policy({**seen, "proprioception": episode.proprioception[0]}).shape == (7,)

    words = saved["config"].replace('"s2robot-tiny"', '"s2robot-tiny", "random_weights": true')
    assert words != saved["config"]
    saved["config"] = words
    with pytest.raises(CheckpointMismatch, match="s2robot-tiny is now"):
        file_utils.policy_from_checkpoint(ckpt_dict=saved, device=torch.device("cpu"))


@here
def test_the_command_of_the_documentation_trains(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5", SEEDS).close()
    config = configured(tmp_path / "a.hdf5", tmp_path / "out", **{"train.num_epochs": 1})
    (tmp_path / "bc.json").write_text(config.dump())
    command = [sys.executable, "-m", "s2robot.adapters.robomimic", "--config", str(tmp_path / "bc.json")]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=300, check=False)
    assert "finished run successfully!" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]


@here
def test_features_stored_in_the_file_are_a_low_dim_key(tmp_path: Path) -> None:
    """As docs/robomimic.md writes them: no image is read in training, and the file stays one of ours."""
    source = write(tmp_path / "a.hdf5", SEEDS)
    encoder, fingerprint = EncoderConfig(scales=(1.0,)).build("cpu"), source.fingerprint
    source.close()
    features = [encoder(make_episode(seed).frames).cls.flatten(1).numpy() for seed in SEEDS]
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        for k, rows in enumerate(features):
            file[f"data/demo_{k}/obs/s2_features"] = rows
    again = DemoDataset(tmp_path / "a.hdf5")
    again.verify()
    assert again.fingerprint == fingerprint
    again.close()
    keys = {"low_dim": ["proprioception", "s2_features"], "rgb": []}
    changes = {f"observation.modalities.obs.{name}": value for name, value in keys.items()}
    train(configured(tmp_path / "a.hdf5", tmp_path / "out", **changes), torch.device("cpu"))
    assert list((tmp_path / "out").rglob("*.pth"))


@here
def test_what_cannot_be_is_said() -> None:
    core = S2Core((3, 8, 8), **KWARGS)
    with pytest.raises(InvalidInput, match=r"Images are \(3, 8, 9\); this core was made for \(3, 8, 8\)"):
        core(torch.zeros(2, 3, 8, 9))
    with pytest.raises(InvalidInput, match="no hdf5_normalize_obs"):
        core(torch.full((2, 3, 8, 8), -1.0))
    with pytest.raises(InvalidInput, match="expected RGB images"):
        S2Core((1, 8, 8))
    with pytest.raises(UnknownName, match="Did you mean 'scales'"):
        S2Core((3, 8, 8), encoder={"scale": [1]})
    with pytest.raises(UnknownName, match="Did you mean 'places'"):
        S2Core((3, 8, 8), read="place")
    other = S2Core((3, 8, 8), encoder={"scales": [1], "random_weights": True})
    with pytest.raises(CheckpointMismatch, match="Name that encoder"):
        core.load_state_dict(other.state_dict())
