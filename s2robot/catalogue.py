"""The encoders by name: what each one is, whose weights it takes, and under which licence.

A name stands for an architecture, an image contract, and the place its weights come from. Architectures are
timm's, as "architecture.tag", or the plain ViT of the MAE family, for the names whose weights only come as a
file. Building one draws random weights; only `build(pretrained=True)` touches the network, through timm. Other
distributions bring more of them, see `s2robot.plugins`.
"""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.overrides import TorchFunctionMode

from s2robot import plugins
from s2robot.errors import InvalidInput, S2RobotError, UnknownName
from s2robot.own_models import OwnModel

OWN = "s2robot"  # stands for any file that `s2robot pretrain` wrote: what it is, the file says itself
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageContract:
    """What a backbone takes and gives. It travels with the weights and is part of the encoder's fingerprint."""

    size: int  # P, side of the square input it was trained on [pixels]
    patch: int  # side of a patch [pixels]
    width: int  # D
    prefix_tokens: int  # K: CLS and registers, before the patch tokens
    class_token: bool  # whether the first prefix token is a CLS
    heads: int  # no shape tells them, and a wrong count gives wrong features in silence
    depth: int  # transformer blocks
    mean: tuple[float, ...]  # of RGB in [0, 1]
    std: tuple[float, ...]
    interpolation: str  # "area", "bilinear" or "bicubic": how frames are brought to `size`
    antialias: bool  # when going down
    colour: str = "RGB"

    @property
    def grid_size(self) -> tuple[int, int]:
        """The token grid (h, w) of one image of `size`."""
        return self.size // self.patch, self.size // self.patch


@dataclass(frozen=True)
class PlainViT:
    """The ViT of the MAE family: a CLS token, a learned position for each token, ImageNet's mean and deviation."""

    size: int
    width: int
    depth: int
    heads: int
    interpolation: str = "bicubic"
    patch: int = 16

    def build(self) -> VisionTransformer:
        return VisionTransformer(
            img_size=self.size, patch_size=self.patch, embed_dim=self.width, depth=self.depth, num_heads=self.heads,
            num_classes=0, global_pool="", class_token=True,  # all tokens, after the final norm
        )  # fmt: skip

    @property
    def contract(self) -> ImageContract:
        return ImageContract(
            size=self.size, patch=self.patch, width=self.width, prefix_tokens=1, class_token=True, heads=self.heads,
            depth=self.depth, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation=self.interpolation, antialias=True,
        )  # fmt: skip


@dataclass(frozen=True)
class NamedEncoder:
    """All that a name stands for."""

    name: str
    architecture: PlainViT | OwnModel | str  # a string is timm's "architecture.tag"
    licence: str
    source: str
    shipped: str | None = None  # its file in s2robot/weights; a plug-in's own by its whole path
    advice: str = ""  # said to whoever asks for it without a file
    distribution: str = ""  # that brings it as a plug-in; `find_encoder` fills it in
    sha256: str = ""  # of the shipped file, which is held against it whenever it is loaded

    @property
    def downloads(self) -> bool:
        """Whether timm, or a model's own code, gets the weights; otherwise they ship with it or come as a file."""
        return self.shipped is None and not isinstance(self.architecture, PlainViT)

    def build(self, pretrained: bool = False) -> Any:
        """The timm model, without a classifier: random weights, or timm's download; or what an `OwnModel` makes."""
        if isinstance(self.architecture, OwnModel):
            return self.architecture.build(self.name, pretrained)
        if isinstance(self.architecture, PlainViT):
            return self.architecture.build()
        return _build_timm(self.architecture, pretrained)

    def contract(self, model: Any) -> ImageContract:
        if isinstance(self.architecture, (PlainViT, OwnModel)):
            return self.architecture.contract
        return _timm_contract(self.architecture, model)


