"""OSMesa out of a pip wheel: offscreen OpenGL where no system package may be installed.

`lavavu-osmesa` carries Mesa's software renderer (libOSMesa and its LLVM) next to a viewer that we do
not use. The libraries are loaded by path and handed to PyOpenGL through its own plug-in table, before
mujoco is imported; nothing else in the process changes.
"""

from __future__ import annotations

import ctypes
import functools
from importlib import metadata
from pathlib import Path
from typing import Any

from s2robot.errors import MissingExtra, RenderingUnavailable

WHEEL = "lavavu-osmesa"


def is_installed() -> bool:
    """Whether the wheel is in this environment."""
    return bool(_libraries())


def register() -> None:
    """Make PyOpenGL's `osmesa` platform use the wheel's library. Call before `OpenGL.platform` is imported."""
    from OpenGL.plugins import PlatformPlugin

    load()
    path = f"{__name__}.{wheel_platform.__name__}"
    if any(plugin.import_path == path for plugin in PlatformPlugin.registry):
        return
    PlatformPlugin("osmesa", path)
    # PyOpenGL takes the first plug-in of a name, and its own was there before ours.
    PlatformPlugin.registry.insert(0, PlatformPlugin.registry.pop())


def wheel_platform() -> Any:
    """Called by PyOpenGL: its own OSMesa platform, with the wheel's library where the system's would be."""
    from OpenGL.platform.osmesa import OSMesaPlatform

    platform = OSMesaPlatform()
    platform.GL = load()
    return platform


@functools.cache
def load() -> ctypes.CDLL:
    """Load libOSMesa and what it needs from the wheel.

    Raises:
        MissingExtra: the wheel is not installed.
        RenderingUnavailable: it is, but its libraries do not load here.
    """
    waiting = _libraries()
    if not waiting:
        raise MissingExtra(WHEEL, "osmesa", "Rendering without system OpenGL")
    loaded: dict[str, ctypes.CDLL] = {}
    # The files need each other and have no search path of their own: dlopen finds a library that is
    # already in the process, so those that load go first, and the others are tried again.
    while waiting:
        failed: list[Path] = []
        why = ""
        for path in waiting:
            try:
                loaded[path.name] = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                failed.append(path)
                why = str(error)
        if len(failed) == len(waiting):
            raise RenderingUnavailable(f"The libraries of {WHEEL} do not load on this machine: {why}")
        waiting = failed
    return next(library for name, library in loaded.items() if name.startswith("libOSMesa"))


def _libraries() -> list[Path]:
    """The wheel's shared libraries, none if it is not installed."""
    try:
        folder = Path(str(metadata.distribution(WHEEL).locate_file("lavavu_osmesa.libs")))
    except metadata.PackageNotFoundError:
        return []
    return sorted(folder.glob("lib*.so*"))
