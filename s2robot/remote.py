"""Files behind an address such as s3://bucket/lift.hdf5, through fsspec: fetched into a cache, stored when done.

    $S2ROBOT_CACHE/remote/<16 hex>/    a copy, under a name that changes with the file; safe to delete at any time
                  outgoing/<16 hex>/   what is being made, to be stored there when it is done; a killed run goes on here

Whole files, not ranges of them: HDF5 and training read here and there, and a disk answers in microseconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from s2robot import files
from s2robot.errors import InvalidInput, MissingExtra, S2RobotError

# What shows that a file is another now, in the words of S3, HTTP, Google's and Azure's stores, SFTP and disks.
_TIMES = ("LastModified", "Last-Modified", "last_modified", "modified", "mtime", "updated", "created")
TELLS = ("name", "size", "ETag", "etag", "Content-MD5", *_TIMES)
READ_ONLY = ("http", "https")
# Elsewhere what stands before an @ is a container, or an owner.
WITH_PASSWORDS = (*READ_ONLY, "ftp", "sftp", "ssh", "s3")
_SCHEME = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
_ADDRESS = re.compile(_SCHEME + r"(?P<rest>[^\s'\"<>]*)")


def is_remote(path: str | Path) -> bool:
    """Is this an address? Ask before making it a `Path`, which takes a slash from it."""
    return "://" in str(path)


def shown(text: str) -> str:
    """Text as it may be printed and kept: addresses in it without passwords, and web addresses without their queries.

    A query may be a signature that opens the file to whoever reads it.
    """
    alone = re.fullmatch(_SCHEME + "(?P<rest>.*)", text, re.DOTALL)  # whatever characters it has
    return _less_secrets(alone) if alone else _ADDRESS.sub(_less_secrets, text)


def _less_secrets(found: re.Match[str]) -> str:
    scheme, rest = found["scheme"], found["rest"]
    if scheme.lower() in READ_ONLY:
        rest = re.split(r"[?#]", rest)[0]
    host, slash, path = rest.partition("/")
    who, at, host = host.rpartition("@")
    if scheme.lower() in WITH_PASSWORDS:
        who, at = (who.partition(":")[0], at) if scheme.lower() not in READ_ONLY else ("", "")
    return f"{scheme}://{who}{at}{host}{slash}{path}"


def local(path: str | Path) -> Path:
    """Where to read a file: itself, or its copy.

    Raises:
        InvalidInput: there is none at this address.
        MissingExtra: what speaks to such addresses is not installed.
    """
    return _fetch(str(path)) if is_remote(path) else Path(path)


def exists(address: str) -> bool:
    """Is there such a file now?"""
    with _reaching(address) as (system, inner):
        return _tells(system, inner) is not None


def beside(path: str | Path, name: str) -> str | Path:
    """Another name in the same folder."""
    if not is_remote(path):
        return Path(path).parent / name
    address = str(path) if is_writable(path) else re.split(r"[?#]", str(path))[0]
    return f"{address.rstrip('/').rpartition('/')[0]}/{name}"


def is_writable(address: str | Path) -> bool:
    """Can files be stored there? A web server only hands them out."""
    return str(address).partition("://")[0].rpartition("::")[2].lower() not in READ_ONLY  # simplecache::https://...


def kept(address: str) -> Path:
    """Where to keep what cannot be stored at this address."""
    return files.cache_folder() / "features" / _short(address.rpartition("/")[0]) / _name(address)


def outgoing(address: str) -> Path:
    """Where to make what will be stored at this address."""
    return files.cache_folder() / "outgoing" / _short(address) / _name(address)


def store(source: Path, address: str) -> None:
    """Store a file, or all files of a folder; one named `done` last, for it says that the others are there."""
    names = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
    with _reaching(address) as (system, inner):
        for path in sorted(names, key=lambda path: (path.name == "done", path)):
            target = f"{inner}/{path.relative_to(source).as_posix()}" if source.is_dir() else inner
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.put_file(str(path), target)


def folder(address: str, names: Sequence[str]) -> Path:
    """A folder with copies of these files of a folder, those that are there."""
    with _reaching(address) as (system, inner):
        found = {name: _tells(system, f"{inner}/{name}") for name in names}
        tells = {name: each for name, each in found.items() if each is not None}
        copy = files.cache_folder() / "remote" / _short(json.dumps([address, tells])) / _name(address)
        for name in tells:
            _get(system, f"{inner}/{name}", copy / name)
        return copy


def _fetch(address: str) -> Path:
    with _reaching(address) as (system, inner):
        if (tells := _tells(system, inner)) is None:
            raise InvalidInput(f"There is nothing at {shown(address)}")
        copy = files.cache_folder() / "remote" / _short(json.dumps([address, tells])) / _name(address)
        _get(system, inner, copy)
        return copy


def _get(system: Any, inner: str, copy: Path) -> None:
    if not copy.exists():
        with files.atomic(copy) as temporary:
            system.get_file(inner, str(temporary))


def _tells(system: Any, inner: str) -> list[str] | None:
    """What shows which file is there now; None: none is.

    `system.exists` says that of a server that does not answer, too, and so does what `info` raises for the web.
    """
    try:
        info = system.info(inner)
    except FileNotFoundError as error:
        answer = getattr(error.__cause__, "status", None)  # the web's
        if error.__cause__ is None or (answer is not None and 400 <= answer < 500):
            return None
        raise error.__cause__ from None
    return [str(info.get(name)) for name in TELLS]


@contextlib.contextmanager
def _reaching(address: str) -> Iterator[tuple[Any, str]]:
    """What speaks to this kind of address, and the path within."""
    from fsspec.core import url_to_fs  # comes with torch

    scheme = address.partition("://")[0]
    try:
        yield url_to_fs(address)
    except S2RobotError:
        raise
    except ImportError as error:
        if scheme in ("s3", "s3a"):
            raise MissingExtra("s3fs", "s3", f"An address that begins with {scheme}://") from error
        raise S2RobotError(f"{scheme}:// needs a package that is not installed: {error}") from error
    except ValueError as error:  # a kind of address that it does not know
        raise InvalidInput(f"{shown(address)}: {_clean(error, address)}") from None
    except Exception as error:  # noqa: BLE001 - stores raise all kinds, which say the whole address
        why = _clean(error, address) or type(error).__name__
        raise S2RobotError(
            f"{shown(address)} cannot be reached: {why}. Is the address right, and are you let in?"
        ) from None


def _clean(error: Exception, address: str) -> str:
    """What an error says, less the secrets of addresses in it."""
    words = shown(" ".join(str(error).replace(address, shown(address)).split()))
    if not is_writable(address):  # their query may also stand alone
        words = re.sub(r"\?[^\s'\"<>]+", "?...", words)
    return words[:300]


def _name(address: str) -> str:
    return shown(address).rstrip("/").rpartition("/")[2]


def _short(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()[:16]
