"""What changed on disk since it was written is found, whatever the format has of its own."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import TINY, folder_with_frames

from s2robot import backbones, clips, files, footage, pretrain, seals
from s2robot.checkpoints import read_checkpoint
from s2robot.errors import CorruptFile


def flip(path: Path, place: int) -> None:
    """One bit of the byte at a place, from the end where it is negative."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("record", [{}, {"a": 1.5e-7, "ä": [None, True, {"b": "c"}]}, {"crc32": "stale", "a": 1}])
def test_a_sealed_record_is_itself_and_any_change_is_seen(record: dict[str, Any]) -> None:
    sealed = seals.sealed(record)
    assert list(sealed)[-1] == "crc32"
    again = json.loads(json.dumps(sealed))
    assert seals.unsealed(again) == {key: value for key, value in record.items() if key != "crc32"}
    for change in ({"a": 2}, {"new": None}, {"crc32": "00000000"}):
        with pytest.raises(ValueError, match="not what was written"):
            seals.unsealed({**again, **change})
    assert seals.unsealed({"a": 1}) == {"a": 1}  # of before there were any


def test_json_and_logs_that_changed_are_refused_and_may_be_edited_without_their_sum(tmp_path: Path) -> None:
    path, log = tmp_path / "a.json", tmp_path / "a.jsonl"
    files.write_json(path, {"steps": 1500})
    path.write_text(path.read_text().replace("1500", "1501"))
    with pytest.raises(CorruptFile, match='drop the key "crc32"'):
        files.read_json(path)
    path.write_text(json.dumps({"steps": 1501}))
    assert files.read_json(path) == {"steps": 1501}
    with files.JsonLines(log) as lines:
        lines.write({"seed": 1})
        lines.write({"seed": 2})
    files.keep_lines(log, lambda row: True)
    assert files.read_jsonl(log) == [{"seed": 1}, {"seed": 2}]
    log.write_text(log.read_text().replace('"seed":2', '"seed":3'))
    with pytest.raises(CorruptFile, match="line 2 is not what was written"):
        files.read_jsonl(log)


def test_a_sum_beside_a_file_is_held_against_it(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(3)}, path)
    files.write_sum(path, path)
    assert set(read_checkpoint(path)) == {"a"}
    for text in ("{}", "{}  weights.pth\n", "\\{} *odd\\nname\n", "\ufeff{}\r\n", "SHA256 (weights.pth) = {}\n"):
        for made in (str.lower, str.upper):
            seals.sum_file(path).write_text(text.format(made(seals.digest(path))), encoding="utf-8")
            assert set(read_checkpoint(path)) == {"a"}, text
    torch.save({"a": torch.zeros(3)}, path)
    with pytest.raises(CorruptFile, match=r"not the file that weights.pth.sha256 was made of"):
        read_checkpoint(path)
    seals.sum_file(path).write_text("nonsense")
    with pytest.raises(CorruptFile, match=r"sha256sum weights\.pth"):
        read_checkpoint(path)


def test_a_torch_file_is_held_against_the_sums_that_torch_does_not_look_at(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.arange(1000.0)}, path)
    with zipfile.ZipFile(path) as file:
        (inside,) = (each for each in file.infolist() if each.filename.endswith("data/0"))
    flip(path, inside.header_offset + 2000)
    assert not torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(1000.0)), "torch has learned to look"
    with pytest.raises(CorruptFile, match="data/0 is not what was written"):
        read_checkpoint(path)
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)  # the format of before, without any
    assert set(read_checkpoint(path)) == {"a"}


def test_a_zip_that_cannot_be_opened_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(9))
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 6] = 104  # a zip of version 10.4, which Python says it has not implemented
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match=r"damaged .*version 10\.4.*Fetch"):
        seals.check_zip(path, "Fetch it again")


def test_what_pretraining_leaves_is_checked_when_it_goes_on(tmp_path: Path) -> None:
    weights = pretrain.pretrain(replace(TINY, name="small", steps=2), folder_with_frames(tmp_path / "run"))
    assert read_checkpoint(weights)
    flip(weights, -1)
    with pytest.raises(CorruptFile, match="not those that were written"):
        read_checkpoint(weights)
    flip(weights.with_name("state.pt"), -4000)
    with pytest.raises(CorruptFile, match=r"state\.pt"):
        pretrain.pretrain(replace(TINY, name="small", steps=2), tmp_path / "run")
    flip(weights.with_name("frames.npy"), -1)
    with pytest.raises(CorruptFile, match=r"frames\.npy"):
        footage.open_footage(weights.with_name("frames.npy"), 64)


def test_shipped_weights_are_those_of_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = shutil.copy(backbones.WEIGHTS_FOLDER / "s2robot-tiny.safetensors", tmp_path)
    backbones.load_backbone("s2robot-tiny")
    flip(Path(shipped), -1)
    monkeypatch.setattr(backbones, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(CorruptFile, match="not the file that s2robot-tiny stands for"):
        backbones.load_backbone("s2robot-tiny")


def test_a_png_is_held_against_its_own_sums(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    config = replace(TINY, source=str(tmp_path))
    for place in range(data.index(b"IDAT"), len(data) - 12, 997):
        path.write_bytes(data)
        flip(path, place)
        reading = clips.Reading()
        (clip,) = clips.find_clips(tmp_path, 0)
        assert not list(clips.read_clip(clip, config, np.random.default_rng(0), reading)) and reading.skipped
