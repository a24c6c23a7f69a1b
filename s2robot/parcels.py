"""Small files on their way between machines: a policy to who judges it, a run's folder to who trains it and back."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from s2robot import files

_MINE = re.compile(r"^\..*lock$|\.tmp-(.+-)?\d+$")  # of one process: who writes there now, or did when killed
_GONE = 2  # when files that are no longer wanted go, among what `_turn` says


@dataclass(frozen=True)
class Parcel:
    """Files by their path within a folder. All of it is in memory."""

    contents: dict[str, bytes]

    @classmethod
    def of(cls, folder: Path, names: Sequence[str] = ("**/*",)) -> Parcel:
        """Of a folder, those of these files that are there, named as `glob` takes it; default: all, in its folders too.

        Neither locks nor what a killed process had not finished: those are swept.
        """
        for place in {folder, *(path.parent for name in names for path in folder.glob(name))}:
            files.sweep(place)
        found = {path.relative_to(folder): path for name in names for path in folder.glob(name) if path.is_file()}
        travel = {name.as_posix(): path for name, path in found.items() if not any(map(_MINE.search, name.parts))}
        return cls({name: travel[name].read_bytes() for name in sorted(travel)})

    @contextlib.contextmanager
    def unpacked(self) -> Iterator[Path]:
        """A folder with these files, for as long as this lasts."""
        begin = f"s2robot-{platform.node()}-"
        _clear(Path(tempfile.gettempdir()), begin)
        with tempfile.TemporaryDirectory(prefix=f"{begin}{os.getpid()}-") as folder:
            for name, content in self.contents.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            yield Path(folder)

    def put(self, folder: Path, instead_of: Parcel | None = None) -> None:
        """Write each file into a folder, whole or not at all, but those that are as they were in another parcel; those
        of that other which are not in this one go. In an order that a kill may cut anywhere: see `_turn`."""
        before = instead_of.contents if instead_of else {}
        gone = [(_GONE, name) for name in before.keys() - self.contents.keys()]
        for turn, name in sorted([*((_turn(name), name) for name in self.contents), *gone]):
            path = folder / name
            if turn == _GONE:
                path.unlink(missing_ok=True)
            elif before.get(name) != self.contents[name] or not path.exists():
                with files.atomic(path) as temporary:
                    temporary.write_bytes(self.contents[name])


def _turn(name: str) -> int:
    """When a file is written: what was learned, what describes it, what says that it is complete; then all that was
    measured of it, for an evaluation goes on from its log only with the weights that the log is of."""
    path = PurePosixPath(name)
    described = path.suffix == ".json"
    if path.parts[0] != "policy":
        return 5 if described else 4
    return 3 if path.name == "done" else int(described)


def _clear(place: Path, begin: str) -> None:
    """Remove what processes of ours on this machine left: workers end by signals, and then nothing tidies up."""
    if not hasattr(os, "geteuid"):  # Windows, where signal 0 would be Ctrl-C
        return
    for folder in place.glob(f"{begin}*"):
        process = re.match(r"(\d+)-", folder.name[len(begin) :])
        with contextlib.suppress(OSError):  # another was quicker
            if process and folder.lstat().st_uid == os.geteuid() and not files.is_alive(int(process[1])):
                shutil.rmtree(folder, ignore_errors=True)
