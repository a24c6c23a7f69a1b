"""Other arms, and robosuite's other tasks: the same contract, honest names, clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from s2robot.collect import CollectConfig, collect
from s2robot.envs import TASKS, get_task, make_env
from s2robot.envs.plain import PlainRobosuite
from s2robot.envs.robots import ROBOTS
from s2robot.errors import InvalidInput, UnknownName, UsageError
from s2robot.types import PROPRIOCEPTION, check_observation

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("robot", ROBOTS)
def test_every_arm_tells_as_much_as_it_names(robot: str) -> None:
    env = make_env("Reach", robot=robot, fidelity="fast", frame_size=32)
    observation, _ = env.reset(seed=0)
    check_observation(observation)
    assert env.observation_space.contains(observation)
    assert observation[PROPRIOCEPTION].shape == (len(env.task.proprioception_names),)
    assert len(set(env.task.proprioception_names)) == len(env.task.proprioception_names)
    env.close()


def test_a_panda_tells_what_it_always_did() -> None:
    fields = ("gripper_x", "gripper_y", "gripper_z", "left_finger", "right_finger", "left_finger_speed")
    assert get_task("Lift").proprioception_names == (*fields, "right_finger_speed")


def test_the_expert_lifts_with_another_arm() -> None:
    env, wins = make_env("Lift", robot="IIWA", fidelity="fast", render_frames=False), 0
    expert = env.task.demonstrator()
    for seed in range(5):
        env.reset(seed=seed)
        expert.reset()
        over = success = False
        while not over:
            _, _, success, truncated, _ = env.step(expert.act(env.privileged()))
            over = success or truncated
        wins += success
    env.close()
    assert wins >= 4


@pytest.mark.parametrize("name", ["Wipe", "ToolHang", "NutAssemblyRound", "PickPlaceMilk"])
def test_robosuites_other_tasks_keep_gymnasiums_contract(name: str) -> None:
    env = make_env(name, fidelity="fast", frame_size=32)
    check_env(env, skip_render_check=True)
    observation, _ = env.reset(seed=0)
    check_observation(observation)
    states = []
    for _ in range(2):
        env.reset(seed=3)
        for action in np.random.default_rng(0).uniform(-1, 1, (5, *env.action_space.shape)).astype(np.float32):
            env.advance(action)
        states.append(env.state())
    np.testing.assert_array_equal(*states)
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_200_steps_of_every_task_are_plain_robosuites(name: str) -> None:
    env, plain = make_env(name, fidelity="exact", render_frames=False), PlainRobosuite(name)
    env.reset(seed=3)
    plain.reset(seed=3)
    np.testing.assert_array_equal(env.state(), plain.state())
    for action in np.random.default_rng(0).uniform(-1, 1, (200, *env.action_space.shape)).astype(np.float32):
        if not env._over:
            env.advance(action)
            plain.step(action)
    np.testing.assert_allclose(env.state(), plain.state(), atol=1e-9, rtol=0)
    env.close()


def test_what_there_is_not_is_refused_with_what_there_is(tmp_path) -> None:  # noqa: ANN001
    with pytest.raises(UnknownName, match="Did you mean 'Sawyer'"):
        make_env("Lift", robot="Sawyre")
    with pytest.raises(InvalidInput, match="takes two arms"):
        make_env("TwoArmLift")
    with pytest.raises(UnknownName, match="Did you mean 'Wipe'"):
        make_env("Wiep")
    with pytest.raises(UsageError, match="no scripted expert"):
        collect(CollectConfig(task="Wipe", demos=1), tmp_path / "demos.hdf5")
    env = make_env("Lift", robot="Jaco", render_frames=False, fidelity="fast")
    env.reset(seed=0)
    with pytest.raises(InvalidInput, match="hand"):
        env.privileged()
    env.close()


def test_the_arm_is_in_the_demonstrations_and_comes_back(tmp_path) -> None:  # noqa: ANN001
    config = CollectConfig(task="Reach", robot="Sawyer", demos=1, frame_size=32, workers=1)
    dataset = collect(config, tmp_path / "demos.hdf5")
    assert dataset.env_args["robot"] == "Sawyer"
    env = make_env("Reach", robot=dataset.env_args["robot"], fidelity="fast", render_frames=False)
    observation, _ = env.reset(seed=dataset.episode(0).seed)
    np.testing.assert_array_equal(dataset.episode(0).proprioception[0], observation[PROPRIOCEPTION])
    env.close()
