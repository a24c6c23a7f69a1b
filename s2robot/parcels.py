"""Small files on their way between machines: a policy to who judges it, a run's folder to who trains it and back."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from s2robot import files


@dataclass(frozen=True)
class Parcel:
    """Files by their path within a folder. All of it is in memory."""

    contents: dict[str, bytes]

    @classmethod
    def of(cls, folder: Path, names: Sequence[str] | None = None) -> Parcel:
        """Of a folder, these files that are there; default: all, in its folders too."""
        files.sweep(folder)
        paths = folder.rglob("*") if names is None else (folder / name for name in names)
        found = sorted(path for path in paths if path.is_file())
        return cls({path.relative_to(folder).as_posix(): path.read_bytes() for path in found})

    @contextlib.contextmanager
    def unpacked(self) -> Iterator[Path]:
        """A folder with these files, for as long as this lasts."""
        with tempfile.TemporaryDirectory(prefix="s2robot-") as folder:
            for name, content in self.contents.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            yield Path(folder)

    def put(self, folder: Path, instead_of: Parcel | None = None) -> None:
        """Write each file into a folder, whole or not at all; those that say that all is done go last. Then those of
        another parcel that are not in this one are gone."""
        for name in sorted(self.contents, key=lambda name: (Path(name).name == "done", name)):
            with files.atomic(folder / name) as temporary:
                temporary.write_bytes(self.contents[name])
        for name in instead_of.contents.keys() - self.contents.keys() if instead_of else ():
            (folder / name).unlink(missing_ok=True)
