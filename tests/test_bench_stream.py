"""`s2robot bench stream` on real frames: what it counts is so."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from s2robot import cli
from s2robot.bench_stream import StreamBenchConfig, _Row
from s2robot.encoder import EncoderConfig
from s2robot.errors import InvalidInput

ENCODER = EncoderConfig(random_weights=True, scales=(1, 2), engine="torch")


@pytest.mark.sim
def test_the_still_camera_saves_and_the_wrist_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "stream", "Lift", "--scales", "1,2", "--engine", "torch", "--episodes", "1", "--json"]
    assert cli.main(words) == 0
    front, wrist = json.loads(capsys.readouterr().out)["rows"]
    assert (front["camera"], wrist["camera"]) == ("agentview", "robot0_eye_in_hand")
    assert front["live_reused"] > 0.05
    assert wrist["live_reused"] < 0.02
    for row in (front, wrist):
        assert all(math.isfinite(value) for value in row.values() if not isinstance(value, str))
        assert row["difference"] < 1e-4
        assert row["recorded_reused"] >= row["live_reused"]  # a recording also knows tiles that come back


def test_reuse_is_the_share_of_tiles_over_all_episodes() -> None:
    row = _Row("front", ENCODER.build("cpu"), 0.0)
    frames = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    frames[1] = frames[0]  # a second look at the same, then something else
    row.episode(frames)
    row.episode(frames[:1])  # a new episode knows nothing of the last
    assert row.result()["live_reused"] == pytest.approx(5 / 20)
    assert row.result()["recorded_reused"] == pytest.approx(5 / 20)
    assert row.result()["frames"] == 4


def test_what_is_made_at_a_first_call_is_nobodys_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine builds its graph then, which takes seconds."""
    encoder, calls = ENCODER.build("cpu"), []
    row, run, timed = _Row("front", encoder, 0.0), encoder.run, _Row._timed

    def counted(tiles: Any) -> Any:
        calls.append("run")
        return run(tiles)

    def watched(self: _Row, name: str, *more: Any) -> Any:
        calls.append(name)
        return timed(self, name, *more)

    monkeypatch.setattr(encoder, "run", counted)
    monkeypatch.setattr(_Row, "_timed", watched)
    row.episode(np.zeros((2, 256, 256, 3), np.uint8))
    assert "run" in calls[: calls.index("plain")] and row.frames == 2


def test_wrong_settings_are_named() -> None:
    with pytest.raises(InvalidInput, match="at least 1"):
        StreamBenchConfig(episodes=0)
