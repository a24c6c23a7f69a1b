"""Reinforcement learning, from a config to a policy: every stage in its order, and every stage resumes.

    simulations -> what is seen of them -> demonstrations, where the algorithm takes them -> learner -> policy/

<out>/config.yaml       the resolved configuration
      eyes.safetensors  the compression of what is seen, fitted once; inputs.json: digests of demonstrations and prior
      metrics.jsonl     one line a thousand control steps, and a point of the curve; tensorboard/ the same
      checkpoints/      the newest one, until the end
      policy/  best/    the last policy, and the one that did best on validation seeds: `s2robot eval <out>[/best]`
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from s2robot import config as configuration
from s2robot import files, locks, registry, remote, seals
from s2robot.adapters.features import fit_compression
from s2robot.compression import Compression, Shapes, chosen_tokens, rows_to_fit
from s2robot.datasets import DemoDataset
from s2robot.encoder import Encoder
from s2robot.errors import InvalidInput, require
from s2robot.frames import Frames
from s2robot.interface import described, encoder_said
from s2robot.precision import single_precision
from s2robot.progress import Told, silent
from s2robot.rl_config import RLConfig
from s2robot.runs import find_policy
from s2robot.store import FeatureStore, encode_dataset
from s2robot.trained import save_policy
from s2robot.types import FRAMES

EYES, INPUTS = "eyes.safetensors", "inputs.json"
EACH = 3  # frames of an episode that the compression is fitted to: it is to have seen things in many places


@single_precision()
def learn(config: RLConfig, progress: Told = silent) -> Path:
    """Learn into `config.out`, or go on there; return the folder.

    Raises:
        Occupied: another process learns there.
        InvalidInput: the folder holds a run with other settings, or demonstrations do not fit, or memory does not hold
            the replay buffer.
        CheckpointMismatch: the encoder's weights are others than when the run began.
        S2RobotError: a reward, an observation or a loss that is no number.
    """
    logger: Any = require("stable_baselines3.common.logger", extra="rl", purpose="Reinforcement learning")
    from s2robot.adapters import sb3_course, sb3_state

    out = Path(config.out)
    with locks.alone(out / ".lock", str(out)):
        with _bound(config, out):
            if (out / "policy" / "done").exists():
                return out
            run = Setup(config, out)
            model = run.model()
            model.set_logger(logger.Logger(None, []))
            before = sb3_state.restore(out / "checkpoints", model, run.worlds)
        course = sb3_course.Course(config, run.worlds, out, partial(run.keep, model), progress, before)
        try:
            if (left := config.decisions - model.num_timesteps) > 0:
                model.learn(left, callback=course, log_interval=None, reset_num_timesteps=False)
            course.finish(model)
        finally:
            course.close()
            run.worlds.close()
        run.keep(model, out / "policy")
        (out / "policy" / "done").touch()
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return out


@contextlib.contextmanager
def _bound(config: RLConfig, out: Path) -> Iterator[None]:
    """The folder has these settings; a run that could not begin, for Ctrl-C too, leaves none that bind the next."""
    demos = dataclasses.replace(config.demos, path=remote.shown(config.demos.path))  # a signature is not kept
    kept = dataclasses.replace(config, out=".", demos=demos)
    with configuration.bound(kept, out, frees=BaseException, beside=(EYES, INPUTS)):
        files.sweep(out, deep=True)
        yield


class Setup:
    """What one run is made of, in the order it is made."""

    def __init__(self, config: RLConfig, out: Path) -> None:
        from s2robot.adapters import sb3_demos, sb3_worlds

        self.config, self.out = config, out
        self.task = registry.get_task(config.world.task, config.world.robot)
        self.dataset = _dataset(config)
        if self.dataset is not None:
            self.episodes = sb3_demos.check_demos(self.dataset, config, self.task.robot, self.task.action_names)
        self.cameras = tuple(
            config.world.cameras or (self.dataset.cameras if self.dataset is not None else self.task.cameras)
        )
        self.source = None if self.dataset is None else _source(config, self.dataset, self.cameras)
        if isinstance(self.source, FeatureStore):
            self.source.verify(self.episodes)
        self.worlds = sb3_worlds.make_worlds(config.world, config.first_seed, config.sight.see, self.cameras)
        self.sight = self._sight()
        self._hold()

    def model(self) -> Any:
        """The learner, with its demonstrations."""
        from s2robot.adapters import sb3_demos

        config, algorithm = self.config, registry.algorithm(self.config.algorithm)
        model = algorithm.make(
            config.learn, self.sight.before(self.worlds), reading=self.sight.reading,
            gamma=config.gamma**config.world.execute, seed=config.seed, decisions=config.decisions,
        )  # fmt: skip
        if self.dataset is not None:
            source = self.source or sb3_demos.States(self.dataset, config.demos.stride, self.worlds.simulations.env)
            found = sb3_demos.transitions(self.dataset, source, self.sight, config, self.episodes)
            model.replay_buffer.hold(found)
            normalise_by(model.get_vec_normalize_env(), found.before)
        return model

    def keep(self, model: Any, folder: Path) -> None:
        """Write the policy that the learner is now."""
        from s2robot.adapters import sb3_export

        config, task, eyes = self.config, self.task, self.sight.eyes
        kind, network = sb3_export.acting(model, self.sight, config, len(task.action_names))
        frame = config.world.frame_size
        names = {"proprioception_names": task.proprioception_names, "action_names": task.action_names}
        about = {"task": task.name, "robot": task.robot, "control_hz": task.control_hz, **names}
        description = {
            "kind": kind, **registry.acting().describe(network),
            "encoder": None if eyes is None else encoder_said(eyes.encoder.config),
            "encoder_fingerprint": None if eyes is None else eyes.encoder.fingerprint,
            "task": task.name, "robot": task.robot, "cameras": list(self.cameras), "frame_size": frame,
            "frame": [frame, frame], "privileged": config.sight.see == "privileged", **described(about),
            "parameters": sum(value.numel() for value in network.parameters()),
        }  # fmt: skip
        save_policy(network, description, folder)

    def _hold(self) -> None:
        """What the config only names is what it was when the run began.

        Raises:
            InvalidInput: demonstrations or prior are others under the same name.
        """
        path, prior = self.out / INPUTS, self.config.demos.prior
        inputs = {"demonstrations": self.dataset.fingerprint[:16] if self.dataset is not None else None}
        inputs["prior"] = seals.digest(find_policy(prior) / "policy.safetensors")[:16] if prior else None
        inputs["compression"] = seals.digest(self.out / EYES)[:16] if self.sight.eyes is not None else None
        before = {**inputs, **(files.read_json(path) if path.exists() else {})}  # older ones say less
        if changed := configuration.differences(before, inputs):
            raise InvalidInput(
                f"{self.out} began from other data under the same names ({'; '.join(changed)}). Choose another --out"
            )
        files.write_json(path, inputs)

    def _sight(self) -> Any:
        """What it is shown; eyes are fitted once, and are the same ever after."""
        from s2robot.adapters import sb3_demos, sb3_sight

        config = self.config.sight
        if config.see != "features":
            return sb3_sight.Sight(config)
        execute, kept = self.config.world.execute, self.out / EYES
        encoder = self.config.encoder.build("cpu")
        prior = None
        if self.config.demos.prior:
            sb3_demos.check_prior(find_policy(self.config.demos.prior), self.task, self.cameras, self.config.world)
            prior = sb3_demos.load_prior(self.config.demos.prior, encoder.fingerprint, len(self.cameras), execute)
        if kept.exists():
            eyes: Any = sb3_sight.Glance.load(kept, encoder=encoder)
        else:
            eyes = sb3_sight.Glance(encoder, config.kind, compression=self._compression(encoder, prior))
            self.out.mkdir(parents=True, exist_ok=True)
            eyes.save(kept)
        return sb3_sight.Sight(config, eyes, prior, execute)

    def _compression(self, encoder: Encoder, prior: Any) -> Any:
        """Of the prior, its first components; else fitted to demonstrations or, without any, to first frames."""
        config = self.config.sight
        if prior is not None:
            return leading_components(prior.compression, prior.shapes, config.components)
        if not config.components:
            return None
        if self.source is None:
            frames = first_frames(self.worlds, config.fit_frames, self.config.seed)
            return fit_compression(encoder, frames, config.components, config.kind)
        rows = rows_to_fit(self.source.map.shape, int(self.source.rows(self.episodes[-1])[0][-1]) + 1)
        stored, cls = (torch.from_numpy(np.array(array[rows])).float() for array in (self.source.map, self.source.cls))
        maps = chosen_tokens(stored, cls, "cls" if config.kind == "cls" else "map")
        shapes = Shapes(maps.shape[1], encoder.config.groups, encoder.channels // encoder.config.groups,
                        (maps.shape[3], maps.shape[4]), proprioception=0, actions=0)  # fmt: skip
        compression = Compression(shapes, config.components)
        compression.fit(maps)
        return compression


def first_frames(worlds: Any, count: int, seed: int) -> NDArray[np.uint8]:
    """Frames of the first decisions of many episodes, at random, (count, V, H, W, 3); then all is as if new."""
    rng, begun = np.random.default_rng(seed), worlds.begun
    frames: list[NDArray[np.uint8]] = []
    while sum(map(len, frames)) < count:
        if len(frames) % EACH == 0:
            frames.append(worlds.reset()[FRAMES])
            continue
        chunk = np.repeat(rng.uniform(-1, 1, (worlds.num_envs, 1, worlds.moves)), worlds.config.execute, axis=1)
        frames.append(worlds.step(chunk.reshape(worlds.num_envs, -1))[0][FRAMES])
    worlds.begun = begun
    some: NDArray[np.uint8] = np.concatenate(frames)[:count]
    return some


def leading_components(compression: Compression, shapes: Shapes, components: int) -> Compression:
    """A compression to the first components of a wider one, of each scale."""
    if not 1 <= components <= compression.components:
        raise InvalidInput(
            f"--sight.components is {components}; the prior keeps {compression.components} of each scale: 1 to that"
        )
    fewer = Compression(shapes, components)
    fewer.mean.copy_(compression.mean)
    fewer.basis.copy_(compression.basis[..., :components])
    return fewer


def normalise_by(normaliser: Any, observations: dict[str, NDArray[Any]]) -> None:
    """Let a `VecNormalize` begin from demonstrations: a robot at rest says little of how far its numbers reach."""
    for key, rms in normaliser.obs_rms.items():
        rms.update(np.asarray(observations[key], np.float64))


def _dataset(config: RLConfig) -> DemoDataset | None:
    """The demonstrations, where the algorithm takes them.

    Raises:
        InvalidInput: it takes none and some are given, or the other way round.
    """
    takes = registry.algorithm(config.algorithm)
    wants_demos, wants_prior = (bool(getattr(takes, name, False)) for name in ("DEMONSTRATIONS", "PRIOR"))
    wants_demos = wants_demos and (wants_prior or config.learn.demos > 0)
    for wants, given, option in (
        (wants_demos, config.demos.path, "--demos.path"),
        (wants_prior, config.demos.prior, "--demos.prior"),
    ):
        if wants and not given:
            raise InvalidInput(
                f"{config.algorithm} begins from demonstrations (--demos.path DEMOS.hdf5)"
                + (" and a policy cloned from them (--demos.prior RUN)" if wants_prior else "")
                + f": {option} is missing"
                + ("" if wants_prior else ". To learn from nothing: --learn.demos 0")
            )
        if given and not wants:
            raise InvalidInput(f"{config.algorithm} makes no use of {option} (now {remote.shown(given)}): leave it out")
    if wants_prior and (config.sight.see, config.sight.kind) != ("features", "map"):
        raise InvalidInput(
            f"{config.algorithm} is shown maps of features, as its prior is: leave --see {config.sight.see} and"
            f" --sight.kind {config.sight.kind} out"
        )
    return DemoDataset(config.demos.path) if wants_demos else None


def _source(config: RLConfig, dataset: DemoDataset, cameras: tuple[str, ...]) -> Any:
    """What demonstrations are seen by: a feature store, frames, or nothing yet (states need a simulation)."""
    if config.sight.see == "privileged":
        if config.world.envs > 1:
            raise InvalidInput("Demonstrations as states need --world.envs 1")
        return None
    if cameras != tuple(dataset.cameras) or config.world.frame_size != dataset.frame_shape[1]:
        raise InvalidInput(
            f"{dataset.path} shows {', '.join(dataset.cameras)} at {dataset.frame_shape[1]} px, and the task"
            f" {', '.join(cameras)} at {config.world.frame_size}: give --world.frame_size {dataset.frame_shape[1]}, and"
            " the same cameras, or demonstrations of these: s2robot render"
        )
    if config.sight.see == "pixels":
        return Frames(dataset, config.demos.stride)
    return encode_dataset(dataset.path, config.encoder, dataset.path.parent / "features", stride=config.demos.stride)
