"""How many control steps a second reinforcement learning takes here, on features and as it is usually done on images.

    s2robot bench rl --task Lift

Each arm is SAC with one update a decision and batches of the same size. Times are this process's seconds on the CPU,
all threads together: what else runs on the machine hardly counts. Set OMP_NUM_THREADS=1, and they are what a core
takes. Rounds are interleaved; rates are medians over the rounds, ratios those of the medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium import spaces

from s2robot import command, registry, seeds
from s2robot.encoder import EncoderConfig
from s2robot.errors import UsageError, require
from s2robot.parser import json_option
from s2robot.rl_config import SightConfig, WorldConfig
from s2robot.types import FRAMES

STAGES = ("physics", "render", "see", "update")


@dataclass(frozen=True)
class Arm:
    """One way to learn; `see` is None for Stable-Baselines3 on images as it is."""

    name: str
    see: str | None
    world: WorldConfig
    scales: tuple[float, ...] = (1.0, 2.0)


def arms(task: str, cameras: tuple[str, ...]) -> list[Arm]:
    """What is compared."""
    world = WorldConfig(task=task, cameras=cameras, execute=4)
    one = replace(world, execute=1)
    return [
        Arm("features, two scales, 4 steps a decision", "features", world),
        Arm("features, base scale, 4 steps a decision", "features", world, (1.0,)),
        Arm("features, two scales, every step", "features", one),
        Arm("our CNN, 84 px, 4 steps a decision", "pixels", replace(world, frame_size=84)),
        Arm("privileged state, 4 steps a decision", "privileged", world),
        Arm("images of 84 px, Stable-Baselines3 as it is", None, replace(one, frame_size=84)),
    ]


class Learner:
    """An arm that learns, and its clock: seconds on the CPU by stage, over all that it has learned."""

    def __init__(self, arm: Arm, batch: int) -> None:
        from s2robot.adapters.features import fit_compression
        from s2robot.adapters.sb3_sight import Glance, Sight
        from s2robot.adapters.sb3_worlds import make_worlds
        from s2robot.policies import sac
        from s2robot.rl import first_frames

        self.arm, self.seconds = arm, dict.fromkeys(STAGES, 0.0)
        self.worlds = make_worlds(arm.world, seeds.TRAINING, arm.see or "pixels")
        self.simulation = self.worlds.simulations.env
        settings = sac.SACConfig(batch=batch, starts=0, buffer=2000)
        if arm.see is None:
            self.model = _plain(self.worlds, batch)
        else:
            eyes = None
            if arm.see == "features":
                encoder = EncoderConfig(scales=arm.scales).build("cpu")
                frames = first_frames(self.worlds, 16, 0)
                eyes = Glance(encoder, compression=fit_compression(encoder, frames, 16))
                eyes.encoder = self._timed("see", encoder)
            sight = Sight(SightConfig(arm.see), eyes)
            self.model = sac.make(
                settings, sight.before(self.worlds), reading=sight.reading, gamma=0.96, seed=0, decisions=2000
            )
        logger: Any = require("stable_baselines3.common.logger", extra="rl", purpose="Reinforcement learning")
        self.model.set_logger(logger.Logger(None, []))
        self.model.train = self._timed("update", self.model.train)
        self.simulation.frames = self._timed("render", self.simulation.frames)
        self.simulation.advance = self._timed("physics", self.simulation.advance)

    def learn(self, steps: int) -> float:
        """So many control steps; seconds."""
        start = time.process_time()
        self.model.learn(max(1, steps // self.arm.world.execute), log_interval=None, reset_num_timesteps=False)
        return time.process_time() - start

    def _timed(self, stage: str, function: Callable[..., Any]) -> Any:
        learner = self

        class Timed:
            """What it was, on a clock."""

            def __call__(self, *arguments: Any, **words: Any) -> Any:
                start = time.process_time()
                answer = function(*arguments, **words)
                learner.seconds[stage] += time.process_time() - start
                return answer

            def __getattr__(self, name: str) -> Any:
                return getattr(function, name)

        return Timed()


def bench_rl(argv: Sequence[str]) -> int:
    """The verb `bench rl`."""
    parser = command.parser(
        "bench rl", "Control steps a second of SAC, on features and on images, with what they are spent on.",
        "s2robot bench rl --task Lift --rounds 5", key="",
    )  # fmt: skip
    parser.add_argument("--task", default="Lift", help="a task by name")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--steps", type=int, default=40, help="control steps a round (default: 40)")
    parser.add_argument("--batch", type=int, default=128, help="of every update (default: 128)")
    json_option(parser)
    options = parser.parse_args(list(argv))
    if min(options.rounds, options.batch) < 1 or options.steps < 4 or options.steps % 4:
        raise UsageError("--rounds and --batch are 1 or more, --steps a multiple of 4: arms decide about 4 at once")
    rows = measure(options)
    if options.json:
        command.tell_json(rows)
        return 0
    console = command.console()
    heads = ("arm", "steps a CPU second", "x images", *(f"{stage} ms" for stage in (*STAGES, "rest")))
    table = command.table(*heads, "replay MB a 100k steps")
    for row in rows:
        times = [f"{row['ms'][stage]:.1f}" for stage in (*STAGES, "rest")]
        table.add_row(row["name"], f"{row['rate']:.1f}", f"{row['ratio']:.1f}", *times, f"{row['replay_mb']:.0f}")
    console.print(table)
    return 0


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row an arm: control steps a second, their ratio to images', milliseconds a control step by stage."""
    from s2robot.adapters.sb3_buffer import transition_bytes

    task = registry.get_task(options.task)
    learners = [Learner(arm, options.batch) for arm in arms(options.task, task.cameras)]
    for learner in learners:
        learner.learn(options.steps)  # caches, first batches
        learner.seconds = dict.fromkeys(STAGES, 0.0)
    taken: list[list[float]] = [[] for _ in learners]
    for _ in range(options.rounds):
        for learner, seconds in zip(learners, taken, strict=True):
            seconds.append(learner.learn(options.steps))
    rows = []
    slowest = options.steps / float(np.median(taken[-1]))
    for learner, seconds in zip(learners, taken, strict=True):
        total, rate = options.rounds * options.steps, options.steps / float(np.median(seconds))
        ms = {stage: 1e3 * learner.seconds[stage] / total for stage in STAGES}
        ms["rest"] = 1e3 * sum(seconds) / total - sum(ms.values())
        space = learner.model.observation_space
        half = None if learner.arm.see is None else ()
        each = transition_bytes(space, learner.model.action_space, half=half) / learner.arm.world.execute
        rows.append({"name": learner.arm.name, "rate": rate, "ratio": rate / slowest, "ms": ms, "replay_mb": each / 10})
        learner.worlds.close()
    return rows


def _plain(worlds: Any, batch: int) -> Any:
    """Stable-Baselines3 as it is: an image a camera, its `MultiInputPolicy`, its replay buffer."""
    from s2robot.adapters.sb3_sight import Mapped

    sb3: Any = require("stable_baselines3", extra="rl", purpose="Reinforcement learning")
    known = worlds.observation_space
    views, side, _, _ = known[FRAMES].shape
    others = {key: space for key, space in known.items() if key != FRAMES}
    images = {f"camera_{k}": spaces.Box(0, 255, (side, side, 3), np.uint8) for k in range(views)}

    def apart(batch: Any) -> Any:
        seen = {f"camera_{k}": batch[FRAMES][:, k] for k in range(views)}
        return {**seen, **{key: batch[key] for key in others}}

    env = Mapped(worlds, spaces.Dict({**others, **images}), apart)
    return sb3.SAC("MultiInputPolicy", env, buffer_size=2000, learning_starts=0, batch_size=batch, seed=0, device="cpu")
