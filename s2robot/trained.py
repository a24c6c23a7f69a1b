"""Write a trained policy, and read it back: its network, behind the encoder it was trained on or with its own eyes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from s2robot import engines, files, registry, seals
from s2robot.encoder import Encoder, EncoderConfig
from s2robot.errors import CheckpointMismatch, CorruptFile, InvalidInput, S2RobotError
from s2robot.precision import single_precision
from s2robot.runs import find_policy
from s2robot.types import Policy

SUM = "weights_sha256"  # in policy.json: of policy.safetensors; older policies have none


@single_precision()
def load_policy(
    folder: str | Path,
    device: str | None = None,
    *,
    engine: str = "auto",
    precision: str | None = None,
    checkpoint: str | Path | None = None,
) -> Policy:
    """Load a trained policy: `folder` is what `train` returned, or a run folder that holds it as `policy/`.

    Args:
        engine, precision: who computes its features, see `s2robot.engines`; default: the precision it was trained on.
            A policy that reads frames is torch's alone, in fp32.
        checkpoint: where its encoder's weights lie now, if they were of a file of yours that moved.

    Raises:
        InvalidInput: there is no policy there, or not for this engine and precision.
        CorruptFile: it cannot be read back.
        CheckpointMismatch: its encoder's weights are not those it was trained on.
    """
    folder = find_policy(folder)
    description = files.read_json(folder / "policy.json")
    if checkpoint is not None and description.get("encoder"):
        description["encoder"]["checkpoint"] = str(checkpoint)
    try:
        path = folder / "policy.safetensors"
        if description.get(SUM, seals.digest(path)) != seals.digest(path):
            raise ValueError(f"{path.name} is not what was written beside policy.json")
        weights = load_file(path)
        module = registry.policy_module(description["kind"])
        if getattr(module.NETWORK, "reads_privileged", False):
            _only_torch(folder, description, engine, precision)
            privileged: Policy = registry.acting().restore_privileged(module, description, weights)
            return privileged
        if module.NETWORK.reads_frames:
            return _pixel_policy(folder, module, description, weights, device, (engine, precision))
        _find_weights(folder, description["encoder"].get("checkpoint"))
        known = EncoderConfig(**{**description["encoder"], "engine": "auto"})
        encoder = known.build(device)
        if encoder.fingerprint != description["encoder_fingerprint"]:
            raise CheckpointMismatch(
                f"The policy in {folder} was trained on features of {description['encoder']['name']} with fingerprint"
                f" {description['encoder_fingerprint'][:12]}, but that encoder is now {encoder.fingerprint[:12]}."
                " Train it again on the new features, or give it the encoder weights it knew"
            )
        chosen = Encoder(
            encoder.backbone, dataclasses.replace(known, engine=engine, precision=precision or known.precision)
        )
        chosen = chosen.to(encoder.device)
        _ = chosen.engine  # one that is not here is said now, not at the first look
        policy: Policy = registry.acting().restore(module, description, chosen, weights)
    except S2RobotError:
        raise
    except Exception as error:  # safetensors, json keys, state dict: all mean the same to the reader
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CorruptFile(folder, reason, "Train it again, or restore it from a copy") from error
    return policy


def save_policy(network: nn.Module, description: Mapping[str, Any], folder: Path) -> None:
    """Write a policy that `load_policy` reads; description: what `policy.json` says of it, but for the weights' sum.

    Raises:
        S2RobotError: a weight is no number.
    """
    weights = {key: value.clone().contiguous() for key, value in network.state_dict().items()}
    for name, value in weights.items():  # the loss of a step says nothing of what the step itself has done
        if not value.isfinite().all():
            raise S2RobotError(f"The weights {name} became NaN or infinite. Lower the learning rate (lr)")
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic(folder / "policy.safetensors") as temporary:
        save_file(weights, str(temporary))
    files.write_json(folder / "policy.json", {**description, SUM: seals.digest(folder / "policy.safetensors")})


def _find_weights(folder: Path, weights: str | None) -> None:
    """Raises InvalidInput where a file of weights is not where it was in training."""
    if weights and not Path(weights).expanduser().is_file():
        raise InvalidInput(
            f"The policy in {folder} sees by the weights {weights}, and there is no such file. Put it there, or say"
            f" where it is: s2robot.load_policy({str(folder)!r}, checkpoint=FILE)"
        )


def _pixel_policy(
    folder: Path,
    module: Any,
    description: dict[str, Any],
    weights: dict[str, Tensor],
    device: str | None,
    how: tuple[str, str | None],
) -> Policy:
    _only_torch(folder, description, *how)
    known = description["encoder"] and EncoderConfig(**description["encoder"])
    policy: Policy = registry.acting().restore_pixels(module, description, known, weights, engines.find_device(device))
    return policy


def _only_torch(folder: Path, description: dict[str, Any], engine: str, precision: str | None) -> None:
    if engine not in ("auto", "torch") or precision not in (None, "fp32"):
        raise InvalidInput(
            f"Engine {engine!r}, precision {precision!r}: the {description['kind']} policy in {folder} has no frozen"
            " encoder, but a network of its own, which only torch in fp32 computes. Leave both out"
        )
