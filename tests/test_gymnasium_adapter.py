"""Environments observed by features: what a direct encode gives, at one call of the encoder a step, ends included."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import FrameStackObservation, TransformObservation
from small_encoders import TOLERANCE, small_encoder
from toy_images import HEIGHT, HORIZON, LAYOUTS, WIDTH, Dot

import s2robot
from s2robot.adapters.features import KINDS, FrameFeatures, fit_compression
from s2robot.adapters.gymnasium_wrappers import S2Observation, S2VectorObservation
from s2robot.encoder import Encoder
from s2robot.errors import CheckpointMismatch, CorruptFile, InvalidInput, MissingExtra, UnknownName, UsageError
from s2robot.types import FRAMES

SEEING = [layout for layout in LAYOUTS if layout != "blind"]
WRAPPED = pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")


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


def dot_frames(count: int = 6) -> np.ndarray:
    return np.stack([Dot().reset(seed=k)[0][FRAMES] for k in range(count)])


def actions(n: int, length: int = 2 * HORIZON + 3) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (length, n, 1)).astype(np.float32)


@WRAPPED
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", SEEING)
def test_gymnasiums_contract(encoder: Encoder, layout: str, kind: str) -> None:
    check_env(S2Observation(Dot(layout), FrameFeatures(encoder, kind)), skip_render_check=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", SEEING)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_one_environment_gives_the_bits_of_a_direct_encode(
    encoder: Encoder, layout: str, kind: str, dtype: str
) -> None:
    raw, env = Dot(layout), S2Observation(Dot(layout), FrameFeatures(encoder, kind, dtype))
    pairs = [(raw.reset(seed=3)[0], env.reset(seed=3)[0])]
    pairs += [(raw.step(action)[0], env.step(action)[0]) for action in actions(1, 4)[:, 0]]
    for plain, seen in pairs:
        assert env.observation_space.contains(seen)
        if layout in ("plain", "stacked"):
            frames, features = plain if layout == "stacked" else plain[None], seen
        else:
            names = [FRAMES] if layout == "ours" else ["front_image", "wrist_image"]
            frames = plain[FRAMES] if layout == "ours" else np.stack([plain[name] for name in names])
            features = seen["features"]
            assert set(seen) == set(plain) - set(names) | {"features"}
            assert all(np.array_equal(seen[key], plain[key]) for key in set(plain) - set(names))
        direct = getattr(encoder(frames[None]), kind)[0].numpy().astype(dtype)
        assert features.dtype == dtype and np.array_equal(features, direct)


def test_cameras_are_chosen_and_keep_their_order(encoder: Encoder) -> None:
    plain, _ = Dot("named").reset(seed=0)
    env = S2Observation(Dot("named"), encoder, cameras=("wrist_image", "front_image"))
    features = env.reset(seed=0)[0]["features"]
    direct = encoder(np.stack([plain["wrist_image"], plain["front_image"]])[None]).map[0].half().numpy()
    assert np.array_equal(features, direct)
    alone = S2Observation(Dot("named"), encoder, cameras=("wrist_image",), key="wrist").reset(seed=0)[0]
    assert alone["wrist"].shape[0] == 1 and "front_image" in alone and "wrist_image" not in alone


def test_the_shipped_encoder_takes_frames_that_are_not_square() -> None:
    shipped = s2robot.load_encoder("s2robot-tiny", scales=(1.0,), device="cpu", engine="torch")
    env = S2Observation(Dot(), shipped)
    height, width = shipped.grid_of((HEIGHT, WIDTH))
    assert height != width and env.observation_space["features"].shape == (2, 192, height, width)
    assert env.observation_space.contains(env.reset(seed=0)[0])


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("make", [SyncVectorEnv, lambda fns, **words: AsyncVectorEnv(fns, context="spawn", **words)])
def test_vector_environments_are_encoded_in_one_call_a_step(
    encoder: Encoder, calls: list[int], make: Callable[..., VectorEnv], mode: AutoresetMode
) -> None:
    """Against the same environments without features: every observation, and what episodes ended with."""
    raw = SyncVectorEnv([Dot] * 3, autoreset_mode=mode)
    env = S2VectorObservation(make([Dot] * 3, autoreset_mode=mode), FrameFeatures(encoder, dtype="float32"))
    (plain, _), (seen, _) = raw.reset(seed=5), env.reset(seed=5)
    ended = 0
    for action in actions(3):
        _same(encoder, plain, seen)
        before = len(calls)
        plain, _, terminated, truncated, told = raw.step(action)
        seen, _, *ends, info = env.step(action)
        assert len(calls) == before + 1 and env.observation_space.contains(seen)
        assert np.array_equal(ends, [terminated, truncated])
        over = terminated | truncated
        ended += int(over.sum())
        if mode == AutoresetMode.SAME_STEP and over.any():
            assert calls[-1] == 3 + over.sum() and np.array_equal(info["_final_obs"], over)
            for k in np.flatnonzero(over):
                last = {key: value[None] for key, value in info["final_obs"][k].items()}
                _same(encoder, {key: value[None] for key, value in told["final_obs"][k].items()}, last)
        if mode == AutoresetMode.DISABLED and over.any():
            plain, seen = (each.reset(options={"reset_mask": over})[0] for each in (raw, env))  # the mask is taken out
        del calls[:]
    assert ended >= 3
    env.close()


def _same(encoder: Encoder, plain: dict[str, Any], seen: dict[str, Any]) -> None:
    """Batches of one moment with frames and with features."""
    direct = np.concatenate([encoder(frames[None]).map.numpy() for frames in plain[FRAMES]])
    assert np.abs(seen["features"] - direct).max() <= TOLERANCE
    assert np.array_equal(seen["proprioception"], plain["proprioception"]) and FRAMES not in seen


@pytest.mark.sim
def test_our_vector_environment(encoder: Encoder, calls: list[int]) -> None:
    options: dict[str, Any] = {"fidelity": "fast", "frame_size": 64}
    env = S2VectorObservation(
        s2robot.make_vec_env("Reach", 2, autoreset_mode="SameStep", **options), FrameFeatures(encoder, dtype="float32")
    )
    alone = S2Observation(s2robot.make_env("Reach", **options), FrameFeatures(encoder, dtype="float32"))
    seen, one = env.reset(seed=7)[0], alone.reset(seed=7)[0]
    for action in np.zeros((3, 2, 3), np.float32):
        assert np.abs(seen["features"][0] - one["features"]).max() <= TOLERANCE
        seen, one = env.step(action)[0], alone.step(action[0])[0]
    env.env.step_chunk(np.zeros((2, 56, 3), np.float32))
    alone.unwrapped.step_chunk(np.zeros((56, 3), np.float32))
    del calls[:]
    *_, truncated, info = env.step(np.zeros((2, 3), np.float32))
    last = alone.step(np.zeros(3, np.float32))[0]
    assert truncated.all() and calls == [4, 1]
    assert np.abs(info["final_obs"][0]["features"] - last["features"]).max() <= TOLERANCE
    with pytest.raises(UsageError, match=r"Use its own step_chunk\(\)"):
        env.call("step_chunk", np.zeros((1, 3), np.float32))
    assert env.call("get_wrapper_attr", name="fidelity") == ("fast", "fast")
    assert env.call("fidelity") == ("fast", "fast") and env.num_envs == 2
    env.close()
    alone.close()


@WRAPPED
def test_looks_are_stacked_by_gymnasium_itself(encoder: Encoder) -> None:
    env = FrameStackObservation(S2Observation(Dot(), encoder), 3)
    check_env(env, skip_render_check=True)
    raw = S2Observation(Dot(), encoder)
    first, _ = raw.reset(seed=0)
    second, *_ = raw.step(np.array([0.3], np.float32))
    env.reset(seed=0)
    stacked, *_ = env.step(np.array([0.3], np.float32))
    assert all(
        np.array_equal(stacked["features"][k], look["features"]) for k, look in enumerate([first, first, second])
    )


def test_specs_and_pickles_make_the_same_environment_again(encoder: Encoder) -> None:
    small = FrameFeatures(encoder, "cls", compression=fit_compression(encoder, dot_frames(), 5, "cls"))
    with pytest.raises(InvalidInput, match="fit it to frames of the same cameras"):
        small(np.concatenate([dot_frames()] * 2, axis=1))
    env = FrameStackObservation(S2Observation(gymnasium.make("s2robot-tests/Dot-v0"), small, key="seen"), 2)
    observation, _ = env.reset(seed=1)
    for again in (gymnasium.make(env.spec), pickle.loads(pickle.dumps(env))):
        assert again.observation_space == env.observation_space
        assert np.array_equal(again.reset(seed=1)[0]["seen"], observation["seen"])
    assert gymnasium.make(env.spec).env.features is small  # shared: no copy of the weights


def test_environments_without_frames_are_told_what_they_have(encoder: Encoder) -> None:
    with pytest.raises(InvalidInput, match=r"No frames.*depth float32 \(32, 48\), state float32 \(3,\)"):
        S2Observation(Dot("blind"), encoder)
    with pytest.raises(UnknownName, match="Did you mean 'wrist_image'"):
        S2Observation(Dot("named"), encoder, cameras=("wrist_imag",))
    with pytest.raises(InvalidInput, match=r"No frames in 'state'"):
        S2Observation(Dot("named"), encoder, cameras=("state",))
    with pytest.raises(InvalidInput, match="has a key 'state' already"):
        S2Observation(Dot("named"), encoder, key="state")
    first = TransformObservation(
        Dot("plain"), lambda seen: seen.transpose(2, 0, 1), spaces.Box(0, 255, (3, HEIGHT, WIDTH), np.uint8)
    )
    with pytest.raises(InvalidInput, match="colours come first"):
        S2Observation(first, encoder)
    sizes = spaces.Dict({k: spaces.Box(0, 255, (side, side, 3), np.uint8) for k, side in (("a", 32), ("b", 64))})
    with pytest.raises(InvalidInput, match=r"differ in size.*Wrap twice"):
        S2Observation(TransformObservation(Dot(), lambda seen: seen, sizes), encoder)


def test_nan_is_an_error_wherever_it_comes_from(encoder: Encoder) -> None:
    torn = TransformObservation(Dot(), lambda seen: {**seen, "goal": seen["goal"] * np.nan}, Dot().observation_space)
    with pytest.raises(InvalidInput, match="'goal' holds NaN"):
        S2Observation(torn, encoder).reset(seed=0)
    damaged = small_encoder(seed=9)
    next(damaged.backbone.parameters()).data.fill_(torch.nan)
    with pytest.raises(InvalidInput, match="features hold NaN"):
        S2Observation(Dot(), damaged).reset(seed=0)
    loud = fit_compression(encoder, dot_frames(), 4)
    loud.basis *= 1e6
    with pytest.raises(InvalidInput, match="dtype='float32'"):
        S2Observation(Dot(), FrameFeatures(encoder, compression=loud)).reset(seed=0)
    S2Observation(Dot(), FrameFeatures(encoder, dtype="float32", compression=loud)).reset(seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_features_are_the_policies_compression_of_the_full_ones(encoder: Encoder, kind: str) -> None:
    frames = dot_frames()
    compression = fit_compression(encoder, frames, 5, kind)
    small = FrameFeatures(encoder, kind, "float32", compression)
    got, full = small(frames), encoder(frames)
    maps = full.cls[..., None, None] if kind == "cls" else full.map
    expected = compression(maps)
    if kind != "map":
        expected = expected.flatten(3).transpose(2, 3) if kind == "tokens" else expected[..., 0, 0]
    assert got.shape == (6, *small.shape(2, (HEIGHT, WIDTH))) and small.channels == 10
    assert np.abs(got - expected.numpy()).max() <= TOLERANCE
    assert 0.5 < got.std() < 2  # principal components at about unit variance


def test_features_are_kept_in_a_file(tmp_path: Path) -> None:
    encoder = s2robot.load_encoder("s2robot-tiny", scales=(1.0,), device="cpu", engine="torch")
    frames, file = dot_frames(3), tmp_path / "eyes.safetensors"
    for small in (
        FrameFeatures(encoder, "tokens", "float32", fit_compression(encoder, frames, 7, "tokens")),
        FrameFeatures(encoder, "cls"),
    ):
        small.save(file)
        again = FrameFeatures.load(file, encoder=encoder)
        assert np.array_equal(again(frames), small(frames)) and again.dtype == small.dtype
        made = FrameFeatures.load(file, device="cpu")  # under the engine that is the fastest here
        assert np.abs(made(frames) - small(frames).astype(np.float32)).max() < 0.01 and made.kind == small.kind
    assert file.stat().st_size < 5000  # no weights of the encoder
    other = s2robot.load_encoder("s2robot-tiny", random_weights=True, scales=(1.0,), device="cpu", engine="torch")
    with pytest.raises(CheckpointMismatch, match="another encoder"):
        FrameFeatures.load(file, encoder=other)
    file.write_bytes(b"no such thing")
    with pytest.raises(CorruptFile):
        FrameFeatures.load(file)


def test_what_does_not_fit_is_said_when_it_is_asked_for(encoder: Encoder) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'map'"):
        FrameFeatures(encoder, "mpa")
    with pytest.raises(InvalidInput, match="features is a str"):
        S2Observation(Dot(), "s2robot-tiny")
    with pytest.raises(UnknownName, match="float16"):
        FrameFeatures(encoder, dtype="float15")
    with pytest.raises(InvalidInput, match="16 channels a scale"):
        fit_compression(encoder, dot_frames(), 17)
    small = fit_compression(encoder, dot_frames(), 4)
    with pytest.raises(InvalidInput, match="fit_compression"):
        FrameFeatures(small_encoder(scales=(1.0,)), compression=small)
    with pytest.raises(InvalidInput, match="fitted to 2"):
        S2Observation(Dot(views=1), FrameFeatures(encoder, compression=small))


def test_without_stable_baselines3_its_pip_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("stable_baselines3", "s2robot.adapters.sb3"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(MissingExtra, match=r"pip install 's2robot\[rl\]'"):
        importlib.import_module("s2robot.adapters.sb3")
