"""What a scene looks like, apart from what happens in it: colours, textures, lights, cameras; changed, and put back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.envs.renderer import FrameRenderer

FIELDS = (
    "geom_rgba", "geom_size", "geom_matid", "mat_rgba", "mat_texid", "mat_texrepeat", "mat_texuniform", "light_diffuse",
    "light_ambient", "light_specular", "light_pos", "light_dir", "cam_pos", "cam_quat", "cam_fovy",
)  # fmt: skip
HEADLIGHT = ("ambient", "diffuse", "specular")  # of the lamp on every camera
PATTERN = "tex-steel-brushed"  # the texture that drawn patterns overwrite: of the table's legs, in every scene


class Looks:
    """The looks of a model as it is now, to be put back.

    Change the arrays of `FIELDS` in the model, its headlight, and textures by `paint`, as you like.
    """

    def __init__(self, model: Any, renderer: FrameRenderer) -> None:
        self.model, self._renderer = model, renderer
        self._stock = {name: getattr(model, name).copy() for name in FIELDS}
        self._headlight = {name: getattr(model.vis.headlight, name).copy() for name in HEADLIGHT}
        self._painted: dict[str, NDArray[np.uint8]] = {}  # textures that were overwritten, as they had been

    def restore(self) -> None:
        """Everything as it was."""
        for name, value in self._stock.items():
            getattr(self.model, name)[:] = value
        for name, value in self._headlight.items():
            getattr(self.model.vis.headlight, name)[:] = value
        for name, pixels in self._painted.items():
            self._upload(name, pixels)
        self._painted = {}

    def paint(self, texture: str, pixels: NDArray[np.uint8]) -> None:
        """Overwrite a texture, by its name, until all is restored; pixels as many bytes as it has."""
        start, count = self._place_of(texture)
        self._painted.setdefault(texture, self.model.tex_data[start : start + count].copy())
        self._upload(texture, pixels)

    def _place_of(self, texture: str) -> tuple[int, int]:
        """Where in MuJoCo's textures this one begins, and how many bytes it has."""
        found = self.model.tex(texture)
        return int(found.adr[0]), int(found.height[0] * found.width[0] * found.nchannel[0])

    def _upload(self, texture: str, pixels: NDArray[np.uint8]) -> None:
        start, count = self._place_of(texture)
        self.model.tex_data[start : start + count] = pixels.ravel()
        self._renderer.upload_texture(int(self.model.tex(texture).id))


def grain(rng: np.random.Generator, side: int, coarse: int) -> NDArray[np.float64]:
    """Blots, stripes or squares, `coarse` of them along each side: (side, side) in [0, 1]."""
    kind = rng.integers(3)
    y, x = np.mgrid[:side, :side] * coarse // side
    if kind == 0:
        blots: NDArray[np.float64] = rng.random((coarse + 1, coarse + 1))[y, x]
        return blots
    return np.asarray((x if kind == 1 else x + y) % 2, float)
