"""Durable writing: a file is the old one or the new one, never half of either.

    with atomic(path) as temporary:        # <path>.tmp-<machine>-<pid>, beside the target
        temporary.write_bytes(data)        # flushed to disk and renamed on success, removed on any failure

A kill in the middle leaves a `*.tmp-<machine>-<pid>`; `sweep(folder)` removes those of dead processes of this
machine. A full disk becomes `OutOfSpace`, however the library that met it worded the news.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from s2robot import seals
from s2robot.errors import CorruptFile, InvalidInput, OutOfSpace, S2RobotError

_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}

# How libraries say "full" without an errno: HDF5 and safetensors quote the system, numpy's tofile counts,
# torch's zip writer only notices that its position is wrong.
_FULL_WORDS = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|\d+ requested and \d+ written"
    r"|PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+"
)
_HERE = re.sub(r"[^\w.-]", "_", socket.gethostname())
_LEFTOVER = re.compile(r"\.tmp-(?P<machine>.+?)(?:~\d+)?-(?P<process>\d+)$")
_in_use: set[Path] = set()  # this process's open temporaries: a container reuses pid 1, so the pid alone cannot tell
_claiming = threading.Lock()


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the name `path`, all at once.

    Mind that `np.save(temporary)` would append `.npy` to the odd suffix: open the file yourself.

    Raises:
        OutOfSpace: the disk or quota is full; `path` is as it was and nothing else was left behind.
    """
    with _to_be(path, lambda temporary: temporary.unlink(missing_ok=True)) as temporary:
        yield temporary
        _flush(temporary)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """The same for a folder, which is yet to be made at the path that this yields."""
    sweep(Path(path).absolute().parent)
    with _to_be(path, lambda temporary: shutil.rmtree(temporary, ignore_errors=True)) as temporary:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                _flush(file)


