"""What a server withstands: strangers, sizes, clients that stall, vanish or never listen. Properties, not times."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_policies import flat, observations, small_policy
from small_servers import PATIENCE, get, metric, plain_client, raw_socket, server_thread, serves, wait_until

import s2robot
from s2robot.adapters import serve, serve_policy, wire
from s2robot.adapters.serve_inference import Inference
from s2robot.adapters.serve_request import Request
from s2robot.errors import InvalidInput, MissingExtra, S2RobotError

websockets = pytest.importorskip("websockets")
pytest.importorskip("msgpack")

from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

ROW = flat(observations(1)[0])
UPLOAD = wire.pack(ROW)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Any]:
    with server_thread(run, max_clients=4, max_message_mb=0.2) as made:
        yield made


# -- what they send --------------------------------------------------------------------------------------------------


def test_a_message_over_the_limit_closes_that_connection_and_says_so(server: Any) -> None:
    with plain_client(server.url) as client, plain_client(server.url) as other:
        client.send(bytes(200_001))
        with pytest.raises(ConnectionClosed, match="1009") as closed:
            client.recv(PATIENCE)
        assert "200001" in str(closed.value) or "limit" in str(closed.value)
        assert "actions" in other.ask(ROW)
    wait_until(lambda: server.metrics.errors["too_big"] == 1)
    with plain_client(server.url) as client:  # exactly at the limit it is read, and refused for what it is
        assert "no msgpack" in client.ask(bytes(200_000))


def frame(payload: bytes, length: int, final: bool = True) -> bytes:
    """The beginning of a websocket frame that claims `length` bytes; its mask is zero."""
    return bytes([0x82 if final else 0x02, 0xFF]) + struct.pack(">Q", length) + bytes(4) + payload


def test_uploads_that_stall_or_break_off_hold_up_nobody(server: Any) -> None:
    with raw_socket(server.url) as half, raw_socket(server.url) as silent, raw_socket(server.url) as piece:
        half.sendall(frame(UPLOAD[:1000], len(UPLOAD)))
        piece.sendall(frame(UPLOAD, len(UPLOAD), final=False))  # and the rest of the fragments never comes
        assert silent.fileno() >= 0
        serves(server.url)
        half.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # gone without a word
    wait_until(lambda: server.metrics.clients == 0)
    for junk in (b"\x16\x03\x01" + bytes(300), b"GET /" + b"x" * 20_000, b"POST / HTTP/1.1\r\n\r\n", b"\r\n\r\n"):
        with raw_socket(server.url, upgrade=False) as stranger:
            stranger.sendall(junk)
    with raw_socket(server.url) as liar:
        liar.sendall(b"\x83\x80" + bytes(4) + b"\xff" * 40)  # a reserved opcode
    serves(server.url)
    wait_until(lambda: server.metrics.clients == 0)


def test_one_who_never_listens_is_given_up_and_holds_up_nobody(tmp_path: Path) -> None:
    """Answers pile up in the sockets until they are full; then only this client is waited for, and not for ever."""
    run = small_policy(tmp_path / "run", chunk=2000)  # of answers as large as 32 kB the sockets hold few
    with server_thread(run, request_timeout=3.0) as server, raw_socket(server.url) as deaf:
        message = frame(UPLOAD, len(UPLOAD))
        cut = threading.Event()

        def shout() -> None:
            with contextlib.suppress(OSError):
                for _ in range(3000):
                    deaf.sendall(message)
            cut.set()

        threading.Thread(target=shout, daemon=True).start()
        with plain_client(server.url) as other:
            while not cut.is_set():
                assert "actions" in other.ask(ROW)
            assert "actions" in other.ask(ROW)
        wait_until(lambda: server.metrics.clients == 0)
        assert server.metrics.errors["timeout"] == 1


def test_one_who_says_nothing_for_too_long_is_sent_away(run: Path) -> None:
    with server_thread(run, idle_timeout=1.0) as server, plain_client(server.url) as client:
        with pytest.raises(ConnectionClosed, match="took too long"):
            client.recv(PATIENCE)
        serves(server.url)


def test_many_small_and_large_messages_at_once_are_each_answered(server: Any) -> None:
    junk = b"\xdc\x0f\xa0" + b"\x90" * 4000
    with plain_client(server.url) as sender, plain_client(server.url) as other:
        for _ in range(20):  # without waiting: they are answered in their order
            sender.send(junk)
            sender.send(UPLOAD)
        assert "actions" in other.ask(ROW)
        kinds = [type(sender.recv(PATIENCE)) for _ in range(40)]
    assert kinds == [str, bytes] * 20


# -- what happens inside ---------------------------------------------------------------------------------------------


class Gate:
    """In an encoder's place: it waits to be let on, and counts what came."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.open, self.batches = encoder, threading.Event(), []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def __call__(self, frames: Any) -> Any:
        self.batches.append(len(frames))
        if len(self.batches) > 1:  # warming up is not held
            assert self.open.wait(PATIENCE)
        return self.encoder(frames)


