"""Every kind of file that is read here: how to make a small one, and how to read all of it to one digest."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from materials import EYE, Materials
from mutations import Reader
from PIL import Image

from s2robot import clips, files, footage, probe_data, registry, runs
from s2robot import config as configuration
from s2robot.datasets import DemoDataset, EpisodeParts
from s2robot.encoder import EncoderConfig
from s2robot.recipe import PretrainConfig
from s2robot.rollouts import read_results
from s2robot.store import FeatureStore, encode_dataset

TRIES = 24


@dataclass(frozen=True)
class Kind:
    """make(materials, an empty folder) -> (the file to damage, its reader)."""

    name: str
    make: Callable[[Materials, Path], tuple[Path, Reader]]
    tries: int = TRIES


def digest(*parts: Any) -> str:
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        elif isinstance(part, torch.Tensor):
            sha.update(digest(part.detach().numpy()).encode())
        else:
            sha.update(repr(part).encode())
    return sha.hexdigest()


# -- demonstrations ---------------------------------------------------------------------------------------------------


def _read_dataset(path: Path) -> str:
    dataset = DemoDataset(path)
    episodes = [dataset.episode(k).load() for k in range(len(dataset))]
    rows = [value for episode in episodes for _, value in sorted(episode.arrays().items())]
    return digest(dataset.cameras, dataset.lengths, sorted(dataset.env_args.items()), dataset.split(), *rows)


def _dataset(made: Materials, folder: Path) -> tuple[Path, Reader]:
    path = Path(shutil.copy(made.dataset, folder))
    return path, partial(_read_dataset, path)


def _part(made: Materials, folder: Path) -> tuple[Path, Reader]:
    parts = EpisodeParts(folder / "parts")
    parts.write(DemoDataset(made.dataset).episode(0).load())
    (seed,) = parts.seeds_done()

    def read() -> str:
        again = EpisodeParts(folder / "parts")
        return digest(*(value for _, value in sorted(again.read(seed).arrays().items())), again.successes())

    return parts.path(seed), read


def _robomimic(made: Materials, folder: Path) -> tuple[Path, Reader]:
    """Somebody else's file, without checksums of its own: with a sum beside it."""
    path, episode = folder / "low_dim.hdf5", DemoDataset(made.dataset).episode(0).load()
    with h5py.File(path, "w") as file:
        demo = file.create_group("data/demo_0")
        file["data"].attrs["env_args"] = '{"env_name": "Lift"}'
        demo.attrs["num_samples"] = len(episode)
        demo["actions"], demo["obs/agentview_image"] = episode.actions, episode.frames[:, 0]
        for name, width in (("robot0_eef_pos", 3), ("robot0_eef_quat", 4), ("robot0_gripper_qpos", 2)):
            demo[f"obs/{name}"] = np.zeros((len(episode), width))
    files.write_sum(path, path)
    return path, partial(_read_dataset, path)


# -- features and policies --------------------------------------------------------------------------------------------


def _store(name: str, made: Materials, folder: Path) -> tuple[Path, Reader]:
    config = EncoderConfig(**{**EYE, "sizes": (32, 64)})
    where = encode_dataset(made.dataset, config, folder, workers=1).folder

    def read() -> str:
        store = FeatureStore(where)
        store.verify()  # as training does
        return digest(store.index, np.asarray(store.map), np.asarray(store.cls))

    return where / name, read


def _policy(name: str, made: Materials, folder: Path) -> tuple[Path, Reader]:
    shutil.copytree(made.run / "policy", folder / "policy")
    rng = np.random.default_rng(0)
    seen = {"frames": rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8), "proprioception": np.zeros(7, np.float32)}

    def read() -> str:
        policy: Any = registry.load_policy(folder / "policy", engine="torch")
        seen["proprioception"] = np.zeros(policy.network.shapes.proprioception, np.float32)
        return digest(policy.act(seen), policy.execute)

    return folder / "policy" / name, read


def _settings(made: Materials, folder: Path) -> tuple[Path, Reader]:
    shutil.copytree(made.run / "policy", folder / "policy")
    path = folder / "policy" / "settings.json"
    return path, lambda: digest(sorted(files.read_json(path).items()))


# -- what runs leave --------------------------------------------------------------------------------------------------


def _log(made: Materials, folder: Path) -> tuple[Path, Reader]:
    """Cut short at the end of a line, it is a log of fewer episodes: `eval` runs the others again."""
    path = Path(shutil.copy(made.run / "episodes-fast.jsonl", folder))
    whole = [dataclasses.asdict(result) for result in read_results(path)]

    def read() -> str:
        found = [dataclasses.asdict(result) for result in read_results(path)]
        return digest(whole if found == whole[: len(found)] else found)

    return path, read


