"""A stage is what it was told to be: poses reached, contacts true, every pixel's owner known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("robosuite")
from s2robot.envs.lift import TABLE_TOP
from s2robot.envs.probe_scenes import COLOURS, FINGERS_OPEN, LABELS, REGION, ProbeScenes, _down
from s2robot.envs.props import Prop
from s2robot.envs.stage import PARTS, Stage
from s2robot.envs.workspace import BLOCK, MOMENTS, PATTERN, SceneSampler

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    made = Stage(128, ("agentview", "robot0_eye_in_hand"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def scenes() -> Iterator[ProbeScenes]:
    made = ProbeScenes(128, seed=3)
    yield made
    made.close()


def test_the_gripper_comes_where_it_is_sent(stage: Stage) -> None:
    stage.clear()
    rng = np.random.default_rng(0)
    for yaw in (-0.5, 0.0, 0.5):
        target = np.array([*rng.uniform(-0.15, 0.15, 2), TABLE_TOP + 0.2])
        assert stage.reach(target, _down(yaw), rng)
        stage.settle()
        position, rotation = stage.gripper()
        assert np.abs(position - target).max() < 2e-3
        assert np.abs(rotation - _down(yaw)).max() < 0.03


def test_nowhere_is_not_reached(stage: Stage) -> None:
    stage.clear()
    assert not stage.reach(np.array([3.0, 0, 1.0]), _down(0.0), np.random.default_rng(0))


def test_a_cube_is_touched_when_the_fingers_are_narrower_than_it(stage: Stage) -> None:
    stage.clear()
    assert stage.reach(np.array([0, 0, TABLE_TOP + 0.2]), _down(0.0), np.random.default_rng(0))
    half = 0.018
    for name in ("cube_g0", "cube_g0_vis"):
        stage.model.geom_size[stage.model.geom(name).id] = half
    for room, touched in ((-0.001, True), (0.004, False), (-0.0005, True), (0.02, False)):
        stage.open_fingers((half + room) / FINGERS_OPEN)
        stage.settle()
        position, rotation = stage.gripper()
        stage.place_cube(position, float(np.arctan2(rotation[1, 1], rotation[0, 1]) - np.pi / 2))
        stage.settle()
        assert stage.touches("gripper", "cube") == touched, room


def test_every_pixel_of_a_prop_is_known_and_where_it_should_be(stage: Stage) -> None:
    stage.clear()
    stage.props = [
        Prop.standing("box", (0.0, -0.1), (0.03, 0.03, 0.03), colour=(1, 0, 0)),
        Prop.standing("ball", (0.05, 0.1), (0.03, 0.03, 0.03), colour=(0, 1, 0)),
        Prop.standing("cylinder", (-0.1, 0.0), (0.03, 0.03, 0.03), colour=(0, 0, 1)),
    ]
    stage.settle()
    parts, frames, side = stage.parts()[0], stage.frames()[0].astype(int), 128
    for k, prop in enumerate(stage.props):
        rows, columns = np.nonzero(parts == len(PARTS) - 1 + k)
        assert len(rows) > 20
        x, y = stage.pixel("agentview", np.array([prop.position]))[0]
        assert abs(columns.mean() - (x + 1) / 2 * side) < 1.5
        assert abs(rows.mean() - (1 - y) / 2 * side) < 1.5
        colours = frames[rows, columns]
        assert (colours.argmax(axis=1) == k).mean() > 0.8
    assert {0, 1, 2, 3} <= set(np.unique(parts))


def test_depth_is_the_distance_along_the_axis(stage: Stage) -> None:
    stage.clear()
    stage.settle()
    depth = stage.depth()[0]
    camera = stage.model.camera("agentview").id
    ahead = -stage.data.cam_xmat[camera].reshape(3, 3)[:, 2]
    spot = np.array([0.15, 0.0, TABLE_TOP])  # bare table
    x, y = stage.pixel("agentview", spot[None])[0]
    seen = depth[int((1 - y) / 2 * 128), int((x + 1) / 2 * 128)]
    assert seen == pytest.approx(float((spot - stage.data.cam_xpos[camera]) @ ahead), abs=0.01)


def test_a_cleared_stage_looks_as_it_did(stage: Stage) -> None:
    stage.clear()
    stage.settle()
    before = stage.frames()
    stage.model.mat_rgba[:, :3] = 0.5
    stage.model.mat_texid[:, 1] = 1
    stage.model.cam_pos[:] += 0.1
    stage.props = [Prop.standing("box", (0, 0), (0.05, 0.05, 0.05), colour=(1, 0, 0))]
    stage.settle()
    assert (stage.frames() != before).mean() > 0.2
    stage.clear()
    stage.settle()
    assert np.array_equal(stage.frames(), before)


def test_a_painted_texture_is_put_back(stage: Stage) -> None:
    """Else a scene would depend on those drawn before it."""

    def dressed() -> NDArray[np.uint8]:
        stage.model.mat_texid[stage.model.mat("table_ceramic").id, 1] = stage.model.tex(PATTERN).id
        stage.settle()
        return stage.frames()

    stage.clear()
    before, size = dressed(), stage.model.tex(PATTERN)
    stage.paint(PATTERN, np.zeros(int(size.height[0] * size.width[0] * 3), np.uint8))
    assert (dressed() != before).mean() > 0.1
    stage.clear()
    assert np.array_equal(dressed(), before)
    stage.clear()


# -- scenes for probes -----------------------------------------------------------------------------------------------


def test_a_probe_scene_is_a_function_of_its_seed(scenes: ProbeScenes) -> None:
    first = scenes.scene(5)
    scenes.scene(6)
    again = scenes.scene(5)
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one, other)


def test_what_is_said_of_a_probe_scene_is_true(scenes: ProbeScenes) -> None:
    contacts = []
    for index in range(8):
        scene = scenes.scene(index)
        contacts.append(scene.contact)
        assert np.abs(scene.cubes).max() <= REGION
        names = list(COLOURS)
        middles = {}
        for k, name in enumerate(names):
            rows, columns = np.nonzero(scene.labels[0] == LABELS.index(name))
            assert len(rows) >= 3
            middles[k] = columns.mean()
            if len(rows) >= 8:  # most of it is seen: its colour is that of its frame's pixels
                red, green, blue = scene.frames[0][rows * 2 + 1, columns * 2 + 1].mean(axis=0)
                assert {"red": red > 1.5 * green, "green": green > 1.5 * red, "blue": blue > 1.5 * red}.get(
                    name, min(red, green) > 1.5 * blue
                )
        assert middles[scene.leftmost] - min(middles.values()) < 3
        assert scene.depth.shape == scene.labels.shape == (2, 64, 64)
    assert 0 < sum(contacts) < 8


# -- scenes for pre-training -----------------------------------------------------------------------------------------


def test_workspace_scenes_are_functions_of_their_seed() -> None:
    sampler = SceneSampler(64, seed=1)
    first, other = sampler.episode(3), sampler.episode(4)
    assert first.shape == (3 * MOMENTS, 64, 64, 3)
    assert (first != other).mean() > 0.3
    sampler.episode(BLOCK)  # another robot
    assert np.array_equal(sampler.episode(3), first)
    sampler.close()
    fresh = SceneSampler(64, seed=1)
    assert np.array_equal(fresh.episode(3), first)
    fresh.close()
