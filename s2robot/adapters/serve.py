"""Serve a policy over a websocket, as openpi's servers do: openpi-client talks to it unchanged.

    client connects                         -> metadata, one map (`serve_policy.Interface`)
    one binary message: an observation      -> one binary message: {"actions": (A, M) float32, "server_timing": {...}}
    anything that cannot be answered        -> one text message of one line; the connection stays, the episode as it was
    the policy failed, or took too long     -> the same, then close code 1011: the episode is lost

A connection is an episode: it has its own policy state. A client's messages are answered one after the other, in their
order; clients do not wait for each other, but for the one thread that computes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from s2robot.adapters import serve_access, wire
from s2robot.adapters.serve_inference import Inference
from s2robot.adapters.serve_metrics import CONTENT_TYPE, Metrics
from s2robot.adapters.serve_policy import Interface
from s2robot.adapters.serve_refusals import refusal
from s2robot.adapters.serve_request import Request, read_request
from s2robot.camera_watch import CameraWatch, WatchConfig
from s2robot.errors import InvalidInput, S2RobotError, in_words, require
from s2robot.types import FRAMES, GOAL, PROPRIOCEPTION

STOPPING, LOST = "the server is stopping", "this episode is lost: connect again"
CLOSING = 3.0  # patience with a client that does not answer a goodbye [s]
GPU_BATCH = 8
QUICK = 1 << 19  # bytes of a message that is read at once: it takes less than a change of threads

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeConfig:
    """Where to listen, and how much of what."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any that is free
    max_clients: int = 32
    max_message_mb: float = 16.0  # two views of 1080p have 12.4
    request_timeout: float = 30.0  # for an answer, and for a client to take it [s]
    idle_timeout: float = 3600.0  # for a client's next message to be complete [s]
    batch: int = 0  # frames of so many clients are encoded at once; 0: 1 on a CPU, 8 on CUDA
    execute: int = 0  # actions of a chunk before looking again; 0: as the policy was trained
    engine: str = "auto"  # who computes the features, see `s2robot.engines`
    precision: str | None = None  # default: what the policy was trained on
    watch: WatchConfig = field(default_factory=WatchConfig)  # for blank and frozen frames, see `camera_watch`

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InvalidInput(f"--port is {self.port}; expected 1 to 65535, or 0 for any that is free")
        for name, least in (("max_clients", 1), ("batch", 0), ("execute", 0)):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected a whole number from {least} on")
        for name in ("max_message_mb", "request_timeout", "idle_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected a number above 0")


def check_packages() -> None:
    """Raises MissingExtra where a server could not be made: before a policy is loaded for it."""
    for package in ("websockets", "msgpack"):
        require(package, extra="serve", purpose="Serving policies")


def usual_batch(policy: Any) -> int:
    """How many frames are encoded at once where nobody said: on a CPU two take twice as long as one."""
    return GPU_BATCH if next(policy.network.parameters()).is_cuda else 1


@dataclass(eq=False)
class _Session:
    """One connection: its policy state, and whether it is owed an answer."""

    connection: Any
    policy: Any
    watches: list[CameraWatch]
    busy: bool = False
    last_ms: float | None = None  # of the answer before


