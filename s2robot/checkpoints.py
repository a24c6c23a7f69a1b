"""Weights files: read without running anything in them, renamed to timm's names, checked to the last key.

Weights are data: safetensors, or `torch.load(weights_only=True)`. A file that does not fit to the last key and
shape is an error; nothing is loaded half, and nothing is resized.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from s2robot import seals
from s2robot.catalogue import MVP_FILES, OWN, ImageContract, NamedEncoder, PlainViT, blueprint, own_rows
from s2robot.errors import CheckpointMismatch, CorruptFile, S2RobotError
from s2robot.layouts import OPENAI_KEYS, Converted, foreign_family, to_timm
from s2robot.own_models import OwnTokens

VOLTRON = "voltron-r-mvp-small"
_MVP_EMBEDDINGS = [(width, 3, 16, 16) for width in (384, 768, 1024)]  # spares other files the md5


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file, on the CPU; nothing in the file is ever executed.

    Takes .safetensors, or a torch file that holds a state dict: bare, under "model" or "state_dict", or as the
    first of a pair (Voltron keeps its optimiser in the second).
    """
    if not path.is_file():
        raise CorruptFile(path, "there is no such file", "Check the path given as checkpoint")
    seals.check_sum(path, "Fetch it again")
    try:
        if path.suffix == ".safetensors":
            return _whole(path, safetensors.torch.load_file(path))
        seals.check_zip(path, "Fetch it again")
        with _inert_classes():
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except S2RobotError:
        raise
    except Exception as error:  # damaged and hostile files fail in more ways than one can name
        raise CorruptFile(
            path,
            f"{type(error).__name__}: {_first_line(error)}",
            "It is damaged, no weights file, or holds more than tensors, which s2robot never executes. Fetch it again, "
            "or save its tensors alone with safetensors.torch.save_file",
        ) from error
    if isinstance(content, (tuple, list)) and len(content) == 2:
        content = content[0]
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not _is_state_dict(content):
        raise CorruptFile(path, "it holds no state dict", "Save one with torch.save(model.state_dict(), FILE)")
    return dict(content)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of tensors by name, type and shape: what a weights file of ours says of itself, in its metadata."""
    sha = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        array = value.detach().cpu().contiguous()
        sha.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        sha.update(array.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def own_encoder(path: Path) -> NamedEncoder:
    """What a file of `s2robot pretrain` is, by the recipe in its metadata.

    Raises:
        CorruptFile: it has no such recipe, or one that describes no encoder.
    """
    if not path.is_file():
        raise CorruptFile(path, "there is no such file", "Check the path given as checkpoint")
    recipe = _own_recipe(path)
    if recipe is None:
        raise CorruptFile(
            path,
            "it holds no recipe of s2robot pretrain",
            f"{OWN!r} stands for files that s2robot pretrain wrote. For other weights give their own name: "
            "s2robot list encoders",
        )
    try:
        size, width, depth, heads, patch = (
            int(recipe[key]) for key in ("image_size", "width", "depth", "heads", "patch")
        )
        fits = min(size, width, depth, heads, patch) > 0 and size % patch == 0 and width % heads == 0
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(path, f"its recipe is not whole ({error!r})", "Export it again: s2robot pretrain") from error
    if not fits:
        raise CorruptFile(path, f"its recipe describes no encoder: {recipe}", "Export it again: s2robot pretrain")
    return NamedEncoder(OWN, PlainViT(size, width, depth, heads, "area", patch), "the file's", str(path))


def load_weights(model: nn.Module, path: Path, encoder: NamedEncoder, contract: ImageContract) -> None:
    """Copy a file's weights into the model, all of them or none; half floats on disk become fp32 here."""
    found = read_checkpoint(path)
    if isinstance(model, OwnTokens):
        if faults := _faults(found, model.own.state_dict()):
            raise CheckpointMismatch(f"{path} does not fit {encoder.name}. Of its own code's keys {faults}")
        _fill(model.own, path, found)
        return
    _check_origin(path, found, encoder)
    converted = to_timm(found)
    if converted is None:
        raise CheckpointMismatch(
            f"{path} does not fit {encoder.name}. It holds {foreign_family(found)}: {_listed(list(found), 4)}. Files "
            f"of ViTs are read as saved by timm, MAE, MVP, VC-1, DINOv2, DINOv3, open_clip and Voltron's r-mvp"
        )
    _check_trap(path, converted, encoder)
    wanted = model.state_dict()
    given = {key: value for key, value in converted.state.items() if key in wanted or not converted.is_spare(key)}
    faults = _faults(given, wanted)
    if faults:
        advice = _own_advice(path, encoder) or _resized(given, wanted, encoder, contract) or _advice(given, contract)
        raise CheckpointMismatch(f"{path} does not fit {encoder.name}. Keys {faults}. {advice}")
    _fill(model, path, given)


def _fill(model: nn.Module, path: Path, given: Mapping[str, Tensor]) -> None:
    broken = [key for key, value in given.items() if not torch.isfinite(value).all()]
    if broken:
        raise CorruptFile(path, f"NaN or infinity in {_listed(broken)}", "Fetch or train it again")
    model.load_state_dict(given)


# -- where a file comes from -----------------------------------------------------------------------------------------


