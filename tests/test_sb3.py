"""Stable-Baselines3's algorithms on features: unmodified, one call of the encoder a step, the encoder frozen."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import FilterObservation, FrameStackObservation
from small_encoders import TOLERANCE, small_encoder
from toy_images import HORIZON, Dot

from s2robot.adapters.gymnasium_wrappers import S2Observation, S2VectorObservation
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.errors import CheckpointMismatch, InvalidInput, UnknownName
from s2robot.types import FRAMES

pytest.importorskip("stable_baselines3")
from sb3_contrib import TQC, RecurrentPPO
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

from s2robot.adapters.sb3 import (
    FeatureReplayBuffer,
    FrameFeatures,
    GymnasiumVecEnv,
    S2FeaturesExtractor,
    S2ImageExtractor,
    S2VecEnv,
    fit_compression,
)  # fmt: skip
from s2robot.adapters.sb3_images import shared_encoder

N = 2
READER: dict[str, Any] = {  # copied wherever it is given: they write into it
    "features_extractor_class": S2FeaturesExtractor,
    "net_arch": [16],
}
PPO_WORDS: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}
SAC_WORDS: dict[str, Any] = {"learning_starts": 8, "buffer_size": 60, "batch_size": 8, "seed": 0, "device": "cpu"}
ALGORITHMS = {
    "PPO": (PPO, "MultiInputPolicy", PPO_WORDS),
    "SAC": (SAC, "MultiInputPolicy", SAC_WORDS),
    "SAC, our buffer": (SAC, "MultiInputPolicy", {**SAC_WORDS, "replay_buffer_class": FeatureReplayBuffer}),
    "TQC, our buffer": (TQC, "MultiInputPolicy", {**SAC_WORDS, "replay_buffer_class": FeatureReplayBuffer}),
    "RecurrentPPO": (RecurrentPPO, "MultiInputLstmPolicy", PPO_WORDS),
}
INSIDE = EncoderConfig("s2robot-tiny", sizes=(64,), random_weights=True, engine="torch")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return small_encoder()


@pytest.fixture
def calls(encoder: Encoder) -> Iterator[list[int]]:
    """The batch size of every call of the encoder."""
    counted: list[int] = []
    hook = encoder.register_forward_pre_hook(lambda _, given: counted.append(len(given[0])))
    yield counted
    hook.remove()


def bits(encoder: Encoder) -> list[bytes]:
    return [value.numpy().tobytes() for value in encoder.state_dict().values()]


def small_looks(encoder: Encoder) -> FrameFeatures:
    frames = np.stack([Dot().reset(seed=k)[0][FRAMES] for k in range(4)])
    return FrameFeatures(encoder, compression=fit_compression(encoder, frames, 4))


def as_it_was(model: Any, path: Path) -> None:
    """Saved and loaded, a model acts the same."""
    model.save(path / "model")
    observation = model.env.reset()
    again = type(model).load(path / "model", device="cpu")
    for one in (observation, model.env.reset()):
        assert np.array_equal(model.predict(one, deterministic=True)[0], again.predict(one, deterministic=True)[0])


@pytest.mark.filterwarnings("ignore:Your observation features has an unconventional shape")
@pytest.mark.parametrize("kind", ["map", "cls"])
def test_their_checker_finds_no_fault(encoder: Encoder, kind: str) -> None:
    check_env(S2Observation(Dot(), FrameFeatures(encoder, kind)))


@pytest.mark.parametrize("made", ["dummy", "subproc", "gymnasium's", "wrapped before"])
def test_a_step_is_one_call_of_the_encoder_and_shows_what_was_there(
    encoder: Encoder, calls: list[int], made: str
) -> None:
    """Against the same environments seen directly, what episodes ended with included."""
    raw, looks = DummyVecEnv([Dot] * N), FrameFeatures(encoder, dtype="float32")
    if made == "dummy":
        env: Any = S2VecEnv(DummyVecEnv([Dot] * N), looks)
    elif made == "subproc":
        env = S2VecEnv(SubprocVecEnv([Dot] * N, start_method="spawn"), looks)
    else:
        vector = SyncVectorEnv([Dot] * N, autoreset_mode="SameStep")
        inside = made == "wrapped before"
        env = (
            GymnasiumVecEnv(S2VectorObservation(vector, looks)) if inside else S2VecEnv(GymnasiumVecEnv(vector), looks)
        )
    raw.seed(4)
    env.seed(4)
    plain, seen, ended = raw.reset(), env.reset(), 0
    for action in np.random.default_rng(0).uniform(-1, 1, (2 * HORIZON + 2, N, 1)).astype(np.float32):
        _same(encoder, plain, seen)
        del calls[:]
        plain, rewards, dones, infos = raw.step(action)
        seen, *others, told = env.step(action)
        assert calls == [N + dones.sum()] and np.allclose(others[0], rewards) and np.array_equal(others[1], dones)
        for k in range(N):
            assert told[k]["TimeLimit.truncated"] == infos[k]["TimeLimit.truncated"]
            assert told[k]["steps"] == infos[k]["steps"] and ("terminal_observation" in told[k]) == dones[k]
            if dones[k]:
                ended += 1
                _same(encoder, *({key: value[None] for key, value in info["terminal_observation"].items()}
                                 for info in (infos[k], told[k])))  # fmt: skip
    assert ended >= N and all(space.contains(_first(seen)) for space in [env.observation_space])
    env.close()


def _first(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value[0] for key, value in batch.items()}


def _same(encoder: Encoder, plain: dict[str, Any], seen: dict[str, Any]) -> None:
    direct = np.concatenate([encoder(frames[None]).map.numpy() for frames in plain[FRAMES]])
    assert np.abs(seen["features"] - direct).max() <= TOLERANCE and FRAMES not in seen
    assert np.array_equal(seen["proprioception"], plain["proprioception"])


def test_one_environment_gives_the_bits_of_a_direct_encode(encoder: Encoder) -> None:
    raw, env = Dot(), S2VecEnv(DummyVecEnv([Dot]), encoder)
    env.seed(0)
    direct = encoder(raw.reset(seed=0)[0][FRAMES][None]).map.half().numpy()
    assert np.array_equal(env.reset()["features"], direct)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_their_algorithms_train_save_load_and_act(encoder: Encoder, tmp_path: Path, name: str) -> None:
    algorithm, policy, words = ALGORITHMS[name]
    before = bits(encoder)
    model = algorithm(policy, VecMonitor(S2VecEnv(DummyVecEnv([Dot] * 2), encoder)), policy_kwargs={**READER}, **words)
    first = [value.clone() for value in model.policy.parameters()]
    model.learn(64)
    assert bits(encoder) == before
    assert any(not torch.equal(was, now) for was, now in zip(first, model.policy.parameters(), strict=True))
    buffer = model.rollout_buffer if "PPO" in name else model.replay_buffer
    assert buffer.observations["features"].dtype == np.float16
    as_it_was(model, tmp_path)
    assert len(evaluate_policy(model, model.env, 2, return_episode_rewards=True)[0]) == 2


def test_two_trainings_with_one_seed_are_the_same(encoder: Encoder) -> None:
    """The buffer draws from the random numbers that `seed` fixes."""
    weights = []
    for _ in range(2):
        model = SAC("MultiInputPolicy", S2VecEnv(DummyVecEnv([Dot]), encoder), policy_kwargs={**READER},
                    replay_buffer_class=FeatureReplayBuffer, **SAC_WORDS).learn(24)  # fmt: skip
        weights.append(torch.nn.utils.parameters_to_vector(model.policy.parameters()))
    assert torch.equal(*weights)


def test_our_buffer_learns_what_theirs_does(encoder: Encoder) -> None:
    """Over ends of episodes, a full ring and a second call of `learn`."""
    weights = []
    for buffer in (None, FeatureReplayBuffer):
        env = S2VecEnv(DummyVecEnv([Dot] * 2), encoder)
        model = SAC("MultiInputPolicy", env, policy_kwargs={**READER}, replay_buffer_class=buffer, **SAC_WORDS)
        model.learn(50).learn(50)
        weights.append(torch.nn.utils.parameters_to_vector(model.policy.parameters()))
    assert torch.equal(*weights)


@pytest.mark.parametrize("layout", ["ours", "named", "plain", "stacked"])
def test_policies_that_encode_inside_see_what_a_wrapped_environment_shows(layout: str) -> None:
    policy = {"plain": "CnnPolicy", "stacked": "MlpPolicy"}.get(layout, "MultiInputPolicy")
    words = {"features_extractor_class": S2ImageExtractor, "features_extractor_kwargs": {"encoder": INSIDE}}
    model = PPO(policy, DummyVecEnv([functools.partial(Dot, layout)]), policy_kwargs=words, **PPO_WORDS)
    extractor, seen = model.policy.features_extractor, model.env.reset()
    wrapped = S2Observation(Dot(layout), FrameFeatures(shared_encoder(INSIDE, "cpu"), dtype="float32"))
    model.env.seed(3)
    seen, direct = model.env.reset(), wrapped.reset(seed=3)[0]
    tensor, _ = model.policy.obs_to_tensor(seen)
    inside = model.policy.extract_features(tensor)
    batch = {k: torch.as_tensor(v)[None] for k, v in direct.items()} if isinstance(direct, dict) else None
    outside = extractor.reader(torch.as_tensor(direct)[None] if batch is None else batch)
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_an_encoder_inside_a_policy_is_frozen_and_not_saved(algorithm: Any, tmp_path: Path) -> None:
    encoder = shared_encoder(INSIDE, "cpu")
    before = bits(encoder)
    words = {"features_extractor_class": S2ImageExtractor, "features_extractor_kwargs": {"encoder": INSIDE}}
    settings = PPO_WORDS if algorithm is PPO else {**SAC_WORDS, "buffer_size": 20, "learning_starts": 4}
    model = algorithm("MultiInputPolicy", DummyVecEnv([Dot]), policy_kwargs=words, **settings)  # ortho_init and all
    model.learn(16 if algorithm is PPO else 8)
    model.policy.train()
    model.policy.requires_grad_(True)
    assert bits(encoder) == before and not encoder.training
    assert not any(value.requires_grad for value in encoder.parameters())
    weights = {value.data_ptr() for value in encoder.state_dict().values()}
    part = model.policy if algorithm is PPO else model.actor
    trained = [value for group in part.optimizer.param_groups for value in group["params"]]
    held = [*model.policy.parameters(), *model.policy.buffers(), *trained]
    assert not weights & {value.data_ptr() for value in held}
    assert not [key for key in model.policy.state_dict() if "backbone" in key]
    as_it_was(model, tmp_path)
    held_bytes = sum(value.nbytes for value in model.policy.parameters())
    if algorithm is PPO:  # weights, twice that of Adam, and little else: the encoder has ten times as much
        assert (tmp_path / "model.zip").stat().st_size < 3 * held_bytes + 150_000 < sum(map(len, before))


def test_a_policy_is_not_loaded_under_another_encoder(tmp_path: Path) -> None:
    words = {"features_extractor_class": S2ImageExtractor, "features_extractor_kwargs": {"encoder": INSIDE}}
    model = PPO("MultiInputPolicy", DummyVecEnv([Dot]), policy_kwargs=words, **PPO_WORDS)
    model.save(tmp_path / "model")
    other = EncoderConfig("s2robot-tiny", sizes=(64,), random_weights=True, seed=1, engine="torch")
    changed = {**model.policy_kwargs, "features_extractor_kwargs": {"encoder": other}}
    with pytest.raises(CheckpointMismatch, match="another encoder"):
        PPO.load(tmp_path / "model", device="cpu", custom_objects={"policy_kwargs": changed})
    with pytest.raises(InvalidInput, match=r"give its settings.*encoder\.config"):
        S2ImageExtractor(Dot().observation_space, encoder=small_encoder())
    undivided = {**words, "normalize_images": False}
    model = PPO("CnnPolicy", DummyVecEnv([lambda: Dot("plain")]), policy_kwargs=undivided, **PPO_WORDS)
    with pytest.raises(InvalidInput, match="normalize_images"):
        model.predict(model.env.reset())


def test_ppo_learns_from_frames_alone(encoder: Encoder) -> None:
    """To bring the dot to the middle: there is no proprioception, so it must be seen where it is."""

    def make() -> gymnasium.Env[Any, Any]:
        return FilterObservation(Dot(views=1), [FRAMES])

    env = VecMonitor(S2VecEnv(DummyVecEnv([make] * 8), encoder))
    words = {**PPO_WORDS, "n_steps": 64, "batch_size": 128, "n_epochs": 5, "learning_rate": 2e-3, "gamma": 0.9}
    model = PPO("MultiInputPolicy", env, policy_kwargs={**READER, "net_arch": [64]}, **words)
    before, _ = evaluate_policy(model, env, 32)
    after, _ = evaluate_policy(model.learn(6144), env, 32)
    assert after > before + 1


def test_a_step_may_cost_something() -> None:
    steps = []
    for cost in (0.0, 1.0):
        env = GymnasiumVecEnv(SyncVectorEnv([Dot] * 2, autoreset_mode="SameStep"), cost=cost)
        env.seed(0)
        env.reset()
        steps.append(env.step(np.zeros((2, 1), np.float32))[1])
    assert np.allclose(steps[1], steps[0] - 1) and steps[1].dtype == np.float32


def test_gymnasiums_environments_can_be_asked_and_told() -> None:
    env = GymnasiumVecEnv(SyncVectorEnv([Dot] * 2, autoreset_mode="SameStep"))
    env.set_attr("horizon", 3, indices=1)
    assert env.get_attr("horizon") == [HORIZON, 3] and not env.has_attr("no such thing")
    env.set_attr("horizon", 1)
    env.set_options({"reset_mask": np.array([True, True])})
    env.reset()
    assert env.step(np.zeros((2, 1), np.float32))[2].all() and env.env_is_wrapped(gymnasium.Wrapper) == [False, False]
    env.set_options([{"a": 1}, {"a": 2}])
    with pytest.raises(InvalidInput, match="Options differ"):
        env.reset()


@pytest.mark.parametrize("kind", ["map", "tokens", "cls"])
@pytest.mark.parametrize("readout", ["attention", "conv"])
@pytest.mark.parametrize("stack", [1, 2])
def test_extractors_read_every_kind_of_features(encoder: Encoder, kind: str, readout: str, stack: int) -> None:
    env: gymnasium.Env[Any, Any] = S2Observation(Dot(), FrameFeatures(encoder, kind))
    env = FrameStackObservation(env, stack) if stack > 1 else env
    grid = {"grid": (4, 6)} if kind == "tokens" else {}
    extractor = S2FeaturesExtractor(
        env.observation_space, kind=kind, readout=readout, channels=8, queries=3, value_width=5, **grid
    )
    seen = [env.reset(seed=k)[0] for k in range(4)]
    batch = {key: torch.as_tensor(np.stack([one[key] for one in seen])).float() for key in seen[0]}
    found = extractor(batch)
    look = 2 * (8 if kind == "cls" else 3 * 7)  # both views
    assert found.shape == (4, extractor.features_dim) == (4, stack * (look + 3 + 2))
    assert torch.equal(found[:, -stack * 3 :], batch["proprioception"].flatten(1))
    found.sum().backward()
    assert all(value.grad is not None for value in extractor.parameters())
    if kind == "map" and readout == "attention" and stack == 1:  # tokens are the same numbers: so is what is read
        other = S2FeaturesExtractor(
            S2Observation(Dot(), FrameFeatures(encoder, "tokens")).observation_space,
            kind="tokens", channels=8, queries=3, value_width=5, grid=(4, 6),
        )  # fmt: skip
        other.load_state_dict(extractor.state_dict())
        tokens = {**batch, "features": batch["features"].flatten(3).transpose(2, 3)}
        torch.testing.assert_close(other(tokens), found)


def test_what_the_extractor_cannot_read_is_named(encoder: Encoder) -> None:
    space = S2Observation(Dot(), encoder).observation_space
    with pytest.raises(InvalidInput, match=r"'features' is \(2, 32, 4, 6\); kind='cls' has 2 axes"):
        S2FeaturesExtractor(space, kind="cls")
    with pytest.raises(UnknownName, match="wrap the environment first"):
        S2FeaturesExtractor(Dot().observation_space)
    with pytest.raises(InvalidInput, match=r"24 tokens are no grid of 5 x 5"):
        S2FeaturesExtractor(S2Observation(Dot(), FrameFeatures(encoder, "tokens")).observation_space, kind="tokens")
    with pytest.raises(UnknownName, match="Did you mean 'queries'"):
        S2FeaturesExtractor(space, querys=3)
    image = gymnasium.spaces.Dict({**space, "depth": gymnasium.spaces.Box(0, 1, (8, 8), np.float32)})
    with pytest.raises(InvalidInput, match=r"'depth' is \(8, 8\)"):
        S2FeaturesExtractor(image)
    with pytest.raises(InvalidInput, match="needs 'SameStep'"):
        GymnasiumVecEnv(SyncVectorEnv([Dot]))


def test_it_stacks_with_their_wrappers(encoder: Encoder) -> None:
    """Proprioception normalised, features left alone; the last looks side by side as further views."""
    env = VecNormalize(S2VecEnv(DummyVecEnv([Dot] * 2), small_looks(encoder)), norm_obs_keys=["proprioception"])
    model = SAC("MultiInputPolicy", env, policy_kwargs={**READER}, replay_buffer_class=FeatureReplayBuffer, **SAC_WORDS)
    model.learn(40)
    assert env.observation_space["features"].dtype == np.float16
    orders = dict.fromkeys(("features", "proprioception", "goal"), "first")
    stacked = VecFrameStack(S2VecEnv(DummyVecEnv([Dot] * 2), small_looks(encoder)), 3, channels_order=orders)
    assert stacked.observation_space["features"].shape == (6, 8, 4, 6)
    PPO("MultiInputPolicy", stacked, policy_kwargs={**READER}, **PPO_WORDS).learn(32)
