"""The simulations of `s2robot rl`, and demonstrations as their transitions: what is replayed is what happened."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("stable_baselines3")
from s2robot import config as configuration
from s2robot import registry
from s2robot.adapters.sb3_demos import DemoReplayBuffer, States, Transitions, transitions
from s2robot.adapters.sb3_sight import Sight
from s2robot.adapters.sb3_worlds import LAST, Worlds, make_worlds
from s2robot.collect import CollectConfig, collect
from s2robot.errors import S2RobotError, UsageError
from s2robot.policies.ensemble import Ensemble
from s2robot.policies.rl_picker import EDGE, corrected, pick
from s2robot.policies.rlpd import RLPDConfig
from s2robot.rl_config import DemosConfig, RLConfig, SightConfig, WorldConfig, rl_schema

pytestmark = pytest.mark.sim
REACH = WorldConfig(task="Reach", execute=4)


@pytest.fixture(scope="module")
def reach() -> Iterator[Worlds]:
    worlds = make_worlds(REACH, 2_000_000, "privileged")
    yield worlds
    worlds.close()


def acted(worlds: Worlds, count: int, seed: int) -> list[Any]:
    """What so many random decisions lead to."""
    rng = np.random.default_rng(seed)
    chunks = rng.uniform(-1, 1, (count, worlds.num_envs, worlds.action_space.shape[0])).astype(np.float32)
    return [worlds.step(chunk) for chunk in chunks]


def same(one: list[Any], two: list[Any]) -> None:
    for (seen, rewards, dones, _), (again, others, ends, _) in zip(one, two, strict=True):
        assert seen.keys() == again.keys() and (rewards == others).all() and (dones == ends).all()
        for key, value in seen.items():
            np.testing.assert_array_equal(value, again[key])


def test_a_simulation_that_dies_is_an_error_and_no_experience(reach: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    reach.queue = None
    reach.reset()
    step = reach.simulations.step_chunk

    def dying(chunks: np.ndarray) -> Any:
        *seen, told = step(chunks)
        return *seen, {**told, "worker_died": np.array(["its process was killed."], object)}

    monkeypatch.setattr(reach.simulations, "step_chunk", dying)
    with pytest.raises(S2RobotError, match=r"its process was killed\. The same command goes on"):
        acted(reach, 1, seed=1)


def test_an_episode_ends_by_time_or_success_and_rewards_say_which(reach: Worlds) -> None:
    """Dense: a cost, so that to succeed is never worse than to go on."""
    reach.queue = None
    reach.reset()
    steps = acted(reach, 30, seed=1)
    (_, _, _, (info,)), *_ = [step for step in steps if step[2].any()]
    assert info["TimeLimit.truncated"] is True and info["is_success"] is False and info["episode"]["l"] == 60
    assert all(-4 <= step[1][0] <= 0 for step in steps) and info[LAST]["privileged"].shape == (9,)
    expert, found = reach.simulations.env.task.demonstrator(), []
    reach.reset()
    expert.reset()
    while not found or not found[-1][2].any():
        chunk = np.tile(expert.act(reach.simulations.env.privileged()), 4)
        found.append(reach.step(chunk[None]))
    _, _, _, (info,) = found[-1]
    assert info["is_success"] and not info["TimeLimit.truncated"] and info["seed"] == reach.first_seed + reach.begun - 2


def test_running_out_of_time_is_failure_where_that_is_asked_for() -> None:
    worlds = make_worlds(dataclasses.replace(REACH, reward="sparse", timeout="failure"), 0, "privileged")
    worlds.reset()
    (_, _, _, (info,)), *_ = [step for step in acted(worlds, 30, seed=1) if step[2].any()]
    worlds.close()
    assert info["episode"]["l"] == 60 and not info["is_success"] and info["TimeLimit.truncated"] is False


def test_a_task_that_rewards_success_alone_is_shaped_where_rewards_are_to_be_dense() -> None:
    for reward, shaped in (("dense", True), ("sparse", False)):
        worlds = make_worlds(WorldConfig(task="Lift", reward=reward), 0, "privileged")
        worlds.reset()
        rewards = np.array([step[1][0] for step in acted(worlds, 8, seed=0)])
        assert (
            (np.unique(rewards).size > 2 and (rewards > -4).all() and (rewards < 0).all())
            if shaped
            else not rewards.any()
        )
        worlds.close()


def test_where_one_was_is_found_again(reach: Worlds) -> None:
    """Whatever happened in between: other seeds, other episodes."""
    reach.reset()
    last = acted(reach, 20, seed=2)[-1][0]  # amid the second episode
    memory = reach.remember()
    ahead = acted(reach, 14, seed=3)
    reach.queue = [500_000, 500_001]
    reach.reset()
    acted(reach, 7, seed=4)
    again = reach.recall(memory)
    np.testing.assert_array_equal(again["privileged"], last["privileged"])
    same(ahead, acted(reach, 14, seed=3))
    assert reach.episode_seeds[0] == memory["seeds"][0] + 1


def test_several_in_processes_are_found_again_though_their_pasts_differ() -> None:
    """They are stepped together, so the shorter past waits."""
    worlds = make_worlds(dataclasses.replace(REACH, envs=2), 2_000_000, "privileged")
    worlds.reset()
    assert worlds.episode_seeds == [2_000_000, 2_000_001]
    acted(worlds, 4, seed=0)
    worlds.simulations.reset(seed=[0, 2_000_002], options={"reset_mask": np.array([False, True])})
    worlds.episode_seeds[1], worlds.played[1] = 2_000_002, []
    last = acted(worlds, 3, seed=1)[-1][0]
    memory = worlds.remember()
    assert list(map(len, memory["actions"])) == [28, 12]
    ahead = acted(worlds, 10, seed=2)
    again = worlds.recall(memory)
    np.testing.assert_array_equal(again["proprioception"], last["proprioception"])
    same(ahead, acted(worlds, 10, seed=2))
    worlds.close()


def test_the_curve_counts_its_own_seeds_alone_where_simulations_are_more_than_episodes() -> None:
    from s2robot.adapters.sb3_course import validate

    worlds = make_worlds(dataclasses.replace(REACH, envs=3), 2_000_000, "privileged")
    worlds.reset()

    class Still:
        """A learner that does nothing, and that sees as it trains."""

        training = True

        def get_env(self) -> Worlds:
            return worlds

        def get_vec_normalize_env(self) -> Any:
            return self

        @property
        def policy(self) -> Any:
            return self

        def set_training_mode(self, mode: bool) -> None:
            pass

        def predict(self, observation: Any, deterministic: bool) -> Any:
            return np.zeros((3, worlds.action_space.shape[0]), np.float32), None

    seen: list[int] = []
    real = worlds.step

    def step(actions: Any) -> Any:
        result = real(actions)
        for info in result[3]:
            if "episode" in info:
                seen.append(info["seed"])
                info["success"] = info["seed"] != 500_000  # all that training begins would succeed
        return result

    worlds.step = step  # type: ignore[method-assign]
    wins, steps = validate(Still(), worlds, 1, first=500_000)
    assert set(seen) > {500_000}  # the others' episodes ended too
    assert wins == 0 and 0 < steps <= 60
    worlds.close()


@pytest.mark.parametrize("reward", ["sparse", pytest.param("dense", marks=pytest.mark.slow)])
def test_demonstrations_are_transitions_that_the_simulation_repeats(tmp_path: Path, reward: str) -> None:
    """From the first look on, by the actions that were executed: the same states, the same rewards, the same end."""
    dataset = collect(CollectConfig("Reach", demos=2, frame_size=32, workers=1), tmp_path / "demos.hdf5")
    world = dataclasses.replace(REACH, reward=reward)
    config = RLConfig(world=world, sight=SightConfig("privileged"), demos=DemosConfig(stride=2))
    worlds = make_worlds(world, 0, "privileged")
    found = transitions(dataset, States(dataset, 2, worlds.simulations.env), Sight(config.sight), config, range(2))
    assert found.dones.sum() == 2 * 2  # an episode: of the starts two steps apart, two come to the end
    row = 0
    for k in range(2):
        length = len(dataset.episode(k))
        worlds.queue = [dataset.episode(k).seed]
        seen = worlds.reset()
        for start in range(0, length, 4):
            at = row + start // 2
            for key in ("proprioception", "privileged"):
                np.testing.assert_allclose(found.before[key][at], seen[key][0], atol=2e-5)
            seen, rewards, dones, (info,) = worlds.step(found.actions[at][None])
            np.testing.assert_allclose(found.rewards[at], rewards[0], atol=1e-5)
            assert found.dones[at] == dones[0] == info["is_success"]
        row += -(-length // 2)
    assert row == len(found.actions)
    worlds.close()


def test_a_share_of_every_batch_is_of_demonstrations() -> None:
    from gymnasium import spaces

    space = spaces.Dict({"state": spaces.Box(-10, 10, (1,), np.float32)})
    buffer = DemoReplayBuffer(50, space, spaces.Box(-1, 1, (2,), np.float32), "cpu", half=(), share=0.25)

    def one(value: float) -> Any:
        return {"state": np.full((1, 1), value, np.float32)}

    for _ in range(5):
        buffer.add(one(1), one(2), np.zeros((1, 2)), 0.0, False, [{}])
    assert (buffer.sample(16).observations["state"] == 1).all()  # none yet
    kept = {"state": np.full((3, 1), -1, np.float32)}
    after = {"state": np.full((3, 1), -2, np.float32)}
    buffer.hold(Transitions(kept, after, np.zeros((3, 2), np.float32), np.ones(3, np.float32), np.ones(3, bool)))
    batch = buffer.sample(16)
    state, following = batch.observations["state"][:, 0], batch.next_observations["state"][:, 0]
    assert (state == -1).sum() == 4 and (following[state == -1] == -2).all() and (following[state == 1] == 2).all()
    assert (batch.dones[:, 0] == (state == -1)).all() and batch.rewards.sum() == 4


def test_an_ensemble_is_its_members() -> None:
    torch.manual_seed(0)
    ensemble, inputs = Ensemble(3, 5, (8, 4)), torch.randn(6, 5)
    for parameter in ensemble.parameters():
        nn.init.normal_(parameter)
    values = ensemble(inputs)
    for k in range(3):
        x = inputs
        for layer, width in enumerate((8, 4)):
            x = x @ ensemble.weights[layer][k] + ensemble.biases[layer][k]
            x = nn.functional.layer_norm(x, (width,), ensemble.gains[layer][k, 0], ensemble.shifts[layer][k, 0]).relu()
        torch.testing.assert_close(values[k], (x @ ensemble.weights[2][k] + ensemble.biases[2][k])[:, 0])


def test_the_actors_chunk_is_picked_where_every_critic_prefers_it() -> None:
    opinions = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0]])  # of two critics, of the actor's after three looks

    def critic(inputs: torch.Tensor) -> torch.Tensor:
        return opinions if inputs[0, -1] == 1 else torch.zeros(2, 3)  # of the prior's: nothing

    words: Any = critic, torch.zeros(3, 4), torch.ones(3, 2), torch.zeros(3, 2)
    assert pick(*words)[:, 0].tolist() == [1, 0, 0]


def test_a_correction_of_nothing_is_the_prior() -> None:
    proposal = torch.linspace(-1, 1, 9)[None]
    torch.testing.assert_close(corrected(proposal, torch.zeros(1, 9)).tanh(), proposal.clamp(-EDGE, EDGE))


def test_settings_outside_their_range_are_refused() -> None:
    for make in (
        lambda: WorldConfig(execute=0), lambda: WorldConfig(reward="shaped"), lambda: SightConfig(see="depth"),
        lambda: SightConfig(components=-1), lambda: RLConfig(gamma=1.0), lambda: RLPDConfig(demos=1.0),
        lambda: WorldConfig(timeout="failure"), lambda: WorldConfig(timeout="death", reward="sparse"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=r"expected|Known"):
            make()


@pytest.mark.parametrize("name", [name for name in configuration.names() if name.startswith("rl-")])
def test_configs_that_ship_are_runs(name: str) -> None:
    algorithm = configuration.said(name, "algorithm")
    config = configuration.load(rl_schema(algorithm), name)
    assert config.algorithm == algorithm and type(config.learn) is registry.algorithm(algorithm).CONFIG
    assert registry.get_task(config.world.task).cameras
