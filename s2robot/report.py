"""A run folder's report: one HTML file that needs nothing else, for someone who has never heard of us.

One function a section, in the order of the page. Each says in words what the folder lacks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2robot import page
from s2robot.charts import Dot, Series, dot_chart_svg, line_chart_svg
from s2robot.files import atomic
from s2robot.page import Html, tag
from s2robot.report_origin import manner, origin
from s2robot.runs import Run, read_run
from s2robot.seeds import seed_uses
from s2robot.statistics import wilson

HZ = 20  # robosuite's control rate, of runs that do not say theirs: what steps mean in seconds


@dataclass(frozen=True)
class Task:
    """How to speak of a task, and what its result cannot show."""

    deed: str
    starts: str
    caution: str


TASKS = {
    "Lift": Task(
        "lifted the cube",
        "placements",
        "With 60 demonstrations or more Lift does not discriminate between encoders: a random ViT solves it too. What"
        " this page shows is that the whole way works, from camera frames to a policy that acts.",
    )
}

LATENCIES = {
    "render": "MuJoCo draws all camera frames at full resolution. On a real robot the cameras take its place.",
    "encode": "Frames to features: resize, cut into tiles, run the frozen backbone on all scales, merge.",
    "act": "Features and the robot's own state to the next actions.",
    "step": "Physics and controller for one control step. On a real robot the arm takes its place.",
}


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` into a run folder from what lies in it, and return its path.

    Raises:
        InvalidInput: the folder holds no summary.json.
        CorruptFile: one of its files is not what it should be (see `s2robot.runs`).
    """
    run = read_run(run_folder)
    sections = (_header, _videos, _features, _success, _learning, _latency, _stages, _episodes, origin)
    html = page.document(_title(run), *(section(run) for section in sections))
    path = run.folder / "report.html"
    with atomic(path) as unfinished:
        unfinished.write_text(html, encoding="utf-8")
    return path


def _title(run: Run) -> str:
    return str(run.summary.get("title") or f"s2robot run {run.folder.resolve().name}")


def _task(run: Run) -> Task:
    name = str(run.summary.get("task", "the task"))
    caution = "One task alone says little about an encoder; compare several, on the same seeds."
    return TASKS.get(name, Task(f"solved {name}", "starts", caution))


def _header(run: Run) -> Html:
    counts = _counts(run.summary)
    if counts is None:
        verdict = "This run has not been evaluated yet: no success rate is known."
    else:
        successes, episodes, low, high = counts
        task, seen = _task(run), _seen(run)
        starts = task.starts if seen else f"unseen {task.starts}"
        verdict = (
            f"The robot {task.deed} in {successes} of {episodes} {starts}"
            f" ({page.percent(successes / episodes)}, 95\u00a0% interval {page.percent_range(low, high)})."
        )
        verdict += f" These are seeds of {seen}: no result to report." * bool(seen)
        if shift := manner(run).get("shift"):
            verdict += f" It was shown other looks than it learned from: {shift}."
    return tag(
        "header",
        tag("span", "s2robot run report", class_="eyebrow"),
        tag("h1", _title(run)),
        tag("p", verdict, class_="verdict"),
        page.tiles(_headline(run)),
    )


def _seen(run: Run) -> str:
    """What else the starts are for: a result is of those that no choice and no training saw."""
    ends = [int(seed) for seed in run.summary.get("evaluation_seeds") or ()]
    uses = seed_uses(range(ends[0], ends[-1] + 1)) if ends else []
    return " and ".join(use for use in uses if use != "evaluation")


def _headline(run: Run) -> list[tuple[str, str, str]]:
    tiles = []
    if demos := run.summary.get("demos"):
        of = (
            "scripted, in simulation"
            if run.summary.get("stages")
            else (run.summary.get("dataset") or {}).get("name", "")
        )
        tiles.append(("Learned from", f"{int(demos)} demos", of))
    if parameters := run.summary.get("policy", {}).get("parameters"):
        frozen = "policy parameters; the encoder stays frozen"
        what = frozen if run.summary.get("encoder") else "parameters, from pixels to actions"
        tiles.append(("Trained", page.many(parameters), what))
    if stages := run.summary.get("stages"):
        total = sum(stage.get("seconds", 0) for stage in stages)
        tiles.append(("From nothing to here", page.duration(total), "all stages"))
    if thinking := _median_sum(run, "encode", "act"):
        tiles.append(("Frame to action", f"{thinking:.3g} ms", "encode and act, median"))
    return tiles


