"""The `study` verb."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from s2robot import command, files
from s2robot.errors import UsageError
from s2robot.launchers import find_launcher
from s2robot.parser import json_option


def do_study(argv: Sequence[str]) -> int:
    """Run or resume a study."""
    from s2robot.study import cells, read_study, run_study

    parser = command.parser(
        "study",
        "Train and judge every arm of a question with every training seed, on the same episodes. Stop it any time:\n"
        "the same command goes on where it was; the page shows what is finished so far.",
        "s2robot study study-lift-demos --data runs/lift.hdf5 --arms s2,base --seeds 0",
        key="--eval.episodes 20 (for all arms)",
    )
    parser.add_argument("study", help="a study by name (s2robot list configs: study-...) or .yaml path")
    parser.add_argument("--out", default=None, help="the folder to write into (default: runs/STUDY)")
    parser.add_argument("--data", default=None, help="demonstrations that are there already (default: collected)")
    parser.add_argument("--arms", default=None, help="some of the arms, the one to compare against first: s2,base")
    parser.add_argument("--seeds", default=None, help="training seeds instead of the study's: 0,1,2")
    parser.add_argument("--levels", default=None, help="levels instead of the study's: 15,30")
    parser.add_argument("--shifts", default=None, help="judge under these, as eval --shift has them: none;all/test")
    command.launcher(parser, "each run is a piece")
    json_option(parser, "print the results as JSON at the end")
    options, rest = command.parse(parser, argv)
    shifts = [each.strip() for each in (options.shifts or "").split(";") if each.strip()]
    chosen = {
        "arms": _listed(options.arms, "arms", str),
        "seeds": _listed(options.seeds, "seeds", int),
        "levels": _listed(options.levels, "levels", float),
        "shifts": ["" if each == "none" else each for each in shifts],
    }
    study = read_study(options.study, rest, **chosen)
    out = Path(options.out or Path("runs") / Path(options.study).stem)
    console = Console(stderr=options.json)
    console.print(f"{study.title}: {len(list(cells(study)))} runs", highlight=False)
    page = run_study(study, out, console, options.data, find_launcher(options.launcher))
    if options.json:
        command.tell_json(files.read_json(out / "results.json"))
    console.print(str(page), highlight=False)
    return 0


def _listed(words: str | None, name: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        found = [kind(part.strip()) for part in (words or "").split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"--{name} is {words!r}; expected numbers: 0,1,2") from None
    if words is not None and (not found or len(set(found)) != len(found)):
        raise UsageError(f"--{name} is {words!r}; expected different ones, separated by commas")
    return found
