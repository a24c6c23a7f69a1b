"""Feature pictures: deterministic, comparable between frames, one column a scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from s2robot.errors import InvalidInput
from s2robot.pictures import CAPTION, GAP, feature_picture, principal_colours, split_scales


def frames(count: int = 2, height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def features(count: int = 2, d: int = 12, h: int = 6, w: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, d, h, w)).astype(np.float32)


def test_the_same_input_gives_the_same_pixels_from_numpy_and_torch() -> None:
    maps = features()
    first = feature_picture(frames(), [("scale 1", maps)])
    assert first.tobytes() == feature_picture(frames(), [("scale 1", maps.copy())]).tobytes()
    assert first.tobytes() == feature_picture(frames(), [("scale 1", torch.from_numpy(maps))]).tobytes()


def test_there_is_a_row_a_frame_and_a_column_a_scale_in_the_frames_own_shape() -> None:
    scales = [("scale 1", features()), ("scale 2", features(h=12, w=16))]
    picture = feature_picture(frames(), scales, cell=160)
    assert picture.size == (GAP + 3 * (160 + GAP), CAPTION + 2 * (120 + GAP))


def test_tokens_are_drawn_as_sharp_blocks_where_they_lie() -> None:
    maps = np.zeros((1, 3, 2, 4), np.float32)
    maps[0, 0, 0, 3] = 5.0  # one odd token: upper row, rightmost column
    picture = np.asarray(feature_picture(frames(1, 40, 80), [("scale 1", maps)], cell=80))
    x, y = GAP + 80 + GAP, CAPTION
    cells = picture[y : y + 40, x : x + 80].reshape(2, 20, 4, 20, 3)
    assert (cells == cells[:, :1, :, :1]).all()
    red = cells[:, 0, :, 0, 0]
    assert (red[0, 3], red.sum()) == (255, 255)  # the odd one bright, all others dark


def test_colours_do_not_depend_on_the_arbitrary_sign_of_a_direction() -> None:
    maps = np.random.default_rng(3).gamma(1.0, size=(2, 12, 6, 8))
    mirrored = maps.copy()
    mirrored[:, ::2] *= -1  # turns the axes of feature space: distances between tokens stay what they were
    assert np.abs(principal_colours(maps).astype(int) - principal_colours(mirrored)).max() <= 1


def test_the_fit_is_joint_so_equal_tokens_have_equal_colours_in_every_frame() -> None:
    maps = features(count=2)
    maps[1, :, 3, 4] = maps[0, :, 1, 2]
    colours = principal_colours(maps)
    assert (colours[1, 3, 4] == colours[0, 1, 2]).all()


def test_one_odd_token_does_not_grey_out_the_others() -> None:
    maps = features(count=4)
    calm = principal_colours(maps)[1:].std(axis=(0, 1, 2))
    maps[0, :, 0, 0] = 1000.0
    assert (principal_colours(maps)[1:].std(axis=(0, 1, 2)) > 0.7 * calm).all()


def test_the_directions_that_vary_most_come_first() -> None:
    maps = features(d=6) * np.array([0.1, 0.1, 9.0, 0.1, 3.0, 1.0])[:, None, None]
    colours = principal_colours(maps)
    for channel, direction in enumerate((2, 4, 5)):
        likeness = np.corrcoef(colours[..., channel].ravel(), maps[:, direction].ravel())[0, 1]
        assert abs(likeness) > 0.95


def test_features_in_which_nothing_varies_are_grey() -> None:
    assert (principal_colours(np.ones((2, 8, 4, 4))) == 128).all()
    two_channels = principal_colours(features(d=2))
    assert (two_channels[..., 2] == 128).all()
    assert two_channels[..., :2].std() > 10


def test_split_scales_undoes_the_concatenation_on_channels() -> None:
    coarse, fine = features(seed=1), features(seed=2)
    split = split_scales(np.concatenate([coarse, fine], axis=1), ("scale 1", "scale 2"))
    assert [label for label, _ in split] == ["scale 1", "scale 2"]
    assert (split[0][1] == coarse).all()
    assert (split[1][1] == fine).all()


@pytest.mark.parametrize(
    ("bad_frames", "bad_features"),
    [
        (frames().astype(np.float32), features()),
        (frames()[0], features()),
        (frames(), features(count=3)),
        (frames(), features()[0]),
        (frames(), features() * np.nan),
    ],
    ids=["float frames", "one frame", "another count", "no frame axis", "NaN"],
)
def test_what_cannot_be_drawn_is_refused(bad_frames: np.ndarray, bad_features: np.ndarray) -> None:
    with pytest.raises(InvalidInput):
        feature_picture(bad_frames, [("scale 1", bad_features)])


def test_channels_that_do_not_divide_into_scales_are_refused() -> None:
    with pytest.raises(InvalidInput, match="into a, b, c on axis 1"):
        split_scales(features(d=10), ("a", "b", "c"))


def test_a_picture_is_rgb_so_that_any_viewer_shows_it() -> None:
    assert isinstance(feature_picture(frames(), []), Image.Image)
    assert feature_picture(frames(), []).mode == "RGB"
