"""What a run of reinforcement learning is, `s2robot rl`; an algorithm's own hyper-parameters are its module's `CONFIG`.

see            what the policy is shown beside proprioception       what learns to read it
features       frozen multi-scale features, small, encoded once     the policies' own read-out
pixels         frames, reduced to `size`                            a convolutional network with DrQ's random shift
privileged     the simulator's state: no cameras; an upper bound    nothing
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from s2robot import registry, seeds
from s2robot.encoder import EncoderConfig
from s2robot.errors import InvalidInput, UnknownName

KINDS, READOUTS = ("map", "tokens", "cls"), ("attention", "conv", "flat")  # of features
SEES = ("features", "pixels", "privileged")
REWARDS = ("dense", "sparse")
TIMEOUTS = ("truncation", "failure")
LEAST_PIXELS = 36  # that `policies.rl_pixels` convolves


@dataclass(frozen=True)
class WorldConfig:
    """What is simulated, and what a decision is."""

    task: str = "Reach"
    robot: str | None = None
    cameras: tuple[str, ...] = ()  # none named: the task's
    frame_size: int = 256
    fidelity: str = "fast"
    envs: int = 1  # from two on a process each
    execute: int = 4  # control steps a decision: the policy decides a chunk of so many actions, and is shown its end
    reward: str = "dense"  # "dense": the task's own less 1, a control step; "sparse": 1 at success, else 0

    timeout: str = "truncation"  # values go on behind an episode that ran out of time; "failure": they are 0 there

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))
        for name, known in (("reward", REWARDS), ("timeout", TIMEOUTS)):
            if getattr(self, name) not in known:
                raise UnknownName(name, getattr(self, name), known)
        if (self.timeout, self.reward) == ("failure", "dense"):
            raise InvalidInput(
                "timeout is 'failure' and reward 'dense', which is a cost: running out of time would end it and be what"
                " to aim for; expected timeout 'truncation', or reward 'sparse'"
            )
        for name in ("envs", "execute", "frame_size"):
            _at_least(1, name, getattr(self, name))


@dataclass(frozen=True)
class SightConfig:
    """What the policy is shown."""

    see: str = "features"
    kind: str = "map"  # of features: "map", "tokens" or "cls"
    components: int = 16  # kept of each scale; 0: all
    fit_frames: int = 128  # first observations that the compression is fitted to, where no demonstrations are given
    readout: str = "attention"  # of maps: "attention" with expected places, "conv", or "flat"
    queries: int = 16  # of the read-out, a view
    width: int = 32  # of its keys, or of its convolutions
    size: int = 84  # of pixels: shorter side of the frames that the network reads
    shift: int = 4  # of pixels: DrQ's random shift in training

    def __post_init__(self) -> None:
        if self.see not in SEES:
            raise UnknownName("what to see", self.see, SEES)
        for name, known in (("kind", KINDS), ("readout", READOUTS)):
            if getattr(self, name) not in known:
                raise UnknownName(name, getattr(self, name), known)
        leasts = {"components": 0, "fit_frames": 2, "queries": 1, "width": 1, "size": 8, "shift": 0}
        for name, least in leasts.items():
            _at_least(least, name, getattr(self, name))


@dataclass(frozen=True)
class DemosConfig:
    """Demonstrations to begin from, for the algorithms that take them."""

    path: str = ""
    count: int = 0  # the first so many; 0: all
    stride: int = 2  # every so manieth step is encoded, as `s2robot train` does; must divide `world.execute`
    prior: str = ""  # a run of behaviour cloning, for `ibrl`

    def __post_init__(self) -> None:
        _at_least(0, "demos.count", self.count)
        _at_least(1, "demos.stride", self.stride)


@dataclass(frozen=True)
class RLConfig:
    """A run: one seed, one folder."""

    out: str = "runs/rl"
    algorithm: str = "sac"
    seed: int = 0
    steps: int = 50_000  # control steps in all
    gamma: float = 0.99  # a control step
    validate_every: int = 5_000  # control steps between points of the curve; 0: none
    validate: int = 20  # rollouts a point, on validation seeds
    checkpoint_every: int = 5_000  # control steps
    world: WorldConfig = field(default_factory=WorldConfig)
    sight: SightConfig = field(default_factory=SightConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    demos: DemosConfig = field(default_factory=DemosConfig)
    learn: Any = None  # the algorithm's own; see `rl_schema`

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("seed", 0), ("validate", 1), ("checkpoint_every", 1), ("validate_every", 0)):
            _at_least(least, name, getattr(self, name))
        if not 0 < self.gamma < 1:
            raise InvalidInput(f"gamma is {self.gamma}; expected a discount between 0 and 1, such as 0.99")
        if (starts := getattr(self.learn, "starts", -1)) >= self.decisions:
            raise InvalidInput(
                f"steps is {self.steps}, which are {self.decisions} decisions, and it learns only after {starts}"
                " (learn.starts): it would learn nothing"
            )
        updates = (self.decisions - starts) * getattr(self.learn, "updates", 0)  # of the critics
        alone, delay = getattr(self.learn, "alone", 0), getattr(self.learn, "delay", 1)
        if hasattr(self.learn, "alone") and updates < max(alone + 1, delay):
            raise InvalidInput(
                f"steps is {self.steps}, which are {updates} updates of the critics, and the actor's first is after"
                f" {max(alone, delay - 1)} (learn.alone, learn.delay): it would learn nothing"
            )
        if self.sight.see == "pixels" and (side := min(self.sight.size, self.world.frame_size)) < LEAST_PIXELS:
            raise InvalidInput(f"The network of pixels would read {side} of them; expected {LEAST_PIXELS} or more")

    @property
    def decisions(self) -> int:
        """Decisions in all."""
        return -(-self.steps // self.world.execute)

    @property
    def first_seed(self) -> int:
        """Of the first training episode."""
        return seeds.TRAINING + seeds.APART * self.seed


def rl_schema(algorithm: str) -> type[RLConfig]:
    """`RLConfig` with an algorithm's own hyper-parameters as `learn`."""
    learn = registry.algorithm(algorithm).CONFIG
    fields = [("algorithm", str, field(default=algorithm)), ("learn", learn, field(default_factory=learn))]
    return dataclasses.make_dataclass("RLConfig", fields, bases=(RLConfig,), frozen=True)


def _at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise InvalidInput(f"{name} is {value}; expected a whole number from {least} on")
