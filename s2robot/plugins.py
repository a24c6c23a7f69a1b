"""Encoders, tasks and policies of other distributions, found by entry point. Their pyproject.toml says

    [project.entry-points."s2robot.tasks"]
    Push = "acme.push:TASK"

    group               what an entry point names
    s2robot.encoders    a `s2robot.catalogue.NamedEncoder`; `s2robot.own_models` for models of one's own
    s2robot.tasks       a `s2robot.envs.task.TaskSpec`
    s2robot.policies    a module with `CONFIG` and `NETWORK`, as those of `s2robot.policies` have

Metadata of what is installed is read when a name is not ours, or for a list; a plug-in's code is imported when its name
is asked for, or for a list. Our names are never theirs, and no name is two plug-ins': whoever asks for one that cannot
be used gets an error that says whose it is and why. All others are none the worse for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, NamedTuple

from s2robot.errors import BrokenPlugin, in_words

HOMES = {"encoders": "s2robot.catalogue", "tasks": "s2robot.envs", "policies": "s2robot.registry"}
"""Group -> the module that has it, as `PLUGINS`."""


class Plugin(NamedTuple):
    """One entry point."""

    kind: str  # "encoder", "task" or "policy"
    name: str
    distribution: str  # "acme-robots"
    version: str
    entry_point: metadata.EntryPoint

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.entry_point.value})"

    def broken(self, why: str) -> BrokenPlugin:
        """The error for whoever asks for it."""
        return BrokenPlugin(self.kind, self.name, self.distribution, str(self), why)


class Found(NamedTuple):
    """A plug-in and what it names, or why it cannot be used."""

    plugin: Plugin
    value: Any = None
    error: BrokenPlugin | None = None


@dataclass(frozen=True)
class Group:
    """All plug-ins of one kind.

    name: of the entry points' group, without "s2robot.".
    kind: what one is called in messages.
    owner: who has a name already ("" for nobody).
    fault: of a name and what an entry point names: what is wrong with it ("" for nothing).
    """

    name: str
    kind: str
    owner: Callable[[str], str]
    fault: Callable[[str, Any], str]

    def installed(self) -> list[Plugin]:
        """Every plug-in, by name; none is imported."""
        entries = metadata.entry_points(group=f"s2robot.{self.name}")
        return sorted(Plugin(self.kind, each.name, *_distribution(each), each) for each in entries)

    def names(self) -> list[str]:
        """Their names, for messages; none is imported."""
        return sorted({plugin.name for plugin in self.installed()})

    def get(self, name: str) -> Found | None:
        """The plug-in of this name; None where there is none.

        Raises:
            BrokenPlugin: it cannot be used.
        """
        same = [plugin for plugin in self.installed() if plugin.name == name]
        if not same:
            return None
        found = self._load(same[0], same[1:])
        if found.error:
            raise found.error
        return found

    def every(self) -> list[Found]:
        """All of them, imported: those that cannot be used too."""
        plugins = self.installed()
        return [
            self._load(each, [other for other in plugins if other is not each and other.name == each.name])
            for each in plugins
        ]

    def usable(self) -> list[Found]:
        """Those that can be used, imported."""
        return [found for found in self.every() if not found.error]

    def _load(self, plugin: Plugin, rivals: list[Plugin]) -> Found:
        """Import it, unless its name says already that it cannot be used."""
        owner = " and ".join(map(str, rivals)) or self.owner(plugin.name)
        if owner:
            return Found(plugin, error=plugin.broken(f"{owner} has a {self.kind} of that name"))
        try:
            value = plugin.entry_point.load()
            why = self.fault(plugin.name, value)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - code of others, which must not take ours down with it
            words = in_words(error)
            broken = plugin.broken(f"{type(error).__name__}: {words}" if words else type(error).__name__)
            broken.__cause__ = error
            return Found(plugin, error=broken)
        return Found(plugin, error=plugin.broken(why)) if why else Found(plugin, value)


def group(name: str) -> Group:
    """One of `HOMES`; imports that side of s2robot."""
    found: Group = importlib.import_module(HOMES[name]).PLUGINS
    return found


def _distribution(entry: metadata.EntryPoint) -> tuple[str, str]:
    """Name and version of what brings it."""
    return (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "")
