"""Policy servers to test against: as a process of their own, or quickly in a thread of this one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from small_policies import flat, observations

from s2robot.adapters import serve, serve_policy, wire

PATIENCE = 60.0  # for anything that must come [s]


@contextlib.contextmanager
def server_process(run: Path, *words: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`s2robot serve` in a process of its own: its URL, and the process."""
    command = [sys.executable, "-m", "s2robot.cli", "serve", str(run), "--port", "0", "--engine", "torch", "--json"]
    process = subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield json.loads(line)["url"], process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def server_thread(run: Path, token: str | None = None, policy: Any = None, **settings: Any) -> Iterator[Any]:
    """A `PolicyServer` in a thread, its address in `url`; policy: changes the loaded one."""
    loaded, interface = serve_policy.load(run, engine="torch", precision=None, execute=settings.pop("execute", 0))
    config = serve.ServeConfig(**{"port": 0, **settings})
    server: Any = serve.PolicyServer(policy(loaded) if policy else loaded, interface, config, token)
    told: queue.Queue[str | BaseException] = queue.Queue()

    def work() -> None:
        try:
            asyncio.run(server.run(told.put))
        except BaseException as error:  # noqa: BLE001 - the test's to see
            told.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    first = told.get(timeout=PATIENCE)
    if isinstance(first, BaseException):
        raise first
    server.url, server.thread = first, thread
    try:
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("ws://").rpartition(":")
    return host, int(port)


def get(url: str, path: str, token: str | None = None) -> tuple[int, str]:
    """Plain HTTP, as curl and Prometheus do it."""
    headers = {"Authorization": f"Api-Key {token}"} if token else {}
    request = urllib.request.Request(url.replace("ws://", "http://") + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metric(url: str, name: str) -> float:
    (line,) = [line for line in get(url, "/metrics")[1].splitlines() if line.startswith(f"s2robot_{name} ")]
    return float(line.split()[-1])


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def plain_client(url: str, **options: Any) -> Iterator[Any]:
    """A websocket that has read the metadata; `ask` sends bytes or a map and gives what comes."""
    from websockets.sync.client import connect

    with connect(url, compression=None, max_size=None, close_timeout=2, **options) as connection:
        connection.metadata = wire.unpack(connection.recv(PATIENCE))

        def ask(message: Any) -> Any:
            connection.send(message if isinstance(message, bytes | str) else wire.pack(message))
            answer = connection.recv(PATIENCE)
            return answer if isinstance(answer, str) else wire.unpack(answer)

        connection.ask = ask
        yield connection


def serves(url: str, calls: int = 5, **options: Any) -> None:
    """Others are served: as often as asked, on a connection of their own."""
    row = flat(observations(1)[0])
    with plain_client(url, **options) as client:
        for _ in range(calls):
            assert client.ask(row)["actions"].shape == (8, 4)


@contextlib.contextmanager
def raw_socket(url: str, upgrade: bool = True) -> Iterator[socket.socket]:
    """A TCP connection, its websocket handshake done on request, that then does what it is told."""
    with socket.create_connection(address(url), timeout=PATIENCE) as raw:
        if upgrade:
            raw.sendall(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert raw.recv(12).startswith(b"HTTP/1.1 101")
        yield raw
