"""From what is typed to what is probed: encoders by name, by weights file, with random weights, or from outside.

    s2robot-tiny                      an encoder with its own weights
    random, s2robot-tiny:random       with random weights
    s2robot-tiny=FILE                 with the weights of a file
    mine=FILE                         a file that `s2robot pretrain` wrote, under a name of one's own
    efficientnet-lite0                a ConvNet from outside (`s2robot.probe_reference`)

Every scale becomes an encoder of its own over the same weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from s2robot import probe_reference
from s2robot.backbones import load_backbone
from s2robot.catalogue import NAMED, OWN, PLUGINS, find_encoder
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.engines import find_device
from s2robot.errors import InvalidInput, UnknownName
from s2robot.probe_features import Subject

RANDOM = "random"
UNTRAINED = "s2robot-tiny"  # what "random" is


def find_subject(text: str, config: EncoderConfig) -> Subject:
    """Load what `text` names, one encoder a scale; `config` gives scales, engine and seed."""
    if text in probe_reference.NAMES:
        return probe_reference.load(text, config)
    name, checkpoint, is_random = parse_subject(text)
    config = replace(config, name=name, checkpoint=checkpoint, random_weights=is_random, grid="finest")
    backbone = load_backbone(name, checkpoint=checkpoint, random_weights=is_random, seed=config.seed)
    device = find_device(None)
    whole = Encoder(backbone, config)
    alone = [replace(config, sizes=(size,), tile=whole.largest_tile, grid="base") for size in whole.sizes]
    weights = checkpoint or ("random" if is_random else "its own")
    return Subject(
        label=text,
        lookers=tuple(Encoder(backbone, each).to(device) for each in alone),
        sizes=whole.sizes,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        weights=weights,
    )


def parse_subject(text: str) -> tuple[str, str | None, bool]:
    """What is typed to name, weights file, whether random weights.

    Raises:
        UnknownName: no encoder is called so.
        InvalidInput: there is no such file.
    """
    if text in probe_reference.NAMES:
        return text, None, False
    name, equals, path = text.partition("=")
    if equals:
        if not Path(path).expanduser().is_file():
            raise InvalidInput(f"No weights file {path!r} for {name!r}. Give NAME=FILE.safetensors")
        is_known = name in NAMED or name.startswith("timm:") or name in PLUGINS.names()
        return (name if is_known else OWN), path, False
    if text == RANDOM:
        return UNTRAINED, None, True
    name, is_random = text.removesuffix(f":{RANDOM}"), text.endswith(f":{RANDOM}")
    try:
        return find_encoder(name).name, None, is_random
    except UnknownName as error:
        known = [*NAMED, *PLUGINS.names(), RANDOM, *probe_reference.NAMES]
        raise UnknownName("encoder", name, known, "or NAME=FILE, NAME:random, timm:NAME") from error