def _check_origin(path: Path, found: Mapping[str, Tensor], encoder: NamedEncoder) -> None:
    """Hold the md5 against MVP's: its ViT-S has 12 heads and timm's 6, which no shape can tell."""
    is_mvp_name = encoder.name.startswith("mvp-")
    embedding = found.get("patch_embed.proj.weight")
    may_be_mvp = embedding is not None and embedding.shape in _MVP_EMBEDDINGS and path.suffix != ".safetensors"
    if not is_mvp_name and not may_be_mvp:
        return
    md5 = _md5(path)
    if md5 not in MVP_FILES:
        if is_mvp_name:
            warnings.warn(
                f"{path} is none of MVP's files (md5 {md5}), though it may fit. Known: "
                + ", ".join(f"{key} {sum_}" for sum_, (key, name) in MVP_FILES.items() if name == encoder.name),
                stacklevel=4,
            )
        return
    key, name = MVP_FILES[md5]
    if name != encoder.name:
        raise CheckpointMismatch(
            f"{path} is MVP's {key} by its md5, which is not {encoder.name}, though its shapes may fit: heads and "
            f"image contract differ. Use name={name!r}"
        )


def _check_trap(path: Path, converted: Converted, encoder: NamedEncoder) -> None:
    """Two more files whose shapes fit where their numbers do not."""
    if converted.layout == "voltron" and encoder.name != VOLTRON:
        raise CheckpointMismatch(
            f"{path} is laid out as Voltron's r-mvp, which is not {encoder.name}: name={VOLTRON!r}"
        )
    is_openai = any(key in converted.state for key in OPENAI_KEYS)
    if is_openai and "quickgelu" not in str(encoder.architecture):
        raise CheckpointMismatch(
            f"{path} is one of OpenAI's own CLIP files, trained with the QuickGELU activation, which {encoder.name} "
            f"does not have. Use a timm model that has, e.g. name='timm:vit_base_patch16_clip_quickgelu_224'"
        )


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # what MVP published; it tells files apart and guards nothing
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


# -- what does not fit -----------------------------------------------------------------------------------------------


def _faults(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
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
    return "; ".join(f"{len(keys)} {fault}: {_listed(keys)}" for fault, keys in faults.items() if keys)


def _resized(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], encoder: NamedEncoder, contract: ImageContract
) -> str:
    """What to say when all but the number of positions fits: the file was made for another image size."""
    rest = given.keys() - {"pos_embed"}
    if rest != wanted.keys() - {"pos_embed"} or any(given[key].shape != wanted[key].shape for key in rest):
        return ""
    if "pos_embed" not in given or "pos_embed" not in wanted or given["pos_embed"].ndim != 3:
        return ""
    prefix = wanted["pos_embed"].shape[1] - math.prod(contract.grid_size)
    count = given["pos_embed"].shape[1] - prefix
    side = math.isqrt(max(0, count))
    if side * side != count:
        return ""
    return (
        f"The file was trained at {side * contract.patch} px ({side}x{side} patches), {encoder.name} takes "
        f"{contract.size} px ({contract.size // contract.patch}x{contract.size // contract.patch}), and a file's "
        f"positions are never resized in silence. Load it under a name of its own size; backbone.at() then takes "
        f"other sizes. {_advice(given, contract)}"
    )


def _advice(given: Mapping[str, Tensor], contract: ImageContract) -> str:
    """From what the file holds, guess the name that was meant."""
    embedding = given.get("patch_embed.proj.weight")
    if embedding is None or embedding.ndim != 4:
        return "It has no patch_embed.proj.weight: keys must be named as timm names them"
    width, patch = int(embedding.shape[0]), int(embedding.shape[-1])
    depth = len({key.split(".")[1] for key in given if key.startswith("blocks.")})
    what = f"These weights are {width} wide, with {depth} blocks and patches of {patch}"
    kin = [row.name for row in own_rows() if (row.width, row.patch) == (width, patch)]
    fitting = [name for name in kin if not _faults(given, blueprint(name)[0].state_dict())]
    if fitting:
        return f"{what}: {' or '.join(fitting)}?"
    if (width, patch) == (contract.width, contract.patch):
        return f"{what}, as the model's; image size, depth or extra tokens differ"
    near = f"Nearest: {', '.join(kin)}" if kin else "No named encoder is of that kind; name its timm model, timm:NAME"
    return f"{what}. {near}"


def _own_advice(path: Path, encoder: NamedEncoder) -> str:
    is_own = encoder.name != OWN and _own_recipe(path) is not None
    return f"s2robot pretrain wrote this file: name={OWN!r} builds what its recipe says" if is_own else ""


def _own_recipe(path: Path) -> dict[str, Any] | None:
    """The recipe that `s2robot pretrain` left in a file's metadata; None if there is none."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    recipe = _about(path).get("recipe")
    return recipe if isinstance(recipe, dict) else None


def _about(path: Path) -> dict[str, Any]:
    """What a safetensors file of ours says of itself."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("s2robot", "{}"))
        return seals.unsealed(about) if isinstance(about, dict) else {}
    except Exception as error:  # damaged and hostile files fail in more ways than one can name
        raise CorruptFile(path, f"{type(error).__name__}: {_first_line(error)}", "Make or fetch it again") from error


def _whole(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, if they are those that were written; a file that says nothing of it is taken as it is."""
    about = _about(path)
    if about.get("sha256", "") not in ("", tensors_sha256(tensors)):
        raise CorruptFile(path, "its weights are not those that were written", "Export it again: s2robot pretrain")
    return tensors


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _inert_classes() -> contextlib.AbstractContextManager[Any]:
    """MAE's own training writes its options beside the weights, as a Namespace: a bag of values without code."""
    safe_globals = getattr(torch.serialization, "safe_globals", None)  # since torch 2.5
    return contextlib.nullcontext() if safe_globals is None else safe_globals([argparse.Namespace])


def _listed(keys: list[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0][:200]