def _metrics(made: Materials, folder: Path) -> tuple[Path, Reader]:
    path = Path(shutil.copy(made.run / "policy" / "metrics.jsonl", folder))
    whole = files.read_jsonl(path)

    def read() -> str:
        found = files.read_jsonl(path)
        return digest(whole if found == whole[: len(found)] else found)

    return path, read


def _summary(made: Materials, folder: Path) -> tuple[Path, Reader]:
    said = {"title": "Lift", "task": "Lift", "successes": 7, "episodes": 10, "interval": [0.4, 0.9], "seed": 0}
    files.write_json(folder / "summary.json", {**said, "success_rate": 0.7})
    return folder / "summary.json", lambda: digest(sorted(runs.read_run(folder).summary.items()))


def _config(made: Materials, folder: Path) -> tuple[Path, Reader]:
    """Held against what is asked for: a number that changed is another run's, and refused."""
    from s2robot.demo import run_schema

    path = Path(shutil.copy(made.run / "config.yaml", folder))
    config = configuration.load(run_schema("bc-mlp"), str(path))

    def read() -> str:
        configuration.keep(config, folder)
        return digest(config)

    return path, read


# -- weights ----------------------------------------------------------------------------------------------------------


def _eyes(encoder: Any) -> str:
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return digest(encoder(frame).map)


def _pretrained(made: Materials, folder: Path) -> tuple[Path, Any]:
    from s2robot.pretrain import pretrain

    config = PretrainConfig(
        name="small", source=str(made.pictures), steps=6, batch=8, frame_size=64, image_size=32, patch=8, width=24,
        depth=2, heads=2, decoder_width=16, decoder_depth=1, checkpoint_every=3, threads=1, workers=1, device="cpu",
    )  # fmt: skip
    return pretrain(config, folder / "pre"), config


def _weights(made: Materials, folder: Path) -> tuple[Path, Reader]:
    path, _ = _pretrained(made, folder)
    config = EncoderConfig("s2robot", checkpoint=str(path), sizes=(32, 64), engine="torch")
    return path, lambda: _eyes(config.build("cpu"))


def _pretraining(made: Materials, folder: Path) -> tuple[Path, Reader]:
    from s2robot import pretrain_state

    path, config = _pretrained(made, folder)

    def read() -> str:
        state = pretrain_state.restore(config, path.parent, torch.device("cpu"))
        kept = state.optimizer.state_dict()["state"]
        return digest(
            *state.best.state_dict().values(), *(v for row in kept.values() for v in row.values()), state.step
        )

    return path.with_name("state.pt"), read


def _frames(name: str, made: Materials, folder: Path) -> tuple[Path, Reader]:
    path, _ = _pretrained(made, folder)

    def read() -> str:
        found = footage.open_footage(path.with_name("frames.npy"), 64)
        return digest(np.asarray(found.frames), found.held_out)

    return path.with_name(name), read


def _torch_file(made: Materials, folder: Path) -> tuple[Path, Reader]:
    import timm

    from s2robot.checkpoints import read_checkpoint

    path = folder / "weights.pth"
    torch.save({"model": timm.create_model("test_vit", num_classes=0).state_dict()}, path)
    return path, lambda: digest(*(value for _, value in sorted(read_checkpoint(path).items())))


def _shipped(made: Materials, folder: Path) -> tuple[Path, Reader]:
    from s2robot import backbones

    path = Path(shutil.copy(backbones.WEIGHTS_FOLDER / "s2robot-tiny.safetensors", folder))

    def read() -> str:
        backbones.WEIGHTS_FOLDER = folder
        return _eyes(EncoderConfig("s2robot-tiny", engine="torch").build("cpu"))

    return path, read


def _graph(made: Materials, folder: Path) -> tuple[Path, Reader]:
    """A traced graph in the cache: one that is damaged is traced again."""
    import os

    os.environ["S2ROBOT_CACHE"] = str(folder)
    config = EncoderConfig(**{**EYE, "sizes": (32, 64), "engine": "onnxruntime"})
    config.build("cpu")(np.zeros((64, 64, 3), np.uint8))
    return next(folder.rglob("*.onnx")), lambda: _eyes(config.build("cpu"))


# -- probes, replay, pictures -----------------------------------------------------------------------------------------


