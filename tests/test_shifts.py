"""Visual shifts: other pictures, the same physics; seeded; train and test never meet."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator

import numpy as np
import pytest

from s2robot.envs import TASKS, make_env, pick_color
from s2robot.envs.bridge import RobosuiteEnv
from s2robot.envs.looks import FIELDS
from s2robot.envs.shifts import BANDS, KINDS, LEAST, SPLITS, Draws, Shift
from s2robot.errors import InvalidInput, UnknownName
from s2robot.types import FRAMES

pytestmark = pytest.mark.sim
SIZE = 48


@pytest.fixture(scope="module")
def shifted() -> Iterator[RobosuiteEnv]:
    env = make_env("Lift", fidelity="fast", frame_size=SIZE, shift="all")
    yield env
    env.close()


@pytest.mark.parametrize("words", ["light", "light,table:0.5", "all/test", "camera:0.1/test", ""])
def test_a_shift_is_what_its_words_say_and_says_them_again(words: str) -> None:
    shift = Shift.parse(words)
    assert Shift.parse(str(shift)) == shift or not words
    assert str(shift) == str(Shift.parse(str(shift)))
    assert all(getattr(shift, kind) > 0 for kind in KINDS if kind in words or "all" in words)


@pytest.mark.parametrize("words", ["lihgt", "light:loud", "light:2", "light:0.05", "light/tset", "light:nan"])
def test_bad_words_are_refused_with_what_there_is(words: str) -> None:
    with pytest.raises((UnknownName, InvalidInput), match=r"light|test|expected"):
        Shift.parse(words)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_looks_different_and_moves_the_same(name: str) -> None:
    states, frames = [], []
    for shift in ("", "all/test"):
        env = make_env(name, fidelity="fast", frame_size=SIZE, shift=shift)
        frames.append(env.reset(seed=5)[0][FRAMES].astype(int))
        rng = np.random.default_rng(0)
        for _ in range(8):
            env.advance(rng.uniform(-1, 1, env.action_space.shape or ()).astype(np.float32))
        states.append(env.state())
        env.close()
    np.testing.assert_array_equal(*states)
    assert (np.abs(frames[0] - frames[1]).mean(axis=(1, 2, 3)) > 4).all()  # in both views


def test_looks_depend_on_the_seed_alone(shifted: RobosuiteEnv) -> None:
    first = shifted.reset(seed=1)[0][FRAMES]
    other = shifted.reset(seed=2)[0][FRAMES]
    for _ in range(5):
        shifted.advance(np.array([1, 1, -1, 1], np.float32))
    again = shifted.reset(seed=1)[0][FRAMES]
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 4
    fresh = make_env("Lift", fidelity="fast", frame_size=SIZE, shift="all")
    np.testing.assert_array_equal(first, fresh.reset(seed=1)[0][FRAMES])
    fresh.close()


def test_without_a_seed_every_episode_looks_different_and_physics_goes_on_as_ever(shifted: RobosuiteEnv) -> None:
    plain = make_env("Lift", fidelity="fast", render_frames=False)
    for env in (plain, shifted):
        env.reset(seed=1)
    looks = []
    for _ in range(2):
        plain.reset()
        looks.append(shifted.reset()[0][FRAMES].astype(int))
        np.testing.assert_array_equal(plain.state(), shifted.state())
    plain.close()
    assert np.abs(looks[0] - looks[1]).mean() > 4
    shifted.reset(seed=1)
    for seen in looks:  # the same again: they follow from the last seed there was
        np.testing.assert_array_equal(shifted.reset()[0][FRAMES], seen)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_changes_what_it_says_and_looks_the_same_beside_others(kind: str, shifted: RobosuiteEnv) -> None:
    env = make_env("Lift", fidelity="fast", frame_size=SIZE, shift=kind)
    assert env._looks and shifted._looks
    stock = {name: getattr(env._looks.model, name).copy() for name in FIELDS}
    for each in (env, shifted):
        each.reset(seed=3)
    changed = {name for name in FIELDS if not np.array_equal(stock[name], getattr(env._looks.model, name))}
    allowed = {
        "light": {"light_diffuse", "light_pos"},
        "table": {"mat_texid", "mat_texrepeat", "mat_texuniform"},
        "objects": {"geom_rgba", "geom_matid"},
        "camera": {"cam_pos", "cam_quat", "cam_fovy"},
        "distractors": set(),
    }
    assert changed <= allowed[kind] and bool(changed) == (kind != "distractors")
    assert bool(env._looks.props) == (kind == "distractors")
    for name in changed:
        np.testing.assert_array_equal(getattr(env._looks.model, name), getattr(shifted._looks.model, name))
    env.close()


def test_offsets_of_the_splits_never_meet_at_any_strength() -> None:
    seen: dict[str, set[int]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for strength in (LEAST, 0.3, 1.0):
            draws = Draws((1, 2), split)
            offsets = np.array([draws.offset(strength) for _ in range(500)])
            assert np.abs(offsets).max() <= strength and np.abs(offsets).max() > 0.4 * strength
            assert offsets.min() < 0 < offsets.max()
            seen[split] |= set((np.abs(offsets) * BANDS).astype(int).tolist())
        assert {draws.whole(2, 24) % 2 for _ in range(100)} == {SPLITS.index(split)}
    assert not seen["train"] & seen["test"] and len(seen["train"]) == len(seen["test"]) == BANDS // 2


def test_the_same_seed_looks_different_in_the_other_split(shifted: RobosuiteEnv) -> None:
    test = make_env("Lift", fidelity="fast", frame_size=SIZE, shift="all/test")
    frames = [env.reset(seed=1)[0][FRAMES].astype(int) for env in (shifted, test)]
    test.close()
    assert np.abs(frames[0] - frames[1]).mean() > 4


def test_colours_that_name_objects_stay_what_they_are_called() -> None:
    env = make_env("PickColor", fidelity="fast", frame_size=SIZE, shift="objects")
    model = env._looks.model if env._looks else None
    hues = {name: colorsys.rgb_to_hsv(*rgb)[0] for name, rgb in pick_color.COLOURS.items()}
    for seed in range(20):
        env.reset(seed=seed)
        for name in hues:
            seen = colorsys.rgb_to_hsv(*model.geom(f"{name}_cube_g0_vis").rgba[:3])[0]
            away = {other: abs((seen - hue + 0.5) % 1 - 0.5) for other, hue in hues.items()}
            assert min(away, key=lambda other: away[other]) == name
    env.close()


def test_distractors_stand_on_the_table_apart_from_the_objects() -> None:
    for task, ground in (("PickColor", 0.8), ("PickPlaceCan", 0.8)):
        env = make_env(task, fidelity="fast", frame_size=SIZE, shift="distractors")
        for seed in range(5):
            env.reset(seed=seed)
            assert env._looks
            spots = np.array([prop.position for prop in env._looks.props])
            assert len(spots) >= 3 and (spots[:, 2] > ground).all()
            objects = env._looks._places()
            apart = np.linalg.norm(spots[:, None, :2] - objects[None], axis=-1)
            assert apart.min() > 0.1
        env.close()
