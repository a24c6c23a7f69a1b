"""What is learned, from what, by whom: all that decides a policy's weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from s2robot import files, registry, remote
from s2robot.compression import rows_to_fit
from s2robot.datasets import DemoDataset
from s2robot.encoder import EncoderConfig
from s2robot.episodes import split_episodes
from s2robot.errors import InvalidInput
from s2robot.frames import Frames
from s2robot.interface import described
from s2robot.samples import Source

if TYPE_CHECKING:
    from s2robot.training import TrainConfig


@dataclass(frozen=True)
class Lesson:
    """Of demonstrations, seen by an encoder, a policy learns.

    source: a feature store, or `Frames` for a policy that reads frames.
    policy: its hyper-parameters, which say of which kind it is.
    config: for how long and how fast.
    """

    dataset: DemoDataset
    source: Source
    encoder: EncoderConfig
    policy: Any
    config: TrainConfig

    @property
    def kind(self) -> str:
        return registry.policy_kind(self.policy)

    @property
    def episodes(self) -> range:
        """The demonstrations learned from: the dataset's first."""
        return learned_from(self.config.demos, self.dataset)

    def settings(self) -> dict[str, Any]:
        """All that decides the weights, as plain JSON."""
        source = self.source
        seen: Any = dataclasses.asdict(self.encoder)
        versions: list[str] = []
        if not isinstance(source, Frames):
            seen = source.encoder_fingerprint[:16]
            versions = [store.folder.name for store in source.versions]
        data: dict[str, Any] = {"dataset": self.dataset.fingerprint[:16], "stride": source.stride}
        data |= {"encoder": seen, "versions": versions}
        learned = {name: value for name, value in vars(self.config).items() if name != "checkpoint_every"}
        settings: dict[str, Any] = files.plain({"kind": self.kind, **data, "policy": self.policy, "train": learned})
        return settings

    def network(self) -> Any:
        """A fresh network for these shapes, its compression and normalisation fitted to the demonstrations."""
        dataset, source, episodes = self.dataset, self.source, self.episodes
        network_of = registry.policy_module(self.kind).NETWORK
        if network_of.reads_frames != isinstance(source, Frames):
            wanted = "s2robot.frames.Frames" if network_of.reads_frames else "a feature store"
            given = type(source).__name__
            raise InvalidInput(f"The policy {self.kind} was given a {given} to learn from; expected {wanted}")
        shape = () if isinstance(source, Frames) else source.map.shape
        spread = rows_to_fit(shape, int(source.rows(episodes[-1])[0][-1]) + 1)
        first = dataset.episode(0)
        fields = {"proprioception": first.proprioception.shape[1], "actions": first.actions.shape[1]}
        fields["goal"] = 0 if first.goal is None else first.goal.shape[1]
        network = network_of.fresh(self.policy, source, spread, self.encoder, fields)
        states = torch.from_numpy(np.concatenate([dataset.episode(k).proprioception for k in episodes]))
        network.proprioception_mean.copy_(states.mean(dim=0))
        # A field that stood still must not shout when it moves: a millimetre counts as one standard deviation then.
        network.proprioception_std.copy_(states.std(dim=0).clamp_min(1e-3))
        return network

    def split(self) -> tuple[Tensor, Tensor]:
        """Rows of the source: of the episodes learned from, and of those held out for the curve."""
        rows = []
        for part in split_episodes(len(self.episodes), self.config.valid_fraction, self.config.seed):
            found = [np.asarray(self.source.rows(k)[0]) for k in part]
            rows.append(torch.from_numpy(np.concatenate(found) if found else np.zeros(0, int)))
        return rows[0], rows[1]

    def describe(self, network: Any) -> dict[str, Any]:
        """What policy.json says of a network that learned this."""
        dataset = self.dataset
        return {
            "kind": self.kind,
            **registry.acting().describe(network),
            **network.needs(self.source, self.encoder),
            "task": dataset.env_args.get("task"),
            "robot": dataset.env_args.get("robot"),
            "cameras": list(dataset.cameras),
            "frame_size": dataset.frame_shape[1],
            "frame": list(dataset.frame_shape[1:3]),
            **described(dataset.env_args),
            "parameters": sum(p.numel() for p in network.parameters()),
            "learned_from": {
                "name": Path(remote.shown(dataset.address)).name,
                "fingerprint": dataset.fingerprint[:16],
                "demonstrations": len(learned_from(self.config.demos, dataset)),
            },
        }


def learned_from(demos: int, dataset: DemoDataset) -> range:
    """The episodes that `--train.demos` names, the dataset's first; 0: all."""
    there = len(dataset)
    if not 0 <= demos <= there:
        raise InvalidInput(f"--train.demos is {demos}; {dataset.path} has {there} demonstrations")
    return range(demos or there)
