"""The bridge to robosuite: contracts, seeds, fidelities, orientation, action order."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import s2robot
from s2robot.collect import CollectConfig, collect
from s2robot.envs import TASKS, get_task, make_env, osc, pick_color
from s2robot.envs.bridge import FIDELITIES, RobosuiteEnv
from s2robot.envs.lift import PLACEMENT
from s2robot.envs.plain import PlainRobosuite
from s2robot.envs.vector import VectorEnv
from s2robot.errors import InvalidInput, UnknownName, UsageError
from s2robot.types import FRAMES, GOAL, PROPRIOCEPTION, check_observation

pytestmark = pytest.mark.sim


def play(env: RobosuiteEnv, seed: int, steps: int = 12) -> str:
    """A digest of everything an episode shows."""
    digest = hashlib.sha256()
    observation, _ = env.reset(seed=seed)
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, *env.action_space.shape)).astype(np.float32)
    for action in actions:
        digest.update(observation[FRAMES].tobytes() + observation[PROPRIOCEPTION].tobytes() + env.state().tobytes())
        observation, *_ = env.step(action)
    return digest.hexdigest()


@pytest.mark.parametrize("name", TASKS)
def test_every_task_keeps_gymnasiums_contract(name: str) -> None:
    from gymnasium.utils.env_checker import check_env

    env = gymnasium.make(f"s2robot/{name}-v0", frame_size=32, fidelity="fast", disable_env_checker=True)
    try:
        check_env(env.unwrapped, skip_render_check=True)
        observation, _ = env.reset(seed=0)
        check_observation(observation)
        with pytest.raises(InvalidInput, match="An observation is a ndarray; expected a dict"):
            check_observation(observation[FRAMES])
        assert env.observation_space.contains(observation)
    finally:
        env.close()


def test_one_seed_gives_the_same_bits_whatever_came_before(lift_env: RobosuiteEnv) -> None:
    seen = set()
    for fingers in (-1.0, 1.0):
        lift_env.reset(seed=8)
        for _ in range(5):  # leaves fingers, controllers and solver in another state
            lift_env.advance(np.array([0.5, 0.5, -0.5, fingers], np.float32))
        seen.add(play(lift_env, 7))
    assert len(seen) == 1
    assert play(lift_env, 9) not in seen


def test_one_seed_gives_the_same_bits_in_a_fresh_environment(lift_env: RobosuiteEnv) -> None:
    other = make_env("Lift", fidelity="fast", frame_size=64)
    try:
        assert play(other, 7) == play(lift_env, 7)
    finally:
        other.close()


def test_exact_fidelity_is_plain_robosuite() -> None:
    env, plain = make_env("Lift", fidelity="exact", render_frames=False), PlainRobosuite("Lift")
    env.reset(seed=3)
    plain.reset(seed=3)
    np.testing.assert_array_equal(env.state(), plain.state())
    rng = np.random.default_rng(0)
    for _ in range(60):
        action = rng.uniform(-1, 1, 4).astype(np.float32)
        env.advance(action)
        plain.step(action)
    assert env._arm is not None
    np.testing.assert_array_equal(env.state(), plain.state())
    env.close()


@pytest.mark.parametrize("fidelity", FIDELITIES)
@pytest.mark.parametrize("name", TASKS)
def test_the_controller_between_actions_is_robosuites(name: str, fidelity: str) -> None:
    env, states = make_env(name, fidelity=fidelity, render_frames=False), []
    for ours in (True, False):
        env.reset(seed=5)
        assert env._arm is not None
        env._arm = env._arm if ours else None
        for action in np.random.default_rng(5).uniform(-1, 1, (40, *env.action_space.shape)).astype(np.float32):
            env.advance(action)
        states.append(env.state())
    env.close()
    np.testing.assert_array_equal(*states)


def test_other_controllers_are_left_to_robosuite() -> None:
    env = make_env("Reach", fidelity="fast", render_frames=False)
    env.reset(seed=0)
    arm = env._env.robots[0].part_controllers["right"]
    for name, value in (
        ("interpolator_pos", object()),
        ("impedance_mode", "variable"),
        ("__class__", type("Other", (type(arm),), {})),
    ):
        before = getattr(arm, name)
        setattr(arm, name, value)
        assert osc.arm_of(env._env) is None
        setattr(arm, name, before)
    assert osc.arm_of(env._env) is not None
    env.close()


@pytest.mark.parametrize("fidelity", FIDELITIES)
@pytest.mark.parametrize("name", TASKS)
def test_every_expert_does_its_task(name: str, fidelity: str) -> None:
    env = make_env(name, fidelity=fidelity, render_frames=False)
    expert, wins = env.task.demonstrator(), 0
    for seed in range(6):
        env.reset(seed=seed)
        expert.reset()
        while not env._over:
            _, _, success, _, _ = env.step(expert.act(env.privileged()))
        wins += success
    env.close()
    assert wins == 6


def test_cubes_are_placed_over_the_whole_square(lift_env: RobosuiteEnv) -> None:
    places = []
    for seed in range(60):
        lift_env.reset(seed=seed)
        places.append(lift_env.privileged()["cube"][:2])
    assert np.abs(places).max() <= PLACEMENT + 1e-6
    assert (np.max(places, axis=0) > 0.8 * PLACEMENT).all() and (np.min(places, axis=0) < -0.8 * PLACEMENT).all()


@pytest.mark.parametrize(("index", "axis"), [(0, 0), (1, 1), (2, 2)])
def test_each_action_moves_the_gripper_along_its_axis(lift_env: RobosuiteEnv, index: int, axis: int) -> None:
    lift_env.reset(seed=0)
    before = lift_env.proprioception()[:3]
    action = np.zeros(4, np.float32)
    action[index] = 1.0
    for _ in range(6):
        lift_env.advance(action)
    moved = lift_env.proprioception()[:3] - before
    assert np.argmax(np.abs(moved)) == axis and moved[axis] > 0.05


def test_positive_gripper_action_closes_the_fingers(lift_env: RobosuiteEnv) -> None:
    widths = {}
    for command in (-1.0, 1.0):
        lift_env.reset(seed=0)
        for _ in range(8):
            lift_env.advance(np.array([0, 0, 0, command], np.float32))
        left, right = lift_env.proprioception()[3:5]
        widths[command] = left - right
    assert widths[1.0] < 0.01
    assert widths[-1.0] > 0.05


def test_frames_are_upright_rgb() -> None:
    """agentview looks back at the robot: the base is in the top half, the red cube is red, the table is below."""
    env = make_env("Lift", fidelity="fast", frame_size=128)
    env.reset(seed=0)
    agentview = env.frames()[0].astype(int)
    env.close()
    red = (agentview[..., 0] > 1.8 * agentview[..., 1]) & (agentview[..., 0] > 1.8 * agentview[..., 2])
    rows = np.nonzero(red)[0]
    assert len(rows) > 20
    assert agentview[-32:].mean() > agentview[:32].mean() + 30  # the white table is near, at the bottom
    assert rows.mean() > 40


def test_a_nearer_cube_is_lower_in_the_agentview_and_left_is_left() -> None:
    env = make_env("Lift", fidelity="fast", frame_size=128)
    centres = []
    for x, y in ((-0.1, 0.0), (0.1, 0.0), (0.0, -0.1), (0.0, 0.1)):
        env.reset(seed=0)
        sim = env._env.sim
        joint = env._env.cube.joints[0]
        sim.data.set_joint_qpos(joint, np.array([x, y, 0.83, 1, 0, 0, 0]))
        sim.forward()
        frame = env.frames()[0].astype(int)
        red = (frame[..., 0] > 1.8 * frame[..., 1]) & (frame[..., 0] > 1.8 * frame[..., 2])
        centres.append(np.argwhere(red).mean(axis=0))
    env.close()
    far, near, right, left = centres
    assert near[0] > far[0] + 5
    assert abs(left[1] - right[1]) > 10


def test_a_chunk_is_its_actions_one_after_another(lift_env: RobosuiteEnv) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 4)).astype(np.float32)
    lift_env.reset(seed=4)
    at_once, reward, *_, info = lift_env.step_chunk(actions)
    lift_env.reset(seed=4)
    singly = [lift_env.step(action) for action in actions]
    assert info["steps"] == 5
    assert reward == pytest.approx(sum(step[1] for step in singly))
    np.testing.assert_array_equal(at_once[FRAMES], singly[-1][0][FRAMES])


def test_episodes_end_at_the_horizon_and_then_refuse_to_go_on(lift_env: RobosuiteEnv) -> None:
    lift_env.reset(seed=0)
    *_, terminated, truncated, info = lift_env.step_chunk(np.zeros((200, 4), np.float32))
    assert truncated and not terminated and info["steps"] == lift_env.task.horizon
    with pytest.raises(UsageError, match="reset"):
        lift_env.step(np.zeros(4, np.float32))


def test_what_is_read_beside_a_frame_shown_again_is_what_was_read_there(lift_env: RobosuiteEnv) -> None:
    """The picture is of a step before the joints; what is said of the joints is not."""
    lift_env.reset(seed=3)
    seen = []
    for action in np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(np.float32):
        lift_env.advance(action)
        frames, told = lift_env.frames(), lift_env.privileged()
        seen.append((lift_env.state(), frames, lift_env.proprioception(), told))
    lift_env.reset(seed=3)
    for state, frames, proprioception, told in seen:
        np.testing.assert_array_equal(lift_env.show(state), frames)
        np.testing.assert_allclose(lift_env.proprioception(), proprioception, atol=1e-6)
        again = lift_env.privileged()
        for name, value in told.items():
            np.testing.assert_allclose(again[name], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "option", [{"cameras": "agentview"}, {"extras": "depth"}, {"frame_size": "64"}, {"render_mode": "human"}]
)
def test_options_of_another_type_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=f"{next(iter(option))} is"):
        make_env("Reach", render_frames=False, **option)


def test_a_closed_environment_says_so() -> None:
    env = make_env("Reach", render_frames=False)
    env.reset(seed=0)
    env.close()
    for call in (lambda: env.step(np.zeros(3, np.float32)), env.reset, env.render, env.observe):
        with pytest.raises(UsageError, match="closed: make another"):
            call()


def test_gymnasium_may_name_the_render_mode_and_seeds_of_numpy_do() -> None:
    env = gymnasium.make("s2robot/Reach-v0", render_mode="rgb_array", render_frames=False)
    seeds: list[Any] = [np.int64(3), 3]
    np.testing.assert_array_equal(*(env.reset(seed=seed)[0][PROPRIOCEPTION] for seed in seeds))
    env.close()


def test_physics_that_run_away_end_the_episode(lift_env: RobosuiteEnv) -> None:
    lift_env.reset(seed=0)
    lift_env._env.sim.data._data.qvel[:] = 1e12
    *_, terminated, truncated, info = lift_env.step_chunk(np.zeros((5, 4), np.float32))
    assert truncated and not terminated and info == {"success": False, "steps": 1, "unstable": True}
    lift_env.reset(seed=0)
    *_, truncated, info = lift_env.step_chunk(np.zeros((5, 4), np.float32))
    assert not truncated and info == {"success": False, "steps": 5}


@pytest.mark.parametrize(
    "action", [np.zeros(7), np.full(4, 1.5), np.array([0, np.nan, 0, 0]), np.zeros((1, 4))], ids=str
)
def test_bad_actions_are_refused(lift_env: RobosuiteEnv, action: np.ndarray) -> None:
    lift_env.reset(seed=0)
    with pytest.raises(InvalidInput, match="Action"):
        lift_env.step(action)


def test_thinned_meshes_leave_physics_alone_and_frames_nearly_so() -> None:
    """The fast look differs from robosuite's in shadows and reflections, never in where things are."""
    frames, states = {}, {}
    for quality in ("fast", "robosuite"):
        env = make_env("Lift", fidelity="fast", frame_size=128, quality=quality)
        env.reset(seed=1)
        for _ in range(5):
            env.advance(np.array([0.5, -0.2, -0.5, -1], np.float32))
        frames[quality], states[quality] = env.frames()[0].astype(float), env.state()
        env.close()
    np.testing.assert_array_equal(states["fast"], states["robosuite"])
    grey = {quality: frame.mean(axis=-1) for quality, frame in frames.items()}
    assert np.corrcoef(grey["fast"].ravel(), grey["robosuite"].ravel())[0, 1] > 0.85


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'Lift'"):
        get_task("Lfit")
    with pytest.raises(UnknownName, match="Did you mean 'agentview'"):
        make_env("Lift", cameras=("agentveiw",))
    with pytest.raises(UnknownName, match="Did you mean 'fast'"):
        s2robot.make_env("Lift", fidelity="fsat")


