"""Our policy behind LeRobot's own interface, on batches that LeRobot's own loader makes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from other_python import run_there
from test_datasets import CAMERAS, make_episode, write

from s2robot import registry
from s2robot.adapters import lerobot
from s2robot.compression import Compression
from s2robot.encoder import EncoderConfig
from s2robot.errors import CheckpointMismatch, CorruptFile, InvalidInput, UnknownName

os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    from lerobot.datasets.factory import resolve_delta_timestamps
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    from s2robot.adapters.lerobot_policy import S2RobotConfig, S2RobotPolicy
except ImportError:
    LeRobotDataset = None
here = pytest.mark.skipif(LeRobotDataset is None, reason="lerobot is not installed")

SEEDS = [5, 2, 9, 7, 6]  # 4, 5, 4, 6, 5 steps
ONE_SCALE = EncoderConfig(scales=(1.0,))
SMALL: dict[str, Any] = {"device": "cpu", "encoder": ONE_SCALE, "chunk_size": 4, "n_action_steps": 2}
KEYS = [f"observation.images.{camera}" for camera in CAMERAS]


@pytest.mark.slow
def test_all_of_this_in_an_environment_that_has_lerobot() -> None:
    assert "passed" in run_there("lerobot", "test_lerobot_policy.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobot dataset of made-up episodes, with the cls of `ONE_SCALE` as a column."""
    if LeRobotDataset is None:
        pytest.skip("lerobot is not installed")
    tmp = tmp_path_factory.mktemp("lerobot")
    encoder = ONE_SCALE.build("cpu")

    def rows(k: int) -> np.ndarray:
        return encoder(make_episode(SEEDS[k]).frames).cls.flatten(1).numpy()

    lerobot.export(write(tmp / "a.hdf5", SEEDS), tmp / "b", features=rows)
    return tmp / "b"


def made(folder: Path, **settings: Any) -> tuple[Any, Any, Any, Any]:
    """Policy, preprocessor, postprocessor and dataset as lerobot-train makes them."""
    config = S2RobotConfig(**{**SMALL, **settings})
    meta = LeRobotDataset("local/x", root=folder).meta
    torch.manual_seed(0)
    dataset = LeRobotDataset("local/x", root=folder, delta_timestamps=resolve_delta_timestamps(config, meta))
    policy = make_policy(config, ds_meta=dataset.meta)
    return policy, *make_pre_post_processors(config, dataset_stats=dataset.meta.stats), dataset


def batch_of(dataset: Any, *rows: int) -> dict[str, Any]:
    return torch.utils.data.default_collate([dataset[row] for row in rows])


def observation(seed: int, step: int) -> dict[str, Any]:
    """What an environment would show, as LeRobot hands it to a preprocessor."""
    episode = make_episode(seed)
    images = torch.from_numpy(episode.frames[step]).permute(0, 3, 1, 2)[:, None].float() / 255
    vectors = {"observation.state": episode.proprioception, "observation.environment_state": episode.goal}
    return dict(zip(KEYS, images, strict=True)) | {key: torch.from_numpy(v[step])[None] for key, v in vectors.items()}


@here
def test_features_are_the_encoders_own_and_images_pass_the_processors_untouched(folder: Path) -> None:
    policy, before, _, dataset = made(folder)
    batch = before(batch_of(dataset, 0, 6))
    frames = policy._frames(batch)
    assert np.array_equal(frames[0], make_episode(5).frames[0]) and np.array_equal(frames[1], make_episode(2).frames[2])
    expected = ONE_SCALE.build("cpu")(frames.numpy())
    torch.testing.assert_close(policy._read(frames), expected.map, atol=1e-4, rtol=0)
    assert policy._seen(batch).shape == (2, 2, 64, 8, 8)
    fitted = Compression(policy.network.shapes, 64)
    fitted.fit(policy.encoder(np.concatenate([make_episode(seed).frames for seed in SEEDS])).map)
    for name, value in fitted.state_dict().items():  # as `s2robot train` fits it to all observations
        torch.testing.assert_close(policy.network.compression.state_dict()[name], value, atol=1e-2, rtol=1e-2)


