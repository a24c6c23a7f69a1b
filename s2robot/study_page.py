"""A study's results as one page: the question, the answer in words, a picture, the table, what each arm costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s2robot import __version__, page
from s2robot.charts import Mark, Series, line_chart_svg, mark_chart_svg
from s2robot.files import atomic, read_json
from s2robot.page import Html, tag
from s2robot.study_videos import FILE

Rows = Sequence[Mapping[str, Any]]


def write_page(out: Path) -> Path:
    """Write `report.html` beside `results.json`, and return its path."""
    results = read_json(out / "results.json", "Run the study again: what it has finished is kept.")
    conditions = list(dict.fromkeys(row["shift"] for row in results["rows"]))
    sections = [_success(results, [row for row in results["rows"] if row["shift"] == shift]) for shift in conditions]
    html = page.document(
        results["title"], _header(results), *sections, _videos(out), _costs(results), _provenance(results)
    )
    with atomic(out / "report.html") as unfinished:
        unfinished.write_text(html, encoding="utf-8")
    return out / "report.html"


def _header(results: Mapping[str, Any]) -> Html:
    answers = [_answer(results, row) for row in results["rows"] if row["less_first"]]
    return tag(
        "header",
        tag("span", "s2robot study", class_="eyebrow"),
        tag("h1", results["title"]),
        tag("p", results["question"], class_="verdict") if results["question"] else None,
        tag("ul", *(tag("li", answer) for answer in answers)) if answers else None,
    )


def _answer(results: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """One comparison in words."""
    less, first = row["less_first"], next(iter(results["arms"]))
    verdict = "not resolved"
    if less["resolved"]:
        verdict = "better" if less["difference"] > 0 else "worse"
    return f"{_place(results, row)}: {_points(less)} against {first}, {verdict}{_p(less)}."


def _p(less: Mapping[str, Any]) -> str:
    """Of one training seed the exact test decides, which is stricter than the interval."""
    return "" if less["p_value"] is None else f" (p = {less['p_value']:.2g})"


def _place(results: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    level = "" if row["level"] is None else f", {results['vary'].split('.')[-1]} {row['level']:g}"
    return f"{row['arm']}{level}" + (f", shift {row['shift']}" if row["shift"] else "")


def _points(less: Mapping[str, Any]) -> str:
    words = [f"{100 * less[key]:+.1f}".replace("-", "\u2212") for key in ("difference", "low", "high")]
    return f"{words[0]} points ({words[1]} to {words[2]})"


def _success(results: Mapping[str, Any], rows: Rows) -> Html:
    shift = rows[0]["shift"]
    cells = []
    for row in rows:
        less = row["less_first"]
        verdict = "" if less is None else ("resolved" if less["resolved"] else "not resolved") + _p(less)
        cells.append([
            row["arm"],
            "" if row["level"] is None else f"{row['level']:g}",
            f"{row['successes']} of {row['episodes']}",
            page.interval_bar(row["low"], row["rate"], row["high"]),
            f"{page.percent(row['rate'])} ({page.percent_range(row['low'], row['high'])})",
            ", ".join(f"{100 * rate:.0f}" for rate in row["by_run"]),
            _points(less) if less else "",
            verdict,
        ])  # fmt: skip
    header = ["Arm", results["vary"], "Successes", "0 to 100\u00a0%", "Rate", "By training seed", "Less the first", ""]
    return page.section(
        f"How often it succeeds under {shift}" if shift else "How often it succeeds",
        *map(page.chart, _charts(results, rows)),
        page.table(header, cells, numeric=[1, 2], stack=True),
        tag("p", "95\u00a0% intervals over training seeds and episodes; differences on the same seeds.", class_="soft"),
    )


def _charts(results: Mapping[str, Any], rows: Rows) -> list[str]:
    """Success along the levels, a line an arm; without levels, against what an arm costs, in sums and in time."""
    if results["vary"]:
        arms = dict.fromkeys(row["arm"] for row in rows)
        lines = []
        for arm in arms:
            mine = [row for row in rows if row["arm"] == arm]
            rates = {key: [100 * row[key] for row in mine] for key in ("rate", "low", "high")}
            lines.append(Series(arm, [row["level"] for row in mine], rates["rate"], rates["low"], rates["high"]))
        return [line_chart_svg(lines, "Success", results["vary"], "%")]
    charts = []
    for key, title, label in (
        ("gflops", "Success and cost", "GFLOPs a look, all cameras"),
        ("hz", "Success and rate", "looks a second, encode and act, as measured in the rollouts"),
    ):
        at = {name: arm[key] for name, arm in results["arms"].items() if arm[key]}  # not counted: networks of pixels
        marks = [
            Mark(at[row["arm"]], 100 * row["rate"], 100 * row["low"], 100 * row["high"], row["arm"])
            for row in rows
            if row["arm"] in at
        ]
        charts += [mark_chart_svg(marks, title, label, "%")] if marks else []
    return charts


def _videos(out: Path) -> Html | None:
    """One start as every arm plays it."""
    if not (out / FILE).exists():
        return None
    shown = read_json(out / FILE, f"Delete {out / FILE} and run the study again: it is made anew.")
    parts = []
    if not all((out / "videos" / f"{arm}.mp4").exists() for arm in shown["success"]):
        return None  # removed since; the study's next run makes them anew
    for arm, success in shown["success"].items():
        deed = "succeeds" if success else "fails"
        parts.append(page.video(out / "videos" / f"{arm}.mp4", f"{arm} {deed}", f"{arm} {deed}."))
    return page.section(
        "The same start",
        tag("div", *parts, class_="pair"),
        tag(
            "p",
            f"Episode {shown['seed']:,}, the one that the arms disagree about most (training seed"
            f" {shown['training_seed']}). One episode shows how, not how often.",
            class_="soft",
        ),
    )


def _costs(results: Mapping[str, Any]) -> Html:
    rows = []
    for name, arm in results["arms"].items():
        latency = arm["decision_ms"]
        rows.append([
            name,
            page.listed(_flat(arm["differs"])),
            page.many(arm["encoder_parameters"]),
            page.many(arm["policy_parameters"]),
            f"{arm['gflops']:.2f}" if arm["gflops"] else "",
            f"{latency['p50']:.0f} / {latency['p99']:.0f}" if latency else "",
            f"{arm['hz']:.0f}" if arm["hz"] else "",
        ])  # fmt: skip
    header = ["Arm", "What differs", "Encoder", "Policy", "GFLOPs", "ms, p50 / p99", "Hz"]
    return page.section(
        "What it costs",
        page.table(header, rows, numeric=[2, 3, 4, 5, 6], stack=True),
        tag(
            "p",
            (f"At {results['vary']} {results['rows'][0]['level']:g}. " if results["vary"] else "")
            + "A decision is encode and act for all cameras. Times are of the rollouts themselves, on one thread beside"
            " whatever else ran: for a fair comparison of speed, s2robot bench encoder.",
            class_="soft",
        ),
    )


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": str(value)}
    return found


def _provenance(results: Mapping[str, Any]) -> Html:
    judged, data = results["evaluation"], results["dataset"]
    return page.section(
        "How it was made",
        page.facts([
            ("Command", tag("code", results["command"])),
            ("Task", f"{data['task']}, {data['demonstrations']} demonstrations in the file"),
            ("Training seeds", ", ".join(map(str, results["seeds"]))),
            ("Episodes", f"{judged['episodes']} a run, seeds from {judged['seed']:,} on, {judged['fidelity']} physics"),
            ("Machine", page.listed(results["machine"])),
            ("Versions", page.listed(results["versions"])),
            ("Revision", results["git"]),
            ("Page", f"s2robot {__version__}"),
        ]),
    )  # fmt: skip