def _videos(run: Run) -> Html:
    counts = _counts(run.summary)
    shown, missing = [], []
    for kind, words in (("success", "A success."), ("failure", "A failure.")):
        if path := run.file(f"videos/{kind}.mp4"):
            shown.append(page.video(path, f"Video of a {kind}", f"{words} Played at the speed of the simulation."))
        else:
            missing.append(_why_no_video(kind, counts))
    strip = run.file("pictures/strip.png")
    return page.section(
        "What the robot does",
        tag("div", *shown, class_="pair" if len(shown) > 1 else "narrow") if shown else None,
        page.image(strip, "Stills of one episode", "One episode, from left to right.") if strip else None,
        tag("p", " ".join(missing), class_="soft") if missing else None,
    )


def _why_no_video(kind: str, counts: tuple[int, int, float, float] | None) -> str:
    if counts is None:
        return f"No video of a {kind}: nothing was evaluated."
    successes, episodes, _, _ = counts
    times = successes if kind == "success" else episodes - successes
    return (
        f"No {kind} in {episodes} rollout{'s' * (episodes > 1)}."
        if times == 0
        else f"No video of a {kind} was written."
    )


def _features(run: Run) -> Html:
    path = run.file("pictures/features.png")
    if path is None:
        return page.section("What the encoder sees", tag("p", "No feature picture was written.", class_="soft"))
    return page.section(
        "What the encoder sees",
        tag("div", page.image(path, "Camera frames beside the features of each scale, as colours"), class_="narrow"),
        tag(
            "p",
            f"{_SEVERAL if _several(run) else 'The encoder'} describes every patch of the frame by a long"
            " list of numbers, a token. Here the three directions in which the tokens of a scale differ most (found by"
            " principal component analysis, PCA) are shown as red, green and blue: patches of one colour look alike to"
            " the encoder. Colours can be compared within a scale, from frame to frame, but not between scales.",
        ),
        _contribution(run.summary.get("scales")),
    )


_SEVERAL = (
    "The encoder looks at each frame at several scales: once as a whole, and again enlarged and cut into tiles, so that"
    " small things fill more of its view. At each scale it"
)


def _several(run: Run) -> bool:
    encoder = run.summary.get("encoder") or {}
    return len(encoder.get("sizes") or encoder.get("scales") or (1, 2)) > 1


def _contribution(scales: Mapping[str, Any] | None) -> Html | None:
    """What the policy makes of each scale."""
    if not scales or not scales.get("without"):
        return None
    whole = scales["all"]
    rows = [["all scales", f"{whole:.4f}", ""]]
    rows += [[f"without {name}", f"{loss:.4f}", f"{loss - whole:+.4f}"] for name, loss in scales["without"].items()]
    return page.join(
        [
            tag("h3", "What each scale contributes"),
            page.table(["Features", "Loss on held-out demonstrations", "Difference"], rows, stack=True),
            tag(
                "p",
                "A scale is left out by putting its mean in its place. The policy was trained with all scales: another"
                " one, trained without a scale, may lose less.",
                class_="soft",
            ),
        ]
    )


def _success(run: Run) -> Html:
    counts, caution = _counts(run.summary), page.note(_task(run).caution)
    if counts is None:
        return page.section("How often it succeeds", tag("p", "Not evaluated yet.", class_="soft"), caution)
    successes, episodes, low, high = counts
    rate = successes / episodes
    baselines = run.summary.get("baselines") or []
    return page.section(
        "How often it succeeds",
        tag(
            "p",
            tag("strong", f"{page.percent(rate)}"),
            f": {successes} of {episodes} rollouts. With this many rollouts the true rate may well be anywhere in the"
            f" band, {page.percent_range(low, high)} (95\u00a0% Wilson interval).",
        ),
        tag("div", page.interval_bar(low, rate, high), class_="big"),
        tag("div", *(tag("span", f"{tick}\u00a0%") for tick in (0, 25, 50, 75, 100)), class_="scale"),
        caution,
        _baselines(run, baselines)
        if baselines
        else tag(
            "p",
            "No other encoder was run beside it: ",
            tag("code", "s2robot demo --baselines"),
            " does, and ",
            tag("code", "s2robot compare"),
            " for any runs.",
            class_="soft",
        ),
    )


