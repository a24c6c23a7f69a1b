"""Our policies as LeRobot's loop trains and rolls them out.

    images -> uint8 frames, to the bit -> frozen encoder (or observation.s2_features) -> neck and head -> chunk

The encoder stands beside the module, not in it: LeRobot's optimizer, checkpoints and gradient clipping never see it.
A checkpoint names it, and says its fingerprint.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE
from safetensors import SafetensorError
from torch import Tensor, nn

from s2robot import registry
from s2robot.adapters.images import to_frames
from s2robot.adapters.lerobot import FEATURES
from s2robot.adapters.lerobot_policy.configuration_s2robot import S2RobotConfig
from s2robot.adapters.remembered import PIECE, Remembered
from s2robot.compression import Shapes, chosen_tokens
from s2robot.encoder import Encoder
from s2robot.errors import CheckpointMismatch, CorruptFile, InvalidInput
from s2robot.samples import Batch

if TYPE_CHECKING:
    from typing_extensions import Self

SAME = 1e-2  # by how much a column's features may differ from an encoder's: other engines, other batch sizes, float16


class Observed(NamedTuple):
    """Observations of a batch as the network takes them, with an axis of time."""

    seen: Tensor  # (B, T, V, C, h, w) compressed
    state: Tensor  # (B, T, Q)
    goal: Tensor  # (B, T, G)


class S2RobotPolicy(PreTrainedPolicy):  # type: ignore[misc] # LeRobot has no types here
    """A frozen S2 encoder and one of our networks behind LeRobot's interface."""

    config_class = S2RobotConfig
    name = "s2robot"

    def __init__(
        self, config: S2RobotConfig, dataset_stats: Any = None, dataset_meta: Any = None, **others: Any
    ) -> None:
        """Build it; `dataset_meta` is given where training begins, and the compression is fitted to that dataset."""
        super().__init__(config)
        config.validate_features()
        self._beside = (_encoder(config),)  # in a tuple: torch would make it a part of this module
        self.network: nn.Module = _network(config, self.encoder)
        self._remembered = Remembered(config.remember_gb * 1e9)
        self._noise = torch.Generator()
        if dataset_meta is not None:
            self.fit(dataset_meta)
        self.reset()

    @property
    def encoder(self) -> Encoder:
        """The frozen encoder."""
        return self._beside[0]

    def reset(self) -> None:
        """Forget the episodes so far; LeRobot calls it before every rollout."""
        self._actions: deque[Tensor] = deque()  # (B, M) each, to execute before looking again
        self._looks: deque[Tensor] = deque(maxlen=self.config.n_obs_steps)
        self._noise.manual_seed(0)

    def get_optim_params(self) -> list[nn.Parameter]:
        """All that is trained: neck and head."""
        return list(self.network.parameters())

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a batch of LeRobot's loader, preprocessed."""
        config = self.config
        looks, execute, chunk = config.n_obs_steps, config.n_action_steps, config.chunk_size
        observed = self._observed(batch, timed=looks > 1)
        actions = batch[ACTION].unfold(1, chunk, execute).movedim(-1, 2)  # (B, T, A, M): the chunk after every look
        valid = ~batch[f"{ACTION}_is_pad"].unfold(1, chunk, execute)  # (B, T, A)
        if looks > 1:  # before an episode's first step there was no look, and nothing to decide
            valid = valid & ~batch[f"{config.camera_keys[0]}_is_pad"][..., None]
        window = Batch(*observed, actions, valid.to(actions.dtype))
        return self.network.batch_loss(window), {}  # type: ignore[operator]

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next chunk (B, A, M) in [-1, 1], before LeRobot brings it to the dataset's range.

        Call it every `n_action_steps` steps: a policy with a memory takes every call for a look.
        """
        self.eval()
        network: Any = self.network
        observed = self._observed(batch, timed=False)
        look = network.look(*(part[:, 0] for part in observed))
        if self._looks and len(self._looks[-1]) != len(look):
            raise InvalidInput(f"A batch of {len(look)} after one of {len(self._looks[-1])}: call reset() in between")
        self._looks.append(look)
        missing = self.config.n_obs_steps - len(self._looks)  # the first stands in for those
        window = torch.stack([self._looks[0]] * missing + list(self._looks), dim=1)
        chunk: Tensor = network.predict(window, self._noise).clamp(-1, 1)
        return chunk

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next action (B, M): looks once every `n_action_steps` calls."""
        self.eval()
        if not self._actions:
            self._actions.extend(self.predict_action_chunk(batch)[:, : self.config.n_action_steps].unbind(1))
        return self._actions.popleft()

    @torch.no_grad()
    def fit(self, dataset_meta: Any) -> None:
        """Fit the compression to observations spread over a dataset, as `s2robot train` does.

        Raises:
            CheckpointMismatch: the dataset's column of features is another encoder's.
        """
        dataset = LeRobotDataset(dataset_meta.repo_id, root=dataset_meta.root, revision=dataset_meta.revision)
        rows = np.linspace(0, len(dataset) - 1, min(len(dataset), self.config.fit_frames)).astype(int)
        if self.config.use_s2_features:
            self._check_column([dataset[int(row)] for row in rows[:: max(1, len(rows) // 4)]])
        found = []
        for start in range(0, len(rows), PIECE):
            items = [dataset[int(row)] for row in rows[start : start + PIECE]]
            keys = [FEATURES] if self.config.use_s2_features else self.config.camera_keys
            found.append(self._tokens({key: torch.stack([item[key] for item in items]) for key in keys}).cpu())
        network: Any = self.network
        network.compression.fit(torch.cat(found))
        self._remembered.forget()

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """As torch's; what is remembered was compressed by the weights before."""
        self._remembered.forget()
        return super().load_state_dict(*args, **options)

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, strict: bool = True, dataset_meta: Any = None, **others: Any
    ) -> Self:
        """Load a checkpoint, strictly, and hold the encoder against it.

        Raises:
            CheckpointMismatch: its weights do not fit, or it was trained through another encoder.
        """
        policy: Self = super().from_pretrained(pretrained_name_or_path, strict=True, **others)
        return policy

    @classmethod
    def _load_as_safetensor(cls, model: Self, model_file: str, map_location: str, strict: bool) -> Self:
        try:
            loaded: Self = super()._load_as_safetensor(model, model_file, map_location, strict)
        except RuntimeError as error:
            raise CheckpointMismatch(f"{model_file} does not fit its config.json: {str(error)[:300]}") from error
        except (OSError, SafetensorError) as error:
            raise CorruptFile(model_file, str(error)[:200], "Restore it from a copy, or train again") from error
        return loaded

    def _observed(self, batch: dict[str, Any], *, timed: bool) -> Observed:
        """What the network takes of a batch; timed: it has an axis of time already."""
        config, there = self.config, [key for key in self.config.input_features if key in batch]
        flat = {key: batch[key].flatten(0, 1) if timed else batch[key] for key in there}
        seen = self._seen(flat)
        state = _vector(flat, OBS_STATE, config.state_width, seen)
        goal = _vector(flat, OBS_ENV_STATE, config.goal_width, seen)
        time = config.n_obs_steps if timed else 1
        return Observed(*(part.unflatten(0, (-1, time)) for part in (seen, state, goal)))

    def _seen(self, flat: dict[str, Tensor]) -> Tensor:
        """Compressed maps (n, V, C, h, w) of a batch without time; in training frames known before are remembered."""
        if self._has_column(flat):
            return self._compressed(self._tokens(flat))
        frames = self._frames(flat)
        if self.training:
            return self._remembered(frames, self._encoded).float()
        return torch.cat([self._encoded(part) for part in frames.split(PIECE)])

    def _frames(self, flat: dict[str, Tensor]) -> Tensor:
        """uint8 (n, V, H, W, 3) of every camera."""
        views = []
        for key in self.config.camera_keys:
            if key not in flat:
                raise InvalidInput(f"The policy looks through {key!r}, which is not there. There are: {sorted(flat)}")
            frames = to_frames(flat[key], key)
            if frames.shape[1:3] != self.config.frame_size:
                raise InvalidInput(
                    f"{key} is {tuple(frames.shape[1:3])} pixels; this policy was trained with {self.config.frame_size}"
                )
            views.append(frames)
        return torch.stack(views, dim=1)

    def _has_column(self, flat: dict[str, Tensor]) -> bool:
        """Datasets bring features where they were asked for; environments never do."""
        return self.config.use_s2_features and FEATURES in flat

    @torch.no_grad()
    def _tokens(self, flat: dict[str, Tensor]) -> Tensor:
        """Uncompressed maps (n, V, D*S, h, w) of the column, or of the images."""
        if self._has_column(flat):
            cls: Tensor = flat[FEATURES].unflatten(-1, (len(self.config.camera_keys), -1))  # (n, V, D*S)
            return cls[..., None, None]
        return self._read(self._frames(flat))

    def _read(self, frames: Tensor) -> Tensor:
        """What the policy reads of the encoder's features, (n, V, D*S, h, w)."""
        features = self.encoder(frames)
        tokens: Tensor = chosen_tokens(features.map, features.cls, self.config.tokens)
        return tokens

    @torch.no_grad()
    def _encoded(self, frames: Tensor) -> Tensor:
        return self._compressed(self._read(frames))

    def _compressed(self, tokens: Tensor) -> Tensor:
        network: Any = self.network
        compressed: Tensor = network.compression(tokens)
        return compressed

    def _check_column(self, items: list[dict[str, Any]]) -> None:
        """Hold the dataset's features of some rows against what the encoder says of their frames."""
        frames = self._frames({key: torch.stack([item[key] for item in items]) for key in self.config.camera_keys})
        expected = self.encoder(frames).cls.flatten(1)
        column = torch.stack([item[FEATURES] for item in items]).to(expected.device)
        off = float((column - expected).abs().max()) if column.shape == expected.shape else float("inf")
        if off > SAME * max(1.0, float(expected.abs().max())):
            raise CheckpointMismatch(
                f"The dataset's {FEATURES} {tuple(column.shape[1:])} are not the cls of {self.config.encoder.name} at"
                f" scales {self.config.encoder.scales} over {self.config.camera_keys} (off by {off:.3g}). Write them"
                f" anew: s2robot convert --features {self.config.encoder.name}, or name their encoder"
            )

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """To another device: the encoder comes along."""
        super()._apply(fn, recurse)
        self.encoder._apply(fn)
        return self


def _encoder(config: S2RobotConfig) -> Encoder:
    """The encoder, held against the one the policy was trained through; its fingerprint goes into a fresh config."""
    encoder = config.encoder.build(config.device)
    if config.encoder_fingerprint and config.encoder_fingerprint != encoder.fingerprint:
        raise CheckpointMismatch(
            f"The policy was trained on features of {config.encoder.name} with fingerprint"
            f" {config.encoder_fingerprint[:12]}, but that encoder is now {encoder.fingerprint[:12]}. Give it the"
            " weights it knew (--policy.encoder.checkpoint=FILE), or train it again"
        )
    config.encoder_fingerprint = encoder.fingerprint
    return encoder


def _network(config: S2RobotConfig, encoder: Encoder) -> nn.Module:
    """A fresh network for what the encoder makes of the cameras."""
    grid = encoder.grid_of(config.frame_size) if config.tokens == "map" else (1, 1)
    groups = encoder.config.groups
    shapes = Shapes(
        views=len(config.camera_keys), scales=groups, width=encoder.channels // groups, grid=grid,
        proprioception=config.state_width, actions=int(config.action_feature.shape[0]), goal=config.goal_width,
    )  # fmt: skip
    network: nn.Module = registry.policy_module(config.kind).NETWORK(config.network_config(), shapes)
    return network


def _vector(flat: dict[str, Tensor], key: str, width: int, like: Tensor) -> Tensor:
    """Numbers (n, width) of an observation; (n, 0) where the policy was trained without them."""
    if not width:
        return like.new_zeros(len(like), 0)
    if key not in flat:
        raise InvalidInput(f"The policy was trained with {key!r} ({width},), which is not there: {sorted(flat)}")
    value = flat[key]
    if value.shape[1:] != (width,):
        raise InvalidInput(f"{key} is {tuple(value.shape[1:])}; this policy was trained with ({width},)")
    return value.float()
