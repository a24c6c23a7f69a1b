"""Frames from MuJoCo, fast: only the work a camera needs, in an offscreen context that proves to be its own.

Software GL spends its time on vertices and on effects no policy needs. The `fast` profile turns
shadows, reflections and multisampling off and thins the *visual* meshes once, in place, on the
compiled model. Collision meshes are not touched: the physics cannot notice. `quality="robosuite"`
leaves everything as robosuite draws it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot import gl
from s2robot.envs.own_context import OwnContext, free_dropped
from s2robot.errors import InvalidInput, RenderingUnavailable, UnknownName, in_words

CLUSTER = 0.012  # vertices closer than this share one [m]; 20 mm visibly breaks the gripper
SMALL_MESH = 700  # meshes with fewer faces are left alone
QUALITIES = ("fast", "robosuite")
SMALLEST, LARGEST = 8, 8192  # frames [pixels]
UNDRAWN = 0xA5  # a frame of nothing but this was not drawn

_log = logging.getLogger(__name__)
VISUAL_GROUP, HIDDEN_GROUP = 1, 4


def check_drawing(size: int, quality: str) -> None:
    """Raises InvalidInput or UnknownName where frames cannot be drawn so."""
    if quality not in QUALITIES:
        raise UnknownName("render quality", quality, QUALITIES)
    if not SMALLEST <= size <= LARGEST:
        raise InvalidInput(f"Frames of {size} pixels cannot be rendered; use {SMALLEST} to {LARGEST}")


class FrameRenderer:
    """Renders named cameras of one simulation to RGB frames.

    Args:
        model, data: MuJoCo's own structures (`sim.model._model`, `sim.data._data` in robosuite).
        cameras: camera names, one per view.
        size: frames are size x size pixels.
        quality: "fast" or "robosuite".

    Raises:
        RenderingUnavailable: no offscreen OpenGL, the message names the packages to install; or its pictures are mixed
            up with another renderer's.
        UnknownName: a camera or quality that does not exist.
    """

    def __init__(self, model: Any, data: Any, cameras: tuple[str, ...], size: int, quality: str = "fast") -> None:
        import mujoco

        check_drawing(size, quality)
        known = [model.camera(i).name for i in range(model.ncam)]
        for name in cameras:
            if name not in known:
                raise UnknownName("camera", name, known)
        gl.prepare()
        free_dropped()
        if quality == "fast":
            thin_visual_meshes(model)
            model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = max(size, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(size, model.vis.global_.offheight)
        self._model, self._data, self.cameras, self.size, self._quality = model, data, cameras, size, quality
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = 0
        self._options.geomgroup[VISUAL_GROUP] = 1
        self._options.sitegroup[:] = 0
        self._open()
        gl.warn_if_slow(gl.renderer_name())

    def _open(self) -> None:
        import mujoco

        try:
            self._renderer = mujoco.Renderer(self._model, self.size, self.size)
        except Exception as error:  # mujoco raises whatever its GL back end raises
            raise RenderingUnavailable(f"MuJoCo could not open an offscreen GL context: {error}") from error
        self.context = OwnContext(self._renderer)
        if self._quality == "fast":
            flags = self._renderer.scene.flags
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                flags[flag] = 0

    def render(self, decorate: Callable[[Any], None] | None = None) -> NDArray[np.uint8]:
        """Draw every camera now: (V, H, W, 3) uint8 RGB, top row first.

        decorate: called with MuJoCo's scene before each drawing, to add shapes that only a camera sees.
        """
        frames: NDArray[np.uint8] = self._drawn(lambda: self._draw(decorate))
        return frames

    def _draw(self, decorate: Callable[[Any], None] | None) -> NDArray[np.uint8]:
        frames = np.full((len(self.cameras), self.size, self.size, 3), UNDRAWN, np.uint8)
        for view in self._views(decorate):
            self._renderer.render(out=frames[view])
            # Without a context OpenGL draws and reads nothing, and says nothing.
            if (frames[view, 0] == UNDRAWN).all() and (frames[view] == UNDRAWN).all():
                raise RenderingUnavailable("its GL context is gone, and nothing was drawn")
        return frames

    def _drawn(self, draw: Callable[[], Any]) -> Any:
        """What is drawn; where the GL context was lost (a driver that was reset, a GPU that went) in a new one."""
        try:
            return draw()
        except Exception as error:  # noqa: BLE001 - mujoco raises whatever its GL back end raises
            why = in_words(error)
            _log.warning("Drawing failed, perhaps for a lost GL context (%s): with a new one again", why)
            self.context.abandon()
        try:
            self._open()
            return draw()
        except Exception as error:
            raise RenderingUnavailable(
                f"The GL context was lost, and in a new one nothing can be drawn either: {error}. What was finished is"
                " kept. See: s2robot doctor"
            ) from error

    def render_depth(self, decorate: Callable[[Any], None] | None = None) -> NDArray[np.float32]:
        """Distance along each camera's axis [m], (V, H, W)."""

        def draw() -> NDArray[np.float32]:
            self._must_draw()
            self._renderer.enable_depth_rendering()
            try:
                return np.stack([self._renderer.render().copy() for _ in self._views(decorate)])
            finally:
                self._renderer.disable_depth_rendering()

        depth: NDArray[np.float32] = self._drawn(draw)
        return depth

    def render_segments(self, decorate: Callable[[Any], None] | None = None) -> NDArray[np.int32]:
        """What each pixel shows, (V, H, W, 2): an object's number and MuJoCo's type of it; -1 where nothing is."""

        def draw() -> NDArray[np.int32]:
            self._must_draw()
            self._renderer.enable_segmentation_rendering()
            try:
                return np.stack([self._renderer.render().copy() for _ in self._views(decorate)])
            finally:
                self._renderer.disable_segmentation_rendering()

        segments: NDArray[np.int32] = self._drawn(draw)
        return segments

    def _must_draw(self) -> None:
        self.context.draw_mark()
        self.context.check_mark()

    def wear_textures(self) -> None:
        """Show what the model now says of which material has which texture: MuJoCo asks when a context is made."""
        model, context = self._renderer.model, self._renderer._mjr_context
        for name in ("mat_texid", "mat_texuniform", "mat_texrepeat"):
            values = getattr(model, name).ravel()
            getattr(context, name)[: len(values)] = values

    def upload_texture(self, texture: int) -> None:
        """Show what `model.tex_data` now says of one texture."""
        import mujoco

        self.context.make_current()
        mujoco.mjr_uploadTexture(self._renderer.model, self._renderer._mjr_context, texture)

    def _views(self, decorate: Callable[[Any], None] | None) -> Iterator[int]:
        """Point the renderer at one camera after another."""
        for view, camera in enumerate(self.cameras):
            self._renderer.update_scene(self._data, camera=camera, scene_option=self._options)
            if decorate is not None:
                decorate(self._renderer.scene)
            yield view

    def close(self) -> None:
        self.context.close()