def gated(gates: list[Gate]) -> Any:
    def change(policy: Any) -> Any:
        gates.append(Gate(policy.encoder))
        policy.encoder = gates[-1]
        return policy

    return change


def test_health_and_refusals_are_answered_while_it_computes(run: Path) -> None:
    gates: list[Gate] = []
    with server_thread(run, policy=gated(gates)) as server, plain_client(server.url) as client:
        client.send(UPLOAD)
        wait_until(lambda: len(gates[0].batches) == 2)
        assert get(server.url, "/healthz")[0] == 200 and metric(server.url, "clients") == 1
        with plain_client(server.url) as other:
            assert "no msgpack" in other.ask(b"\xc1")
        gates[0].open.set()
        assert "actions" in wire.unpack(client.recv(PATIENCE))


def test_a_request_that_takes_too_long_is_said_and_ends_that_episode(run: Path) -> None:
    gates: list[Gate] = []
    with server_thread(run, policy=gated(gates), request_timeout=1.5) as server:
        with plain_client(server.url) as client:
            assert "No answer within 1.5 s" in client.ask(ROW)
            with pytest.raises(ConnectionClosed, match="1011"):
                client.recv(PATIENCE)
        wait_until(lambda: get(server.url, "/healthz")[0] == 503)  # whoever watches it may start it anew
        gates[0].open.set()
        wait_until(lambda: get(server.url, "/healthz")[0] == 200)
        serves(server.url)


