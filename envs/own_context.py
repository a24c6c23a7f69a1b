"""A GL context that is nobody else's, and proves it.

Elsewhere, environments that shared a process got each other's frames: who draws without making its own context
current draws into whichever is, and policies then fail for a reason that no error names. mujoco's renderer makes its
context current at every drawing, so several may take turns in one process (in one thread: OpenGL binds a context to a
thread), but it frees what a context held from whichever is current then, which spoiled the pictures of the others.
Here it is freed in the right order, and each context proves itself when it is made: it draws a pattern of its own, has
the others of its thread draw theirs, and all read theirs back. `envs.vector` does the same across processes.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import threading
import weakref
from hashlib import sha256
from typing import Any

import numpy as np

from s2robot import gl
from s2robot.errors import RenderingUnavailable

MARK = 8  # pixels, each of a colour of its own: 192 bits that nobody else draws

_count = itertools.count()
_open: weakref.WeakSet[OwnContext] = weakref.WeakSet()  # of this process
_dropped: list[Any] = []  # renderers that nobody closed
_lost: list[Any] = []  # what stood in GL contexts that are no more, for as long as this process lives


class OwnContext:
    """The context of one `mujoco.Renderer`.

    Raises:
        RenderingUnavailable: it gives back what another one drew.
    """

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer
        digest = sha256(f"{os.getpid()} {next(_count)} {os.urandom(16).hex()}".encode()).digest()
        self._mark = np.frombuffer(digest[: 3 * MARK], np.uint8).reshape(1, MARK, 3)
        self._thread = threading.get_ident()
        _open.add(self)
        _close_at_exit()
        try:
            self._prove()
        except RenderingUnavailable:
            self.close()
            raise

    def make_current(self) -> None:
        if self._renderer._gl_context is not None:  # Filament, MuJoCo's other renderer, has none
            self._renderer._gl_context.make_current()

    def draw_mark(self) -> None:
        """Draw this context's pattern, for `check_mark` after others have drawn theirs."""
        import mujoco

        self.make_current()
        for x, colour in enumerate(self._mark[0]):
            mujoco.mjr_rectangle(mujoco.MjrRect(x, 0, 1, 1), *(float(value) / 255 for value in colour), 1.0)

    def check_mark(self) -> None:
        """Raises RenderingUnavailable: this context holds anything but what `draw_mark` drew."""
        import mujoco

        self.make_current()
        found = np.zeros_like(self._mark)
        mujoco.mjr_readPixels(found, None, mujoco.MjrRect(0, 0, MARK, 1), self._renderer._mjr_context)
        if not np.array_equal(found, self._mark):
            raise RenderingUnavailable(
                f"A GL context does not give back what it drew ({gl.renderer_name()}, process {os.getpid()}): its"
                f" frames could be another environment's. Drawn {self._mark[0].tolist()}, read {found[0].tolist()}."
                " Use one process per environment (s2robot.make_vec_env), or another OpenGL: MUJOCO_GL=egl or osmesa"
            )

    def close(self) -> None:
        """Free it; nothing can be drawn with its renderer any more."""
        _open.discard(self)
        _free(self._renderer)

    def abandon(self) -> None:
        """Leave it as it is: its GL context was lost, and freeing what it held would free another's."""
        _open.discard(self)
        context = self._renderer._gl_context
        _lost.append((self._renderer._mjr_context, context))
        self._renderer._mjr_context = self._renderer._gl_context = None
        if hasattr(context, "_context"):
            context._context = None  # or it would be freed, which fails, when Python ends

    def _prove(self) -> None:
        others = [each for each in _open if each is not self and each._thread == self._thread]
        for each in (self, *others):
            each.draw_mark()
        for each in (self, *others):
            each.check_mark()

    def __del__(self) -> None:
        if self._renderer._mjr_context is not None:
            _dropped.append(self._renderer)  # may come amid another's drawing: no time to change contexts


def free_dropped() -> None:
    """Free what was collected as garbage, at a time when no drawing is under way."""
    while _dropped:
        _free(_dropped.pop())


def _free(renderer: Any) -> None:
    """What the context holds, while it is current; then the context. mujoco's own order is the other."""
    context, renderer._mjr_context = renderer._mjr_context, None
    if context is not None:
        if renderer._gl_context is not None:
            renderer._gl_context.make_current()
        context.free()
    renderer.close()


@functools.cache
def _close_at_exit() -> None:
    """Called after the first context was made, so it runs before mujoco closes the display that contexts live on."""
    atexit.register(_close_all)


def _close_all() -> None:
    for context in list(_open):
        context.close()
    free_dropped()