@contextlib.contextmanager
def _to_be(path: str | Path, remove: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary path that becomes `path`, or is removed."""
    path = Path(path).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if isinstance(error, FileExistsError | NotADirectoryError) or error.errno in _FORBIDDEN:
            raise _not_writable(path, error) from error
        raise
    temporary = _claimed(path)
    try:
        with explain_full_disk(path):
            try:
                yield temporary
                temporary.replace(path)
            except OSError as error:
                remove(temporary)
                if error.errno in _FORBIDDEN and str(temporary) in str(error):
                    raise _not_writable(path, error) from error
                raise
            except BaseException:
                remove(temporary)
                raise
        flush_folder(path.parent)
    finally:
        _in_use.discard(temporary)


def _not_writable(path: Path, error: OSError) -> S2RobotError:
    return S2RobotError(f"{path.parent} cannot be written: {error.strerror}. Write elsewhere")


def temporary_of(path: Path, turn: int = 0) -> Path:
    """What this process calls a thing beside `path` that is yet to become it, or is to go; see `sweep`.

    turn: of several at once.
    """
    return path.with_name(f"{path.name}.tmp-{_HERE}{f'~{turn}' if turn else ''}-{os.getpid()}")


def _claimed(path: Path) -> Path:
    """A temporary path that no other thread of this process writes into."""
    with _claiming:
        temporary = next(each for turn in count() if (each := temporary_of(path, turn)) not in _in_use)
        _in_use.add(temporary)
        return temporary


@contextlib.contextmanager
def explain_full_disk(path: str | Path) -> Iterator[None]:
    """Turn any wording of a full disk while writing `path` into `OutOfSpace`."""
    try:
        yield
    except OutOfSpace:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise _out_of_space(Path(path)) from error


def is_full_disk(error: BaseException | None) -> bool:
    """Does this error, or one it came from, mean that the disk, quota or file-size limit is full?"""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        wordy = isinstance(error, (OSError, RuntimeError)) or type(error).__name__ == "SafetensorError"
        if wordy and _FULL_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_json(path: str | Path, value: Any, *, indent: int | None = 2) -> None:
    """Write `value` as readable JSON, atomically, an object with its checksum. `plain` says what becomes of types."""
    made = plain(value)
    made = seals.sealed(made) if isinstance(made, dict) else made
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(made, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path, remedy: str = "Delete it and run the command that writes it again.") -> Any:
    """Read a JSON file.

    Raises:
        CorruptFile: it is not JSON, or not what was written; carries `remedy`.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptFile(path, f"not JSON ({error})", remedy) from error
    try:
        return seals.unsealed(found) if isinstance(found, dict) else found
    except ValueError as error:
        raise CorruptFile(path, str(error), remedy) from error


class JsonLines:
    """Append records to a file, one JSON object a line; each is handed to the system at once.

    A kill can tear only the last line. Opening drops a torn one, so that what follows stays readable.
    """

    def __init__(self, path: str | Path, *, durable: bool = False) -> None:
        """`durable` waits for the disk after every record: for journals, not for metrics."""
        self.path = Path(path)
        self._durable = durable
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole, torn = _split_torn(self.path.read_bytes() if self.path.exists() else b"")
        with explain_full_disk(self.path):
            self._file = self.path.open("ab", buffering=0)
            if torn:
                self._file.truncate(len(whole))
            if _is_object(torn):  # only its newline was lost
                self._append(torn + b"\n")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record, with its checksum."""
        with explain_full_disk(self.path):
            self._append(_line(plain(dict(record))).encode())

    def _append(self, data: bytes) -> None:
        start = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(data):  # an unbuffered write may be short just before the disk is full
                written += self._file.write(data[written:])
            if self._durable:
                os.fsync(self._file.fileno())
        except BaseException:
            self._file.truncate(start)
            raise

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read the records `JsonLines` wrote; a torn last line is left out.

    Raises:
        CorruptFile: a whole line is not a JSON object, or not what was written; names the line.
    """
    whole, torn = _split_torn(Path(path).read_bytes())
    lines = whole.splitlines() + ([torn] if _is_object(torn) else [])
    records = []
    for number, line in enumerate(lines, start=1):
        remedy = f"Delete that line: sed -i {number}d {path}"
        if not _is_object(line):
            raise CorruptFile(path, f"line {number} is not a JSON object", remedy)
        try:
            records.append(seals.unsealed(json.loads(line)))
        except ValueError as error:
            raise CorruptFile(path, f"line {number} is {error}", remedy) from error
    return records


def keep_lines(path: str | Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the records a resumed run will write again; atomic, and quiet where there is no file."""
    if Path(path).exists():
        kept = [_line(row) for row in read_jsonl(path) if wanted(row)]
        with atomic(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(seals.sealed(record), allow_nan=False, separators=(",", ":")) + "\n"


def write_sum(path: Path, content: Path) -> None:
    """Keep beside `path` the sum of `content`, which is about to take its name; see `seals.check_sum`."""
    with atomic(seals.sum_file(path)) as temporary:
        temporary.write_text(f"{seals.digest(content)}  {path.name}\n", encoding="utf-8")


def sweep(folder: str | Path, *, deep: bool = False) -> list[Path]:
    """Remove the temporary files and folders that killed processes of this machine left in `folder`.

    deep: and in the folders within. Those of other machines on a shared disk may be in use.
    """
    removed = []
    for path in sorted(Path(folder).absolute().glob("**/*.tmp-*" if deep else "*.tmp-*")):
        match = _LEFTOVER.search(path.name)
        if match is None or path in _in_use or match["machine"] != _HERE:
            continue
        if (process := int(match["process"])) != os.getpid() and is_alive(process):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def plain(value: Any) -> Any:
    """What JSON can hold: arrays become lists, paths text, dataclasses objects, and NaN or infinity null.

    Null, because a report of a run that diverged must still be written, and `NaN` is not JSON.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors
        return plain(value.tolist())
    raise InvalidInput(f"Cannot write {type(value).__name__} as JSON: {value!r}. Give text, numbers, lists or mappings")


def flush_folder(folder: Path) -> None:
    """Make renames and removals in `folder` survive a power cut, where the system lets one."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse; the rename itself has happened
        pass
    finally:
        os.close(descriptor)


def reserve(path: Path, size: int) -> None:
    """Grow `path` to `size` bytes of real disk, so that a full disk shows now and not halfway.

    HDF5 that meets a full disk crashes the interpreter, and a memory map gets SIGBUS: both write into
    reserved space only.
    """
    with explain_full_disk(path), path.open("ab") as file:
        start = file.tell()
        if size > start:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS, Windows
                block = bytes(1 << 20)
                for offset in range(start, size, len(block)):
                    file.write(block[: size - offset])


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _split_torn(data: bytes) -> tuple[bytes, bytes]:
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def is_alive(pid: int) -> bool:
    """Whether such a process runs on this machine; where nobody can tell, it does."""
    if os.name == "nt":  # signal 0 would be Ctrl-C there: leave leftovers alone
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _out_of_space(path: Path) -> OutOfSpace:
    path = path.with_name(_LEFTOVER.sub("", path.name))  # the name that was asked for
    folder = path.absolute().parent
    free = shutil.disk_usage(folder).free
    error = OutOfSpace(
        f"No space left while writing {path}: {free} bytes ({free / 1e6:.1f} MB) are free there. Nothing half-written"
        f" was left behind. Free some space (see: df -h {folder}; if that shows plenty, a quota or size limit was hit:"
        " quota -s; ulimit -f) and run the same command again, or let it write to another disk"
    )
    error.errno = errno.ENOSPC
    return error


def cache_folder() -> Path:
    """Where things are kept that can be made or fetched again."""
    if "S2ROBOT_CACHE" in os.environ:
        return Path(os.environ["S2ROBOT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s2robot"
