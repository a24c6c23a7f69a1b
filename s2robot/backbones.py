"""Frozen vision transformers, by name or by file.

Every backbone travels with an `ImageContract`: what an image must look like before it goes in, and what
comes out. Weights are data: safetensors, or `torch.load(weights_only=True)`. A file that does not fit to
the last key and shape is an error; nothing is loaded half. K is the number of prefix tokens.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from s2robot.errors import CheckpointMismatch, CorruptFile, InvalidInput, S2RobotError, UnknownName

if TYPE_CHECKING:
    from typing_extensions import Self

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
WEIGHTS_FOLDER = Path(__file__).parent / "weights"

# What a checkpoint may hold beyond the encoder: the other half of a masked autoencoder, and a classifier.
SPARE_KEYS = ("mask_token", "decoder_", "head.")


@dataclass(frozen=True)
class ImageContract:
    """What a backbone takes and gives. It travels with the weights and is part of the encoder's fingerprint."""

    size: int  # P, side of the square input [pixels]
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
        """The token grid (h, w) of one tile."""
        return self.size // self.patch, self.size // self.patch


@dataclass(frozen=True)
class NamedBackbone:
    """A plain ViT/16 of ours: all that a name stands for."""

    size: int
    width: int
    depth: int
    heads: int
    interpolation: str
    licence: str
    source: str
    weights: str | None = None  # file in s2robot/weights, for those that ship with the package
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


_MVP = ("bicubic", "none stated by ir413/mvp", "ir413/mvp; its downloads are gone (ir413/mvp#18), bring the file")
NAMED = {
    "s2robot-tiny": NamedBackbone(
        128, 192, 6, 3, "area", "that of s2robot", "ships with s2robot", weights="s2robot-tiny.safetensors"
    ),
    "mvp-vit-small": NamedBackbone(224, 384, 12, 12, *_MVP),  # 12 heads as its code has it; timm's vit_small has 6
    "mvp-vit-base": NamedBackbone(224, 768, 12, 12, *_MVP),
    "mvp-vit-large": NamedBackbone(256, 1024, 24, 16, *_MVP),
}

# Any timm ViT will do; these are the ones worth listing for robots.
SUGGESTED_TIMM = (
    "vit_base_patch16_224.mae",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_base_patch16_clip_224.openai",
    "vit_base_patch16_siglip_224.webli",
)


class Frozen(nn.Module):
    """A module that no caller can train: `.train()` and `.requires_grad_()` return it unchanged.

    They do not raise, because a policy that holds a frozen encoder must be free to call its own `.train()`.
    """

    def freeze(self) -> None:
        super().train(False)
        super().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        return self


