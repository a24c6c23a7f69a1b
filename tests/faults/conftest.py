"""The fault suite's table: every test puts its counts here; printed at the end, and written to runs/faults.

S2ROBOT_FAULTS names another folder. A row that was there from an earlier run stays until its test runs again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import materials
import pytest

from s2robot import files

OUT = Path(os.environ.get("S2ROBOT_FAULTS") or Path(__file__).resolve().parents[2] / "runs" / "faults")
COLUMNS = ("kind", "of", "tries", "survived", "lost", "what happened")
_rows: dict[tuple[str, str], dict[str, Any]] = {}

Count = Callable[..., None]


@pytest.fixture
def count() -> Count:
    """`count(kind, of, outcomes)`: outcomes by their words, all survived but those in `lost`.

    `count(kind, of)` comes first: a test that fails before it can count has lost something.
    """

    def add(kind: str, of: str, outcomes: dict[str, int] | None = None, lost: int = 0) -> None:
        if outcomes is None:
            outcomes, lost = {"did not finish": 1}, 1
        tries = sum(outcomes.values())
        words = ", ".join(f"{number} {name}" for name, number in sorted(outcomes.items()) if number)
        row = {"kind": kind, "of": of, "tries": tries, "survived": tries - lost, "lost": lost, "what happened": words}
        _rows[kind, of] = row

    return add


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> materials.Materials:
    """What the verbs and readers of this suite work on, made once."""
    return materials.make(tmp_path_factory.mktemp("materials"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _rows:
        return
    path = OUT / "table.json"
    kept = {(row["kind"], row["of"]): row for row in (json.loads(path.read_text()) if path.exists() else [])}
    rows = [row for _, row in sorted({**kept, **_rows}.items())]
    files.write_json(path, rows)
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- | --- | ---: | ---: | ---: | --- |"]
    lines += ["| " + " | ".join(str(row[name]) for name in COLUMNS) + " |" for row in rows]
    (OUT / "table.md").write_text("\n".join(lines) + "\n")
    terminalreporter.section("faults")
    for line in lines:
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"{sum(row['tries'] for row in rows)} tries, {sum(row['lost'] for row in rows)} lost")
    terminalreporter.write_line(str(path))