def _baselines(run: Run, baselines: list[Mapping[str, Any]]) -> Html:
    rows = [("This run", run.summary, "", "")]
    for baseline in baselines:
        scales = ", ".join(baseline.get("scale_names") or [f"scale {scale:g}" for scale in baseline.get("scales", [])])
        name = str(baseline.get("name", "baseline"))
        scale_words = f" ({scales})" if scales else ""
        rows.append((name + scale_words, baseline, *_difference(baseline.get("paired", {}))))
    cells = []
    for name, result, difference, verdict in rows:
        if counts := _counts(result):
            successes, episodes, low, high = counts
            bar = page.interval_bar(low, successes / episodes, high)
            cells.append([name, f"{successes} of {episodes}", bar, difference, verdict])
    header = ["Encoder", "Successes", "0 to 100\u00a0%", "This run minus it, in points", "A real difference?"]
    return page.join([
        page.table(header, cells, numeric=[1], stack=True),
        tag(
            "p",
            "All met the same seeds, so the differences are paired: 95\u00a0% score interval (Tango) and exact McNemar"
            " test. Not resolved means that this many rollouts cannot tell the two apart, not that they are equal.",
            class_="soft",
        ),
    ])  # fmt: skip


def _difference(paired: Mapping[str, Any]) -> tuple[str, str]:
    if not {"difference", "low", "high", "p_value"} <= paired.keys():
        return "", "not compared on the same seeds"
    points = [f"{100 * paired[key]:+.1f}".replace("-", "\u2212") for key in ("difference", "low", "high")]
    p_value = paired["p_value"]
    p_words = "p\u00a0<\u00a00.001" if p_value < 0.001 else f"p\u00a0=\u00a0{p_value:.3f}"
    verdict = "not resolved"
    if paired.get("resolved"):
        verdict = "resolved, this run is " + ("better" if paired["difference"] > 0 else "worse")
    return f"{points[0]} ({points[1]} to {points[2]})", f"{verdict} ({p_words})"


def _learning(run: Run) -> Html:
    lines = [
        Series(name, [float(row["step"]) for row in rows], [float(row[key]) for row in rows])
        for name, key in (("training", "loss"), ("held-out demos", "valid_loss"))
        if (rows := [row for row in run.metrics if "step" in row and key in row])
    ]
    if not lines:
        return page.section("How it learned", tag("p", "No training metrics were written.", class_="soft"))
    losses = [y for line in lines for y in line.y]
    log_y = min(losses) > 0 and max(losses) > 5 * min(losses)
    best = min(zip(lines[-1].y, lines[-1].x, strict=True))
    return page.section(
        "How it learned",
        page.chart(line_chart_svg(lines, "Loss while training", "training step", "loss", log_y=log_y)),
        tag(
            "p",
            f"Lowest loss ({lines[-1].name}): {best[0]:.3g}, at step {best[1]:.0f} of {max(lines[0].x):.0f}."
            " A lower loss means actions closer to the demonstrations'; only rollouts show whether the task gets done.",
            class_="soft",
        ),
    )


def _latency(run: Run) -> Html:
    measured = {name: q for name, q in run.summary.get("latency_ms", {}).items() if {"p50", "p99"} <= q.keys()}
    if not measured:
        return page.section("How fast it runs", tag("p", "No latencies were measured.", class_="soft"))
    names = [*(name for name in LATENCIES if name in measured), *sorted(set(measured) - set(LATENCIES))]
    rows = [
        [name, f"{measured[name]['p50']:.2f}", f"{measured[name]['p99']:.2f}", page.count(measured[name].get("n")),
         tag("span", LATENCIES.get(name, ""), class_="soft")]
        for name in names
    ]  # fmt: skip
    header = ["Part", "p50, ms", "p99, ms", "Calls", "What it includes"]
    return page.section(
        "How fast it runs",
        page.table(header, rows, numeric=[1, 2, 3], stack=True),
        tag("p", _rates(run)),
        tag("p", "p50 is the median; one call in a hundred takes longer than p99.", class_="soft"),
    )


