"""How long are our files and functions? Prints those over the aim; exit code 1 if one is over the cap."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("s2robot", "envs", "policies", "tests")
FILE_AIM, FILE_CAP = 250, 400
FUNCTION_AIM, FUNCTION_CAP = 40, 60

Row = tuple[int, int, str]  # lines, cap, what


def files() -> list[Path]:
    """Our Python files, each once: the links inside s2robot/ point back to folders that are listed themselves."""
    return sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py") if file == file.resolve())


def measure(file: Path) -> Iterator[Row]:
    """Lines of a file and of every function in it."""
    text = file.read_text(encoding="utf-8")
    name = str(file.relative_to(ROOT))
    yield text.count("\n"), FILE_CAP, name
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield lines, FUNCTION_CAP, f"{name}:{node.lineno} {node.name}()"


def main() -> int:
    """Print the table and return the exit code."""
    rows = [row for file in files() for row in measure(file)]
    aims = {FILE_CAP: FILE_AIM, FUNCTION_CAP: FUNCTION_AIM}
    long = sorted((row for row in rows if row[0] > aims[row[1]]), key=lambda row: -row[0] / row[1])
    over = [row for row in long if row[0] > row[1]]
    for lines, cap, what in long:
        print(f"{lines:5d} lines  {'OVER ' + str(cap) if lines > cap else 'long':9s}  {what}")
    total = sum(lines for lines, cap, _ in rows if cap == FILE_CAP)
    print(f"{total} lines in {len(files())} files; {len(over)} over the cap")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
