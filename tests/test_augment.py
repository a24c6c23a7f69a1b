"""Other looks of an episode: what is drawn, what holds for how long, and what becomes of the pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from small_encoders import random_frames

from s2robot.augment import Augmentation, Draw, augment, draw
from s2robot.errors import InvalidInput

NAMES = ("shift", "crop", "brightness", "contrast", "saturation", "gain")
NONE = dict.fromkeys(NAMES, 0.0)
MANY = range(300)


def only(**strengths: float) -> Augmentation:
    return Augmentation(**{**NONE, **strengths})  # type: ignore[arg-type]


def flat(*colour: int) -> NDArray[np.uint8]:
    """A frame of one colour, (1, 1, 8, 8, 3)."""
    return np.broadcast_to(np.array(colour, np.uint8), (1, 1, 8, 8, 3)).copy()


def colours(strengths: Augmentation, *colour: int) -> NDArray[Any]:
    """What many versions make of a colour, (n, 3), the same in the whole frame."""
    made = np.concatenate([augment(flat(*colour), strengths, 1 + k, 0) for k in MANY])
    assert (made == made[:, :, :1, :1]).all()
    return made[:, 0, 0, 0].astype(int)


def test_version_0_and_no_strength_are_the_frames_as_they_are() -> None:
    frames = random_frames(2, 2, 24, 32, 3)
    np.testing.assert_array_equal(augment(frames, Augmentation(), 0, 5), frames)
    np.testing.assert_array_equal(augment(frames, only(), 3, 5), frames)


def test_it_depends_on_seed_version_episode_and_view_and_on_nothing_else() -> None:
    frames = np.broadcast_to(random_frames(1, 1, 32, 32, 3), (1, 2, 32, 32, 3))
    usual = augment(frames, Augmentation(), 1, 0)
    np.random.default_rng().random()
    np.testing.assert_array_equal(augment(frames, Augmentation(), 1, 0), usual)
    others = [augment(frames, Augmentation(), 2, 0), augment(frames, Augmentation(), 1, 1)]
    others.append(augment(frames, Augmentation(seed=1), 1, 0))
    looks = [look[0, view].tobytes() for look in (usual, *others) for view in (0, 1)]
    assert len(set(looks)) == len(looks)


def test_it_holds_for_the_whole_episode_and_each_frame_is_changed_by_itself() -> None:
    frames = random_frames(6, 2, 32, 24, 3)
    frames[:, :, :16] = frames[:1, :, :16]  # the upper half stands still
    seen = augment(frames, Augmentation(), 1, 4)
    assert (seen[:, :, :13] == seen[:1, :, :13]).all()  # 1.3 px of shift and less of crop lie between them
    assert (seen[0, :, 20:] != seen[1, :, 20:]).any()
    for k in range(6):
        np.testing.assert_array_equal(augment(frames[k : k + 1], Augmentation(), 1, 4)[0], seen[k])


def test_a_shift_is_a_crop_of_the_frame_with_its_edge_repeated() -> None:
    frames, found = random_frames(1, 1, 20, 40, 3), set()
    padded = np.pad(frames[0, 0], ((4, 4), (4, 4), (0, 0)), "edge")
    crops = {padded[y : y + 20, x : x + 40].tobytes(): (y - 4, x - 4) for y in range(9) for x in range(9)}
    for k in MANY:
        found.add(crops[augment(frames, only(shift=0.1), 1, k).tobytes()])
    ys, xs = zip(*found, strict=True)
    assert set(ys) == set(range(-2, 3)) and set(xs) == set(range(-4, 5))  # a tenth of 20 and of 40 pixels


def test_a_crop_is_a_piece_resized_to_the_whole() -> None:
    """Held against Pillow's bilinear resize of the same piece, which rounds to whole numbers between its two axes."""
    frames, strengths = random_frames(1, 1, 40, 60, 3), only(crop=0.2)
    frames = frames // 4 + np.arange(60, dtype=np.uint8)[:, None] * 2
    for k in range(20):
        drawn = draw(strengths, 1, k, 0)
        assert 0.8 <= drawn.kept <= 1
        top, left = ((1 - drawn.kept) * at * side for at, side in zip(drawn.corner, (40, 60), strict=True))
        box = (left, top, left + 60 * drawn.kept, top + 40 * drawn.kept)
        expected = Image.fromarray(frames[0, 0]).resize((60, 40), Image.Resampling.BILINEAR, box)
        difference = augment(frames, strengths, 1, k)[0, 0].astype(int) - np.asarray(expected)
        assert np.abs(difference).max() <= 1