def test_a_bug_in_the_policy_is_one_line_without_paths_and_the_next_episode_is_served(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(policy: Any) -> Any:
        policy.network.predict = lambda *_: {}[str(run)]  # a KeyError that holds a path
        return policy

    with pytest.raises(KeyError), server_thread(run, policy=broken):
        pass  # it cannot act at all, which is known before it listens
    with server_thread(run) as server, plain_client(server.url) as client:
        predict, server.policy.network.predict = server.policy.network.predict, lambda *_: {}[str(run)]
        said = client.ask(ROW)
        assert said == "KeyError while acting; the server's log says more"
        with pytest.raises(ConnectionClosed, match="connect again"):
            client.recv(PATIENCE)
        assert str(run) in caplog.text
        server.policy.network.predict = predict
        serves(server.url)


def test_an_answer_that_is_no_number_is_sent_to_no_robot(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server_thread(run, batch=2) as server, plain_client(server.url) as client:
        with monkeypatch.context() as patch:
            predict = server.policy.network.predict
            patch.setattr(server.policy.network, "predict", lambda *a: predict(*a) * float("nan"))
            assert "NaN or infinity, which no robot" in client.ask(ROW)
        serves(server.url)
        assert server.metrics.errors["failed"] == 1


def test_stopping_answers_what_is_owed_and_admits_nobody_new(run: Path) -> None:
    gates: list[Gate] = []
    with server_thread(run, policy=gated(gates)) as server:
        with plain_client(server.url) as busy, plain_client(server.url) as idle:
            busy.send(UPLOAD)
            wait_until(lambda: len(gates[0].batches) == 2)
            server.stop()
            with pytest.raises(ConnectionClosed, match="stopping"):
                idle.recv(PATIENCE)
            with pytest.raises((OSError, InvalidStatus)), connect(server.url, open_timeout=PATIENCE):
                pass
            gates[0].open.set()
            assert "actions" in wire.unpack(busy.recv(PATIENCE))
            with pytest.raises(ConnectionClosed, match="stopping"):
                busy.recv(PATIENCE)
        server.thread.join(PATIENCE)
        assert not server.thread.is_alive()


def test_who_waits_together_is_encoded_together_and_answered_apart(run: Path) -> None:
    policy = s2robot.load_policy(run, engine="torch")
    rows = observations(5)
    expected = [policy.act(row) for row in rows]
    policy.encoder = gate = Gate(policy.encoder)
    gate.batches.append(0)  # so that the first is held already
    inference = Inference(batch=4)
    asked = [inference.ask(policy.another(), Request(rows[0], False, None))]
    wait_until(lambda: len(gate.batches) == 2)
    asked += [inference.ask(policy.another(), Request(row, False, None)) for row in rows]
    asked[3].cancel()  # its client is gone
    gate.open.set()
    answers = [each.result(PATIENCE) for each in asked if each is not asked[3]]
    inference.close()
    assert gate.batches[1:] == [1, 3, 1]
    for answer, right in zip(answers, [expected[k] for k in (0, 0, 1, 3, 4)], strict=True):
        assert answer.actions is not None and np.abs(answer.actions - right).max() <= 1e-4
        assert set(answer.seconds) == {"queue", "encode", "act"}


def test_settings_out_of_range_and_missing_packages_are_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("port", 70000), ("max_clients", 0), ("batch", -1), ("request_timeout", 0.0), ("execute", -1)):
        with pytest.raises(InvalidInput, match=name):
            serve.ServeConfig(**{name: value})
    with pytest.raises(InvalidInput, match="chunks have 8 actions"):
        serve_policy.load(run, engine="torch", precision=None, execute=9)
    (run.parent / "seeds" / "seed-0").mkdir(parents=True)
    with pytest.raises(InvalidInput, match=r"s2robot serve .*seed-0"):
        serve_policy.load(run.parent / "seeds", engine="torch", precision=None, execute=0)
    with pytest.raises(S2RobotError, match=r"Cannot listen on 192\.0\.2\.1"), server_thread(run, host="192.0.2.1"):
        pass
    policy, interface = serve_policy.load(run, engine="torch", precision=None, execute=0)
    for package in ("websockets", "msgpack"):
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, package, None)
            with pytest.raises(MissingExtra, match=r"pip install 's2robot\[serve\]'"):
                serve.PolicyServer(policy, interface, serve.ServeConfig())


def test_nothing_is_left_behind(run: Path) -> None:
    """Neither threads nor open files, however many servers and clients there were."""

    def once() -> None:
        with server_thread(run) as server, ThreadPoolExecutor(3) as pool:
            list(pool.map(serves, [server.url] * 3))

    once()
    handles, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(3):
        once()
    wait_until(lambda: threading.active_count() <= threads)
    assert len(list(Path("/proc/self/fd").iterdir())) <= handles


def test_what_fails_beside_a_request_is_logged_and_strangers_are_not(
    run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server_thread(run) as server:
        with raw_socket(server.url, upgrade=False) as stranger:
            stranger.sendall(b"\x16\x03\x01" + bytes(300))
            stranger.recv(1000)
        assert not caplog.records
        with monkeypatch.context() as patch:
            patch.setattr(server.policy, "another", lambda: {}["no memory left"])
            with raw_socket(server.url) as client:
                while client.recv(1000):
                    pass  # closed, after a word
        wait_until(lambda: "no memory left" in caplog.text)
        serves(server.url)
