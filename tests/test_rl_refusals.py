"""What `s2robot rl` finds out before it learns, or while it goes on, instead of learning something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
from small_rl import small_run

from s2robot import cli, files, registry, rl
from s2robot.adapters import sb3_course, sb3_demos, sb3_worlds
from s2robot.collect import CollectConfig, collect
from s2robot.errors import CorruptFile, InvalidInput, S2RobotError, UnknownName, UsageError
from s2robot.policies.ppo import PPOConfig
from s2robot.policies.rlpd import RLPDConfig
from s2robot.policies.sac import SACConfig
from s2robot.rl_config import DemosConfig, SightConfig, WorldConfig
from s2robot.rl_curves import _series

pytestmark = pytest.mark.sim


class Stopped(Exception):
    pass


def stopped(out: Path) -> tuple[Any, Path]:
    """A run that was stopped behind a checkpoint; its settings, and the checkpoint."""

    def stop(done: int, total: int, note: str) -> None:
        if done >= 60:
            raise Stopped

    settings = small_run(out, "sac", "privileged", "Reach")
    with pytest.raises(Stopped):
        rl.learn(settings, stop)
    (checkpoint,) = (out / "checkpoints").iterdir()
    return settings, checkpoint


def test_a_checkpoint_with_one_other_bit_is_damaged(tmp_path: Path) -> None:
    settings, checkpoint = stopped(tmp_path)
    state = bytearray((checkpoint / "state.pt").read_bytes())
    at = max(range(0, len(state) - 4000, 997), key=lambda k: sum(state[k : k + 200]))  # within some tensor
    state[at + 100] ^= 1
    (checkpoint / "state.pt").write_bytes(state)
    with pytest.raises(CorruptFile, match="to begin from the start"):
        rl.learn(settings)


def test_a_simulation_that_fails_as_it_is_played_again_blames_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, checkpoint = stopped(tmp_path)

    def fails(self: Any, memory: Any) -> None:
        raise S2RobotError("A simulation ended: it was killed.")

    monkeypatch.setattr(sb3_worlds.Worlds, "recall", fails)
    with pytest.raises(S2RobotError, match=r"^A simulation ended: it was killed\.$"):
        rl.learn(settings)
    assert checkpoint.exists()


def test_a_simulation_that_dies_as_it_is_played_again_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = sb3_worlds.make_worlds(WorldConfig(task="Reach", execute=4), 2_000_000, "privileged")
    worlds.reset()
    worlds.step(np.zeros((1, worlds.action_space.shape[0]), np.float32))
    memory, step = worlds.remember(), worlds.simulations.step_chunk

    def dying(chunks: np.ndarray) -> Any:
        *seen, told = step(chunks)
        return *seen, {**told, "worker_died": np.array(["its process was killed."], object)}

    monkeypatch.setattr(worlds.simulations, "step_chunk", dying)
    with pytest.raises(S2RobotError, match="The same command goes on"):
        worlds.recall(memory)
    worlds.close()


def test_what_was_measured_of_a_former_best_goes_with_it(tmp_path: Path) -> None:
    course: Any = object.__new__(sb3_course.Course)
    course.out = tmp_path
    files.write_json(tmp_path / "best" / "policy" / "policy.json", {})
    (tmp_path / "best" / "episodes-exact.jsonl").touch()
    (tmp_path / "best" / "videos").mkdir()
    course._forget_best()
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["policy"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"task": "Stack"}, "task Stack, not Lift"),
        ({"robot": "Sawyer"}, "robot Sawyer, not Panda"),
        ({"cameras": ["b", "a"]}, "cameras"),
        ({"frame_size": 64}, "frame_size 64, not 256"),
        ({"shapes": {"actions": 3}}, "actions 3, not 4"),
    ],
)
def test_a_prior_of_another_kind_of_world_is_refused(said: dict[str, Any], words: str, tmp_path: Path) -> None:
    task = registry.get_task("Lift")
    fits = {"task": "Lift", "robot": None, "cameras": ["a", "b"], "frame_size": 256, "shapes": {"actions": 4}}
    files.write_json(tmp_path / "policy.json", fits)
    sb3_demos.check_prior(tmp_path, task, ["a", "b"], WorldConfig())
    files.write_json(tmp_path / "policy.json", {**fits, **said})
    with pytest.raises(InvalidInput, match=words):
        sb3_demos.check_prior(tmp_path, task, ["a", "b"], WorldConfig())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SightConfig(see="pixels", readout="foo"), "readout 'foo'"),
        (lambda: SightConfig(kind="bar"), "kind 'bar'"),
        (lambda: SACConfig(updates=0), "updates is 0"),
        (lambda: SACConfig(buffer=0), "buffer is 0"),
        (lambda: SACConfig(entropy="high"), "entropy is 'high'"),
        (lambda: SACConfig(entropy="auto_0"), "entropy is 'auto_0'"),
        (lambda: SACConfig(entropy="1.2.3"), "entropy is '1.2.3'"),
        (lambda: SACConfig(entropy="-0.1"), "entropy is '-0.1'"),
        (lambda: PPOConfig(batch=1), "batch is 1; expected a whole number from 2"),
        (lambda: PPOConfig(lr=-1.0), "lr is -1"),
        (lambda: PPOConfig(gae=2.0), "gae 2"),
        (lambda: small_run(Path(), "sac", "privileged", "Reach", "--learn.starts", "40"), "40 decisions, .* after 40"),
        (
            lambda: small_run(Path(), "rlpd", "privileged", "Reach", "--learn.updates", "1", "--learn.alone", "34"),
            "are 34 updates .* after 34",
        ),
        (
            lambda: small_run(Path(), "rlpd", "privileged", "Reach", "--learn.updates", "1", "--learn.delay", "35"),
            "are 34 updates .* after 34",
        ),
        (lambda: small_run(Path(), "sac", "pixels", "Reach", "--sight.size", "35"), "would read 35 of them"),
        (lambda: small_run(Path(), "sac", "pixels", "Reach", "--world.frame_size", "32"), "would read 32 of them"),
        (lambda: RLPDConfig(batch=0), "batch is 0"),
        (lambda: RLPDConfig(tau=0.0), "tau is 0"),
        (lambda: RLPDConfig(delay=0), "delay 0"),
        (lambda: RLPDConfig(settle=-1), "settle is -1"),
        (lambda: RLPDConfig(slow=1.0), "slow 1.0"),
        (lambda: PPOConfig(activation="gelu"), "activation 'gelu'"),
        (lambda: PPOConfig(rollout=0), "rollout is 0"),
        (lambda: DemosConfig(stride=0), "stride is 0"),
    ],
)
def test_settings_by_which_nothing_is_learned_are_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises((InvalidInput, UnknownName), match=words):
        make()


@pytest.mark.parametrize("reason", [ZeroDivisionError, KeyboardInterrupt])
def test_a_run_that_could_not_begin_binds_nobody_whatever_the_reason(
    reason: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, **words: Any) -> None:
        raise reason

    monkeypatch.setattr(rl, "Setup", fails)
    with pytest.raises(reason):
        rl.learn(small_run(tmp_path / "run", "sac", "privileged", "Reach"))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_features_that_changed_on_disk_are_not_learned_from(tmp_path: Path) -> None:
    path = collect(CollectConfig("Lift", demos=1, frame_size=64, workers=1), tmp_path / "demos.hdf5").path
    words = ("--demos.path", str(path))
    rl.Setup(small_run(tmp_path / "a", "rlpd", "features", "Lift", *words), tmp_path / "a").worlds.close()
    (store,) = (tmp_path / "features").glob("*/map.npy")
    data = bytearray(store.read_bytes())
    data[-1] ^= 1
    store.write_bytes(data)
    with pytest.raises(CorruptFile, match="changed on disk"):
        rl.Setup(small_run(tmp_path / "b", "rlpd", "features", "Lift", *words), tmp_path / "b")


def test_a_compression_that_changed_is_refused(tmp_path: Path) -> None:
    settings = small_run(tmp_path, "sac", "features", "Reach")
    rl.Setup(settings, tmp_path).worlds.close()
    inputs = files.read_json(tmp_path / rl.INPUTS)
    files.write_json(tmp_path / rl.INPUTS, {**inputs, "compression": "0123"})
    with pytest.raises(InvalidInput, match="compression: 0123 ->"):
        rl.Setup(settings, tmp_path)


def test_no_state_to_be_shown_is_said() -> None:
    with pytest.raises(UsageError, match="names no privileged state"):
        registry.make_env("Wipe", render_frames=False, extras=("privileged",))


def test_a_task_is_named_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["rl", "Reach", "--world.task", "Lift", "--out", str(tmp_path / "run")]) == 2
    assert "--world.task beside Reach" in capsys.readouterr().err


def test_seeds_without_a_point_in_common_are_no_line() -> None:
    point = {"validation_success": 1.0, "validation_episodes": 2}
    with pytest.raises(InvalidInput, match="--validate_every"):
        _series("a", [[{"step": 1, **point}], [{"step": 2, **point}]])