@here
def test_state_is_brought_to_unit_variance_and_actions_to_their_range_and_back(folder: Path) -> None:
    _, before, after, dataset = made(folder)
    raw = batch_of(dataset, *range(len(dataset)))
    batch = before({key: value.clone() if torch.is_tensor(value) else value for key, value in raw.items()})
    state, action = batch["observation.state"], batch["action"][~batch["action_is_pad"]]
    torch.testing.assert_close(state.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(state.std(0, correction=0), torch.ones(5), atol=1e-3, rtol=0)
    torch.testing.assert_close(action.amin(0), -torch.ones(7))
    torch.testing.assert_close(action.amax(0), torch.ones(7))
    torch.testing.assert_close(after(batch["action"][:, 0]), raw["action"][:, 0])
    for key in ("observation.environment_state", "observation.s2_features"):
        assert torch.equal(batch[key], raw[key])


@here
@pytest.mark.parametrize("kind", registry.POLICIES)
def test_every_kind_learns_and_the_encoder_stays_as_it_was(kind: str, folder: Path) -> None:
    policy, before, _, dataset = made(folder, kind=kind)
    batch = before(batch_of(dataset, *range(0, len(dataset), 3)))
    policy.train()
    kept = {key: value.clone() for key, value in policy.encoder.state_dict().items()}
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    losses = []
    for _ in range(25):
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05
    assert not policy.encoder.training
    for parameter in policy.encoder.parameters():
        assert parameter.grad is None and not parameter.requires_grad and id(parameter) not in known
    assert all(torch.equal(value, kept[key]) for key, value in policy.encoder.state_dict().items())
    assert known == {id(parameter) for parameter in policy.parameters()}
    steps = sum(len(make_episode(seed)) for seed in SEEDS)
    assert policy._remembered.made <= steps  # 25 times the same frames


@here
@pytest.mark.parametrize("kind", ["bc-mlp", "act"])
def test_windows_and_chunks_are_the_episodes_own(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, before, after, dataset = made(folder, kind=kind)
    policy.train()
    seen: list[Any] = []
    monkeypatch.setattr(type(policy.network), "batch_loss", lambda self, batch: seen.append(batch) or torch.zeros(()))
    row = 4 + 5 + 4 + 3  # step 3 of the fourth episode
    policy.forward(before(batch_of(dataset, row)))
    (window,), episode = seen, make_episode(7)
    looks = policy.config.n_obs_steps
    assert looks == {"bc-mlp": 1, "act": 4}[kind] and window.seen.shape[:3] == (1, looks, 2)
    for k in range(looks):
        step = 3 - 2 * (looks - 1 - k)  # looks lie n_action_steps apart
        known = [step >= 0 and step + a < len(episode) for a in range(4)]
        assert window.valid[0, k].tolist() == known
        shown = policy._encoded(torch.from_numpy(episode.frames[[max(0, step)]]))[0]
        torch.testing.assert_close(window.seen[0, k], shown, atol=1e-2, rtol=0)
        for a in np.flatnonzero(known):
            torch.testing.assert_close(after(window.actions[:, k, a])[0].numpy(), episode.actions[step + a])


@here
def test_it_looks_once_a_chunk_and_the_first_look_stands_in_for_missing_ones(folder: Path) -> None:
    policy, before, _, _ = made(folder, kind="act", n_obs_steps=3)
    steps = [before(observation(7, step)) for step in range(6)]
    policy.reset()
    asked = [policy.select_action(step) for step in steps]
    policy.reset()
    chunks = [policy.predict_action_chunk(step) for step in steps[::2]]
    assert torch.equal(torch.stack(asked), torch.stack([chunk[:, k] for chunk in chunks for k in range(2)]))
    assert chunks[0].shape == (1, 4, 7) and chunks[0].abs().max() <= 1
    with torch.no_grad():
        one, two = (
            policy.network.look(*(part[:, 0] for part in policy._observed(step, timed=False))) for step in steps[:3:2]
        )
        expected = policy.network.predict(torch.stack([one, one, two], dim=1), policy._noise)
    torch.testing.assert_close(chunks[1], expected.clamp(-1, 1))
    policy.reset()
    again = policy.predict_action_chunk(steps[0])
    assert torch.equal(again, chunks[0]) and not torch.equal(policy.predict_action_chunk(steps[0]), chunks[1])
    with pytest.raises(InvalidInput, match=r"reset\(\)"):
        policy.predict_action_chunk(
            {key: torch.cat([steps[0][key]] * 2) for key in policy.config.input_features if key in steps[0]}
        )


@here
@pytest.mark.parametrize("kind", registry.POLICIES)
def test_saved_and_loaded_it_acts_the_same_and_the_encoder_is_not_in_the_file(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    policy, before, _, _ = made(folder, kind=kind, network={"queries": 4})
    policy.save_pretrained(tmp_path)
    again = S2RobotPolicy.from_pretrained(tmp_path)
    steps = [before(observation(7, step)) for step in range(5)]
    for each in (policy, again):
        each.reset()
    for step in steps:
        assert torch.equal(policy.select_action(step), again.select_action(step))
    assert again.config.encoder == ONE_SCALE and again.config.network == {"queries": 4}
    assert (tmp_path / "model.safetensors").stat().st_size < 1.2 * 4 * sum(
        t.numel() for t in policy.state_dict().values()
    )
    assert not [key for key in policy.state_dict() if "backbone" in key]


@here
def test_another_encoder_other_weights_and_damage_are_refused(folder: Path, tmp_path: Path) -> None:
    policy, *_ = made(folder)
    policy.save_pretrained(tmp_path)
    file, config = tmp_path / "config.json", (tmp_path / "config.json").read_text()
    file.write_text(config.replace('"random_weights": false', '"random_weights": true'))
    with pytest.raises(CheckpointMismatch, match="is now"):
        S2RobotPolicy.from_pretrained(tmp_path)
    file.write_text(config.replace('"network": {}', '"network": {"hidden": 32}'))
    with pytest.raises(CheckpointMismatch, match=r"does not fit its config\.json"):
        S2RobotPolicy.from_pretrained(tmp_path)
    file.write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CorruptFile):
        S2RobotPolicy.from_pretrained(tmp_path)


@here
def test_the_column_of_features_trains_without_encoding_and_must_be_this_encoders(folder: Path) -> None:
    settings: dict[str, Any] = {"use_s2_features": True, "tokens": "cls"}
    policy, before, _, dataset = made(folder, **settings)
    plain, *_ = made(folder, tokens="cls")
    batch = before(batch_of(dataset, 0, 9))
    for each in (policy, plain):
        each.eval()
    torch.testing.assert_close(policy._seen(batch), plain._seen(batch), atol=1e-2, rtol=0)
    policy.train()
    policy.forward(batch)
    assert policy._remembered.made == 0
    alone = {key: value for key, value in batch.items() if key != "observation.s2_features"}  # as an environment's
    assert policy.predict_action_chunk(alone).shape == (2, 4, 7)
    with pytest.raises(CheckpointMismatch, match=r"are not the cls of s2robot-tiny at scales \(1\.0, 2\.0\)"):
        made(folder, **settings, encoder=EncoderConfig())
    with pytest.raises(CheckpointMismatch, match="off by"):
        made(folder, **settings, encoder=EncoderConfig(scales=(1.0,), random_weights=True))
    with pytest.raises(InvalidInput, match=r"--policy\.tokens=cls"):
        made(folder, use_s2_features=True)


@here
def test_what_cannot_be_is_said(folder: Path) -> None:
    policy, before, _, dataset = made(folder)
    batch = before(batch_of(dataset, 0))
    with pytest.raises(InvalidInput, match=rf"looks through '{KEYS[1]}'"):
        policy.select_action({key: value for key, value in batch.items() if key != KEYS[1]})
    with pytest.raises(InvalidInput, match=r"\(8, 12\) pixels; this policy was trained with \(8, 8\)"):
        policy.select_action(batch | {KEYS[0]: torch.zeros(1, 3, 8, 12)})
    with pytest.raises(InvalidInput, match=r"expected \[0, 1\]"):
        policy.select_action(batch | {KEYS[0]: batch[KEYS[0]] * 255})
    with pytest.raises(InvalidInput, match=r"observation\.state is \(9,\)"):
        policy.select_action(batch | {"observation.state": torch.zeros(1, 9)})
    with pytest.raises(UnknownName, match="Did you mean 'agentview'"):
        made(folder, cameras=["agentveiw"])
    with pytest.raises(UnknownName, match="Did you mean 'bc-rnn'"):
        S2RobotConfig(**SMALL, kind="bc_rnn")
    with pytest.raises(UnknownName, match="hidden"):
        S2RobotConfig(**SMALL, network={"hiden": 3})
    with pytest.raises(InvalidInput, match="n_action_steps"):
        S2RobotConfig(**SMALL, network={"execute": 3})
    one, *_ = made(folder, cameras=["robot0_eye_in_hand"])
    assert one.config.camera_keys == [KEYS[1]] and one.network.shapes.views == 1
