"""The soak: it finds nothing on a sound server, and finds what is wrong with another. No test here asserts a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_policies import observations, small_policy
from small_servers import server_thread

import s2robot
from s2robot import bench_serve, cli
from s2robot.adapters import serve_policy
from s2robot.errors import InvalidInput, S2RobotError
from s2robot.soak import ServeBenchConfig, press

pytest.importorskip("websockets")
pytest.importorskip("msgpack")


def test_a_sound_server_passes_in_plain_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(small_policy(tmp_path / "run", "bc-rnn", task="PickColor"))
    words = ["--clients", "3", "--seconds", "2", "--malformed", "40", "--calls", "4", "--engine", "torch"]
    assert cli.main(["bench", "serve", run, *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = told["soak"]
    assert told["passed"] and told["exit_code"] == 0 and not found["crashed"]
    assert (found["wrong"], found["unrefused"], found["malformed"], found["faults"]) == (0, 0, 40, [])
    assert found["worst_difference"] <= 1e-5 and min(found["answers_by_client"]) > 0 and found["stranger"]
    assert found["latency_ms"]["n"] == found["answers"] == sum(found["answers_by_client"])
    assert found["rss_mb"]["largest"] >= found["rss_mb"]["first"] > 50
    assert told["single_client"]["overhead_ms"]["n"] == told["single_client"]["served_ms"]["n"] == 4


def soak(server: Any, run: Path) -> dict[str, Any]:
    """The soak alone, on a server in this process."""
    policy, interface = serve_policy.load(run, engine="torch", precision=None, execute=0)
    episodes = [bench_serve._episode(policy, interface, seed) for seed in range(2)]
    config = ServeBenchConfig(str(run), clients=2, seconds=1.0, malformed=20)
    process: Any = SimpleNamespace(pid=1, poll=lambda: None)
    return press(server.url, process, episodes, config, lambda *_: None)


def test_other_weights_are_wrong_answers(tmp_path: Path) -> None:
    run, other = small_policy(tmp_path / "run"), small_policy(tmp_path / "other", hidden=128)
    with server_thread(other) as server:
        found = soak(server, run)
    assert found["wrong"] == found["answers"] > 0 and found["worst_difference"] > 0.01


def test_episodes_that_are_mixed_up_are_wrong_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_policy(tmp_path / "run", "bc-rnn")
    policy = s2robot.load_policy(run, engine="torch")
    monkeypatch.setattr(type(policy), "another", lambda self: self)  # one memory for all
    with server_thread(run) as server:
        found = soak(server, run)
    assert found["wrong"] > 0 and found["faults"] == []


def test_what_is_not_refused_and_what_ends_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_policy(tmp_path / "run")
    from s2robot.adapters import serve

    row = observations(1)[0]
    lenient = serve.Request(row, False, None)
    with monkeypatch.context() as patch, server_thread(run) as server:
        patch.setattr(server, "_read", lambda message: lenient)
        found = soak(server, run)
        assert found["unrefused"] == found["malformed"] == 20
    with server_thread(run, idle_timeout=1e-9) as server:
        assert soak(server, run)["faults"]


def test_settings_out_of_range_and_a_server_that_does_not_begin_are_named(tmp_path: Path) -> None:
    for changes in ({"clients": 0}, {"calls": 1}, {"malformed": -1}, {"seconds": 0.0}):
        with pytest.raises(InvalidInput, match="clients must be 1 or more"):
            ServeBenchConfig(**changes)

    @contextlib.contextmanager
    def begun() -> Iterator[None]:
        with bench_serve._server(ServeBenchConfig(str(tmp_path / "nowhere"))):
            yield

    with pytest.raises(S2RobotError, match=r"did not begin .exit code 2"), begun():
        pass
