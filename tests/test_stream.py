"""Streams: the encoder's own features for less work, or a stated error; never another camera's, nor an old frame's."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_encoders import Frames, close, eye, random_frames, small_encoder
from torch import Tensor

from s2robot import stream as stream_module
from s2robot.camera_watch import WatchConfig
from s2robot.encoder import Encoder, load_encoder
from s2robot.errors import InvalidInput

LAYOUTS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "plain": ({}, (64, 64)),
    "finest": ({"grid": "finest"}, (64, 64)),
    "larger frames": ({}, (96, 96)),
    "tiles of two sizes": ({"scales": (1, 1.5)}, (96, 96)),
    "not square": ({"scales": (1, 2, 3)}, (120, 160)),
    "padded": ({"fit": "pad", "fusion": "sum"}, (48, 64)),
    "projected": ({"fusion": "project", "width": 9}, (64, 64)),
}


@pytest.fixture
def encoder() -> Encoder:
    return small_encoder(grid="finest")


def recording(side: tuple[int, int], steps: int = 8) -> Iterator[Frames]:
    """A white square that moves over noise, stands for a while, and goes on."""
    scene = random_frames(*side, 3)
    for step in range(steps):
        frame, at = scene.copy(), 5 * (step if step < 3 else max(step - 2, 2))
        frame[at : at + 8, at : at + 8] = 255
        yield frame


def counted(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tiles of every run of the backbone."""
    counts: list[int] = []
    run = encoder.run

    def spy(tiles: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        counts.append(sum(part.shape[0] for part in tiles))
        return run(tiles)

    monkeypatch.setattr(encoder, "run", spy)
    return counts


def in_threads(*jobs: Callable[[], None]) -> None:
    """Run all at once, and raise what any of them raised."""
    raised: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - handed on to the test
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


# -- exact -----------------------------------------------------------------------------------------------------------


def test_what_its_watch_reports_is_said_once(encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    black, seen = np.zeros((64, 64, 3), np.uint8), random_frames(64, 64, 3)
    stream = stream_module.Stream(encoder, "top", watch=WatchConfig())
    for frame in (seen, black, black, seen, black):
        stream(frame)
    assert [record.getMessage().count("the frames of top are blank") for record in caplog.records] == [1, 1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_are_the_encoders(layout: str) -> None:
    settings, side = LAYOUTS[layout]
    encoder = small_encoder(**settings)
    stream = encoder.stream("front")
    for frame in recording(side):
        close(stream(frame), encoder(frame))
    statistics = stream.statistics()
    assert statistics.frames == 8
    assert statistics.tiles == 8 * encoder.plan(side).tiles
    assert statistics.reused > 0.2
    assert (statistics.worst_error, statistics.mean_error) == (0, 0)


def test_a_tile_that_did_not_change_keeps_its_bits(encoder: Encoder) -> None:
    stream, frame = encoder.stream("front"), random_frames(64, 64, 3)
    first = stream(frame)
    for _ in range(4):
        frame = frame.copy()
        frame[32:, :32] = np.random.default_rng().integers(0, 256, (32, 32, 3))  # the third tile of the finer scale
        now = stream(frame)
        fine, was = now.map[0, 0, 16:], first.map[0, 0, 16:]  # (D, 8, 8)
        for rows, columns, same in ((0, 0, True), (0, 4, True), (4, 0, False), (4, 4, True)):
            tile = (slice(None), slice(rows, rows + 4), slice(columns, columns + 4))
            assert torch.equal(fine[tile], was[tile]) == same


def test_it_goes_to_another_process_with_what_it_knows(encoder: Encoder) -> None:
    stream, frame = encoder.stream("top"), random_frames(64, 64, 3)
    stream(frame)
    for again in (copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        torch.testing.assert_close(again(frame).map, stream(frame).map, rtol=0, atol=0)
        assert again.statistics().reused == 0.5


def test_it_counts_what_it_reuses(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counted(encoder, monkeypatch)
    stream, frame = encoder.stream("front"), random_frames(64, 64, 3)
    stream(frame)  # 1 + 4 tiles
    stream(frame)
    frame[40, 40] ^= 1  # one pixel: the coarse tile, and one of the four
    stream(frame)
    frame[:, 10] ^= 255  # two of the four
    stream(frame)
    assert counts == [5, 2, 3]
    assert stream.statistics().tiles == 20
    assert stream.statistics().reused == pytest.approx(1 - 10 / 20)


def test_what_the_scales_do_not_see_counts_as_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small_encoder(fit="crop")
    counts = counted(encoder, monkeypatch)
    stream, frame = encoder.stream("front"), random_frames(64, 96, 3)
    stream(frame)
    frame[:, :16] = 0
    frame[:, -16:] = 255
    close(stream(frame), encoder(frame))
    assert counts == [5, 5]  # the stream's, and the encoder's own


def test_features_handed_out_stay_as_they_were(encoder: Encoder) -> None:
    for each in (encoder, small_encoder(scales=(1,)), small_encoder(scales=(1,), fusion="sum"), eye((1,))):
        stream, frames = each.stream("front"), list(recording((64, 64)))
        given = [stream(frame) for frame in frames]
        copies = [(features.map.clone(), features.cls.clone()) for features in given]
        again = stream(frames[-1])
        for features, (map_, cls) in zip(given, copies, strict=True):
            assert torch.equal(features.map, map_) and torch.equal(features.cls, cls)
        expected = again.map.clone()
        for features in (*given, again):  # whoever has features may do with them as he likes
            features.map.zero_()
            features.cls.zero_()
        assert torch.equal(stream(frames[-1]).map, expected)


def test_a_frame_may_be_overwritten_by_the_next(encoder: Encoder) -> None:
    stream, buffer = encoder.stream("front"), torch.zeros(64, 64, 3, dtype=torch.uint8)
    for frame in recording((64, 64)):
        buffer.copy_(torch.from_numpy(frame))  # as cameras do
        close(stream(buffer), encoder(frame))


def test_a_frame_may_be_overwritten_while_it_is_looked_at(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, buffer = encoder.stream("front"), torch.zeros(64, 64, 3, dtype=torch.uint8)
    first, second = random_frames(2, 64, 64, 3)
    cut = encoder.cut

    def late(batch: Tensor, *more: Any) -> Any:
        buffer.copy_(torch.from_numpy(second))
        return cut(batch, *more)

    buffer.copy_(torch.from_numpy(first))
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "cut", late)
        got = stream(buffer)
    close(got, encoder(first))
    close(stream(first), encoder(first))  # of which no tile is encoded again
    assert stream.statistics().reused == 0.5


# -- afresh ----------------------------------------------------------------------------------------------------------


def test_another_frame_size_starts_afresh(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, stream = counted(encoder, monkeypatch), encoder.stream("front")
    for side in ((64, 64), (128, 128), (64, 64), (96, 96), (64, 96)):
        frame = np.full((*side, 3), 100, dtype=np.uint8)  # the very same tiles, but for the last
        got = stream(frame)
        assert counts.pop() == 5
        close(got, encoder(frame))
    assert stream.statistics().reused == 0


def test_other_weights_start_afresh(encoder: Encoder) -> None:
    stream, frame, other = encoder.stream("front"), random_frames(64, 64, 3), small_encoder(seed=1, grid="finest")
    before = stream(frame).map
    encoder.load_state_dict(other.state_dict())
    after = stream(frame)
    close(after, other(frame))
    assert not torch.allclose(after.map, before, atol=0.1)
    assert stream.statistics().reused == 0
    encoder.half()
    assert not torch.equal(stream(frame).map, after.map)


def test_reset_forgets(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, stream, frame = counted(encoder, monkeypatch), encoder.stream("front", 5), random_frames(64, 64, 3)
    monkeypatch.setattr(stream_module, "AUDIT_EVERY", 1)
    stream(frame)
    stream(frame)
    stream.reset()
    assert vars(stream.statistics()) == {
        "frames": 0, "tiles": 0, "reused": 0.0, "worst_error": None, "mean_error": None,
    }  # fmt: skip
    counts.clear()
    stream(frame)
    assert counts == [5, 5]  # all tiles, and the audit
    assert stream.statistics().frames == 1


def test_what_int8_makes_of_company_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """One scale of activations for a whole batch: a tile alone is not the tile among others, even without tolerance."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(stream_module, "AUDIT_EVERY", 1)
    encoder = load_encoder("s2robot-tiny", precision="int8", device="cpu")
    stream, frame = encoder.stream("front"), random_frames(256, 256, 3)
    stream(frame)
    frame[:8, :8] = 0  # a corner: of the tiles two are encoded again, without the others
    error = float((stream(frame).map - (whole := encoder(frame).map)).norm() / whole.norm())
    assert stream.statistics().worst_error == pytest.approx(error, rel=0.1) and 0 < error < 0.02


def test_two_cameras_do_not_mix(encoder: Encoder) -> None:
    front, wrist = encoder.stream("front"), encoder.stream("wrist")
    frames = list(recording((64, 64)))
    for one, two in zip(frames, reversed(frames), strict=True):
        close(front(one), encoder(one))
        close(wrist(255 - two), encoder(255 - two))
    assert front.statistics().tiles == wrist.statistics().tiles == 40


@pytest.mark.parametrize("fails_at", [0, 1, 3])
def test_a_failure_leaves_no_tile_with_anothers_answer(
    encoder: Encoder, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, frames, run = encoder.stream("front"), list(recording((64, 64), 5)), encoder.run
    frames[3] = frames[3].repeat(2, axis=0).repeat(2, axis=1)  # of another size

    def fail(tiles: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    for step, frame in enumerate(frames):
        if step == fails_at:
            with monkeypatch.context() as patch:
                patch.setattr(encoder, "run", fail)
                with pytest.raises(torch.cuda.OutOfMemoryError):
                    stream(frame)
            monkeypatch.setattr(encoder, "run", run)
        close(stream(frame), encoder(frame))


@pytest.mark.parametrize("done", [2, 4])  # the new pixels of one scale are in place, and its answers are not
def test_a_failure_halfway_leaves_none_either(encoder: Encoder, done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, frames, copies = encoder.stream("front"), list(recording((64, 64), 4)), []

    def fail_later(self: Tensor, *arguments: Any) -> Tensor:
        copies.append(self)
        if len(copies) == done:
            raise MemoryError
        return index_copy(self, *arguments)

    index_copy = Tensor.index_copy
    stream(frames[0])
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "index_copy", fail_later)
        with pytest.raises(MemoryError):
            stream(frames[1])
    for frame in frames[1:]:
        close(stream(frame), encoder(frame))


# -- tolerance -------------------------------------------------------------------------------------------------------


def noisy(frame: Frames, amount: int, seed: int) -> Frames:
    noise = np.random.default_rng(seed).integers(-amount, amount + 1, frame.shape)
    return np.clip(frame.astype(int) + noise, 0, 255).astype(np.uint8)


def test_noise_within_the_tolerance_is_no_change(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, scene = counted(encoder, monkeypatch), random_frames(64, 64, 3) // 2 + 60
    stream = encoder.stream("front", tolerance=4)
    first = stream(scene)
    for step in range(6):
        assert torch.equal(stream(noisy(scene, 4, step)).map, first.map)  # a mean difference of 2.2
    assert counts == [5]
    scene[:32, :32] += 20  # a quarter: 20 there, 5 of the whole
    stream(scene)
    assert counts == [5, 2]
    assert encoder.stream("front", tolerance=255)(scene).map.shape == first.map.shape


def test_the_tolerance_is_a_mean_difference_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small_encoder(scales=(1,))
    counts, frame = counted(encoder, monkeypatch), np.full((32, 32, 3), 100, dtype=np.uint8)
    stream = encoder.stream("front", tolerance=2)
    for change, encoded in ((0, 1), (1, 1), (-1, 1), (3, 2), (2, 2), (5, 2), (6, 3)):  # against the tile last encoded
        stream(np.full_like(frame, 100 + change))
        assert len(counts) == encoded, change
    one = frame.copy()
    one[0, 0] = 255
    fresh = encoder.stream("front", tolerance=2)
    fresh(frame)
    fresh(one)  # a pixel, much changed, of a thousand
    assert fresh.statistics().reused == 0.5


def test_slow_drift_is_not_missed() -> None:
    stream = small_encoder(scales=(1,)).stream("front", tolerance=3)
    for value in range(100, 140):
        stream(np.full((32, 32, 3), value, dtype=np.uint8))
    assert stream.statistics().reused == pytest.approx(30 / 40)  # every fourth is encoded


def test_nor_is_it_beside_a_tile_that_changes() -> None:
    stream = small_encoder(scales=(2,)).stream("front", tolerance=3)
    for value in range(100, 140):
        frame = np.full((64, 64, 3), value, dtype=np.uint8)
        frame[:32, :32] = random_frames(32, 32, 3, seed=value)
        stream(frame)
    assert stream.statistics().reused == pytest.approx(3 * 30 / 160)


def test_the_error_it_reports_is_the_true_one(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "AUDIT_EVERY", 3)
    stream, scene, errors = encoder.stream("front", tolerance=6), random_frames(64, 64, 3) // 2 + 60, []
    for step in range(1, 10):
        frame = noisy(scene, 5 + step % 4, step)
        features, full = stream(frame), encoder(frame)
        if step % 3 == 0:
            errors.append(((features.map - full.map).norm() / full.map.norm()).item())
        else:
            assert len(errors) == step // 3
    statistics = stream.statistics()
    assert min(errors) > 1e-3
    assert statistics.worst_error == pytest.approx(max(errors), rel=1e-3)
    assert statistics.mean_error == pytest.approx(sum(errors) / 3, rel=1e-3)


def test_no_error_is_known_before_the_first_audit(encoder: Encoder) -> None:
    stream = encoder.stream("front", tolerance=1)
    stream(random_frames(64, 64, 3))
    assert (stream.statistics().worst_error, stream.statistics().mean_error) == (None, None)


def test_exact_streams_are_not_audited(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "AUDIT_EVERY", 1)
    counts, stream, frame = counted(encoder, monkeypatch), encoder.stream("front"), random_frames(64, 64, 3)
    for _ in range(3):
        stream(frame)
    assert counts == [5]
    assert stream.statistics().worst_error == 0


# -- threads and mistakes --------------------------------------------------------------------------------------------


def test_threads_get_the_features_of_their_own_frames(encoder: Encoder) -> None:
    shared, frames = encoder.stream("shared"), list(recording((64, 64), 6)) + list(recording((96, 96), 2))
    expected = [encoder(frame) for frame in frames]

    def hammer(seed: int) -> None:
        own = encoder.stream(f"camera {seed}")
        for k in np.random.default_rng(seed).integers(0, len(frames), 25):
            close(shared(frames[k]), expected[k])
            close(own(frames[k]), expected[k])

    in_threads(*(lambda seed=seed: hammer(seed) for seed in range(4)))
    assert shared.statistics().frames == 100


@pytest.mark.parametrize("tolerance", [-1, 256, float("nan"), float("inf")])
def test_a_wrong_tolerance_is_named(encoder: Encoder, tolerance: float) -> None:
    with pytest.raises(InvalidInput, match=rf"tolerance is {tolerance}; expected .* from 0 \(exact\) to 255"):
        encoder.stream("front", tolerance)


@pytest.mark.parametrize("shape", [(2, 64, 64, 3), (1, 2, 64, 64, 3)])
def test_more_than_one_frame_is_refused(encoder: Encoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="one frame at a time"):
        encoder.stream("front")(random_frames(*shape))
