"""Frames out of files of one's own: all that can be read is, what cannot is counted, neighbours stay together."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import TINY, folder_with_frames

from s2robot import files, pretrain, pretrain_state, seals, video
from s2robot.clips import Clip, Reading, _pictures, find_clips, read_clip
from s2robot.datasets import Episode, write_dataset
from s2robot.errors import InvalidInput, S2RobotError
from s2robot.footage import gather
from s2robot.recipe import PretrainConfig

CONFIG = replace(TINY, workers=1, every=2)


def quiet(done: int, total: int, note: str) -> None:
    pass


def colour(value: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def write_images(folder: Path, count: int, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.fromarray(colour(2 * k)).save(folder / f"img{k}{suffix}")
    return folder


def read(clip: Clip, **changes: object) -> tuple[np.ndarray, Reading]:
    reading = Reading()
    frames = [*read_clip(clip, replace(CONFIG, **changes), np.random.default_rng(0), reading)]  # type: ignore[arg-type]
    return np.stack(frames) if frames else np.empty((0, 64, 64, 3)), reading


def some_episode(seed: int, length: int = 5) -> Episode:
    frames = np.stack([np.stack([colour(10 * seed + step), colour(100 + step)]) for step in range(length)])
    return Episode(
        seed=seed,
        success=True,
        frames=frames,
        proprioception=np.zeros((length, 3), np.float32),
        actions=np.zeros((length, 2), np.float32),
        executed_actions=np.zeros((length, 2), np.float32),
        rewards=np.zeros(length, np.float32),
        states=np.zeros((length, 4)),
    )


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_images_of_a_folder_and_its_folders(suffix: str, tmp_path: Path) -> None:
    write_images(tmp_path / "a", 3, suffix)
    write_images(tmp_path / "b" / "c", 2, suffix)
    (tmp_path / "notes.txt").write_text("not an image, and no reason to complain")
    made = gather(replace(CONFIG, source=str(tmp_path)), tmp_path / "out", quiet)
    shown = sorted(int(frame.mean()) for frame in made.frames)
    assert np.allclose(shown, [0, 0, 2, 2, 4], atol=1)
    about = files.read_json(tmp_path / "out" / "footage.json")
    assert (about["frames"], about["skipped"], about["enlarged"]) == (5, 0, 0)


def test_damaged_images_are_counted_and_never_fatal(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 6)
    whole = (source / "img3.png").read_bytes()
    (source / "img3.png").write_bytes(whole[: len(whole) // 2])
    (source / "img4.png").write_bytes(b"GIF8 but not at all")
    (source / "empty.jpg").write_bytes(b"")
    told: list[str] = []
    gather(replace(CONFIG, source=str(source)), tmp_path / "out", lambda done, total, note: told.append(note))
    about = files.read_json(tmp_path / "out" / "footage.json")
    assert (about["frames"], about["skipped"]) == (4, 3)
    assert sorted(text.split(":")[0].rsplit("/")[-1] for text in about["unreadable"]) == [
        "empty.jpg", "img3.png", "img4.png",
    ]  # fmt: skip
    assert told[-1].endswith("3 skipped")


def test_a_source_with_nothing_to_read_is_a_clear_error(tmp_path: Path) -> None:
    config, out = replace(CONFIG, source=str(tmp_path / "in")), tmp_path / "out"
    with pytest.raises(InvalidInput, match="No file or folder"):
        gather(config, out, quiet)
    (tmp_path / "in").mkdir()
    with pytest.raises(InvalidInput, match=r"it is empty\. Give a folder of images"):
        gather(config, out, quiet)
    (tmp_path / "in" / "readme.txt").write_text("hello")
    with pytest.raises(InvalidInput, match=r"no frames: \.txt"):
        gather(config, out, quiet)
    (tmp_path / "in" / "a.png").write_bytes(b"")
    with pytest.raises(S2RobotError, match=r"could not be read: 1\. The first: .*a\.png"):
        gather(config, out, quiet)
    assert list(out.iterdir()) == []


def test_every_other_frame_of_a_video(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = video.write_video(tmp_path / "v.mp4", np.stack([colour(20 * k) for k in range(9)]))
    frames, reading = read(Clip((path,)))
    assert np.allclose(frames.mean(axis=(1, 2, 3)), [0, 40, 80, 120, 160], atol=4)
    assert reading.skipped == []
    path.write_bytes(b"not a video")
    frames, reading = read(Clip((path,)))
    assert len(frames) == 0
    assert len(reading.skipped) == 1


def test_demonstrations_give_all_cameras(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d.hdf5", [some_episode(k) for k in (1, 2, 3)], {"env_name": "Lift"}, ["front", "side"])
    clips = find_clips(tmp_path, seed=0)
    assert sorted(clip.episode for clip in clips) == [0, 1, 2]
    frames, _ = read(next(clip for clip in clips if clip.episode == 1))
    assert frames[:, 0, 0, 0].tolist() == [20, 100, 22, 102, 24, 104]


def test_a_damaged_file_of_demonstrations_is_counted(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    (tmp_path / "d.hdf5").write_bytes(b"\x89HDF\r\n and nothing after")
    gather(replace(CONFIG, source=str(tmp_path)), tmp_path / "out", quiet)
    assert files.read_json(tmp_path / "out" / "footage.json")["skipped"] == 1


@pytest.mark.parametrize("shape", [(64, 200), (200, 64), (100, 300), (30, 30), (64, 64)])
def test_a_square_of_the_shorter_side_is_taken_whole(shape: tuple[int, int], tmp_path: Path) -> None:
    """Pixels that grow along both axes: the square keeps the whole of the shorter one, and its shape."""
    ramp = np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), axis=-1).astype(np.uint8)  # x, y
    picture = np.concatenate([ramp, np.zeros((*shape, 1), np.uint8)], axis=-1)
    Image.fromarray(picture).save(tmp_path / "p.png")
    shorter = min(shape)
    for square in ("centre", "random"):
        frames, reading = read(Clip((tmp_path / "p.png",)), square=square)
        assert frames.shape == (1, 64, 64, 3)
        assert reading.enlarged == (shorter < 64)
        for axis, channel in ((1, 0), (0, 1)):
            values = frames[0, 32, :, channel].astype(int) if axis == 1 else frames[0, :, 32, channel].astype(int)
            if shape[axis] <= 256:
                assert values[-1] - values[0] == pytest.approx(shorter * 63 / 64, abs=2)
            if square == "centre" and shape[axis] <= 256:
                assert (values[0] + values[-1]) / 2 == pytest.approx((shape[axis] - 1) / 2, abs=1.5)


def test_what_is_hidden_is_nobodys_and_any_digit_may_be_in_a_name(tmp_path: Path) -> None:
    write_images(tmp_path / ".ipynb_checkpoints", 3)
    for name in ("a1²2.png", "a10.png", ".a.png"):
        Image.fromarray(colour(9)).save(tmp_path / name)
    assert {path.name for clip in find_clips(tmp_path, 0) for path in clip.paths} == {"a1²2.png", "a10.png"}
    (tmp_path / ".mine").mkdir()  # asked for by name it is meant
    Image.fromarray(colour(9)).save(tmp_path / ".mine" / "b.png")
    assert len(find_clips(tmp_path / ".mine", 0)) == 1


def test_a_folder_of_pre_training_is_not_taken_for_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "sheet.png")
    (tmp_path / "frames.npy").touch()
    assert len(find_clips(tmp_path, 0)) == 1  # of somebody's own
    (tmp_path / "footage.json").touch()
    with pytest.raises(InvalidInput, match=r"--source .*frames\.npy"):
        find_clips(tmp_path, 0)


def test_a_video_that_a_phone_turned_stands_upright(tmp_path: Path) -> None:
    pytest.importorskip("av")
    above = np.zeros((48, 64, 3), np.uint8)
    above[:24] = 255  # as it is stored
    path = video.write_video(tmp_path / "v.mp4", np.stack([above] * 3))
    content = bytearray(path.read_bytes())
    matrix = content.find(b"tkhd") + 44  # of version 0
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 * 65536, 0, 0x40000000)
    path.write_bytes(content)
    seals.sum_file(path).unlink(missing_ok=True)
    _, image = next(_pictures(Clip((path,)), 1, Reading()))
    seen = np.asarray(image)
    assert seen.shape == (64, 48, 3) and seen[32, 40, 0] > 200 and seen[32, 8, 0] < 50  # what was above is on the right


def test_grey_and_transparent_images_become_rgb_and_cameras_may_stand_on_end(tmp_path: Path) -> None:
    Image.fromarray(colour(90)[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([colour(60), colour(128)[..., 0]])).save(tmp_path / "clear.png")
    turned = colour(0)
    turned[:32] = 200  # bright above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(turned).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    frames, reading = read(Clip(tuple(sorted(tmp_path.iterdir()))))
    assert reading.skipped == []
    assert frames[0, 0, 0].tolist() == [157, 157, 157]  # half of 60, on white: a screenshot's, a cut-out's usual ground
    assert frames[1, 0, 0].tolist() == [90, 90, 90]
    assert frames[2, 60, 5, 0] > 190
    assert frames[2, 3, 5, 0] < 10


def test_images_of_sixteen_bits_are_counted_and_not_turned_white(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    frames, reading = read(Clip((tmp_path / "deep.png",)))
    assert len(frames) == 0 and "more than 8 bits" in reading.skipped[0]


def test_a_folder_that_changed_is_not_mixed_with_what_it_was(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 40)
    config = replace(CONFIG, source=str(source), frames=40)

    def kill(done: int, total: int, note: str) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather(config, tmp_path / "out", kill)
    Image.fromarray(colour(7)).save(source / "one_more.png")
    with pytest.raises(InvalidInput, match=r"has changed since .*rm -r"):
        gather(config, tmp_path / "out", quiet)
    (source / "one_more.png").unlink()
    made = gather(config, tmp_path / "out", quiet)
    assert sorted(made.frames[:, 0, 0, 0].tolist()) == [2 * k for k in range(40)]


def test_neighbours_by_name_are_held_out_together(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 120)
    clips = find_clips(source, seed=0)
    assert all(len(clip.paths) == 2 for clip in clips)
    for clip in clips:
        first, second = (int(path.stem.removeprefix("img")) for path in clip.paths)
        assert second == first + 1  # img9 before img10
    made = gather(replace(CONFIG, source=str(source)), tmp_path / "out", quiet)
    assert made.held_out == 2
    assert abs(int(made.valid[0, 0, 0, 0]) - int(made.valid[1, 0, 0, 0])) == 2


def test_at_most_so_many_frames_are_read(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 120)
    made = gather(replace(CONFIG, source=str(source), frames=50), tmp_path / "out", quiet)
    assert len(made.frames) == 50
    other = gather(replace(CONFIG, source=str(source), frames=50, seed=1), tmp_path / "other", quiet)
    assert (other.frames != made.frames).any()  # which ones, the seed decides


def test_training_goes_on_from_weights_that_are_there(tmp_path: Path) -> None:
    first = pretrain.pretrain(TINY, folder_with_frames(tmp_path / "first"))
    config = replace(TINY, init=str(first), steps=1, ema=0.0, lr=1e-9)
    second = pretrain.pretrain(config, folder_with_frames(tmp_path / "second"))
    from safetensors.torch import load_file

    weights = load_file(first), load_file(second)
    for key, value in weights[0].items():
        np.testing.assert_allclose(weights[1][key].float(), value.float(), atol=1e-4)
    with pytest.raises(InvalidInput, match="To begin with it: --width 24 --heads 2"):
        pretrain.pretrain(replace(config, width=64, heads=4), folder_with_frames(tmp_path / "third"))
    with pytest.raises(InvalidInput, match="--image_size 128 --patch 16 --width 192 --depth 6 --heads 3"):
        pretrain.pretrain(replace(TINY, init="s2robot-tiny"), folder_with_frames(tmp_path / "fourth"))


@pytest.mark.parametrize(
    ("name", "patch", "size", "says"),
    [
        ("vit-small", 16, 224, "it has pixels normalised otherwise"),
        ("dinov2-vit-small", 14, 518, "it has other layers[.]"),
    ],
)
def test_weights_of_another_kind_are_not_begun_with(
    name: str, patch: int, size: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the size that they say, or they would be refused for that."""
    load = pretrain_state.load_backbone
    monkeypatch.setattr(pretrain_state, "load_backbone", lambda name, **_: load(name, random_weights=True))
    config = PretrainConfig(
        init=name, image_size=size, patch=patch, width=384, depth=12, heads=6, scales=(1,), frame_size=size
    )
    with pytest.raises(InvalidInput, match=says):
        pretrain_state.adopt(pretrain_state.build_model(config), config)
