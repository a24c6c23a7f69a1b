"""Where a report's numbers come from, and how to get them again: the last section of `s2robot.report`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from s2robot import __version__, page
from s2robot.page import Html, tag
from s2robot.runs import Run


def origin(run: Run) -> Html:
    summary = run.summary
    encoder, policy = summary.get("encoder", {}), summary.get("policy", {})
    seeds = [f"{seed:.0f}" for seed in summary.get("evaluation_seeds", [])]
    command = summary.get("command")
    pairs: list[tuple[str, str | None]] = [
        ("Command", tag("code", command) if command else None),
        ("Task", summary.get("task")),
        ("Encoder, frozen", page.listed({**encoder, "parameters": page.many(encoder.get("parameters"))})),
        ("Policy", page.listed({**policy, "parameters": page.many(policy.get("parameters"))})),
        ("Demonstrations", _demonstrations(summary)),
        ("Physics", page.listed(summary.get("fidelity", {}))),
        ("Judged with", page.listed(manner(run)) or None),
        ("Training seed", f"{summary['seed']:.0f}" if "seed" in summary else None),
        ("Evaluation seeds", " to ".join(seeds)),
        ("Code", summary.get("git") and f"git {summary['git']}"),
        ("Machine", page.listed(summary.get("machine", {}))),
        ("Versions", page.listed(summary.get("versions", {}))),
    ]
    config = tag("details", tag("summary", "Configuration"), tag("pre", _configuration(run))) if run.config else None
    footer = f"Written by s2robot {__version__}. This page needs no other file and asks nothing of the network."
    return page.join([page.section("How to get this again", page.facts(pairs), config), tag("footer", footer)])


def _demonstrations(summary: Mapping[str, Any]) -> str | None:
    said = summary.get("dataset") or {}
    words = [page.count(summary.get("demos")), said.get("name"), said.get("fingerprint")]
    return ", ".join(str(word) for word in words if word) or None


def _configuration(run: Run) -> str:
    """What of the run's configuration decided it: of a policy that was trained alone, not how others are collected."""
    try:
        tree = None if run.summary.get("stages") else yaml.safe_load(run.config)
    except yaml.YAMLError:
        tree = None
    if not isinstance(tree, dict):
        return run.config
    kept = {key: value for key, value in tree.items() if key not in ("collect", "eval", "baselines", "out")}
    return str(yaml.safe_dump({**kept, "eval": run.summary.get("evaluation") or tree.get("eval")}, sort_keys=False))


def manner(run: Run) -> dict[str, Any]:
    """How it was judged, where not as the policy was trained."""
    asked = run.summary.get("evaluation") or {}
    return {key: asked[key] for key in ("shift", "precision", "execute", "ensemble") if asked.get(key)}
