"""Everything s2robot raises on purpose.

    S2RobotError            exit code 1: the work could not be done
    |-- UsageError          exit code 2: what was asked for is not a thing one can ask for
    |   |-- UnknownName     a name that is not in a table; the nearest one is suggested
    |   `-- InvalidInput    an array, observation or setting outside its contract
    |-- MissingExtra        an optional dependency is not installed; carries its pip line
    |-- BrokenPlugin        an encoder, task or policy of another distribution that cannot be used
    |-- CorruptFile         a file that cannot be read back, or is not what its name says
    |-- CheckpointMismatch  weights whose keys or shapes do not fit the model
    |-- Occupied            another process is writing there, see `s2robot.locks`
    |-- RenderingUnavailable  no offscreen OpenGL on this machine
    `-- OutOfSpace          the disk is full; nothing half-written was left behind

Every message says what came, what is allowed, and what to type next. The command line prints the
message alone; `--debug` adds the traceback.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any


class S2RobotError(Exception):
    """Base of all errors raised on purpose. They keep type and message across processes."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (type(self), self.args, self.__dict__)


class UsageError(S2RobotError):
    """The request itself is wrong: nothing was started."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is not in its table."""

    LISTED = 30  # a longer table is cut to the nearest names

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known, name = sorted(known), str(name)
        # A word without dots may be the last part of a key: --stpes is nearer to --train.steps than to --seed.
        parts = {each.rpartition(".")[2]: each for each in reversed(known) if "." not in name}
        parts |= {each: each for each in known}
        near = [parts[part] for part in difflib.get_close_matches(name, parts, n=1, cutoff=0.5)]
        guess = f" Did you mean {near[0]!r}?" if near else ""
        tail = f" ({hint})" if hint else ""
        if len(known) > self.LISTED:
            listed = list(dict.fromkeys(parts[part] for part in difflib.get_close_matches(name, parts, 12, 0.0)))[:6]
            tail = f", and {len(known) - len(listed)} more{tail}"
        else:
            listed = known
        super().__init__(f"Unknown {kind} {name!r}.{guess} Known: {', '.join(listed)}{tail}")
        self.nearest = near[0] if near else None


class InvalidInput(UsageError, ValueError):
    """A value outside its documented dtype, shape or range."""


class MissingExtra(S2RobotError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed. Run: pip install 's2robot[{extra}]'"
            f"  (from a checkout: pip install '.[{extra}]')"
        )
        self.extra = extra


class BrokenPlugin(S2RobotError):
    """An entry point of another distribution that does not lead to what it should, see `s2robot.plugins`."""

    def __init__(self, kind: str, name: str, distribution: str, where: str, why: str) -> None:
        super().__init__(
            f"The {kind} {name!r} of {where} cannot be used: {why}. Mend it, or: pip uninstall {distribution}"
        )
        self.why = why


class CorruptFile(S2RobotError):
    """A file that cannot be read back."""

    def __init__(self, path: str | Path, why: str, remedy: str) -> None:
        super().__init__(f"Cannot read {path}: {why}. {remedy}")
        self.path, self.why = Path(path), why


class CheckpointMismatch(S2RobotError):
    """Weights that do not fit the model they were given to."""


class Occupied(S2RobotError):
    """Another process is writing here, see `s2robot.locks`."""


class RenderingUnavailable(S2RobotError):
    """No offscreen OpenGL: frames cannot be rendered here."""


class OutOfSpace(S2RobotError, OSError):
    """The disk is full."""


def in_words(error: BaseException, most: int = 200) -> str:
    """What somebody else's error says, as part of a line of ours."""
    return " ".join(str(error).split())[:most]


def _revive(kind: type[S2RobotError], args: tuple[Any, ...], state: dict[str, Any]) -> S2RobotError:
    """Unpickle without calling `__init__`, whose arguments are not the message it made of them."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def require(package: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or raise `MissingExtra` with its pip line."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != package.split(".", maxsplit=1)[0]:
            raise  # the package is there, something *it* needs is not: do not hide which
        raise MissingExtra(package, extra, purpose) from error
