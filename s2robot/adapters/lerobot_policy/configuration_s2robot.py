"""The settings of our policy inside LeRobot: `--policy.type=s2robot --policy.kind=bc-mlp`.

Named as LeRobot names such things where it has a name for them: `chunk_size` and `n_action_steps` are our `chunk` and
`execute`, `n_obs_steps` is our `context`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import DiffuserSchedulerConfig
from lerobot.utils.constants import OBS_ENV_STATE, OBS_IMAGES, OBS_STATE

from s2robot import config as configuration
from s2robot import registry
from s2robot.adapters.lerobot import FEATURES
from s2robot.encoder import EncoderConfig
from s2robot.errors import InvalidInput, UnknownName


@PreTrainedConfig.register_subclass("s2robot")
@dataclass
class S2RobotConfig(PreTrainedConfig):  # type: ignore[misc] # LeRobot has no types here
    """Hyper-parameters of the policy, and the encoder it looks through.

    kind: one of `s2robot.registry.POLICIES`.
    n_obs_steps: looks it decides by, `n_action_steps` apart; 0: what the kind itself asks for.
    chunk_size, n_action_steps: actions predicted, and executed before looking again.
    tokens: what is read of the encoder's features: the "map", its "mean", or "cls"; the last two know no places.
    network: the kind's other hyper-parameters by their names in s2robot, e.g. {"hidden": 512}.
    cameras: which ones it looks through, by the last part of their keys; default: all of the dataset.
    encoder: the frozen encoder; its weights are not part of a checkpoint.
    encoder_fingerprint: what the policy was trained on, filled in then and held against the encoder at every load.
    use_s2_features: train on the dataset's column `observation.s2_features`, its cls, where frames need no encoding.
    remember_gb: memory for compressed features of frames seen in training; none is encoded twice while it lasts.
    fit_frames: observations that the compression is fitted to before training, spread over the dataset.
    """

    n_obs_steps: int = 0
    kind: str = "bc-mlp"
    chunk_size: int = 8
    n_action_steps: int = 4
    tokens: str = "map"
    network: dict[str, Any] = field(default_factory=dict)
    cameras: list[str] = field(default_factory=list)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    encoder_fingerprint: str = ""
    use_s2_features: bool = False
    remember_gb: float = 2.0
    fit_frames: int = 400
    push_to_hub: bool = False
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ENV": NormalizationMode.IDENTITY,
            "ACTION": NormalizationMode.MIN_MAX,
        }
    )
    optimizer_lr: float = 1.5e-3
    optimizer_weight_decay: float = 0.05
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in registry.POLICIES:
            raise UnknownName("kind of policy", self.kind, registry.POLICIES)
        if self.use_s2_features and self.tokens != "cls":
            raise InvalidInput(
                f"use_s2_features with tokens={self.tokens!r}: {FEATURES} holds the cls of every camera. Add"
                " --policy.tokens=cls"
            )
        if self.fit_frames < 1 or self.remember_gb < 0:
            raise InvalidInput(
                f"fit_frames is {self.fit_frames}, remember_gb {self.remember_gb}; expected a number of frames from 1"
                " on, and memory from 0 on"
            )
        self.n_obs_steps = self.n_obs_steps or registry.policy_module(self.kind).CONFIG().context
        self.network_config()  # a wrong setting is said before a dataset is opened

    def network_config(self) -> Any:
        """The hyper-parameters in s2robot's own words, a `policies.neck.NeckConfig`."""
        known = {
            "chunk": self.chunk_size, "execute": self.n_action_steps, "context": self.n_obs_steps, "tokens": self.tokens
        }  # fmt: skip
        if twice := sorted(set(known) & set(self.network)):
            raise InvalidInput(
                f"network sets {twice}; in LeRobot these are chunk_size, n_action_steps, n_obs_steps, tokens"
            )
        words = [f"--{name}={value}" for name, value in (known | self.network).items()]
        return configuration.load(registry.policy_module(self.kind).CONFIG, None, words)

    @property
    def camera_keys(self) -> list[str]:
        """The keys of the images it looks at, in their order."""
        keys = list(self.image_features)
        if not self.cameras:
            return keys
        named = {key.removeprefix(f"{OBS_IMAGES}."): key for key in keys}
        for camera in self.cameras:
            if camera not in named:
                raise UnknownName("camera", camera, named)
        return [named[camera] for camera in self.cameras]

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width that all its cameras have in common."""
        sizes = {key: tuple(self.image_features[key].shape[1:]) for key in self.camera_keys}
        if len(set(sizes.values())) != 1:
            raise InvalidInput(f"The cameras differ in size: {sizes}. Choose some: --policy.cameras='[top,wrist]'")
        return next(iter(sizes.values()))

    def width(self, key: str) -> int:
        """How many numbers an observation has under this key; 0: it has no such key."""
        feature = (self.input_features or {}).get(key)
        return 0 if feature is None else int(feature.shape[0])

    def validate_features(self) -> None:
        """Hold what the dataset or the environment offers against what the policy needs; LeRobot's own name."""
        if not self.image_features:
            raise InvalidInput(f"The policy looks through cameras; there are only {sorted(self.input_features or {})}")
        if self.action_feature is None:
            raise InvalidInput(f"There is no 'action' to learn; there are {sorted(self.output_features or {})}")
        if self.use_s2_features and not self.width(FEATURES):
            raise InvalidInput(
                f"use_s2_features, but the dataset has no {FEATURES}. Write it: s2robot convert DATASET --to lerobot"
                f" --features {self.encoder.name} --out FOLDER"
            )
        if self.normalization_mapping.get("VISUAL", NormalizationMode.IDENTITY) is not NormalizationMode.IDENTITY:
            raise InvalidInput("normalization_mapping of VISUAL must be IDENTITY: the encoder normalises images itself")
        if self.normalization_mapping.get("ACTION") is NormalizationMode.MEAN_STD:
            raise InvalidInput("normalization_mapping of ACTION must bring actions to [-1, 1]: MIN_MAX or QUANTILES")
        _ = self.frame_size

    @property
    def state_width(self) -> int:
        """Proprioception fields, Q."""
        return self.width(OBS_STATE)

    @property
    def goal_width(self) -> int:
        """Goal fields, G."""
        return self.width(OBS_ENV_STATE)

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """Steps of the looks, `n_action_steps` apart; None: the present one alone, without an axis of time."""
        if self.n_obs_steps == 1:
            return None
        return [-k * self.n_action_steps for k in range(self.n_obs_steps - 1, -1, -1)]

    @property
    def action_delta_indices(self) -> list[int]:
        """Steps of the chunks after every look of a window, without a gap."""
        return list(range(-(self.n_obs_steps - 1) * self.n_action_steps, self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """It knows no rewards."""
        return

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW as `s2robot train` uses it."""
        return AdamWConfig(
            lr=self.optimizer_lr,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> DiffuserSchedulerConfig:
        """A linear warm-up, then a cosine to zero over the steps of the run."""
        return DiffuserSchedulerConfig(name="cosine", num_warmup_steps=self.scheduler_warmup_steps)
