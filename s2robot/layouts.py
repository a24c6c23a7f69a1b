"""How others name the weights of a ViT, and how timm does: renaming, and nothing else.

Each layout is recognised by keys that only it has. What a layout is known to carry beside the encoder (a
decoder, a text tower, a classifier) is listed in its `spare`; every other key must find its place in the
model, under timm's name or, if it has none here, under its own. Position embeddings are never resized.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

State = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Converted:
    """A file's weights under timm's names."""

    layout: str  # a key of SPARE
    state: State

    def is_spare(self, key: str) -> bool:
        """Whether a key belongs to a part that is known not to be the encoder."""
        return any(key.startswith(each) if each[-1] in "._" else key == each for each in SPARE[self.layout])


# What may be left over, by layout: names, or beginnings of names when they end in "." or "_". `docs/encoders.md`
# repeats this list for people.
_TEXT_TOWER = (
    "text.", "text_projection", "token_embedding.", "positional_embedding", "transformer.", "ln_final.",
    "attn_mask", "logit_scale", "logit_bias",
)  # fmt: skip
OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's own files alone
SPARE: dict[str, tuple[str, ...]] = {
    # timm itself, MAE, MVP, VC-1, DINOv2: the mask token and decoder of pre-training, classifiers and pooling heads
    "timm": ("mask_token", "decoder_", "head.", "pre_logits.", "attn_pool."),
    "dinov3": ("mask_token", "rope_embed.periods"),  # the periods are a fixed table, which timm computes
    "open_clip": (*_TEXT_TOWER, *OPENAI_KEYS, "visual.proj"),
    "open_clip over timm": (*_TEXT_TOWER, "visual.head.", "attn_pool.", "head."),
    "voltron": ("mask_token", "encoder2decoder.", "decoder_"),
}

_W = r"(weight|bias)"
_CLIP: Rules = (
    (r"class_embedding", "cls_token"),
    (r"positional_embedding", "pos_embed"),
    (r"conv1\.weight", "patch_embed.proj.weight"),
    (rf"ln_pre\.{_W}", r"norm_pre.\1"),
    (rf"ln_post\.{_W}", r"norm.\1"),
    (rf"transformer\.resblocks\.(\d+)\.ln_([12])\.{_W}", r"blocks.\1.norm\2.\3"),
    (rf"transformer\.resblocks\.(\d+)\.attn\.in_proj_{_W}", r"blocks.\1.attn.qkv.\2"),
    (rf"transformer\.resblocks\.(\d+)\.attn\.out_proj\.{_W}", r"blocks.\1.attn.proj.\2"),
    (rf"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.{_W}", r"blocks.\1.mlp.fc1.\2"),
    (rf"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.{_W}", r"blocks.\1.mlp.fc2.\2"),
)
_VOLTRON: Rules = (
    (r"encoder_pe", "pos_embed"),
    (rf"patch2embed\.proj\.{_W}", r"patch_embed.proj.\1"),
    (rf"encoder_norm\.{_W}", r"norm.\1"),
    (rf"encoder_blocks\.(\d+)\.pre_norm_attn\.{_W}", r"blocks.\1.norm1.\2"),
    (rf"encoder_blocks\.(\d+)\.attn\.(qkv|proj)\.{_W}", r"blocks.\1.attn.\2.\3"),
    (rf"encoder_blocks\.(\d+)\.pre_norm_mlp\.{_W}", r"blocks.\1.norm2.\2"),
    (rf"encoder_blocks\.(\d+)\.mlp\.0\.0\.{_W}", r"blocks.\1.mlp.fc1.\2"),
    (rf"encoder_blocks\.(\d+)\.mlp\.2\.{_W}", r"blocks.\1.mlp.fc2.\2"),
)
_SWIGLU: Rules = (
    (rf"blocks\.(\d+)\.mlp\.w12\.{_W}", r"blocks.\1.mlp.fc1.\2"),
    (rf"blocks\.(\d+)\.mlp\.w3\.{_W}", r"blocks.\1.mlp.fc2.\2"),
)
_DINOV3: Rules = (
    (r"storage_tokens", "reg_token"),
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"blocks.\1.gamma_\2"),
)


def to_timm(found: Mapping[str, Tensor]) -> Converted | None:
    """Rename a file's weights as timm names them; None when they are no ViT that is known here."""
    state = _unwrapped(found)
    if any(key.startswith("visual.trunk.") for key in state):
        return Converted("open_clip over timm", {key.removeprefix("visual.trunk."): state[key] for key in state})
    if "visual.class_embedding" in state:
        return Converted("open_clip", _from_clip(state, "visual."))
    if "class_embedding" in state and "conv1.weight" in state:  # the visual tower alone
        return Converted("open_clip", _from_clip({f"visual.{key}": state[key] for key in state}, "visual."))
    if "encoder_pe" in state and "patch2embed.proj.weight" in state:
        return Converted("voltron", _renamed(state, _VOLTRON))
    if "storage_tokens" in state:
        return Converted("dinov3", _from_dinov3(state))
    if "patch_embed.proj.weight" in state:
        return Converted("timm", _from_dinov2(state))
    return None