def test_a_process_may_render_first_and_learn_later() -> None:
    """torch's optimizers import triton, whose LLVM crashed on finding Mesa's already loaded."""
    code = (
        "from s2robot.envs import make_env; env = make_env('Lift', frame_size=32); env.reset(seed=0)\n"
        "import torch; layer = torch.nn.Linear(2, 2); optimizer = torch.optim.AdamW(layer.parameters())\n"
        "layer(torch.ones(1, 2)).sum().backward(); optimizer.step(); env.reset(seed=1); env.close(); print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip().endswith("alive"), f"exit code {done.returncode}: {done.stderr[-500:]}"


def test_gymnasium_makes_them_by_name() -> None:
    env = gymnasium.make_vec("s2robot/Reach-v0", num_envs=1, render_frames=False, fidelity="fast")
    try:
        assert isinstance(env.unwrapped, VectorEnv) and env.num_envs == 1
        with pytest.raises(UsageError, match="reset"):
            env.step(np.zeros(env.action_space.shape, np.float32))
    finally:
        env.close()
    with pytest.raises(UsageError, match="closed"):
        env.reset(seed=0)
    env.close()  # twice is no harm


# -- PickColor -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colour_env() -> Iterator[RobosuiteEnv]:
    env = make_env("PickColor", fidelity="fast", render_frames=False)
    yield env
    env.close()


def test_cubes_of_all_colours_stand_apart_and_each_is_asked_for(colour_env: RobosuiteEnv) -> None:
    asked, gaps = [], []
    for seed in range(40):
        observation, _ = colour_env.reset(seed=seed)
        state = colour_env.privileged()
        places = np.array([state[f"{name}_cube"] for name in pick_color.COLOURS])
        assert np.abs(places[:, :2]).max() <= pick_color.PLACEMENT
        gaps.append((np.linalg.norm(places[:, None, :2] - places[None, :, :2], axis=-1) + np.eye(4)).min())
        wanted = int(observation[GOAL].argmax())
        assert observation[GOAL].sum() == 1 and np.array_equal(state["cube"], places[wanted])
        asked.append(wanted)
    assert min(gaps) >= pick_color.GAP - 1e-9
    assert min(np.bincount(asked, minlength=4)) >= 4


def test_only_the_named_cube_counts(colour_env: RobosuiteEnv) -> None:
    suite = colour_env._env
    for cube in range(4):
        colour_env.reset(seed=0)
        joint = suite.cubes[cube].joints[0]
        pose = suite.sim.data.get_joint_qpos(joint).copy()
        pose[2] += 0.1
        suite.sim.data.set_joint_qpos(joint, pose)
        suite.sim.forward()
        assert bool(suite._check_success()) == (cube == suite.target)


def test_the_goal_is_in_the_demonstrations(tmp_path: Path) -> None:
    config = CollectConfig(task="PickColor", demos=3, frame_size=32, workers=1)
    dataset = collect(config, tmp_path / "demos.hdf5")
    env = make_env("PickColor", fidelity="fast", render_frames=False)
    for episode in dataset:
        observation, _ = env.reset(seed=episode.seed)
        assert (episode.goal == observation[GOAL]).all()
    env.close()


def test_demonstrations_name_the_versions_of_a_checkout_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: metadata.version(name) for name in ("mujoco", "robosuite", "numpy")}

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)  # on PYTHONPATH, never installed
    dataset = collect(CollectConfig(task="Reach", demos=1, frame_size=32, workers=1), tmp_path / "demos.hdf5")
    assert dataset.env_args["versions"] == known


def test_a_collected_file_answers_for_what_it_was_asked_and_nothing_else(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"task": "Reach", "demos": 1, "frame_size": 32, "workers": 1, "noise": 0.1}
    first = collect(CollectConfig(**asked), tmp_path / "demos.hdf5")
    assert collect(CollectConfig(**asked), tmp_path / "demos.hdf5").fingerprint == first.fingerprint
    for other in ({"seed": 1}, {"shoves": 0.0}, {"noise": 0.2}, {"fidelity": "exact"}):
        with pytest.raises(InvalidInput, match=f"holds other demonstrations .{next(iter(other))}"):
            collect(CollectConfig(**asked | other), tmp_path / "demos.hdf5")


def test_stock_lift_starts_where_robosuites_does() -> None:
    env = make_env("LiftStock", render_frames=False)
    places = np.array([env.reset(seed=seed) and env.privileged()["cube"][:2] for seed in range(40)])
    env.close()
    assert np.abs(places).max() <= 0.03 + 1e-6 and np.abs(places).max(axis=0).min() > 0.024
