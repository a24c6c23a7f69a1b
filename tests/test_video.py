"""What is written plays in browsers and reads back as what it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from s2robot.errors import CorruptFile, InvalidInput, MissingExtra
from s2robot.video import GAP, contact_sheet, read_video, write_video

av = pytest.importorskip("av")


def moving_square(length: int = 12, height: int = 96, width: int = 128) -> np.ndarray:
    """A red square on blue-grey moving right, 6 pixels a frame."""
    frames = np.full((length, height, width, 3), (70, 90, 130), np.uint8)
    for step, frame in enumerate(frames):
        frame[20:52, 6 * step : 6 * step + 32] = (220, 30, 40)
    return frames


def test_frames_come_back_in_order_in_place_and_in_colour(tmp_path: Path) -> None:
    frames = moving_square()
    back = read_video(write_video(tmp_path / "lift.mp4", frames))
    assert back.shape == frames.shape
    assert back.dtype == np.uint8
    for step in range(len(frames)):  # the middle of the square, away from edges that 4:2:0 blurs
        middle = back[step, 28:44, 6 * step + 8 : 6 * step + 24].reshape(-1, 3).mean(axis=0)
        assert middle == pytest.approx((220, 30, 40), abs=6)
    assert back[:, 60:90].reshape(-1, 3).mean(axis=0) == pytest.approx((70, 90, 130), abs=3)
    assert np.abs(back.astype(int) - frames).mean() < 4


def test_the_file_is_what_browsers_play(tmp_path: Path) -> None:
    path = write_video(tmp_path / "lift.mp4", moving_square())
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 20
        assert int(stream.codec_context.colorspace) == 1  # BT.709, said aloud
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(("height", "width"), [(95, 127), (96, 127), (95, 128)])
def test_odd_sizes_grow_by_one_repeated_line(tmp_path: Path, height: int, width: int) -> None:
    frames = moving_square(3, height, width)
    back = read_video(write_video(tmp_path / "odd.mp4", frames))
    assert back.shape == (3, 96, 128, 3)
    assert np.abs(back[:, :height, :width].astype(int) - frames).mean() < 4
    assert back[:, -1, -1].mean(axis=0) == pytest.approx((70, 90, 130), abs=4)


def test_frames_may_come_one_by_one(tmp_path: Path) -> None:
    assert len(read_video(write_video(tmp_path / "stream.mp4", (frame for frame in moving_square(5))))) == 5


def test_a_failed_write_leaves_nothing_behind_and_the_old_video_in_place(tmp_path: Path) -> None:
    path = write_video(tmp_path / "lift.mp4", moving_square(3))
    before = path.read_bytes()

    def frames() -> Iterator[np.ndarray]:
        yield from moving_square(3)
        raise RuntimeError("the simulator died")

    with pytest.raises(RuntimeError, match="simulator died"):
        write_video(path, frames())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["lift.mp4"]


@pytest.mark.parametrize(
    "frames",
    [
        moving_square().astype(np.float32),
        moving_square()[..., :1],
        moving_square()[0],
        [moving_square()[0], moving_square(1, 50, 50)[0]],
        [],
    ],
    ids=["float", "grey", "one frame", "sizes differ", "none"],
)
def test_what_is_not_frames_is_refused(tmp_path: Path, frames: object) -> None:
    with pytest.raises(InvalidInput, match="uint8"):
        write_video(tmp_path / "bad.mp4", frames)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 100])
def test_a_file_that_is_not_a_video_is_corrupt(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(CorruptFile, match=r"bad\.mp4"):
        read_video(tmp_path / "bad.mp4")


def test_without_av_the_pip_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_av(package: str) -> object:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr("s2robot.errors.importlib.import_module", no_av)
    with pytest.raises(MissingExtra, match=r"pip install 's2robot\[video\]'"):
        write_video(tmp_path / "lift.mp4", moving_square())


def test_a_contact_sheet_shows_the_first_the_last_and_even_steps_between() -> None:
    frames = np.stack([np.full((8, 10, 3), step, np.uint8) for step in range(101)])
    sheet = np.asarray(contact_sheet(frames, columns=5))
    assert sheet.shape == (8, 5 * 10 + 4 * GAP, 3)
    assert [int(sheet[4, column * (10 + GAP) + 5, 0]) for column in range(5)] == [0, 25, 50, 75, 100]
    assert (sheet[:, 10 : 10 + GAP] == 128).all()


def test_a_contact_sheet_reads_row_by_row_and_never_repeats_a_frame() -> None:
    frames = np.stack([np.full((8, 10, 3), step, np.uint8) for step in range(5)])
    sheet = np.asarray(contact_sheet(frames, columns=3, rows=4))
    assert sheet.shape == (2 * 8 + GAP, 3 * 10 + 2 * GAP, 3)
    assert [int(sheet[4, 5, 0]), int(sheet[4, 19, 0]), int(sheet[16, 5, 0])] == [0, 1, 3]


@pytest.mark.parametrize(("columns", "rows"), [(0, 1), (1, 0)])
def test_an_empty_contact_sheet_is_refused(columns: int, rows: int) -> None:
    with pytest.raises(InvalidInput, match="at least 1"):
        contact_sheet(moving_square(), columns, rows)
