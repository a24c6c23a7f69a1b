"""What tells a file that changed on disk from the one that was written, where its format says nothing of the kind.

JSON objects, lines of logs      a key more, "crc32", of all the others; whoever edits one by hand drops that key
zip (torch.save, np.savez)       the crc32 that it has of each member, at which torch does not look
any other file                   FILE.sha256 beside it, as `sha256sum FILE > FILE.sha256` writes it: looked for beside
                                 weights, demonstrations, images and videos of others as well

A checksum finds accidents. Who can write the file can write its checksum: against them it is no protection.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2robot.errors import CorruptFile

KEY = "crc32"
# As sha256sum writes it (a backslash before odd names), as BSD's sha256 and openssl do, or the sum alone.
_SUM = re.compile(r"\\?([0-9a-f]{64})( [ *].*)?\s*|sha2?-?256 ?\(.*\) ?= ?([0-9a-f]{64})\s*", re.DOTALL | re.IGNORECASE)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its checksum as the last key."""
    rest = {key: value for key, value in record.items() if key != KEY}
    return {**rest, KEY: _crc32(rest)}


def unsealed(record: dict[str, Any]) -> dict[str, Any]:
    """The object without its checksum; one that has none is taken as it is: older versions wrote none.

    Raises:
        ValueError: it is not what was written.
    """
    if KEY not in record:
        return record
    rest = {key: value for key, value in record.items() if key != KEY}
    if record[KEY] != _crc32(rest):
        raise ValueError(f'not what was written: its checksum differs. If you edited it, drop the key "{KEY}"')
    return rest


def sum_file(path: Path) -> Path:
    """Where the sum of a file is kept."""
    return path.with_name(f"{path.name}.sha256")


def check_sum(path: Path, remedy: str) -> None:
    """Hold a file against the sum beside it, if there is one.

    Raises:
        CorruptFile: it is not the file that the sum was taken of; carries `remedy`.
    """
    beside = sum_file(path)
    if not beside.is_file():
        return
    found = _SUM.fullmatch(beside.read_bytes()[:4096].decode("utf-8-sig", errors="replace"))
    if not found:
        raise CorruptFile(beside, "it holds no sum", f"Make it again (sha256sum {path.name}), or delete it.")
    if digest_once(path) != (found[1] or found[3]).lower():
        raise CorruptFile(path, f"it is not the file that {beside.name} was made of", remedy)


def check_zip(path: Path, remedy: str) -> None:
    """Hold every member of a zip file against its checksum; a file of another kind is let through.

    Raises:
        CorruptFile: one is damaged; carries `remedy`.
    """
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except zipfile.BadZipFile as error:
        if not zipfile.is_zipfile(path) and path.read_bytes()[:2] != b"PK":
            return
        raise CorruptFile(path, f"it is damaged ({error})", remedy) from error
    except (OSError, ValueError, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise CorruptFile(path, f"it is damaged ({' '.join(str(error).split())[:100]})", remedy) from error
    if damaged:
        raise CorruptFile(path, f"its part {damaged} is not what was written", remedy)


def digest(path: str | Path) -> str:
    """sha256 of a file as it is."""
    sha = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def digest_once(path: Path) -> str:
    """The same, read once a process while the file stays what it is."""
    about = path.stat()
    return _digest(path, about.st_mtime_ns, about.st_size)


def _crc32(record: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True, separators=(',', ':')).encode()):08x}"


@functools.lru_cache(maxsize=256)
def _digest(path: Path, changed: int, size: int) -> str:
    """Once a process for each state of a file: datasets are opened again and again."""
    return digest(path)
