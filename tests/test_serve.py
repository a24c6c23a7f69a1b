"""A real server process and the real openpi-client: the answers are the policy's own, whoever else is asking."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_policies import CAMERAS, flat, observations, small_policy
from small_servers import address, get, metric, plain_client, server_process, server_thread, wait_until

import s2robot
from s2robot import cli
from s2robot.adapters import serve_policy, wire
from s2robot.malformed import broken_message, flipped
from s2robot.serve_verb import _welcome
from s2robot.types import FRAMES, GOAL

pytest.importorskip("openpi_client")
pytest.importorskip("websockets")

from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

CONTEXTS = ("bc-rnn", "act")


def openpi(url: str, **options: Any) -> WebsocketClientPolicy:
    return WebsocketClientPolicy(*address(url), **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {kind: small_policy(folder / kind, kind) for kind in ("bc-mlp", "flow", *CONTEXTS)}


@pytest.fixture(scope="module")
def served(runs: dict[str, Path]) -> Iterator[str]:
    with server_process(runs["bc-rnn"]) as (url, _):
        yield url


@pytest.fixture
def local(runs: dict[str, Path]) -> Any:
    return s2robot.load_policy(runs["bc-rnn"], engine="torch")


def test_openpis_client_is_answered_as_in_process(served: str, local: Any) -> None:
    client = openpi(served)
    assert client.get_server_metadata()["cameras"] == list(CAMERAS)
    for k, row in enumerate(observations(12)):  # longer than the context of 8
        answer = client.infer(flat(row))
        assert answer["actions"].dtype == np.float32 and answer["actions"].shape == (8, 4)
        np.testing.assert_array_equal(answer["actions"], local.act(row))
        timing = answer["server_timing"]
        assert {"infer_ms", "queue_ms", "encode_ms", "act_ms"} <= set(timing) and ("prev_total_ms" in timing) == (k > 0)
        assert all(type(value) is float and value >= 0 for value in timing.values())


def test_a_new_connection_or_a_reset_is_a_new_episode(served: str, local: Any) -> None:
    rows = observations(6)
    first = [local.act(row) for row in rows]
    for _ in range(2):
        client = openpi(served)
        for row, expected in zip(rows, first, strict=True):
            np.testing.assert_array_equal(client.infer(flat(row))["actions"], expected)
    for k, row in enumerate(rows):  # on the connection that has seen an episode
        answer = client.infer({**flat(row), "reset": k == 0})
        np.testing.assert_array_equal(answer["actions"], first[k])
    assert client.infer({"reset": True})["reset"] is True  # alone, and the next observation begins it
    np.testing.assert_array_equal(client.infer(flat(rows[0]))["actions"], first[0])


def test_openpis_broker_hands_the_chunk_out_one_by_one(served: str, local: Any) -> None:
    client = openpi(served)
    execute = client.get_server_metadata()["execute"]
    broker = ActionChunkBroker(client, action_horizon=execute)
    for row in observations(3):
        expected = local.act(row)
        for step in range(execute):
            np.testing.assert_array_equal(broker.infer(flat(row))["actions"], expected[step])
    broker.reset()


@pytest.mark.parametrize("kind", ["bc-mlp", "flow", "act"])
def test_every_kind_is_served_with_its_memory_and_noise(kind: str, runs: dict[str, Path]) -> None:
    policy = s2robot.load_policy(runs[kind], engine="torch")
    with server_thread(runs[kind]) as server:
        client = openpi(server.url)
        for row in observations(6):
            np.testing.assert_array_equal(client.infer(flat(row))["actions"], policy.act(row))


def test_a_goal_may_be_said_in_words(tmp_path: Path) -> None:
    run = small_policy(tmp_path / "pick", task="PickColor")
    policy = s2robot.load_policy(run, engine="torch")
    with server_thread(run) as server:
        client = openpi(server.url)
        names = client.get_server_metadata()["goal_names"]
        for row in observations(4, "PickColor"):
            said = {**flat(row), "prompt": f"pick the {names[int(row[GOAL].argmax())]} cube"}
            np.testing.assert_array_equal(client.infer(said)["actions"], policy.act(row))


@pytest.mark.parametrize("batch", [1, 4])
def test_clients_side_by_side_are_never_mixed_up(batch: int, runs: dict[str, Path], local: Any) -> None:
    """Each plays its own episode; alone or as one batch, to the bits or to 1e-4."""
    episodes = [observations(10, seed=seed) for seed in range(6)]
    expected = []
    for rows in episodes:
        local.reset()
        expected.append([local.act(row) for row in rows])
    wrong: list[float] = []

    def play(url: str, k: int) -> None:
        client = openpi(url)
        for row, right in zip(episodes[k], expected[k], strict=True):
            wrong.append(float(np.abs(client.infer(flat(row))["actions"] - right).max()))

    with server_thread(runs["bc-rnn"], batch=batch) as server:
        threads = [threading.Thread(target=play, args=(server.url, k)) for k in range(len(episodes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(wrong) == 60 and max(wrong) <= (0 if batch == 1 else 1e-4)


def test_malformed_messages_are_answered_in_words_and_change_nothing(served: str, local: Any) -> None:
    rng = np.random.default_rng(0)
    rows = observations(8)
    before = metric(served, "clients")
    with plain_client(served) as client:
        for row in rows:
            for _ in range(25):
                said = client.ask(broken_message(flat(row), rng))
                assert isinstance(said, str) and "\n" not in said and 10 < len(said) <= 600
                assert "Traceback" not in said and ".py" not in said
            np.testing.assert_array_equal(client.ask(flat(row))["actions"], local.act(row))
        assert "text message" in client.ask("hello")
    wait_until(lambda: metric(served, "clients") == before)


def test_openpis_client_raises_what_the_server_said_and_goes_on(served: str, local: Any) -> None:
    client, row = openpi(served), observations(1)[0]
    with pytest.raises(RuntimeError, match="colours seem to come first"):
        client.infer({**flat(row), "observation/agentview": row[FRAMES][0].transpose(2, 0, 1)})
    np.testing.assert_array_equal(client.infer(flat(row))["actions"], local.act(row))


def test_valid_messages_with_flipped_bytes_are_survived(served: str) -> None:
    rng = np.random.default_rng(1)
    message = wire.pack(flat(observations(1)[0]))
    with plain_client(served) as client:
        for _ in range(150):
            answer = client.ask(flipped(message, rng))
            assert isinstance(answer, str) or np.isfinite(answer["actions"]).all()
    assert metric(served, 'errors_total{kind="failed"}') == 0


def test_health_and_metrics_over_plain_http(served: str) -> None:
    assert get(served, "/healthz") == (200, "OK\n")
    before = metric(served, "answers_total")
    openpi(served).infer(flat(observations(1)[0]))
    assert metric(served, "answers_total") == before + 1
    status, text = get(served, "/metrics")
    assert status == 200 and text.endswith("\n")
    for line in text.splitlines():  # the text format: comments, or a name, labels and a number
        name, _, value = line.rpartition(" ")
        assert line.startswith(("# HELP s2robot_", "# TYPE s2robot_")) or (
            name.startswith("s2robot_") and float(value) >= 0
        )
    for stage in ("decode", "queue", "encode", "act", "total"):
        assert f's2robot_latency_seconds{{stage="{stage}",quantile="0.99"}}' in text
    assert get(served, "/nowhere")[0] == 404
    assert get(served, "/")[0] == 426  # a websocket is meant


def test_the_first_lines_say_where_what_and_how(runs: dict[str, Path]) -> None:
    with server_thread(runs["bc-rnn"]) as server:
        host, port = address(server.url)
        said = _welcome("runs/x", {"url": server.url, **server.interface.metadata})
    for part in (
        server.url,
        "runs/x",
        "bc-rnn",
        "Lift",
        "torch fp32",
        f"WebsocketClientPolicy('{host}', {port})",
        "/healthz",
    ):
        assert part in said
    assert "'observation/agentview': uint8 (64, 64, 3)" in said


def test_sigterm_ends_it_with_goodbyes_and_exit_code_0(runs: dict[str, Path]) -> None:
    from websockets.exceptions import ConnectionClosedOK

    with server_process(runs["bc-mlp"]) as (url, process), plain_client(url) as client:
        client.ask(flat(observations(1)[0]))
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosedOK, match="the server is stopping"):
            client.recv(60)
        assert process.wait(60) == 0
        assert process.stderr is not None and process.stderr.read() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_stopped_while_it_loads_ends_well(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve_policy, "load", lambda *_, **__: signal.raise_signal(number))
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    try:
        assert cli.main(["serve", "runs/x"]) == 0
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert capsys.readouterr().err == "Stopped before it served\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_taken_port_is_one_line(runs: dict[str, Path], served: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["serve", str(runs["bc-mlp"]), "--engine", "torch", "--port", str(address(served)[1])]
    assert cli.main(words) == 1
    assert "already in use" in (said := capsys.readouterr().err) and "--port 0" in said and said.count("\n") == 1


def test_debug_shows_the_traceback_and_a_token_file_is_read(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    words = ["--debug", "--token-file", str(tmp_path / "token"), "--host", "localhost", "--execute", "2"]
    with server_process(runs["bc-mlp"], *words) as (url, process):
        with pytest.raises(Exception, match="401"):
            openpi(url)
        assert openpi(url, api_key="secret").infer(flat(observations(1)[0]))["actions"].shape == (8, 4)
        with plain_client(url, additional_headers={"Authorization": "Api-Key secret"}) as client:
            assert client.metadata["execute"] == 2
            assert "Traceback" in client.ask(b"\xc1")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