def test_every_light_stays_in_its_range_reaches_its_ends_and_does_what_it_says() -> None:
    bright = colours(only(brightness=0.2), 100, 50, 200) / (100, 50, 200)
    assert bright.min() >= 0.79 and bright.max() <= 1.21 and np.ptp(bright[:, 0]) > 0.35
    assert np.ptp(bright, axis=1).max() <= 0.02  # rounding: all channels alike
    contrast = colours(only(contrast=0.2), 27, 127, 228) - 127.5
    assert np.abs(contrast[:, 1]).max() < 1.5  # mid-grey stays
    assert contrast[:, 2].min() >= 79.5 and contrast[:, 2].max() <= 121 and np.ptp(contrast[:, 2]) > 35
    assert (np.abs(contrast[:, 0] + contrast[:, 2]) <= 1).all()
    assert (colours(only(saturation=0.5), 90, 90, 90) == 90).all()  # a grey has none
    red = colours(only(saturation=0.5), 200, 50, 50)
    brightness = red @ (0.299, 0.587, 0.114)
    assert np.ptp(red[:, 0] - red[:, 1]) > 120 and np.ptp(brightness) < 1.5  # more or less of it, equally bright
    gain = colours(only(gain=0.1), 100, 100, 100)
    assert gain.min() >= 90 and gain.max() <= 110 and np.ptp(gain[:, 0] - gain[:, 2]) > 15


def test_numbers_are_rounded_and_never_wrap_around() -> None:
    drawn = [draw(only(brightness=0.3), 1, k, 0).brightness for k in MANY]
    for value in (3, 101, 250):
        made = [int(augment(flat(value, value, value), only(brightness=0.3), 1, k)[0, 0, 0, 0, 0]) for k in MANY]
        exact = np.clip(np.array(drawn) * value, 0, 255)
        assert np.abs(np.array(made) - exact).max() <= 0.5 + 1e-4
        assert augment(flat(value, value, value), Augmentation(), 1, 0).dtype == np.uint8


def test_another_strength_of_one_thing_leaves_the_others_as_they_were() -> None:
    usual, darker = draw(Augmentation(), 1, 2, 0), draw(Augmentation(brightness=0.5), 1, 2, 0)
    assert darker.brightness != usual.brightness
    assert darker._replace(brightness=usual.brightness) == usual


def test_draws_are_even_and_independent_of_each_other() -> None:
    draws: list[Draw] = [draw(Augmentation(), 1, k, 0) for k in MANY]
    table = np.array([(d.kept, *d.corner, *d.shift, d.brightness, d.contrast, d.saturation, *d.gain) for d in draws])
    spread = (table - table.min(axis=0)) / np.ptp(table, axis=0)
    assert np.abs(spread.mean(axis=0) - 0.5).max() < 0.1
    assert np.abs(np.corrcoef(table.T) - np.eye(11)).max() < 0.25


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_decides_the_pixels_is_in_the_identity(name: str) -> None:
    usual = Augmentation().identity(1)
    assert Augmentation(**{name: 0.01}).identity(1) != usual  # type: ignore[arg-type]
    assert Augmentation(seed=1).identity(1) != usual and Augmentation().identity(2) != usual


def test_what_cannot_be_is_refused() -> None:
    for name, value in (("shift", -0.1), ("shift", 0.5), ("crop", 0.5), ("gain", 1.0), ("contrast", float("nan"))):
        with pytest.raises(InvalidInput, match=f"{name} is .*; expected a share"):
            Augmentation(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="seed"):
        Augmentation(seed=-1)
    for frames in (random_frames(2, 8, 8, 3), random_frames(1, 2, 8, 8, 3).astype(np.float32)):
        with pytest.raises(InvalidInput, match=r"expected RGB uint8 \(n, V, H, W, 3\)"):
            augment(frames, Augmentation(), 1, 0)
    with pytest.raises(InvalidInput, match="version is -1"):
        augment(random_frames(1, 2, 8, 8, 3), Augmentation(), -1, 0)
