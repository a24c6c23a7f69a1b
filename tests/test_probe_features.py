"""Features on disk: what the encoder itself gives, never stale, encoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_encoders import small_encoder, wrap
from small_scenes import Averager, SquareScenes, quiet, subject
from torch import Tensor

from s2robot import files, probe_subjects, registry
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.errors import CorruptFile, InvalidInput, S2RobotError, UnknownName
from s2robot.probe_data import ProbeData, ProbeDataConfig, load_data
from s2robot.probe_features import Looker, ReadOut, encode_part
from s2robot.types import Features

COUNTS = {"train": 15, "test": 10}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProbeData:
    monkeypatch.setattr(registry, "probe_scenes", SquareScenes)
    monkeypatch.setattr(SquareScenes, "drawn", [])
    return load_data(ProbeDataConfig(**COUNTS, frame_size=64), tmp_path, quiet, 1)


def frames_of(data: ProbeData, split: str) -> np.ndarray:
    return np.concatenate([piece["frames"] for piece in getattr(data, split).pieces])[: COUNTS[split]]


@pytest.mark.parametrize("art", ["plain", "registers", "no prefix"])
@pytest.mark.parametrize("scales", [(1, 2), (1, 1.5), (1, 2, 3)])
def test_read_outs_are_what_the_encoder_gives(
    data: ProbeData, art: str, scales: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small_encoder(art, scales=scales)
    monkeypatch.setattr(probe_subjects, "load_backbone", lambda *_, **__: whole.backbone)
    found = probe_subjects.find_subject("s2robot-tiny", EncoderConfig(scales=scales, engine="torch"))
    assert found.sizes == whole.sizes
    parts = [encode_part(looker, data, quiet) for looker in found.lookers]
    asked = {"base": {"scales": scales[:1]}, "s2": {"grid": "base"}, "finest": {"grid": "finest"}}
    for name, changes in asked.items():
        expected: Features = wrap(whole, **changes)(frames_of(data, "test"))
        readout = ReadOut(name, parts, COUNTS)
        assert (readout.channels, readout.grid) == (expected.map.shape[2], expected.map.shape[3:])
        _near(readout.maps("test", range(10)), expected.map)
        _near(readout.maps("test", [7, 2], view=1), expected.map[[7, 2], 1:])
        _near(readout.summaries("test"), expected.cls)
        _near(readout.means("test"), expected.map.mean(dim=(3, 4)))


def _near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=4e-3, rtol=2e-3)  # half floats on disk


def test_encoded_once_whatever_the_number_of_scenes(data: ProbeData, tmp_path: Path) -> None:
    looker = Averager()
    first = encode_part(looker, data, quiet)
    assert looker.frames_seen == 30
    second = encode_part(looker, data, quiet)
    assert looker.frames_seen == 30
    rows = range(15)
    assert torch.equal(first.take("train", "map", rows), second.take("train", "map", rows))
    more = load_data(ProbeDataConfig(train=25, test=10, frame_size=64), tmp_path, quiet, 1)
    encode_part(looker, more, quiet)
    assert looker.frames_seen == 40


def test_features_are_never_stale(data: ProbeData, tmp_path: Path) -> None:
    """Another encoder, or other scenes in the same place: other files."""
    encode_part(Averager(), data, quiet)
    changed = Averager(version="2")
    encode_part(changed, data, quiet)
    assert changed.frames_seen == 30
    piece = data.folder / "train-00000.npy"
    records = np.load(piece)
    records["frames"][3] = 255 - records["frames"][3]
    np.save(piece, records)
    files.write_sum(piece, piece)
    other = load_data(data.config, tmp_path, quiet, 1)
    looker = Averager()
    part = encode_part(looker, other, quiet)
    assert looker.frames_seen == 10
    _near(part.take("train", "map", range(10)), looker(records["frames"]).map)


def test_a_killed_encoding_goes_on(data: ProbeData) -> None:
    looker = Averager()

    def stop(done: int, total: int, note: str = "") -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_part(looker, data, stop)
    encode_part(looker, data, quiet)
    assert looker.frames_seen == 30


def test_damaged_features_are_named(data: ProbeData) -> None:
    looker = Averager()
    encode_part(looker, data, quiet)
    path = sorted((data.folder / "features").rglob("test-*.npy"))[0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CorruptFile, match="Delete it"):
        encode_part(looker, data, quiet)


def test_features_beyond_half_precision_are_refused(data: ProbeData) -> None:
    class Loud(Averager):
        def __call__(self, frames: np.ndarray) -> Features:
            found = super().__call__(frames)
            return Features(found.map * 1e6, found.tokens, found.cls)

    with pytest.raises(S2RobotError, match="beyond half precision"):
        encode_part(Loud(), data, quiet)
    assert list((data.folder / "features").rglob("*.npy")) == []


# -- names -----------------------------------------------------------------------------------------------------------


def test_names_become_encoders(tmp_path: Path) -> None:
    config = EncoderConfig(engine="torch")
    tiny = probe_subjects.find_subject("s2robot-tiny", config)
    assert (tiny.sizes, tiny.weights, len(tiny.lookers)) == ((128, 256), "its own", 2)
    drawn, same = (probe_subjects.find_subject(name, config) for name in ("random", "s2robot-tiny:random"))
    assert [each.fingerprint for each in drawn.lookers] == [each.fingerprint for each in same.lookers]
    assert drawn.weights == "random" and drawn.lookers[0].fingerprint != tiny.lookers[0].fingerprint
    shipped = Path(probe_subjects.__file__).parent / "weights" / "s2robot-tiny.safetensors"
    by_file = probe_subjects.find_subject(f"s2robot-tiny={shipped}", config)
    assert by_file.lookers[1].fingerprint == tiny.lookers[1].fingerprint
    assert (by_file.label, by_file.weights) == (f"s2robot-tiny={shipped}", str(shipped))


def test_a_file_under_a_name_of_ones_own_says_what_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"")
    asked: list[tuple[str, object]] = []

    def spy(name: str, *, checkpoint: object, **_: object) -> object:
        asked.append((name, checkpoint))
        return small_encoder().backbone

    monkeypatch.setattr(probe_subjects, "load_backbone", spy)
    probe_subjects.find_subject(f"mine={path}", EncoderConfig(engine="torch"))
    probe_subjects.find_subject(f"s2robot-tiny={path}", EncoderConfig(engine="torch"))
    assert asked == [("s2robot", str(path)), ("s2robot-tiny", str(path))]


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 's2robot-tiny'"):
        probe_subjects.find_subject("s2robot-tyni", EncoderConfig())
    with pytest.raises(UnknownName, match="Did you mean 's2robot-tiny'"):
        probe_subjects.find_subject("s2robot-tyni:random", EncoderConfig())
    with pytest.raises(UnknownName, match="Did you mean 'efficientnet-lite0'"):
        probe_subjects.find_subject("efficientnet-lite", EncoderConfig())
    with pytest.raises(InvalidInput, match=r"No weights file 'nowhere.pth' for 'mine'"):
        probe_subjects.find_subject("mine=nowhere.pth", EncoderConfig())


def test_an_encoder_is_a_looker() -> None:
    looker: Looker = small_encoder(scales=(1,))
    assert isinstance(looker, Encoder) and subject("x", Averager(4), Averager(8)).sizes == (32, 64)
