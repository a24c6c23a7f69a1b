"""Who may connect: a token, compared in constant time; and where a server without one may listen.

Authorization: Api-Key <token>      as openpi's client sends it
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from s2robot.errors import InvalidInput, UsageError

VARIABLE = "S2ROBOT_TOKEN"
SCHEME = "Api-Key"


def read_token(file: str | Path | None = None) -> str | None:
    """The token in a file, else in the environment variable, else None. Never from the command line: `ps` shows that.

    Raises:
        InvalidInput: the file is not there, or it holds something that is no token.
    """
    if file is None:
        return _checked(os.environ[VARIABLE], f"The variable {VARIABLE}") if VARIABLE in os.environ else None
    try:
        text = Path(file).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"No token in {file}: {error}. To make one: openssl rand -hex 32 > {file}") from error
    return _checked(text, str(file))


def _checked(text: str, where: str) -> str:
    token = text.strip()
    if not token.isascii() or not token.isprintable() or len(token.split()) != 1:
        raise InvalidInput(f"{where} holds no token: expected one word of printable ASCII, as: openssl rand -hex 32")
    return token


def header(token: str) -> str:
    """What a client sends as `Authorization`."""
    return f"{SCHEME} {token}"


def admits(token: str | None, given: Sequence[str]) -> bool:
    """May one come in who sent these `Authorization` headers?"""
    if token is None:
        return True
    return len(given) == 1 and hmac.compare_digest(given[0].encode(errors="surrogateescape"), header(token).encode())


def check_host(host: str, token: str | None, anyone: bool) -> None:
    """Raises UsageError for an address that others reach, without a token: they could use, and stop, your robot."""
    if token is None and not anyone and not _is_loopback(host):
        raise UsageError(
            f"--host {host} can be reached from other machines, and there is no token. Give one (--token-file FILE, or"
            f" {VARIABLE}), or listen on 127.0.0.1 behind a tunnel, or say --without-token"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: whatever it leads to
        return False