def _rates(run: Run) -> str:
    """The control rates that the latencies imply, in words. Medians are added: about right, and easy to check."""
    words, looking, step = [], _median_sum(run, "render", "encode", "act"), _median_sum(run, "step")
    played = int(run.summary.get("policy", {}).get("execute", 1))  # actions a look
    if looking and step:
        whole = looking + played * step
        many = f"A look and the {played} control steps played on it take" if played > 1 else "One control step takes"
        words.append(f"{many} about {whole:.3g} ms: {1000 * played / whole:.3g} control steps a second in simulation.")
    if thinking := _median_sum(run, "encode", "act"):
        words.append(
            f"A robot with its own cameras pays for encode and act only: {thinking:.3g} ms from frame to action, up to"
            f" {1000 / thinking:.3g} looks a second on this machine."
        )
    return " ".join(words)


def _stages(run: Run) -> Html:
    stages = run.summary.get("stages") or []
    if not stages:
        return page.join([])
    rows = []
    for stage in stages:
        seconds = stage.get("seconds", 0)
        rows.append((stage.get("name", "?"), seconds, page.duration(seconds), stage.get("detail", "")))
    total = page.duration(sum(seconds for _, seconds, _, _ in rows))
    return page.section(
        "Where the time went", page.bars(rows), tag("p", f"{total} of wall time in all.", class_="soft")
    )


def _episodes(run: Run) -> Html:
    seeds = run.summary.get("evaluation_seeds") or []  # first and last: a log may hold other evaluations too
    first, last = min(seeds, default=-math.inf), max(seeds, default=math.inf)
    rows = [row for row in run.episodes if {"seed", "success", "steps"} <= row.keys()]
    rows = [row for row in rows if first <= row["seed"] <= last]
    if not rows:
        return page.section("Every rollout", tag("p", "No episodes were written.", class_="soft"))
    rows.sort(key=lambda row: float(row["seed"]))
    dots, cells = [], []
    for place, row in enumerate(rows, start=1):
        seed, steps, word = int(row["seed"]), int(row["steps"]), "success" if row["success"] else "failure"
        dots.append(Dot(place, steps, f"seed {seed}: {word} after {steps} steps", crossed=not row["success"]))
        cells.append([str(seed), word, str(steps)])
    failed = [str(int(row["seed"])) for row in rows if not row["success"]]
    words = f"Failed on seed{'s' * (len(failed) > 1)} {', '.join(failed)}." if failed else "None failed."
    if median := run.summary.get("steps_to_success", {}).get("p50"):
        hz = run.summary.get("control_hz") or HZ
        words += f" Half of the successes took at most {median:.0f} steps ({median / hz:.1f} s at {hz:g} Hz)."
    title = "Steps of each rollout, in order of seed"
    return page.section(
        "Every rollout",
        page.chart(dot_chart_svg(dots, ("success", "failure"), title, "rollout", "steps")),
        tag("p", words),
        tag("details", tag("summary", "As a table"), page.table(["Seed", "Outcome", "Steps"], cells, numeric=[0, 2])),
    )


def _counts(result: Mapping[str, Any]) -> tuple[int, int, float, float] | None:
    """Successes, episodes and the interval of a run or a baseline."""
    if "successes" not in result or not result.get("episodes"):
        return None
    successes, episodes = int(result["successes"]), int(result["episodes"])
    interval = result.get("interval", [])
    low, high = interval if len(interval) == 2 else wilson(successes, episodes)
    return successes, episodes, low, high


def _median_sum(run: Run, *names: str) -> float | None:
    latency = run.summary.get("latency_ms", {})
    if not all("p50" in latency.get(name, {}) for name in names):
        return None
    return sum(latency[name]["p50"] for name in names) or None