_ADVICE_MVP = (
    "The official links are dead (github.com/ir413/mvp/issues/18). Without a copy, take one of these, which can be "
    "had: vc1-vit-base or vc1-vit-large (the closest kin, CC-BY-NC), mae-vit-base, dinov2-vit-base, "
    "voltron-r-mvp-small (a re-implementation of MVP, MIT), or s2robot-tiny, which ships with s2robot"
)
_MVP = ("none stated by ir413/mvp", "a file; ir413/mvp's links are dead", None, _ADVICE_MVP)
_VC1 = "Fetch https://dl.fbaipublicfiles.com/eai-vc/{}.pth (CC-BY-NC 4.0, research only)"
_VOLTRON = "pip install voltron-robotics; voltron.load('r-mvp') then leaves it in cache/r-mvp/r-mvp.pt"
_APACHE, _NC = "Apache-2.0", "CC-BY-NC-4.0"


def _timm_row(name: str, architecture: str, licence: str) -> NamedEncoder:
    return NamedEncoder(name, architecture, licence, f"huggingface.co/timm/{architecture}")


NAMED: dict[str, NamedEncoder] = {
    each.name: each
    for each in (
        NamedEncoder(
            "s2robot-tiny", PlainViT(128, 192, 6, 3, "area"), "that of s2robot", "ships with s2robot",
            shipped="s2robot-tiny.safetensors",
            sha256="88f0e6a85fb6e129fa99d82e4893baff5ad1e60c8619671ba54ecad12ca31592",
        ),
        NamedEncoder("mvp-vit-small", PlainViT(224, 384, 12, 12), *_MVP),  # 12 heads in its code; timm's has 6
        NamedEncoder("mvp-vit-base", PlainViT(224, 768, 12, 12), *_MVP),
        NamedEncoder("mvp-vit-large", PlainViT(256, 1024, 24, 16), *_MVP),
        NamedEncoder(
            "vc1-vit-base", PlainViT(224, 768, 12, 12), _NC, "a file; eai-vc", advice=_VC1.format("vc1_vitb")
        ),
        NamedEncoder(
            "vc1-vit-large", PlainViT(224, 1024, 24, 16), _NC, "a file; eai-vc", advice=_VC1.format("vc1_vitl")
        ),
        NamedEncoder(
            "voltron-r-mvp-small", PlainViT(224, 384, 12, 6, "bilinear"), "MIT", "a file; voltron-robotics",
            advice=_VOLTRON,
        ),
        _timm_row("mae-vit-base", "vit_base_patch16_224.mae", _NC),
        _timm_row("mae-vit-large", "vit_large_patch16_224.mae", _NC),
        _timm_row("vit-small", "vit_small_patch16_224.augreg_in21k", _APACHE),
        _timm_row("vit-base", "vit_base_patch16_224.augreg_in21k", _APACHE),
        _timm_row("vit-large", "vit_large_patch16_224.augreg_in21k", _APACHE),
        _timm_row("vit-huge", "vit_huge_patch14_224.orig_in21k", _APACHE),  # augreg has no huge
        _timm_row("dinov2-vit-small", "vit_small_patch14_dinov2.lvd142m", _APACHE),
        _timm_row("dinov2-vit-base", "vit_base_patch14_dinov2.lvd142m", _APACHE),
        _timm_row("dinov2-vit-large", "vit_large_patch14_dinov2.lvd142m", _APACHE),
        _timm_row("dinov2-vit-giant", "vit_giant_patch14_dinov2.lvd142m", _APACHE),
        _timm_row("dinov2-vit-small-reg", "vit_small_patch14_reg4_dinov2.lvd142m", _APACHE),
        _timm_row("dinov2-vit-base-reg", "vit_base_patch14_reg4_dinov2.lvd142m", _APACHE),
        _timm_row("dinov2-vit-large-reg", "vit_large_patch14_reg4_dinov2.lvd142m", _APACHE),
        _timm_row("dinov2-vit-giant-reg", "vit_giant_patch14_reg4_dinov2.lvd142m", _APACHE),
        _timm_row("dinov3-vit-small", "vit_small_patch16_dinov3.lvd1689m", "DINOv3 License"),
        _timm_row("dinov3-vit-base", "vit_base_patch16_dinov3.lvd1689m", "DINOv3 License"),
        _timm_row("openclip-vit-base", "vit_base_patch16_clip_224.laion2b", "MIT"),
        _timm_row("openclip-vit-large", "vit_large_patch14_clip_224.laion2b", "MIT"),  # mean and std 0.5, alone of them
        _timm_row("openclip-vit-huge", "vit_huge_patch14_clip_224.laion2b", "MIT"),
        # "gap": the tower without its pooling head, whose output nobody here would read.
        _timm_row("siglip2-vit-base", "vit_base_patch16_siglip_gap_224.v2_webli", _APACHE),
    )
}  # fmt: skip

