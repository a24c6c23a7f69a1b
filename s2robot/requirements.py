"""What this installation needs: its extras and their requirements, as pyproject.toml declares them.

Read from the installed metadata, so that no requirement is written down twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from s2robot.errors import S2RobotError, UnknownName

DISTRIBUTION = "s2robot"


@dataclass(frozen=True)
class Need:
    """One requirement, held against what is installed."""

    line: str  # as pip takes it, without its marker
    name: str
    found: str  # installed version, "" if there is none
    fits: bool


def needs(extra: str = "") -> list[Need]:
    """The requirements of an extra, or of s2robot itself, that apply on this machine.

    Raises:
        UnknownName: there is no such extra.
        S2RobotError: s2robot runs from a checkout that was never installed.
    """
    if extra and extra not in extras():
        raise UnknownName("extra", extra, extras())
    found = []
    for line in _distribution().requires or []:
        requirement = Requirement(line)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        is_core = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and is_core == (not extra):
            found.append(_need(requirement))
    return found


def extras() -> list[str]:
    """Names of the extras there are."""
    return sorted(_distribution().metadata.get_all("Provides-Extra") or [])


def pip_line(extra: str) -> str:
    """What to type for an extra."""
    return f"pip install 's2robot[{extra}]'"


def python_range() -> str:
    """The Python versions s2robot runs on, e.g. ">=3.10,<3.13"."""
    return str(_distribution().metadata["Requires-Python"])


def _need(requirement: Requirement) -> Need:
    line = f"{requirement.name}{requirement.specifier}"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Need(line, requirement.name, "", False)
    # "2.13.0+cpu" fits "==2.13.0": the part after "+" names a build, not a version.
    public = re.sub(r"\+.*", "", version)
    return Need(line, requirement.name, version, requirement.specifier.contains(public, prereleases=True))


def _distribution() -> metadata.Distribution:
    try:
        return metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise S2RobotError(
            "s2robot runs from a checkout that was never installed, so its requirements are unknown. "
            "Run: pip install -e '.[sim]'   (or: make setup)"
        ) from None
