"""The `compare` verb."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from s2robot import command
from s2robot.compare import LOGS, POINTS, compare
from s2robot.parser import Parser, json_option


def do_compare(argv: Sequence[str]) -> int:
    """The verb."""
    parser = Parser(
        prog="s2robot compare",
        description="Policies on the same seeds: success, the difference with its interval, resolved or not.",
        epilog="example: s2robot compare s2=runs/a0,runs/a1,runs/a2 base=runs/b0,runs/b1,runs/b2",
        allow_abbrev=False,
    )
    parser.add_argument("arms", nargs="+", help="RUN, or NAME=RUN,RUN,... with one run a training seed")
    parser.add_argument("--log", default="", help=f"the log of each run to read (default: {' and '.join(LOGS)})")
    json_option(parser)
    options = parser.parse_args(list(argv))
    result = compare(options.arms, options.log)
    if options.json:
        command.tell_json(result)
        return 0
    console = command.console()
    console.print(_table(result))
    left = f"; left out, not met by all or of another use: {result['left_out']}" * bool(result["left_out"])
    console.print(
        f"{result['n']} episodes a run, seeds {result['seeds'][0]} to {result['seeds'][1]}{left}.", highlight=False
    )
    if result["seeds_of"] != "evaluation":
        console.print(f"They are seeds of {result['seeds_of']}: no result to report.", style="yellow", highlight=False)
    several = len(result["arms"][0]["by_run"]) > 1
    for each in result["against_first"]:
        if not each["resolved"] and each["more_episodes"]:
            more, condition = each["more_episodes"], ", if runs of one arm did not differ; more runs do more" * several
            words = f"{more} more episodes a run would resolve {100 * POINTS:.0f} points four times in five{condition}"
            console.print(f"{each['name']}: {words}.", highlight=False)
    if result["against_first"] and not several:
        console.print(
            "One run an arm: these very policies are told apart, or not. Of what trained them it takes several training"
            " seeds to know: s2robot train --seeds 0,1,2",
            highlight=False,
        )
    return 0


def _table(result: dict[str, Any]) -> Table:
    table = command.table("arm", "successes", "rate and 95 % interval", "by run", "against the first", "", words=6)
    for arm, each in zip(result["arms"], [None, *result["against_first"]], strict=True):
        row = [arm["name"], f"{arm['successes']} of {arm['episodes']}"]
        row.append(f"{100 * arm['rate']:.1f} % ({100 * arm['low']:.1f} to {100 * arm['high']:.1f})")
        row.append(", ".join(f"{100 * each:.0f}" for each in arm["by_run"]) if len(arm["by_run"]) > 1 else "")
        if each:
            row.append(
                f"{100 * each['difference']:+.1f} points ({100 * each['low']:+.1f} to {100 * each['high']:+.1f})"
            )
            p_value = "" if each["p_value"] is None else f", p = {each['p_value']:.3g}"
            row.append(f"{'resolved' if each['resolved'] else 'not resolved'}{p_value}")
        table.add_row(*row)
    return table