# MVP's files by md5: what ir413/mvp calls them, and the name they belong to.
MVP_FILES = {
    "fe6e30eb4256fae298ea0a6c6b4c1ae7": ("vits-mae-hoi", "mvp-vit-small"),
    "29a004bd4332f97cd22f55c1da26bc15": ("vits-mae-in", "mvp-vit-small"),
    "f8f23ba960af1017783c9b975875d36d": ("vits-sup-in", "mvp-vit-small"),
    "526093597ac1dc55df618bcbdfe8da4a": ("vitb-mae-egosoup", "mvp-vit-base"),
    "5352b0b6c04f044f67eba41b667fcde6": ("vitl-256-mae-egosoup", "mvp-vit-large"),
}


def find_encoder(name: str) -> NamedEncoder:
    """Look a name up: in the table, among timm's models as "timm:<name>" or by its bare name, among plug-ins.

    Raises:
        UnknownName: with the nearest names there are.
        BrokenPlugin: a plug-in of that name cannot be used.
    """
    if name in NAMED:
        return NAMED[name]
    if name == OWN:
        raise InvalidInput(
            f"{OWN!r} stands for weights of your own. Give checkpoint='FILE.safetensors' as s2robot pretrain writes "
            f"them, or take 's2robot-tiny', whose weights ship"
        )
    bare = name.removeprefix("timm:")
    if bare and timm.is_model(bare):
        return NamedEncoder(bare, bare, "see its page", f"huggingface.co/timm/{bare}")
    if found := PLUGINS.get(name):
        return _from_plugin(found)
    near = difflib.get_close_matches(bare.split(".")[0], timm.list_models(), n=3, cutoff=0.7)
    known = [*NAMED, *PLUGINS.names(), *near]
    if name.startswith("timm:") and near:
        known = [f"timm:{each}" for each in near]
    raise UnknownName("encoder", name, known, hint="or any timm ViT as timm:NAME; s2robot list encoders")


@dataclass(frozen=True)
class EncoderRow:
    """One line of `s2robot list encoders`."""

    name: str
    params: int | None  # None where a plug-in's code does not say without memory for them
    patch: int
    width: int
    prefix_tokens: int
    size: int
    licence: str
    source: str
    distribution: str = "s2robot"


def list_encoders() -> tuple[EncoderRow, ...]:
    """The named encoders, those of plug-ins last; no weights are read, drawn or downloaded."""
    return (*own_rows(), *(_row(_from_plugin(found)) for found in PLUGINS.usable()))


@functools.cache
def own_rows() -> tuple[EncoderRow, ...]:
    """Those of s2robot itself."""
    return tuple(map(_row, NAMED.values()))


def _row(encoder: NamedEncoder) -> EncoderRow:
    params: int | None = None
    try:
        model, contract = blueprint(encoder.name)
        params = sum(parameter.numel() for parameter in model.parameters())
    except Exception:
        if not isinstance(encoder.architecture, OwnModel):
            raise
        contract = encoder.architecture.contract
    return EncoderRow(
        encoder.name, params, contract.patch, contract.width, contract.prefix_tokens, contract.size,
        encoder.licence, encoder.source, encoder.distribution or "s2robot",
    )  # fmt: skip


