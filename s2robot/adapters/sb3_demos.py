"""Demonstrations as transitions, and a replay buffer that mixes them into every batch.

A transition begins at each step that is encoded and lasts a decision; it has the actions that were executed, noise
included, and not the labels that policies are cloned from. One that ends with the episode ends with success, or is
left out: of what time cut off nobody saw the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from s2robot import files, registry
from s2robot.adapters.features import FEATURES
from s2robot.adapters.sb3_buffer import FeatureReplayBuffer
from s2robot.adapters.sb3_sight import Sight, prior_told
from s2robot.datasets import DemoDataset
from s2robot.errors import InvalidInput, require
from s2robot.rl_config import RLConfig, WorldConfig
from s2robot.stored import StoredEpisode
from s2robot.types import FRAMES, GOAL, PRIVILEGED, PROPRIOCEPTION, Features

_PURPOSE = "Reinforcement learning"
require("stable_baselines3", extra="rl", purpose=_PURPOSE)
_buffers: Any = require("stable_baselines3.common.buffers", extra="rl", purpose=_PURPOSE)

Arrays = dict[str, NDArray[Any]]


class Transitions(NamedTuple):
    """n decisions of demonstrations, as a replay buffer takes them."""

    before: Arrays  # (n, ...) by key
    after: Arrays
    actions: NDArray[np.float32]  # (n, execute * M)
    rewards: NDArray[np.float32]  # (n,)
    dones: NDArray[np.bool_]  # (n,): they ended in success


class DemoReplayBuffer(FeatureReplayBuffer):
    """A replay buffer that takes `share` of what is sampled from `demos`, a buffer of its own, once it is there."""

    demos: FeatureReplayBuffer | None = None

    def __init__(self, *arguments: Any, share: float = 0.5, **words: Any) -> None:
        super().__init__(*arguments, **words)
        self.share = share

    def hold(self, found: Transitions) -> None:
        """Keep these demonstrations, apart from what is lived."""
        count = len(found.actions)
        self.demos = FeatureReplayBuffer(count, self.observation_space, self.action_space, self.device, half=self.half)
        for k in range(count):
            before, after = ({key: value[k : k + 1] for key, value in part.items()} for part in found[:2])
            self.demos.add(before, after, found.actions[k : k + 1], found.rewards[k], found.dones[k], [{}])

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """Lived ones first, then demonstrations."""
        few = round(batch_size * self.share) if self.demos is not None else 0
        lived = super().sample(batch_size - few, env=env)
        if self.demos is None or not few:
            return lived
        shown = self.demos.sample(few, env=env)
        return _buffers.DictReplayBufferSamples(
            observations={
                key: torch.cat([value, shown.observations[key]]) for key, value in lived.observations.items()
            },
            actions=torch.cat([lived.actions, shown.actions]),
            next_observations={
                key: torch.cat([value, shown.next_observations[key]]) for key, value in lived.next_observations.items()
            },
            dones=torch.cat([lived.dones, shown.dones]),
            rewards=torch.cat([lived.rewards, shown.rewards]),
        )


def check_demos(dataset: DemoDataset, config: RLConfig, robot: str, moves: tuple[str, ...]) -> range:
    """The episodes asked for, held against the task, its robot and the names of its actions.

    Raises:
        InvalidInput: they are of another task, robot or action space, or fewer than asked for, or their rewards are not
            what the run asks for.
    """
    said, world, count = dataset.env_args, config.world, config.demos.count
    if said.get("task") not in (None, world.task):
        raise InvalidInput(f"{dataset.path} demonstrates {said['task']}, and the task is {world.task}")
    if said.get("robot") not in (None, robot):
        raise InvalidInput(f"{dataset.path} was recorded with {said['robot']}, and the robot is {robot}: --world.robot")
    came = dataset.episode(0).actions.shape[1]
    if came != len(moves):
        raise InvalidInput(
            f"Actions of {dataset.path} have {came} numbers"
            f" ({', '.join(said.get('action_names', ())) or 'it does not say which'}); {world.task} takes {len(moves)}"
            f" ({', '.join(moves)}). Demonstrate it again: s2robot collect {world.task}"
        )
    if not 0 <= count <= len(dataset):
        raise InvalidInput(f"--demos.count is {count}; {dataset.path} has {len(dataset)} demonstrations")
    if world.execute % config.demos.stride:
        raise InvalidInput(
            f"world.execute is {world.execute}, demos.stride {config.demos.stride}: the end of a decision must be an"
            " encoded step, so the second must divide the first"
        )
    rewards = dataset.episode(0).rewards
    if world.reward == "dense" and not ((rewards > 0) & (rewards < 1)).any():
        raise InvalidInput(
            f"{dataset.path} has rewards at success alone, and the run asks for dense ones: --reward sparse, or an"
            " algorithm that takes no demonstrations"
        )
    return range(count or len(dataset))


def transitions(dataset: DemoDataset, source: Any, sight: Sight, config: RLConfig, episodes: range) -> Transitions:
    """Decisions of these episodes.

    Args:
        source: a feature store, `Frames`, or of the privileged state `States`; its stride divides `world.execute`.
    """
    parts = []
    for k in episodes:
        episode = dataset.episode(k)
        rows, steps = source.rows(k)
        parts.append(_decisions(episode, _observations(episode, source, sight, rows, steps), steps, config))
    before = {key: np.concatenate([part.before[key] for part in parts]) for key in parts[0].before}
    after = {key: np.concatenate([part.after[key] for part in parts]) for key in parts[0].after}
    actions = np.concatenate([part.actions for part in parts])
    rewards, dones = (np.concatenate([getattr(part, name) for part in parts]) for name in ("rewards", "dones"))
    if not len(actions):
        raise InvalidInput(f"{dataset.path}: no decision of {config.world.execute} steps in these demonstrations")
    return Transitions(before, after, actions, rewards, dones)


def _decisions(episode: StoredEpisode, seen: Arrays, steps: NDArray[np.int64], config: RLConfig) -> Transitions:
    world, length = config.world, len(episode)
    executed, ends = episode.executed_actions, steps + world.execute
    kept = np.flatnonzero((ends < length) | bool(episode.success))
    place = {int(step): row for row, step in enumerate(steps)}
    following = np.array([place.get(int(end), len(steps) - 1) for end in ends[kept]], np.int64)  # where it ended: any
    inside = steps[kept, None] + np.arange(world.execute)  # (n, execute)
    over = ends[kept] >= length
    if world.reward == "sparse":
        rewards = over.astype(np.float32)
    else:
        rewards = ((episode.rewards[inside.clip(max=length - 1)] - 1) * (inside < length)).sum(axis=1)
    return Transitions(
        {key: value[kept] for key, value in seen.items()},
        {key: value[following] for key, value in seen.items()},
        executed[inside.clip(max=length - 1)].reshape(len(kept), -1).clip(-1, 1).astype(np.float32),
        rewards.astype(np.float32),
        over,
    )


def _observations(
    episode: StoredEpisode, source: Any, sight: Sight, rows: NDArray[np.int64], steps: NDArray[np.int64]
) -> Arrays:
    """What the policy would have been shown at these steps, (n, ...) by key."""
    seen: Arrays = {PROPRIOCEPTION: episode.proprioception[steps]}
    if episode.goal is not None:
        seen[GOAL] = episode.goal[steps]
    if sight.config.see == "privileged":
        return {**seen, PRIVILEGED: source.read(rows)}
    if sight.config.see == "pixels":
        return {**seen, FRAMES: source.read(rows, sight.config.size).numpy()}
    assert sight.eyes is not None
    maps, cls = (torch.from_numpy(np.array(array[rows])).float() for array in (source.map, source.cls))
    features = sight.eyes.of(Features(maps, maps.flatten(3).transpose(2, 3), cls))
    told = {} if sight.prior is None else prior_told(sight.prior, maps, seen, sight.execute)
    return {**seen, FEATURES: features.numpy().astype(sight.eyes.dtype), **told}


class States:
    """The privileged fields of demonstrations, from the simulator's states that they hold."""

    def __init__(self, dataset: DemoDataset, stride: int, env: Any) -> None:
        self.dataset, self.stride, self.env = dataset, stride, env
        self._firsts = np.cumsum([0, *(len(range(0, length, stride)) for length in dataset.lengths)])

    def rows(self, episode: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of an episode, and the step of each.  (n,), (n,)"""
        steps = np.arange(0, self.dataset.lengths[episode], self.stride)
        return self._firsts[episode] + np.arange(len(steps)), steps

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Privileged fields of these rows, which are of one episode, (n, K).

        Raises:
            InvalidInput: the demonstrations hold no states.
        """
        episode = int(np.searchsorted(self._firsts, rows[0], side="right")) - 1
        if not self.dataset.has(episode, "states"):
            raise InvalidInput(
                f"{self.dataset.path} holds no simulator states, so none can be shown: sight.see=features"
            )
        states = self.dataset.field(episode, "states")
        self.env.reset(seed=int(self.dataset.episode(episode).seed))
        found = []
        for step in (rows - self._firsts[episode]) * self.stride:
            self.env.show(states[step])
            found.append(np.concatenate([np.ravel(value) for value in self.env.privileged().values()]))
        return np.array(found, np.float32)


def check_prior(folder: Path, task: Any, cameras: Sequence[str], world: WorldConfig) -> None:
    """A policy's own words, held against what it would be shown here; one that does not say is believed.

    Raises:
        InvalidInput: it was cloned in another task, on another robot, or from other cameras.
    """
    path = folder / "policy.json"
    said: dict[str, Any] = files.read_json(path) if path.exists() else {}
    said |= said.get("shapes", {})
    here = {
        "task": task.name, "robot": task.robot, "cameras": list(cameras), "frame_size": world.frame_size,
        "actions": len(task.action_names), "proprioception": len(task.proprioception_names),
    }  # fmt: skip
    if other := [f"{key} {said[key]}, not {here[key]}" for key in here if said.get(key) not in (here[key], None)]:
        raise InvalidInput(f"The policy in {folder} is of another kind of world ({'; '.join(other)})")


def load_prior(folder: str, fingerprint: str, views: int, execute: int) -> Any:
    """The network of a run of behaviour cloning, held against what the policy sees by.

    Raises:
        InvalidInput: no bc-mlp that decides by one look.
        CheckpointMismatch: it looks through another encoder.
    """
    from s2robot.errors import CheckpointMismatch

    policy: Any = registry.load_policy(folder, device="cpu")
    network = policy.network
    if type(network) is not registry.policy_module("bc-mlp").NETWORK or network.config.context > 1:
        raise InvalidInput(f"The policy in {folder} is a {type(network).__name__}; expected a bc-mlp of context 1")
    if network.config.tokens != "map" or network.shapes.views != views:
        raise InvalidInput(
            f"The policy in {folder} reads {network.config.tokens} of {network.shapes.views} views; expected map of"
            f" {views}"
        )
    if network.config.chunk < execute:
        raise InvalidInput(
            f"The policy in {folder} predicts {network.config.chunk} actions, and a decision has {execute}: give"
            f" --world.execute {network.config.chunk} at most"
        )
    if policy.encoder.fingerprint != fingerprint:
        raise CheckpointMismatch(
            f"The policy in {folder} looks through another encoder ({policy.encoder.fingerprint[:12]}) than this run"
            f" ({fingerprint[:12]}): train it on the same --encoder options"
        )
    return network.requires_grad_(False)