class FrozenViT(Frozen):
    """A timm vision transformer that gives its tokens on the grid they came from."""

    def __init__(self, model: nn.Module, name: str, contract: ImageContract) -> None:
        super().__init__()
        self.model: Any = model
        self.name = name
        self.contract = contract
        # timm's average-pooled ViTs keep the last norm for after the pooling; tokens need it just the same.
        self._norm_is_last = not isinstance(model.norm, nn.Identity)
        self.freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, P, P) normalised images -> prefix (B, K, D) and grid (B, D, h, w), after the final norm."""
        size, prefix_tokens = self.contract.size, self.contract.prefix_tokens
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise InvalidInput(f"{self.name} takes (B, 3, {size}, {size}), got {tuple(images.shape)}")
        tokens = self.model.forward_features(images)  # (B, K+N, D)
        if not self._norm_is_last:
            tokens = self.model.fc_norm(tokens)
        grid = tokens[:, prefix_tokens:].transpose(1, 2).unflatten(2, self.contract.grid_size)  # (B, D, h, w)
        return tokens[:, :prefix_tokens], grid


def load_backbone(
    name: str = "s2robot-tiny", *, checkpoint: str | Path | None = None, random_weights: bool = False, seed: int = 0
) -> FrozenViT:
    """Build a frozen backbone on the CPU.

    Args:
        name: one of `list_encoders()`, or any timm ViT as "timm:<name>" or by its bare timm name.
        checkpoint: a weights file; by default those that ship with s2robot, or timm's download.
        random_weights: no file at all, an untrained network: the baseline a trained one must beat.
        seed: of the random weights. The global random state is left as it was.
    """
    if checkpoint is not None and random_weights:
        raise InvalidInput("Both checkpoint and random_weights=True were given: leave one out")
    timm_name = None if name in NAMED else _timm_name(name)
    if checkpoint is None and not random_weights and timm_name is None:
        checkpoint = _shipped_weights(name)
    with torch.random.fork_rng(devices=[]):  # building draws weights even when a file replaces them
        torch.default_generator.manual_seed(seed)
        if timm_name is None:
            model, contract = NAMED[name].build(), NAMED[name].contract
        else:
            model = _build_timm(timm_name, pretrained=checkpoint is None and not random_weights)
            contract = _timm_contract(timm_name, model)
    if checkpoint is not None:
        _load_weights(model, Path(checkpoint), name, contract)
    return FrozenViT(model, timm_name or name, contract)


def _shipped_weights(name: str) -> Path:
    weights = NAMED[name].weights
    if weights is None:
        raise InvalidInput(
            f"{name} needs a weights file ({NAMED[name].source}). Give checkpoint='FILE.pth', or random_weights=True "
            f"for an untrained baseline, or use 's2robot-tiny', whose weights ship with s2robot"
        )
    return WEIGHTS_FOLDER / weights


# -- timm ------------------------------------------------------------------------------------------------------------


def _timm_name(name: str) -> str:
    """'timm:vit_x' or 'vit_x' -> 'vit_x', when timm knows it."""
    bare = name.removeprefix("timm:")
    if bare and timm.is_model(bare):
        return bare
    near = difflib.get_close_matches(bare.split(".")[0], timm.list_models(), n=3, cutoff=0.7)
    known = [f"timm:{each}" for each in near] if name.startswith("timm:") and near else [*NAMED, *near]
    raise UnknownName("encoder", name, known, hint="or any timm ViT as timm:NAME; s2robot list encoders")


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
        raise S2RobotError(
            f"Could not get timm's weights of {name!r} ({type(error).__name__}: {_first_line(error)}). Without a "
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
            f"merge. Try {', '.join(f'timm:{each}' for each in SUGGESTED_TIMM[:3])}"
        )
    return ImageContract(
        size=height, patch=height // rows, width=model.num_features, prefix_tokens=model.num_prefix_tokens,
        class_token=getattr(model, "cls_token", None) is not None, heads=heads, depth=len(model.blocks),
        mean=tuple(config["mean"]), std=tuple(config["std"]), antialias=True,
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )  # fmt: skip


# -- checkpoints -----------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file, on the CPU; nothing in the file is ever executed.

    Takes .safetensors, or a torch file that holds a state dict, bare or under "model" or "state_dict".
    """
    if not path.is_file():
        raise CorruptFile(path, "there is no such file", "Check the path given as checkpoint")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files fail in more ways than one can name
        raise CorruptFile(
            path,
            f"{type(error).__name__}: {_first_line(error)}",
            "It is damaged, no weights file, or holds more than tensors, which s2robot never executes. Fetch it again, "
            "or save its tensors alone with safetensors.torch.save_file",
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CorruptFile(path, "it holds no state dict", "Save one with torch.save(model.state_dict(), FILE)")
    return dict(content)


def _load_weights(model: nn.Module, path: Path, name: str, contract: ImageContract) -> None:
    """Copy a file's weights into the model, all of them or none; half floats on disk become fp32 here."""
    wanted = model.state_dict()
    found = read_checkpoint(path)
    given = {key: value for key, value in found.items() if key in wanted or not key.startswith(SPARE_KEYS)}
    misshaped = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    faults = {
        "missing": [key for key in wanted if key not in given],
        "unexpected": [key for key in given if key not in wanted],
        "of another shape": misshaped,
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(keys)} {fault}: {_listed(keys)}" for fault, keys in faults.items() if keys)
        raise CheckpointMismatch(f"{path} does not fit {name}. Keys {listed}. {_suggestion(found, contract)}")
    broken = [key for key, value in given.items() if not torch.isfinite(value).all()]
    if broken:
        raise CorruptFile(path, f"NaN or infinity in {_listed(broken)}", "Fetch or train it again")
    model.load_state_dict(given)


def _suggestion(found: Mapping[str, Tensor], contract: ImageContract) -> str:
    """From what the file holds, guess the name that was meant."""
    embedding = found.get("patch_embed.proj.weight")
    if embedding is None:
        return "It has no patch_embed.proj.weight: keys must be named as timm names them"
    width = embedding.shape[0]
    if width == contract.width:
        return f"Its width is right ({width}); depth, image size or extra tokens differ"
    named = [each for each, spec in NAMED.items() if spec.width == width]
    known = f"Try name={named[0]!r}" if named else "No named encoder is that wide; name its timm model, timm:NAME"
    return f"The file is {width} wide, the model {contract.width}. {known}"


def _listed(keys: list[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0][:200]


# -- the list --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncoderRow:
    """One line of `s2robot list encoders`."""

    name: str
    params: int
    patch: int
    width: int
    prefix_tokens: int
    size: int
    licence: str
    source: str


@functools.cache
def list_encoders() -> tuple[EncoderRow, ...]:
    """The named encoders and a few of timm's worth knowing; no weights are read or downloaded."""
    rows: list[EncoderRow] = []
    with torch.device("meta"):
        for name, spec in NAMED.items():
            rows.append(_row(name, spec.build(), spec.contract, spec.licence, spec.source))
        for name in filter(timm.is_model, SUGGESTED_TIMM):  # an older timm has fewer
            model = _build_timm(name, pretrained=False)
            config = model.pretrained_cfg
            source = f"huggingface.co/{config.get('hf_hub_id')}"
            licence = config.get("license") or "not stated by timm"
            rows.append(_row(f"timm:{name}", model, _timm_contract(name, model), licence, source))
    return tuple(rows)


def _row(name: str, model: nn.Module, contract: ImageContract, licence: str, source: str) -> EncoderRow:
    params = sum(parameter.numel() for parameter in model.parameters())
    return EncoderRow(
        name, params, contract.patch, contract.width, contract.prefix_tokens, contract.size, licence, source
    )
