"""Depth, segmentation and privileged state on request: the pictures agree with each other and with the state."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from s2robot.envs import make_env
from s2robot.envs.bridge import RobosuiteEnv
from s2robot.envs.extras import EXTRAS
from s2robot.errors import UnknownName, UsageError
from s2robot.types import DEPTH, FRAMES, PRIVILEGED, SEGMENTATION, check_observation

pytestmark = pytest.mark.sim
SIZE = 96


@pytest.fixture(scope="module")
def env() -> Iterator[RobosuiteEnv]:
    made = make_env("Lift", fidelity="fast", frame_size=SIZE, extras=EXTRAS)
    yield made
    made.close()


def test_extras_keep_gymnasiums_contract(env: RobosuiteEnv) -> None:
    check_env(env, skip_render_check=True)
    observation, _ = env.reset(seed=0)
    check_observation(observation)
    assert set(EXTRAS) < set(observation) and env.observation_space.contains(observation)


def test_they_are_not_there_unless_asked_for() -> None:
    plain = make_env("Lift", fidelity="fast", frame_size=32)
    observation, _ = plain.reset(seed=0)
    assert not set(EXTRAS) & set(observation) and not set(EXTRAS) & set(plain.observation_space)
    plain.close()


def test_segments_are_named_and_the_cube_is_where_it_is_red(env: RobosuiteEnv) -> None:
    observation, _ = env.reset(seed=0)
    assert env.segment_names[:3] == ("background", "robot", "gripper") and {"table", "cube_main"} <= set(
        env.segment_names
    )
    cube = observation[SEGMENTATION][0] == env.segment_names.index("cube_main")
    frame = observation[FRAMES][0].astype(int)
    red = (frame[..., 0] > 1.8 * frame[..., 1]) & (frame[..., 0] > 1.8 * frame[..., 2])
    assert cube.sum() > 10 and (cube & red).sum() > 0.85 * max(cube.sum(), red.sum())


def test_depth_and_segments_put_the_cube_where_the_state_says(env: RobosuiteEnv) -> None:
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        cube = observation[SEGMENTATION][0] == env.segment_names.index("cube_main")
        rows, columns = np.nonzero(cube)
        data, model = env._env.sim.data._data, env._env.sim.model._model
        camera = model.camera("agentview").id
        reach = np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
        depth = observation[DEPTH][0][rows, columns]
        x, y = (columns + 0.5) / SIZE * 2 - 1, 1 - (rows + 0.5) / SIZE * 2
        seen = np.stack([x * reach * depth, y * reach * depth, -depth], axis=1)
        points = seen @ data.cam_xmat[camera].reshape(3, 3).T + data.cam_xpos[camera]
        where = observation[PRIVILEGED][[env.privileged_names.index(f"cube.{k}") for k in range(3)]]
        assert np.abs(points.mean(axis=0) - where).max() < 0.03


def test_unknown_extras_and_pictures_without_a_renderer_are_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'depth'"):
        make_env("Lift", extras=("dpeth",))
    with pytest.raises(UsageError, match="render_frames"):
        make_env("Lift", render_frames=False, extras=("depth",))