@functools.cache
def blueprint(name: str) -> tuple[nn.Module, ImageContract]:
    """An encoder without memory for its weights (torch's meta device), and its contract."""
    encoder = find_encoder(name)
    with torch.device("meta"), _NoNumbers():
        model = encoder.build()
    return model, encoder.contract(model)


def _from_plugin(found: plugins.Found) -> NamedEncoder:
    encoder: NamedEncoder = found.value
    return replace(encoder, distribution=found.plugin.distribution)


def _owner(name: str) -> str:
    if name in NAMED or name == OWN:
        return "s2robot"
    return "timm" if timm.is_model(name) else ""


def _fault(name: str, value: Any) -> str:
    if not isinstance(value, NamedEncoder):
        return f"it is a {type(value).__name__}; expected a s2robot.catalogue.NamedEncoder"
    if value.name != name or not re.fullmatch(r"[\w.-]+", name):
        return f"its encoder is called {value.name!r}; expected the entry point's name, of letters, digits and . _ -"
    if isinstance(value.architecture, str) and not timm.is_model(value.architecture):
        return f"timm {timm.__version__} has no model {value.architecture!r}"
    return ""


PLUGINS = plugins.Group("encoders", "encoder", _owner, _fault)


class _NoNumbers(TorchFunctionMode):
    """Skips every in-place operation: a tensor without memory has no numbers, and drawing them takes most of the time.

    `item()` gives 0: older timm asks it of a table of drop-path rates, which are 0 here in any case.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "item" and args[0].is_meta:
            return 0.0
        if name.endswith("_") and not name.startswith("_") and name != "requires_grad_":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _build_timm(name: str, pretrained: bool) -> Any:
    architecture, _, tag = name.partition(".")
    tags = [f"timm:{each}" for each in timm.list_pretrained(f"{architecture}.*")]
    if tag and f"timm:{name}" not in tags:
        raise UnknownName("encoder", f"timm:{name}", [f"timm:{architecture}", *tags])
    if not pretrained:
        return timm.create_model(name, num_classes=0)
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # timm, the hub client and the network raise all sorts; the user's next step is one
        reason = (str(error).splitlines() or ["no message"])[0][:200]
        raise S2RobotError(
            f"Could not get timm's weights of {name!r} ({type(error).__name__}: {reason}). Without a "
            f"network give checkpoint='FILE.safetensors'. Pretrained: {', '.join(tags) or 'none'}"
        ) from error


def _timm_contract(name: str, model: Any) -> ImageContract:
    """Read the contract off the model and timm's own `pretrained_cfg`."""
    config = model.pretrained_cfg
    channels, height, width = config["input_size"]
    rows, cols = getattr(getattr(model, "patch_embed", None), "grid_size", None) or (0, 0)
    heads = next((module.num_heads for module in model.modules() if hasattr(module, "num_heads")), 0)
    is_vit = hasattr(model, "num_prefix_tokens") and hasattr(model, "blocks") and hasattr(model, "norm")
    if not is_vit or not heads or (channels, height, rows) != (3, width, cols) or not rows or height % rows:
        raise InvalidInput(
            f"timm model {name!r} is not a ViT with a square token grid over square RGB images, so there is nothing to "
            f"merge. Try 'vit-base', 'dinov2-vit-base' or another of `s2robot list encoders`"
        )
    return ImageContract(
        size=height, patch=height // rows, width=model.num_features, prefix_tokens=model.num_prefix_tokens,
        class_token=getattr(model, "cls_token", None) is not None, heads=heads, depth=len(model.blocks),
        mean=tuple(config["mean"]), std=tuple(config["std"]), antialias=True,
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )  # fmt: skip
