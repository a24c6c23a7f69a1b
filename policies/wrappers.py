"""Policies around policies: one action at a time, overlapping chunks averaged, episodes recorded.

Each is a `s2robot.types.Policy` itself, so they stack:

    policy = ActionQueue(s2robot.load_policy("runs/lift-bc"))     for a stack that asks at every control step
    policy = TemporalEnsemble(s2robot.load_policy("runs/lift-bc"))
    with Recorder(policy, "recordings") as policy: ...
"""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot import files
from s2robot.errors import InvalidInput
from s2robot.types import Observation, Policy


class Wrapper:
    """Hands everything on to the policy inside."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @property
    def execute(self) -> int:
        """That of the policy inside; may be changed where it may be."""
        return self.policy.execute

    @execute.setter
    def execute(self, steps: int) -> None:
        self.policy.execute = steps

    @property
    def seconds(self) -> dict[str, float]:
        return self.policy.seconds

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """See `s2robot.types.Policy`."""
        return self.policy.act(observation)

    def reset(self) -> None:
        """See `s2robot.types.Policy`."""
        self.policy.reset()


class OneAction(Wrapper):
    """Answers with one action a call, whatever the policy inside does."""

    @property
    def execute(self) -> int:
        return 1

    @execute.setter
    def execute(self, steps: int) -> None:
        if steps != 1:
            raise InvalidInput(f"execute is {steps}; {type(self).__name__} gives one action a call")


class ActionQueue(OneAction):
    """One action a call, (1, M): the policy inside looks once every `execute` calls. Call it at every control step."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self._left: list[NDArray[np.float32]] = []
        self._looked = False

    @property
    def seconds(self) -> dict[str, float]:
        return self.policy.seconds if self._looked else dict.fromkeys(self.policy.seconds, 0.0)

    def act(self, observation: Observation) -> NDArray[np.float32]:
        self._looked = not self._left
        if self._looked:
            self._left = list(self.policy.act(observation)[: self.policy.execute])
        return self._left.pop(0)[None]

    def reset(self) -> None:
        self._left = []
        super().reset()


class TemporalEnsemble(OneAction):
    """Looks at every step and averages what all chunks say of it, (1, M): smooth, and `execute` times as costly.

    Zhao et al. 2023 (ACT), section IV-B: weights exp(-decay * i), i = 0 for the oldest chunk; a larger decay forgets
    the new ones more. The policy inside must allow `execute = 1`.
    """

    def __init__(self, policy: Policy, decay: float = 0.01) -> None:
        if not np.isfinite(decay):
            raise InvalidInput(f"decay is {decay}; expected a number, ACT's is 0.01")
        policy.execute = 1
        super().__init__(policy)
        self.decay = decay
        self._chunks: deque[NDArray[np.float32]] = deque()  # oldest first

    def act(self, observation: Observation) -> NDArray[np.float32]:
        chunk = self.policy.act(observation)  # (A, M)
        self._chunks.append(chunk)
        if len(self._chunks) > len(chunk):
            self._chunks.popleft()
        newest = len(self._chunks) - 1
        said = np.stack([each[newest - k] for k, each in enumerate(self._chunks)])  # (n, M)
        weights = np.exp(-self.decay * np.arange(len(said)))
        mean: NDArray[np.float32] = (weights @ said / weights.sum()).astype(np.float32)[None]
        return mean

    def reset(self) -> None:
        self._chunks.clear()
        super().reset()


class Recorder(Wrapper):
    """Keeps what the policy saw and decided: `<folder>/episode-00000.npz`, one an episode.

    Written at the next `reset` and at the end of `with`, atomically; a killed process loses the open episode. Arrays, a
    row a call: each key of the observation, `chunk` (n, A, M), `seconds_<stage>` (n,). `np.load` reads them.
    """

    def __init__(self, policy: Policy, folder: str | Path) -> None:
        super().__init__(policy)
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rows: list[dict[str, Any]] = []

    def act(self, observation: Observation) -> NDArray[np.float32]:
        chunk = self.policy.act(observation)
        times = {f"seconds_{stage}": value for stage, value in self.seconds.items()}
        self._rows.append({key: np.array(value) for key, value in observation.items()} | {"chunk": chunk, **times})
        return chunk

    def reset(self) -> None:
        self.flush()
        super().reset()

    def flush(self) -> None:
        """Write the open episode, if it has begun."""
        if not self._rows:
            return
        names = (re.fullmatch(r"episode-(\d+)\.npz", path.name) for path in self.folder.iterdir())
        number = max((int(name[1]) for name in names if name), default=-1) + 1
        columns = {key: np.stack([row[key] for row in self._rows]) for key in self._rows[0]}
        with files.atomic(self.folder / f"episode-{number:05}.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **columns)
        self._rows = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()
