"""A policy on another machine, as a policy: `s2robot.types.Policy` over the wire of `s2robot.adapters.serve`.

    policy = s2robot.RemotePolicy("ws://robot-server:8000", token=...)
    chunk = policy.act(observation)

A connection that broke is said where it matters: `act` raises, since the server's memory of the episode is gone;
`reset` begins an episode anyway, so it connects again.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.adapters import serve_access, wire
from s2robot.errors import InvalidInput, S2RobotError, require
from s2robot.types import FRAMES, GOAL, PROPRIOCEPTION, Observation, check_observation

SENT = (FRAMES, PROPRIOCEPTION, GOAL)  # what else an environment shows, no policy may see
RETRY = 0.2  # between two attempts to connect [s]


class RemotePolicy:
    """See `s2robot.types.Policy`. One thread may use it; each robot has one of its own.

    metadata: what the server said of its policy, see `s2robot.adapters.serve_policy.Interface`.
    seconds: of the last call: "encode" and "act" on the server, "wire": all else, waiting for others included.
    """

    def __init__(
        self,
        url: str = "ws://127.0.0.1:8000",
        *,
        token: str | None = None,
        timeout: float = 60.0,
        wait: float = 0.0,
    ) -> None:
        """Connect.

        Args:
            token: what the server wants; by default what the variable S2ROBOT_TOKEN holds.
            timeout: for any one answer [s].
            wait: how long to go on trying while nobody listens at the address [s].

        Raises:
            S2RobotError: nobody listens, or the server turns us away; says why.
            InvalidInput: the address is none.
        """
        self.url, self.timeout = url, timeout
        self._token = token if token is not None else serve_access.read_token()
        self.seconds: dict[str, float] = {}
        self.metadata: dict[str, Any] = {}
        self._connection: Any = None
        self._connect(wait)
        self._execute, self._begin = int(self.metadata["execute"]), False

    @property
    def execute(self) -> int:
        """Actions of a chunk to execute before looking again; may be changed, and begins a new episode then."""
        return self._execute

    @execute.setter
    def execute(self, steps: int) -> None:
        self._ask({"reset": True, "execute": steps})
        self._execute, self._begin = steps, False

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """The next A actions, (A, M) float32 in [-1, 1].

        Raises:
            InvalidInput: the observation breaks the contract of `s2robot.types`; nothing was sent.
            S2RobotError: the server refuses it, in its words, or is gone.
        """
        check_observation(observation)
        began = time.perf_counter()
        request = {key: observation[key] for key in SENT if key in observation}
        answer = self._ask_first({**request, "reset": True}) if self._begin else self._ask(request)
        actions = answer.get("actions")
        if not isinstance(actions, np.ndarray) or actions.ndim != 2:
            raise S2RobotError(f"The server at {self.url} answered {sorted(answer)}; expected 'actions' (A, M)")
        self._begin = False
        timing = answer.get("server_timing", {})
        there = {stage: float(timing.get(f"{stage}_ms", 0.0)) / 1e3 for stage in ("encode", "act")}
        self.seconds = {**there, "wire": time.perf_counter() - began - sum(there.values())}
        return np.array(actions, np.float32)

    def reset(self) -> None:
        """Begin a new episode, with the next observation; connects again if the connection is gone."""
        self._begin = True
        if self._connection is None or not self._is_open():
            self.close()
            self._connect_again()

    def close(self) -> None:
        """Say goodbye; `reset` connects again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        from websockets.exceptions import ConnectionClosed

        if self._connection is None:
            raise S2RobotError(f"Not connected to {self.url}. To begin a new episode: reset(), which connects again")
        try:
            self._connection.send(wire.pack(request))
            message = self._connection.recv(timeout=self.timeout)
        except TimeoutError:
            self.close()  # an answer that comes now would be taken for the next one's
            raise self._lost(f"did not answer within {self.timeout:g} s") from None
        except ConnectionClosed as error:
            self._connection = None
            raise self._lost(f"closed the connection: {error}") from error
        except BaseException:  # Ctrl-C, above all: the same
            self.close()
            raise
        return self._read(message)

    def _ask_first(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin an episode. A connection that the server was about to close at `reset` takes none with it."""
        from websockets.exceptions import ConnectionClosed

        try:
            return self._ask(request)
        except S2RobotError as error:
            if not isinstance(error.__cause__, ConnectionClosed):
                raise
            self._connect_again()
            return self._ask(request)

    def _is_open(self) -> bool:
        """False once the server has closed, which between two calls nobody says."""
        from websockets.protocol import State

        return bool(self._connection.state is State.OPEN)

    def _read(self, message: bytes | str) -> dict[str, Any]:
        if isinstance(message, str):
            raise S2RobotError(f"The server at {self.url} says: {message}")
        value = wire.unpack(message)
        if not isinstance(value, dict):
            raise S2RobotError(
                f"The server at {self.url} sent a {type(value).__name__}; expected a map: is it a policy's?"
            )
        return value

    def _lost(self, what: str) -> S2RobotError:
        return S2RobotError(
            f"The server at {self.url} {what}. What it knew of this episode is lost: reset() begins another, and"
            " connects again"
        )

    def _connect(self, wait: float = 0.0) -> None:
        deadline = time.monotonic() + wait
        while True:
            try:
                self._connection = self._open()
                break
            except (ConnectionRefusedError, TimeoutError) as error:
                if time.monotonic() >= deadline:
                    raise S2RobotError(
                        f"Nobody listens at {self.url} ({error}). To serve a policy there: s2robot serve RUN"
                    ) from error
                time.sleep(RETRY)
        try:
            self.metadata = self._read(self._connection.recv(timeout=self.timeout))
        except Exception as error:
            self.close()
            if isinstance(error, S2RobotError):
                raise
            raise S2RobotError(f"The server at {self.url} did not say what it serves: {error}") from error
        if missing := sorted({"execute", "chunk"} - set(self.metadata)):
            self.close()
            raise S2RobotError(f"The server at {self.url} does not tell {', '.join(missing)}: it is none of s2robot's")

    def _open(self) -> Any:
        purpose = "A policy on a server"
        connect = require("websockets.sync.client", extra="serve", purpose=purpose).connect
        from websockets import exceptions

        headers = {"Authorization": serve_access.header(self._token)} if self._token else None
        try:
            connection = connect(
                self.url, compression=None, max_size=1 << 26, additional_headers=headers, open_timeout=self.timeout,
                close_timeout=2,
            )  # fmt: skip
            return connection.__enter__()  # websockets from 17.1 on warns of one that was not entered
        except (exceptions.InvalidURI, ValueError) as error:  # ValueError: a port that is none
            raise InvalidInput(f"{self.url!r} is no address of a server; expected ws://host:port") from error
        except exceptions.InvalidStatus as error:
            said = (error.response.body or b"").decode(errors="replace").strip()
            raise S2RobotError(f"The server at {self.url} says: {error.response.status_code} {said}") from error
        except exceptions.InvalidHandshake as error:
            raise S2RobotError(f"What listens at {self.url} is no policy server: {error}") from error
        except (ConnectionRefusedError, TimeoutError):
            raise
        except OSError as error:  # no such host, no route
            raise S2RobotError(f"Cannot reach {self.url}: {error}") from error

    def _connect_again(self) -> None:
        """The same policy must be there, and it must know how many actions are executed here."""
        known = self.metadata
        before = {**known, "execute": None}
        try:
            self._connect()
        except BaseException:
            self.metadata = known
            raise
        now = {**self.metadata, "execute": None}
        if changed := sorted(key for key in before | now if before.get(key) != now.get(key)):
            told = "; ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed)
            self.close()
            self.metadata = known  # whoever tries again is told again
            raise S2RobotError(f"Another policy is served at {self.url} now ({told}). Make a new RemotePolicy")
        if self.metadata["execute"] != self._execute:
            with contextlib.ExitStack() as stack:
                stack.callback(setattr, self, "_begin", True)
                self.execute = self._execute
