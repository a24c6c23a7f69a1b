"""A run's course, as a callback of Stable-Baselines3: its log, its curve on validation seeds, its checkpoints.

Everything happens between two rollouts, where a checkpoint holds all there is. Rollouts of the curve use the same
simulations: these are then brought back to where they were, by replaying their actions.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from s2robot import files, statistics
from s2robot.adapters import sb3_state
from s2robot.adapters.sb3_worlds import Worlds
from s2robot.board import Board
from s2robot.errors import S2RobotError, require
from s2robot.progress import Told
from s2robot.rl_config import RLConfig
from s2robot.seeds import VALIDATION

_PURPOSE = "Reinforcement learning"
require("stable_baselines3", extra="rl", purpose=_PURPOSE)
_callbacks: Any = require("stable_baselines3.common.callbacks", extra="rl", purpose=_PURPOSE)

LOG_EVERY = 1000  # control steps
TOLD = {"loss": ("train/critic_loss", "train/loss")}  # the report draws `loss`


class Course(_callbacks.BaseCallback):  # type: ignore[misc]
    """Watches one run.

    Args:
        keep: writes the present policy into a folder.
        before: what an earlier part of the run had `told`, from its checkpoint.
    """

    def __init__(
        self,
        config: RLConfig,
        worlds: Worlds,
        out: Path,
        keep: Callable[[Path], None],
        progress: Told,
        before: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        self.config, self.worlds, self.out, self.keep, self.progress = config, worlds, out, keep, progress
        self.told: dict[str, Any] = {"logged": 0, "validated": 0, "saved": 0, "best": -1, "seconds": 0.0} | (
            before or {}
        )
        self.began = time.monotonic() - self.told["seconds"]
        files.keep_lines(out / "metrics.jsonl", lambda row: row["step"] <= self.told["saved"])
        self.metrics = files.JsonLines(out / "metrics.jsonl")
        self.board = Board(out / "tensorboard", self.told["saved"])

    @property
    def step(self) -> int:
        """Control steps so far: decisions, each counted as whole."""
        return int(self.model.num_timesteps) * self.config.world.execute

    def finish(self, model: Any) -> None:
        """The last point of the curve, and the end."""
        self.model = model
        self._between(last=True)

    def close(self) -> None:
        """Close its files."""
        self.metrics.close()
        self.board.close()

    def _on_rollout_start(self) -> None:
        self._between()

    def _on_step(self) -> bool:
        self.progress(min(self.step, self.config.steps), self.config.steps, self._note())
        return True

    def _between(self, *, last: bool = False) -> None:
        values, row = self._learned(), {}
        if self._due("validated", self.config.validate_every, last=last):
            row = self._validated()
        if row or self._due("logged", LOG_EVERY, last=last):
            self._write(row, values)
        if self._due("saved", self.config.checkpoint_every, last=last):
            self.told["seconds"] = time.monotonic() - self.began
            self.told["saved"] = self.step
            sb3_state.save(self.out / "checkpoints", self.model, self.worlds, self.told)

    def _due(self, what: str, every: int, *, last: bool) -> bool:
        return every > 0 and (self.step // every > self.told[what] // every or (last and self.step > self.told[what]))

    def _validated(self) -> dict[str, Any]:
        """Success on validation seeds; the best policy so far is kept."""
        wins, steps = validate(self.model, self.worlds, self.config.validate)
        self.told["validated"] = self.step
        if wins >= self.told["best"]:
            self.told["best"] = wins
            self._forget_best()
            self.keep(self.out / "best" / "policy")
        low, high = statistics.wilson(wins, self.config.validate)
        return {
            "validation_success": wins / self.config.validate, "validation_low": low, "validation_high": high,
            "validation_episodes": self.config.validate, "validation_steps": steps,
        }  # fmt: skip

    def _forget_best(self) -> None:
        """What was measured of a former best is not the new one's."""
        for there in (self.out / "best").glob("*"):
            if there.is_dir() and there.name != "policy":
                shutil.rmtree(there)
            elif there.is_file():
                there.unlink()

    def _learned(self) -> dict[str, float]:
        """What the learner has logged of its last update, held to be numbers, as its weights are."""
        values = {name: float(value) for name, value in self.model.logger.name_to_value.items()}
        wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        wrong += [f"weights {name} are no numbers" for name, value in self.model.policy.named_parameters()
                  if not value.isfinite().all()]  # fmt: skip
        if wrong:
            raise S2RobotError(
                f"{wrong[0]} after {self.step} control steps (seed {self.config.seed}). Start again with a lower"
                f" --learn.lr (now {getattr(self.config.learn, 'lr', '?')}) in another --out; the last checkpoint here"
                f" is at {self.told['saved']}"
            )
        return values

    def _write(self, row: dict[str, Any], values: dict[str, float]) -> None:
        self.told["logged"] = self.step
        model, seconds = self.model, time.monotonic() - self.began
        loss = next((values[name] for name in TOLD["loss"] if name in values), None)
        lived = {
            "return": float(np.mean([each["r"] for each in model.ep_info_buffer])) if model.ep_info_buffer else None,
            "success": float(np.mean(model.ep_success_buffer)) if model.ep_success_buffer else None,
        }
        shown = {name.replace("train/", ""): value for name, value in values.items() if name.startswith("train/")}
        self.metrics.write({
            "step": self.step, "episodes": self.worlds.begun, "loss": loss, **lived, **row, **shown,
            "seconds": round(seconds, 2),
        })  # fmt: skip
        self.board.write({"step": self.step, "loss": loss, **lived, **row, **shown})

    def _note(self) -> str:
        seconds = time.monotonic() - self.began
        done = self.step / max(1e-9, seconds)
        left = max(0, self.config.steps - self.step) / max(1e-9, done)
        wins = self.model.ep_success_buffer
        rate = f"{100 * float(np.mean(wins)):.0f} % of the last {len(wins)}, " if wins else ""
        return f"{rate}{done:.0f} steps/s, {left / 60:.0f} min left"


def validate(model: Any, worlds: Worlds, episodes: int, first: int = VALIDATION) -> tuple[int, float]:
    """Roll the present policy out without its noise, on seeds of their own; successes, and mean control steps.

    The simulations end where they were.
    """
    memory, env = worlds.remember(), model.get_env()
    done: dict[int, tuple[bool, int]] = {}
    normaliser = model.get_vec_normalize_env()
    worlds.queue, normaliser.training = list(range(first, first + episodes)), False
    try:
        model.policy.set_training_mode(False)
        observation = env.reset()
        while len(done) < episodes:
            action, _ = model.predict(observation, deterministic=True)
            observation, _, _, infos = env.step(action)
            for info in infos:
                if info.get("seed") in range(first, first + episodes) and "episode" in info:
                    done.setdefault(info["seed"], (info["success"], info["episode"]["l"]))
    finally:
        normaliser.training, worlds.queue = True, None
    worlds.recall(memory)
    return sum(success for success, _ in done.values()), float(np.mean([steps for _, steps in done.values()]))