def _probe(made: Materials, folder: Path) -> tuple[Path, Reader]:
    rng, record = np.random.default_rng(0), probe_data.scene_record(64)
    scenes = np.frombuffer(rng.bytes(probe_data.PIECE * record.itemsize), np.uint8).copy()
    path = folder / "train-00000.npy"
    probe_data.save_records(path, scenes.view(record))
    return path, lambda: digest(np.asarray(probe_data.open_records(path, record, probe_data.PIECE)).view(np.uint8))


def _replay(made: Materials, folder: Path) -> tuple[Path, Reader]:
    from gymnasium import spaces

    from s2robot.adapters.sb3_buffer import FeatureReplayBuffer

    space = spaces.Dict({"features": spaces.Box(-9, 9, (4,), np.float16), "state": spaces.Box(-9, 9, (3,))})
    actions = spaces.Box(-1, 1, (2,))

    def new() -> Any:
        return FeatureReplayBuffer(32, space, actions, "cpu")

    buffer, rng = new(), np.random.default_rng(0)
    looks = [{"features": rng.normal(size=(1, 4)), "state": rng.normal(size=(1, 3))} for _ in range(41)]
    for k in range(40):
        done = np.array([k % 7 == 6])
        buffer.add(looks[k], looks[k + 1], rng.normal(size=(1, 2)), np.array([0.5]), done, [{}])
    buffer.save(folder / "replay.npz")

    def read() -> str:
        again = new()
        again.load(folder / "replay.npz")
        arrays = [*again.observations.values(), again.actions, again.rewards, again.dones, *again._ends.values()]
        return digest(again.pos, again.full, *arrays)

    return folder / "replay.npz", read


def _pictures(suffix: str, sums: bool, made: Materials, folder: Path) -> tuple[Path, Reader]:
    """A picture that is damaged is left out, and said to be."""
    path = folder / f"a{suffix}"
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3)).astype(np.uint8))
    small.resize((64, 64), Image.Resampling.BICUBIC).save(path)
    if sums:
        files.write_sum(path, path)
    return path, partial(_clip, folder)


def _clip(folder: Path) -> str:
    from s2robot.errors import S2RobotError

    config = PretrainConfig(frame_size=64, image_size=32, patch=8, every=1)
    found = clips.find_clips(folder, 0)
    reading, rng = clips.Reading(), np.random.default_rng(0)
    frames = [frame for clip in found for frame in clips.read_clip(clip, config, rng, reading)]
    if reading.skipped:
        raise S2RobotError(reading.skipped[0])
    return digest(*frames)


def _video(made: Materials, folder: Path) -> tuple[Path, Reader]:
    from s2robot.video import write_video

    frames = DemoDataset(made.dataset).frames(0, slice(0, 12))[:, 0]
    write_video(folder / "a.mp4", frames, 10)
    files.write_sum(folder / "a.mp4", folder / "a.mp4")
    return folder / "a.mp4", partial(_clip, folder)


def kinds() -> Iterator[Kind]:
    yield Kind("dataset, HDF5", _dataset, 60)
    yield Kind("episode of a collection, HDF5", _part)
    yield Kind("robomimic's HDF5, with its .sha256", _robomimic)
    for name in ("map.npy", "cls.npy", "index.json", "journal.jsonl"):
        yield Kind(f"feature store, {name}", partial(_store, name))
    for name in ("policy.safetensors", "policy.json"):
        yield Kind(f"policy, {name}", partial(_policy, name), 32)
    yield Kind("policy, settings.json", _settings)
    yield Kind("run, episodes.jsonl", _log, 32)
    yield Kind("run, metrics.jsonl", _metrics)
    yield Kind("run, summary.json", _summary)
    yield Kind("run, config.yaml", _config, 32)
    yield Kind("encoder, our safetensors", _weights, 32)
    yield Kind("encoder, shipped safetensors", _shipped)
    yield Kind("encoder, torch file", _torch_file)
    yield Kind("encoder, traced graph", _graph, 4)
    yield Kind("pre-training, state.pt", _pretraining, 32)
    for name in ("frames.npy", "footage.json"):
        yield Kind(f"pre-training, {name}", partial(_frames, name))
    yield Kind("probe scenes, .npy", _probe)
    yield Kind("replay buffer, .npz", _replay)
    yield Kind("picture, PNG", partial(_pictures, ".png", False))
    yield Kind("picture, JPEG with its .sha256", partial(_pictures, ".jpg", True))
    yield Kind("video, MP4 with its .sha256", _video, 16)
