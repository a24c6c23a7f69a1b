"""Seeded changes of what a task looks like, and of nothing else: does a policy still work when only pictures differ?

    light        how bright, how warm, where the lamp stands
    table        a pattern of two colours on what the objects stand on
    objects      their colours; where colours name the objects, only shades of the same
    camera       the cameras walk around what they look at, or turn in the hand that holds them
    distractors  up to eight shapes that only cameras see, beside the objects

Each has a strength from 0.1 to 1. What an episode looks like depends on its seed, the split and the strength of each
kind alone: physics, and the other kinds, do not notice. `train` and `test` never meet: what decides about a look (how
bright, which colour, how far around) is an offset from the task's own, and offsets are split into twentieths of their
whole range, the even ones for training, the odd ones for tests.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.envs.lift import TABLE_TOP
from s2robot.envs.looks import PATTERN, Looks, grain
from s2robot.envs.props import SHAPES, Prop, add_props
from s2robot.envs.renderer import VISUAL_GROUP, FrameRenderer
from s2robot.envs.task import TaskSpec
from s2robot.errors import InvalidInput, UnknownName

KINDS = ("light", "table", "objects", "camera", "distractors")
SPLITS = ("train", "test")
BANDS = 20  # of the range of offsets from 0 to 1
LEAST = 2 / BANDS  # a strength below would leave a split without a look of its own
SALT = 4_202_020  # keeps these draws apart from all others made of the same seed
ROBOT = "robot0_base"  # the tree of bodies that is the robot


@dataclass(frozen=True)
class Shift:
    """Strengths by kind, from 0 (as the task has it) to 1, and the split."""

    light: float = 0.0
    table: float = 0.0
    objects: float = 0.0
    camera: float = 0.0
    distractors: float = 0.0
    split: str = "train"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UnknownName("split", self.split, SPLITS)
        for kind in KINDS:
            strength = getattr(self, kind)
            if not (strength == 0 or LEAST <= strength <= 1):
                raise InvalidInput(f"Shift {kind} has strength {strength}; expected 0, or {LEAST} to 1")

    @classmethod
    def parse(cls, words: str) -> Shift:
        """From "light,table:0.5/test" or "all": kinds, each with its strength, or 1; then the split, or train.

        Raises:
            UnknownName, InvalidInput: no such kind or split, or a strength that is no number from 0.1 to 1.
        """
        strengths: dict[str, float] = {}
        kinds, _, split = words.replace(" ", "").partition("/")
        for word in filter(None, kinds.split(",")):
            kind, _, strength = word.partition(":")
            if kind not in (*KINDS, "all"):
                raise UnknownName("kind of shift", kind, (*KINDS, "all"))
            try:
                value = float(strength or 1)
            except ValueError:
                raise InvalidInput(f"Shift {word!r}: {strength!r} is no number; write it like {kind}:0.5") from None
            strengths |= dict.fromkeys(KINDS if kind == "all" else (kind,), value)
        return cls(**strengths, split=split or SPLITS[0])

    def __str__(self) -> str:
        kinds = ",".join(f"{kind}:{getattr(self, kind):g}" for kind in KINDS if getattr(self, kind))
        return f"{kinds}/{self.split}" if kinds else ""


class ShiftedLooks:
    """The looks of one environment, drawn anew for every episode.

    Args:
        model, data: MuJoCo's own, of the scene.
        renderer: what draws it.
        shift: what changes, and how much.
        task: says whether colours name the objects.
    """

    def __init__(self, model: Any, data: Any, renderer: FrameRenderer, shift: Shift, task: TaskSpec) -> None:
        self.model, self.data, self.shift, self.task = model, data, shift, task
        self.looks, self._renderer = Looks(model, renderer), renderer
        self.props: list[Prop] = []
        self._unseeded = np.random.default_rng()

    def draw(self, seed: int | None) -> None:
        """The looks of the episode with this seed; of any, without one. Call it with all objects in their places."""
        import mujoco

        self.looks.restore()
        self.props = []
        if seed is None:
            seed = int(self._unseeded.integers(2**31))
        else:  # what follows a seeded episode follows from its seed
            self._unseeded = np.random.default_rng((SALT, seed))
        for k, kind in enumerate(KINDS):
            if strength := getattr(self.shift, kind):
                draws = Draws((SALT, seed, k, SPLITS.index(self.shift.split)), self.shift.split)
                getattr(self, f"_shift_{kind}")(draws, strength)
        self._renderer.wear_textures()
        mujoco.mj_camlight(self.model, self.data)

    def dress(self, scene: Any) -> None:
        """Add the distractors to MuJoCo's scene."""
        add_props(scene, self.props)

    def _shift_light(self, draws: Draws, strength: float) -> None:
        model, rng = self.model, draws.rng
        brightness, warmth = 1 + 0.6 * draws.offset(strength), 0.2 * strength * rng.uniform(-1, 1)
        colour = brightness * np.array([1 + warmth, 1.0, 1 - warmth])
        head = model.vis.headlight
        for light in (model.light_diffuse, head.diffuse, head.ambient):
            light[:] = light * colour
        model.light_pos[:] += strength * rng.uniform(-1, 1, model.light_pos.shape)

    def _shift_table(self, draws: Draws, strength: float) -> None:
        model, rng = self.model, draws.rng
        texture = model.tex(PATTERN)
        side = int(texture.width[0])
        hues = [draws.offset(1.0) / 2 + 0.5 for _ in range(2)]
        colours = 255 * np.array([colorsys.hsv_to_rgb(h, rng.uniform(0.2, 1), rng.uniform(0.3, 1)) for h in hues])
        blend = grain(rng, side, draws.whole(2, 24))[..., None]
        stock = 230.0  # the tables are nearly white
        picture = stock + strength * (blend * colours[0] + (1 - blend) * colours[1] - stock)
        self.looks.paint(PATTERN, np.tile(picture.astype(np.uint8).ravel(), int(texture.height[0]) // side))
        for material in {int(model.geom_matid[geom]) for geom in self._geoms(moving=False)} - {-1}:
            model.mat_texid[material, 1] = texture.id
            model.mat_texrepeat[material] = 1
            model.mat_texuniform[material] = 0

    def _shift_objects(self, draws: Draws, strength: float) -> None:
        model = self.model
        turns: dict[int, tuple[float, float]] = {}  # of hue and of value, by object
        for geom in self._geoms(moving=True):
            root = int(model.body_rootid[model.geom_bodyid[geom]])
            widest = 0.04 if self.task.colours_name_objects else 0.5  # of the circle of hues, to either side
            if root not in turns:
                turns[root] = (widest * draws.offset(strength), 1 + 0.3 * draws.offset(strength))
            turn, brighter = turns[root]
            hue, saturation, value = colorsys.rgb_to_hsv(*self._colour(geom))
            colour = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, min(1.0, value * brighter))
            model.geom_matid[geom] = -1
            model.geom_rgba[geom, :3] = colour

    def _shift_camera(self, draws: Draws, strength: float) -> None:
        import mujoco

        model, rng = self.model, draws.rng
        for k in range(model.ncam):
            around, closer, zoom = draws.offset(strength), *rng.uniform(-1, 1, 2)
            model.cam_fovy[k] *= 1 + 0.1 * strength * zoom
            turn, axis = np.zeros(4), np.array([0.0, 0, 1])
            if model.cam_bodyid[k] == 0:  # stands in the world: walks up to 0.35 rad around the upright axis
                mujoco.mju_axisAngle2Quat(turn, axis, 0.35 * around)
                centre = self._looked_at(k)
                arm = np.zeros(3)
                mujoco.mju_rotVecQuat(arm, model.cam_pos[k] - centre, turn)
                model.cam_pos[k] = centre + arm * (1 + 0.1 * strength * closer)
                first, second = turn, model.cam_quat[k].copy()
            else:  # is held: turns up to 0.15 rad about where it looks
                mujoco.mju_axisAngle2Quat(turn, axis, 0.15 * around)
                first, second = model.cam_quat[k].copy(), turn
            mujoco.mju_mulQuat(model.cam_quat[k], first, second)

    def _shift_distractors(self, draws: Draws, strength: float) -> None:
        rng, others = draws.rng, self._places()
        for _ in range(max(1, round(8 * strength))):
            size = rng.uniform(0.015, 0.04, 3)
            colour = colorsys.hsv_to_rgb(draws.offset(1.0) / 2 + 0.5, rng.uniform(0.3, 1), rng.uniform(0.3, 1))
            for _ in range(50):
                spot = others[: len(others) - len(self.props)].mean(axis=0) + rng.uniform(-0.35, 0.35, 2)
                ground = self._ground(spot)
                if ground > 0.5 and np.linalg.norm(others - spot, axis=1).min() > 0.1:
                    look: dict[str, Any] = {"colour": colour, "yaw": rng.uniform(0, np.pi)}
                    self.props.append(Prop.standing(str(rng.choice(SHAPES)), spot, size, ground, **look))
                    others = np.vstack([others, spot])
                    break

    def _geoms(self, *, moving: bool) -> list[int]:
        """Opaque visual geoms of the objects, or of what they stand on."""
        model = self.model
        roots = {int(model.body_rootid[body]) for body in np.flatnonzero(model.body_dofnum)}
        robot = model.body(ROBOT).id
        chosen = []
        for geom in np.flatnonzero((model.geom_group == VISUAL_GROUP) & (model.geom_rgba[:, 3] > 0.9)):
            root = int(model.body_rootid[model.geom_bodyid[geom]])
            if root not in (0, robot) and (root in roots) == moving:
                chosen.append(int(geom))
        return chosen

    def _colour(self, geom: int) -> NDArray[np.float64]:
        """What a geom's colour is on the whole, RGB in [0, 1]."""
        model = self.model
        material = int(model.geom_matid[geom])
        if material < 0:
            return np.asarray(model.geom_rgba[geom, :3], float)
        colour, texture = np.asarray(model.mat_rgba[material, :3], float), int(model.mat_texid[material, 1])
        if texture < 0:
            return colour
        start, channels = int(model.tex_adr[texture]), int(model.tex_nchannel[texture])
        count = int(model.tex_width[texture] * model.tex_height[texture] * channels)
        mean = model.tex_data[start : start + count].reshape(-1, channels)[:, :3].mean(axis=0) / 255
        return np.asarray(colour * mean)

    def _places(self) -> NDArray[np.float64]:
        """Where the objects are, (n, 2) [m]; the middle of the world without any."""
        roots = sorted({int(self.model.body_rootid[self.model.geom_bodyid[geom]]) for geom in self._geoms(moving=True)})
        places = [self.data.xpos[root] for root in roots if 0.5 < self.data.xpos[root][2] < 1.5]  # others are put away
        return np.array(places)[:, :2] if places else np.zeros((1, 2))

    def _ground(self, spot: NDArray[np.float64]) -> float:
        """Height of whatever is met from above [m]; objects and the robot count."""
        import mujoco

        below, hit = np.array([0, 0, -1.0]), np.zeros(1, np.int32)
        distance = mujoco.mj_ray(self.model, self.data, np.array([*spot, 2.0]), below, None, 1, -1, hit)
        root = self.model.body_rootid[self.model.geom_bodyid[hit[0]]] if hit[0] >= 0 else 0
        return -1.0 if root == self.model.body(ROBOT).id else 2.0 - float(distance)

    def _looked_at(self, camera: int) -> NDArray[np.float64]:
        """Where the middle of a standing camera's picture meets table height, at most 1.5 m away [m]."""
        import mujoco

        axes = np.zeros(9)
        mujoco.mju_quat2Mat(axes, self.model.cam_quat[camera])
        place, ahead = self.model.cam_pos[camera], -axes.reshape(3, 3)[:, 2]
        down = (place[2] - TABLE_TOP) / -ahead[2] if ahead[2] < -0.05 else 1.5
        return np.asarray(place + np.clip(down, 0, 1.5) * ahead)


class Draws:
    """Random numbers of one kind in one episode: free ones from `rng`, and those that keep the splits apart."""

    def __init__(self, key: tuple[int, ...], split: str) -> None:
        self.rng, self._odd = np.random.default_rng(key), SPLITS.index(split)

    def offset(self, strength: float) -> float:
        """From -strength to strength, evenly over the split's own bands."""
        while True:
            size = (2 * self.rng.integers(BANDS // 2) + self._odd + self.rng.uniform()) / BANDS
            if size <= strength:
                return float(size * self.rng.choice([-1, 1]))

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high - 1, even for training, odd for tests."""
        numbers = [n for n in range(low, high) if n % 2 == self._odd]
        return int(self.rng.choice(numbers))
