"""What a pre-training run is at a step: model, optimiser, average of the weights. Kept in `state.pt`, atomically.

No random state is kept, because none is carried: each batch is drawn from (seed, step).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from s2robot import files, seals
from s2robot.backbones import load_backbone
from s2robot.catalogue import NAMED, OWN, PlainViT
from s2robot.checkpoints import tensors_sha256
from s2robot.errors import CorruptFile, InvalidInput
from s2robot.mae import MaskedAutoencoder
from s2robot.mae_merged import MergedAutoencoder
from s2robot.recipe import PretrainConfig, check_same


@dataclass
class State:
    """All that a step changes."""

    model: MaskedAutoencoder
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None  # None: the last weights are the ones to use
    step: int = 0  # steps taken
    shared: DistributedDataParallel | None = None  # the model, where other processes train it too

    @property
    def best(self) -> MaskedAutoencoder:
        """The model to look at and to export."""
        return self.model if self.average is None else cast(MaskedAutoencoder, self.average.module)


def build_model(config: PretrainConfig) -> MaskedAutoencoder:
    """A model drawn from the recipe's seed; the global random state is left as it was."""
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        vit = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            num_classes=0,
            global_pool="",
        )
        options: dict[str, Any] = {
            "decoder_width": config.decoder_width,
            "decoder_depth": config.decoder_depth,
            "mask_ratio": config.mask_ratio,
            "target": config.target,
        }
        if config.objective == "merged":
            return MergedAutoencoder(vit, config.scales, **options)
        return MaskedAutoencoder(vit, **options)


def begin(config: PretrainConfig, device: torch.device) -> State:
    """Step 0."""
    model = build_model(config).to(device)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95))
    return State(model, optimizer, _average(model, config.ema) if config.ema else None)


def restore(config: PretrainConfig, out: Path, device: torch.device) -> State:
    """The last state kept in `out`, or step 0 with the weights of `init`.

    Raises:
        InvalidInput: `init` is an encoder of another size.
        CorruptFile: state.pt is damaged.
        S2RobotError: it belongs to another recipe.
    """
    state, path = begin(config, device), out / "state.pt"
    if not path.exists():
        if config.init:
            adopt(state.model, config)
        return state
    seals.check_zip(path, f"Delete {path} to start again")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)  # where AdamW keeps its count of steps
        recipe, model, average = saved["recipe"], saved["model"], saved["average"]
    except Exception as error:  # torch raises many kinds for a damaged file
        why = (str(error).splitlines() or ["no message"])[0]
        raise CorruptFile(path, f"{type(error).__name__}: {why}", f"Delete {path} to start again") from error
    check_same(config, recipe, out)
    state.model.load_state_dict(model)
    state.optimizer.load_state_dict(saved["optimizer"])
    if state.average is not None:
        state.average.load_state_dict(average)
    state.step = int(saved["step"])
    return state


def adopt(model: MaskedAutoencoder, config: PretrainConfig) -> None:
    """Let the encoder begin with the weights of `init`; the decoder, which no file has, begins anew."""
    name = NAMED[config.init].name if config.init in NAMED else OWN
    given = load_backbone(name, checkpoint=None if name == config.init else config.init)
    contract = given.contract
    has = {"image_size": contract.size, "patch": contract.patch, "width": contract.width, "depth": contract.depth}
    has["heads"] = contract.heads
    wrong = {key: value for key, value in has.items() if getattr(config, key) != value}
    if wrong:
        words = " ".join(f"--{key} {value}" for key, value in wrong.items())
        raise InvalidInput(f"--init {config.init} is an encoder of another size. To begin with it: {words}")
    ours = model.encoder.state_dict()
    theirs = {key: value.shape for key, value in given.model.state_dict().items()}
    plain = PlainViT(contract.size, 4, 1, 1, "area").contract  # what is learned on is normalised so
    other = [] if theirs == {key: value.shape for key, value in ours.items()} else ["other layers"]
    other += [] if (contract.mean, contract.std) == (plain.mean, plain.std) else ["pixels normalised otherwise"]
    if other:
        raise InvalidInput(
            f"--init {config.init} is of another kind: it has {' and '.join(other)}. Expected s2robot-tiny, or a file"
            " that s2robot pretrain wrote"
        )
    model.encoder.load_state_dict(given.model.state_dict())


def save(state: State, config: PretrainConfig, out: Path) -> None:
    """Replace `state.pt`, all at once."""
    saved = {
        "model": state.model.state_dict(),
        "average": None if state.average is None else state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "recipe": files.plain(asdict(config)),
    }
    with files.atomic(out / "state.pt") as temporary:
        torch.save(saved, temporary)


def export(state: State, config: PretrainConfig, out: Path) -> Path:
    """Write the encoder alone, half precision, with its recipe in the file's metadata."""
    from safetensors.torch import save_file

    weights = {key: value.detach().half().cpu().contiguous() for key, value in state.best.encoder.state_dict().items()}
    path = weights_file(config, out)
    about = {"name": config.name, "licence": "MIT", "recipe": asdict(config), "sha256": tensors_sha256(weights)}
    with files.atomic(path) as temporary:  # one key: safetensors writes several in no fixed order
        save_file(weights, str(temporary), {"s2robot": json.dumps(seals.sealed(files.plain(about)))})
    return path


def weights_file(config: PretrainConfig, out: Path) -> Path:
    """Where `export` writes."""
    return out / f"{config.name}.safetensors"


def _average(model: MaskedAutoencoder, decay: float) -> AveragedModel:
    """The exponential average of the weights; the first steps count less, so that it does not begin with noise."""

    def update(averages: Any, current: Any, _: Tensor | int) -> None:
        seen = int(average.n_averaged)  # the same number as is passed, but always on the CPU: nothing waits for it
        torch._foreach_lerp_(averages, current, 1 - min(decay, (1 + seen) / (10 + seen)))

    average = AveragedModel(model, multi_avg_fn=update)
    return average.requires_grad_(False)