def thin_visual_meshes(model: Any, cluster: float = CLUSTER) -> int:
    """Merge near vertices of visual-only meshes in place; return how many faces are left.

    Faces keep their own normals, so shading stays smooth. Must run before the GL context is made,
    since that is when meshes are uploaded.
    """
    for mesh in _visual_only_meshes(model):
        count = int(model.mesh_facenum[mesh])
        if count < SMALL_MESH:
            continue
        start, verts = int(model.mesh_faceadr[mesh]), int(model.mesh_vertadr[mesh])
        rows = slice(start, start + count)
        points = model.mesh_vert[verts : verts + int(model.mesh_vertnum[mesh])]  # (n, 3)
        merged = _representatives(points, cluster)[model.mesh_face[rows]]  # (faces, 3)
        solid = (merged != np.roll(merged, 1, axis=1)).all(axis=1)
        _, first = np.unique(np.sort(merged, axis=1), axis=0, return_index=True)
        keep = np.intersect1d(np.flatnonzero(solid), first)
        kept = slice(start, start + len(keep))
        normals, texture = model.mesh_facenormal[rows][keep], model.mesh_facetexcoord[rows][keep]
        model.mesh_face[kept] = merged[keep]
        model.mesh_facenormal[kept], model.mesh_facetexcoord[kept] = normals, texture
        model.mesh_facenum[mesh] = len(keep)
    return int(model.mesh_facenum.sum())


def _visual_only_meshes(model: Any) -> list[int]:
    import mujoco

    is_mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    return sorted(set(model.geom_dataid[is_mesh]) - set(model.geom_dataid[is_mesh & collides]) - {-1})


def _representatives(points: NDArray[np.float32], cluster: float) -> NDArray[np.int32]:
    """For each vertex, the index of the vertex that stands for its grid cell: the one nearest the cell's mean."""
    cells = np.floor(points / cluster).astype(np.int64)  # (n, 3)
    _, cell, size = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    cell = cell.reshape(-1)
    mean = np.stack([np.bincount(cell, points[:, k]) for k in range(3)], axis=1) / size[:, None]
    distance = ((points - mean[cell]) ** 2).sum(axis=1)
    order = np.lexsort((distance, cell))
    nearest = order[np.searchsorted(cell[order], np.arange(len(size)))]
    chosen: NDArray[np.int32] = nearest[cell].astype(np.int32)
    return chosen