_FAMILIES = (
    (r"(module\.)?(layer[1-4]|conv1|bn1)\.", "a ResNet"),
    (r"(.*\.)?encoder\.layers?\.\d+\.|embeddings\.", "a model named as the transformers library names it; take timm's "
     "own file of the same weights, huggingface.co/timm"),
    (r"layers\.\d+\.blocks\.", "a Swin transformer"),
    (r"stages\.\d+\.", "a convolutional network in stages"),
    (r"(teacher|student|backbone|encoder)\.", "a model inside a training checkpoint; save its backbone alone"),
)  # fmt: skip


def foreign_family(keys: Iterable[str]) -> str:
    """What a file seems to hold that `to_timm` does not know."""
    names = list(keys)
    for pattern, family in _FAMILIES:
        if any(re.match(pattern, name) for name in names):
            return family
    return "another kind of model"


def _unwrapped(found: Mapping[str, Tensor]) -> State:
    """Without what DistributedDataParallel and torch.compile put before every name."""
    state = dict(found)
    for wrapper in ("module.", "_orig_mod."):
        if all(key.startswith(wrapper) for key in state):
            state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


def _renamed(state: Mapping[str, Tensor], rules: Rules) -> State:
    return {_rename(key, rules): value for key, value in state.items()}


def _rename(key: str, rules: Rules) -> str:
    for pattern, name in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(name)
    return key


def _from_clip(state: Mapping[str, Tensor], prefix: str) -> State:
    """The visual tower; its unknown keys keep their prefix, so that none passes for one of the text tower's."""
    result: State = {}
    for key, value in state.items():
        bare = key.removeprefix(prefix)
        name = _rename(bare, _CLIP) if bare != key else key
        result[key if name == bare else name] = value
    result["cls_token"] = result["cls_token"].reshape(1, 1, -1)  # (D,) -> (1, 1, D)
    if "pos_embed" in result:
        result["pos_embed"] = result["pos_embed"][None]  # (1+N, D) -> (1, 1+N, D)
    return result


def _from_dinov2(state: Mapping[str, Tensor]) -> State:
    """The original's registers: it adds a position to the CLS token first, timm keeps the sum as the token."""
    result = _renamed(state, _SWIGLU)
    if "register_tokens" in result and {"pos_embed", "cls_token"} <= result.keys():
        positions = result["pos_embed"]  # (1, 1+N, D)
        result["reg_token"] = result.pop("register_tokens")
        result["cls_token"] = result["cls_token"] + positions[:, :1]
        result["pos_embed"] = positions[:, 1:]
    return result


def _from_dinov3(state: Mapping[str, Tensor]) -> State:
    """The original has one bias for query, key and value, of which the key's is masked to zero.

    timm has models with and without it. Those without are meant for files whose bias is zero throughout.
    """
    result: State = {}
    for key, value in _renamed(state, _DINOV3).items():
        if key.endswith("attn.qkv.bias_mask"):
            continue
        if key.endswith("attn.qkv.bias"):
            query, _, values = value.chunk(3)
            if query.any() or values.any():
                result[key.replace("qkv.bias", "q_bias")] = query
                result[key.replace("qkv.bias", "v_bias")] = values
            continue
        result[key] = value
    return result