class PolicyServer:
    """Serves one policy until it is stopped."""

    def __init__(self, policy: Any, interface: Interface, config: ServeConfig, token: str | None = None) -> None:
        """policy: a `policies.acting.NetworkPolicy`; interface: `serve_policy.describe` of it."""
        check_packages()
        self.policy, self.interface, self.config, self.token = policy, interface, config, token
        self.metrics = Metrics()
        self._inference = Inference(config.batch or usual_batch(policy))
        self._readers = ThreadPoolExecutor(2, "reader")  # a large message takes a while to read
        self._sessions: dict[_Session, asyncio.Task[Any]] = {}
        self._hello = wire.pack(interface.metadata)
        self._stop: Callable[[], object] = lambda: None

    def stop(self) -> None:
        """Finish the answers that are owed, say goodbye, and let `run` return. From any thread; twice is once."""
        self._stop()

    async def run(self, ready: Callable[[str], None] = lambda url: None) -> None:
        """Serve; ready: told the URL once it can be called.

        Raises:
            S2RobotError: the address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        self._stopping = stopping
        self._stop = lambda: loop.call_soon_threadsafe(stopping.set)
        try:
            await self._warm_up()
            server = await self._listen()
            # Not the configured host: a name may mean two addresses, each with a port of its own.
            host, port, *_ = server.sockets[0].getsockname()
            ready(f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}")
            await stopping.wait()
            await self._drain(server)
        finally:
            self._stop = lambda: None
            self._inference.close()
            self._readers.shutdown(wait=False)

    async def _warm_up(self) -> None:
        """Trace, compile and allocate before the first client asks; a policy that cannot act is known now."""
        wants = self.interface
        seen = {FRAMES: np.zeros((len(wants.cameras), *wants.frame, 3), np.uint8)}
        state = {PROPRIOCEPTION: np.zeros(wants.proprioception, np.float32)}
        goal = {GOAL: np.zeros(wants.goal, np.float32)} if wants.goal else {}
        first = Request({**seen, **state, **goal}, reset=True, execute=None)
        await asyncio.wrap_future(self._inference.ask(self.policy.another(), first))

    async def _listen(self) -> Any:
        from websockets.asyncio.server import serve

        quiet = logging.getLogger(f"{__name__}.connections")
        quiet.addFilter(_no_stranger)
        try:
            return await serve(
                self._converse, self.config.host, self.config.port, process_request=self._admit, origins=[None],
                compression=None, max_size=int(1e6 * self.config.max_message_mb), max_queue=2, ping_interval=30,
                ping_timeout=30, close_timeout=CLOSING, server_header="s2robot", logger=quiet,
            )  # fmt: skip
        except OSError as error:  # the port is taken, is reserved, or the host is not this machine
            why = in_words(error, 1000)
            raise S2RobotError(
                f"Cannot listen on {self.config.host}:{self.config.port}: {why}. Try another --port; --port 0 takes any"
                " that is free"
            ) from error

    def _admit(self, connection: Any, request: Any) -> Any:
        """Answer plain HTTP, and turn away who may not come in; None lets a websocket open."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            stuck = self._inference.busy() > self.config.request_timeout
            return connection.respond(503, "computing for too long\n") if stuck else connection.respond(200, "OK\n")
        if not serve_access.admits(self.token, request.headers.get_all("Authorization")):
            self.metrics.errors["unauthorised"] += 1
            return connection.respond(401, "This server wants a token: 'Authorization: Api-Key <token>'\n")
        if path == "/metrics":
            response = connection.respond(200, self.metrics.text())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        if path != "/":
            return connection.respond(404, "Here are /, a websocket, /healthz and /metrics\n")
        if len(self._sessions) >= self.config.max_clients:
            self.metrics.errors["full"] += 1
            return connection.respond(503, f"{len(self._sessions)} clients are connected: no more are served\n")
        return None

    async def _converse(self, connection: Any) -> None:
        """One connection, from hello to goodbye."""
        if self._stopping.is_set() or len(self._sessions) >= self.config.max_clients:  # others were quicker
            await connection.close(1013, "try again later")
            return
        watches = [CameraWatch(camera, self.config.watch) for camera in self.interface.cameras]
        session, task = _Session(connection, self.policy.another(), watches), asyncio.current_task()
        assert task is not None
        self._sessions[session] = task
        self.metrics.connections += 1
        self.metrics.clients += 1
        try:
            code, reason = await self._talk(session)
        finally:
            session.busy = False
            del self._sessions[session]
            self.metrics.clients -= 1
        await _goodbye(connection, code, reason)

    async def _talk(self, session: _Session) -> tuple[int, str]:
        """Say hello, then answer until there is a reason to close: its code and words."""
        from websockets.exceptions import ConnectionClosed

        try:
            await self._send(session, self._hello)
            while not self._stopping.is_set():
                message = await asyncio.wait_for(session.connection.recv(), self.config.idle_timeout)
                session.busy = True
                lost = await self._serve(session, message)
                session.busy = False
                if lost:
                    return 1011, LOST
        except ConnectionClosed as error:
            if error.sent is not None and error.sent.code == 1009:
                self.metrics.errors["too_big"] += 1
        except asyncio.TimeoutError:
            self.metrics.errors["timeout"] += 1
            return 1008, "took too long to ask, or to listen"
        return 1001, STOPPING

    async def _serve(self, session: _Session, message: bytes | str) -> bool:
        """Answer one message; returns whether the episode was lost over it."""
        began = time.perf_counter()
        self.metrics.requests += 1
        lost = False
        try:
            answer: bytes | str = await self._answer(session, message, began)
            self.metrics.answers += 1
        except Exception as error:  # noqa: BLE001 - a server outlives whatever a request brings up
            kind, lost, answer = refusal(error, self.config.request_timeout)
            self.metrics.errors[kind] += 1
        await self._send(session, answer)
        session.last_ms = 1e3 * (time.perf_counter() - began)
        self.metrics.took({"total": session.last_ms / 1e3})
        return lost

    async def _answer(self, session: _Session, message: bytes | str, began: float) -> bytes:
        if len(message) <= QUICK:
            request = self._read(message)
        else:
            request = await asyncio.get_running_loop().run_in_executor(self._readers, self._read, message)
        faults = self._look(session, request)
        decoded = time.perf_counter() - began
        future = asyncio.wrap_future(self._inference.ask(session.policy, request))
        answer = await asyncio.wait_for(future, self.config.request_timeout)
        self.metrics.took({"decode": decoded, **answer.seconds})
        ms = {f"{stage}_ms": 1e3 * seconds for stage, seconds in answer.seconds.items()}
        timing = {**ms, "infer_ms": ms.get("encode_ms", 0.0) + ms.get("act_ms", 0.0)}
        if session.last_ms is not None:
            timing["prev_total_ms"] = session.last_ms
        said = {"reset": True} if answer.actions is None else {"actions": answer.actions}
        return wire.pack({**said, "server_timing": timing, **({"camera_faults": faults} if faults else {})})

    def _look(self, session: _Session, request: Request) -> list[str]:
        """What is wrong with the cameras, in words.

        Raises:
            InvalidInput: so wrong that no action is given.
        """
        if request.observation is None:
            if request.reset:
                for watch in session.watches:
                    watch.reset()
            return []
        for watch, frame in zip(session.watches, request.observation[FRAMES], strict=True):
            if request.reset:
                watch.reset()
            watch.saw(frame)
        faults = [watch.fault for watch in session.watches if watch.fault]
        self.metrics.camera_faults += len(faults)
        if problems := [watch.problem for watch in session.watches if watch.problem]:
            raise InvalidInput(f"No action: {'; '.join(problems)}. Look at the camera, or see --watch.blank, .frozen")
        return faults

    def _read(self, message: bytes | str) -> Request:
        if isinstance(message, str):
            raise wire.BadMessage(
                "A text message came; expected a binary one, packed as openpi_client.msgpack_numpy does"
            )
        return read_request(wire.unpack(message), self.interface)

    async def _send(self, session: _Session, message: bytes | str) -> None:
        """A client that takes nothing is given up, and only it."""
        await asyncio.wait_for(session.connection.send(message), self.config.request_timeout)

    async def _drain(self, server: Any) -> None:
        """No new clients; goodbye to those who wait for nothing; the others are answered first."""
        server.close(close_connections=False)
        goodbyes = [_goodbye(each.connection, 1001, STOPPING) for each in self._sessions if not each.busy]
        left = list(self._sessions.values())
        await asyncio.gather(*goodbyes)
        if left:
            await asyncio.wait(left, timeout=self.config.request_timeout + 2 * CLOSING)
        for session in list(self._sessions):
            session.connection.transport.abort()
        await server.wait_closed()


def _no_stranger(record: logging.LogRecord) -> bool:
    """Is a line of websockets' worth printing? Strangers knock with all sorts of things; a traceback each is not."""
    return not record.getMessage().startswith("opening handshake failed") or _log.isEnabledFor(logging.DEBUG)


async def _goodbye(connection: Any, code: int, reason: str) -> None:
    """Close; who does not take part within `CLOSING` seconds is cut off."""
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(connection.close(code, reason), CLOSING)
    connection.transport.abort()
