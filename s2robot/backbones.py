"""Frozen vision transformers, by name or by file.

Every backbone travels with an `ImageContract`: what an image must look like before it goes in, and what
comes out. The names are in `catalogue.py`, the reading of files in `checkpoints.py`. K is the number of prefix
tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from s2robot import seals
from s2robot.catalogue import NAMED, OWN, EncoderRow, ImageContract, NamedEncoder, find_encoder, list_encoders
from s2robot.checkpoints import load_weights, own_encoder, read_checkpoint
from s2robot.errors import CorruptFile, InvalidInput
from s2robot.own_models import OwnTokens
from s2robot.precision import single_precision

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "NAMED",
    "WEIGHTS_FOLDER",
    "EncoderRow",
    "Frozen",
    "FrozenViT",
    "ImageContract",
    "list_encoders",
    "load_backbone",
    "read_checkpoint",
]

WEIGHTS_FOLDER = Path(__file__).parent / "weights"


class Frozen(nn.Module):
    """A module that no caller can train: `.train()`, `.requires_grad_()` and `.apply()` return it unchanged.

    They do not raise, because a policy that holds a frozen encoder must be free to call its own `.train()`, and to
    initialise its own layers.
    """

    def freeze(self) -> None:
        super().train(False)
        super().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        return self

    def apply(self, fn: Callable[[nn.Module], object]) -> Self:
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"  # its hundred layers say little


class FrozenViT(Frozen):
    """A timm vision transformer, or a model of somebody's own, that gives its tokens on the grid they came from.

    distribution: that brings it as a plug-in; "" for others.
    tile: the (height, width) of the images it takes [pixels]; at first the size it was trained on.
    grid_size: the token grid (h, w) of one such image.
    """

    _origin: FrozenViT | None  # the backbone this one was made from by `at`

    def __init__(
        self,
        model: nn.Module,
        name: str,
        contract: ImageContract,
        *,
        tile: tuple[int, int] | None = None,
        origin: FrozenViT | None = None,
        distribution: str = "",
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.name, self.distribution = name, distribution
        self.contract = contract
        self.tile = tile or (contract.size, contract.size)
        self.grid_size = (self.tile[0] // contract.patch, self.tile[1] // contract.patch)
        # timm's average-pooled ViTs keep the last norm for after the pooling; tokens need it just the same.
        self._norm_is_last = not isinstance(getattr(model, "norm", None), nn.Identity)
        # Neither is a submodule: the weights are one backbone's, and `.to()` and `state_dict()` meet them once.
        object.__setattr__(self, "_origin", origin)
        self._twins: dict[tuple[int, int], FrozenViT] = {}
        self._changes = 0  # of the weights, that were noticed
        self._tensors: list[Tensor] = []  # what features are made of
        self._known: list[int] = []  # where each of these lay, and how often it had been written to
        self.register_load_state_dict_post_hook(_refresh)  # type: ignore[no-untyped-call]
        self.freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, *tile) normalised images -> prefix (B, K, D) and grid (B, D, h, w), after the final norm."""
        prefix_tokens = self.contract.prefix_tokens
        if images.ndim != 4 or images.shape[1:] != (3, *self.tile):
            raise InvalidInput(
                f"{self.name} takes (B, 3, {self.tile[0]}, {self.tile[1]}), got {tuple(images.shape)}. For images of "
                f"another size take backbone.at((height, width))"
            )
        tokens = self.model.forward_features(images)  # (B, K+N, D)
        if not self._norm_is_last:
            tokens = self.model.fc_norm(tokens)
        grid = tokens[:, prefix_tokens:].transpose(1, 2).unflatten(2, self.grid_size)  # (B, D, h, w)
        return tokens[:, :prefix_tokens], grid

    @property
    def is_own_code(self) -> bool:
        """Whether it is an `OwnModel`'s."""
        return isinstance(self.model, OwnTokens)

    def extra_repr(self) -> str:
        return f"{self.identity}, {self.tile[0]}x{self.tile[1]}"

    @property
    def generation(self) -> int:
        """Another one when the weights were moved, cast, loaded, or written to in place.

        Writes are those that torch counts: through `.data`, or numpy, nobody is told of any. Buffers are watched in
        timm's models alone: somebody's own may count in one.
        """
        buffers = () if self.is_own_code else self.model.buffers()
        tensors = self._tensors or [*self.model.parameters(), *buffers]
        now = [each.data_ptr() for each in tensors]
        now += [each._version for each in tensors if not each.is_inference()]
        if now != self._known:
            _refresh(self, None)
            self._known = now
        self._tensors = tensors
        return self._changes

    @property
    def identity(self) -> str:
        """What it is called in fingerprints: two distributions may give one name to two encoders."""
        return f"{self.distribution}:{self.name}" if self.distribution else self.name

    def weights(self) -> dict[str, Any]:
        """All tensors that features are made of: of somebody's own code also those that no file keeps."""
        kept: dict[str, Any] = self.model.state_dict()
        return {**kept, **dict(self.model.named_buffers())} if self.is_own_code else kept

    def at(self, tile: Sequence[int]) -> FrozenViT:
        """The same backbone for images of (height, width) pixels, each a multiple of the patch.

        It shares every weight with this one but the position embedding, which timm resamples (bicubic,
        antialiased) from the trained one; rotary positions need no table. It moves when this one moves.
        Asking twice gives the same object, and asking for one's own size gives `self`.
        """
        size = self._checked(tile)
        origin = self._origin or self
        if size == origin.tile:
            return origin
        if size not in origin._twins:
            model = origin._model_at(size)
            twin = FrozenViT(model, self.name, self.contract, tile=size, origin=origin, distribution=self.distribution)
            origin._twins.setdefault(size, twin)  # the first of two threads wins
        return origin._twins[size]

    def _checked(self, tile: Any) -> tuple[int, int]:
        patch = self.contract.patch
        if not isinstance(tile, Sequence) or len(tile) != 2 or any(int(side) != side or side < 1 for side in tile):
            raise InvalidInput(f"A tile is {tile}; expected (height, width) in pixels, e.g. {self.tile}")
        height, width = (int(side) for side in tile)
        if height % patch or width % patch:
            below = "x".join(str(max(patch, side // patch * patch)) for side in (height, width))
            above = "x".join(str(-(-side // patch) * patch) for side in (height, width))
            raise InvalidInput(
                f"{self.name} cannot take tiles of {height}x{width}: both sides must be multiples of its patch, "
                f"{patch} px. The nearest are {below} and {above}"
            )
        return height, width

    def _model_at(self, tile: tuple[int, int]) -> Any:
        """A second timm model over the same parameters, with positions for another size."""
        shared = {id(parameter): parameter for parameter in self.model.parameters()}
        model = None
        if hasattr(self.model, "set_input_size"):
            with torch.inference_mode(False), torch.no_grad():  # else its positions could enter no autograd graph
                model = copy.deepcopy(self.model, memo=dict(shared))  # what the memo holds is not copied
                model.set_input_size(img_size=tile)
        changed = [key for key, value in model.named_parameters() if id(value) not in shared] if model else []
        if model is None or {key.rpartition(".")[2] for key in changed} - {"pos_embed"}:
            raise InvalidInput(
                f"{self.name} cannot take another size than {self.tile}: it has more than a position embedding to "
                f"resize. Models with learned or rotary positions can, e.g. 'vit-base', 'dinov3-vit-base'"
            )
        return model.requires_grad_(False)

    def _apply(self, fn: Any, recurse: bool = True) -> FrozenViT:
        if self._origin is None:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            _refresh(self, None)
        else:  # the weights are the origin's: move them there, or the two would be torn apart
            self._origin._apply(fn, recurse)
        return self


def _refresh(backbone: FrozenViT, _: Any) -> None:
    """Give the twins the weights their origin has now: it was moved, cast, or loaded anew."""
    backbone._changes += 1
    backbone._tensors = []  # buffers that moved are others
    for tile, twin in backbone._twins.items():
        twin.model = backbone._model_at(tile)


def load_backbone(
    name: str | NamedEncoder = "s2robot-tiny",
    *,
    checkpoint: str | Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
) -> FrozenViT:
    """Build a frozen backbone on the CPU.

    Args:
        name: one of `list_encoders()`, or any timm ViT as "timm:<name>" or by its bare timm name; "s2robot" with a
            checkpoint of `s2robot pretrain`, which says itself what it is. Or an encoder that has no name anywhere yet.
        checkpoint: a weights file; by default those that ship with s2robot, or timm's download.
        random_weights: no file at all, an untrained network: the baseline a trained one must beat.
        seed: of the random weights. The global random state is left as it was.
    """
    if checkpoint is not None and random_weights:
        raise InvalidInput("Both checkpoint and random_weights=True were given: leave one out")
    if isinstance(name, NamedEncoder):
        encoder = name
    else:
        encoder = own_encoder(_path(checkpoint)) if name == OWN and checkpoint is not None else find_encoder(name)
    if checkpoint is None and not random_weights and not encoder.downloads:
        checkpoint = _shipped_weights(encoder)
    # Building draws weights even when a file replaces them, and in the caller's default type.
    with torch.random.fork_rng(devices=[]), single_precision():
        torch.default_generator.manual_seed(seed)
        model = encoder.build(pretrained=checkpoint is None and not random_weights)
    contract = encoder.contract(model)
    if checkpoint is not None:
        load_weights(model, _path(checkpoint), encoder, contract)
    if isinstance(model, OwnTokens):
        model.set_input_size((contract.size, contract.size))  # one that breaks its contract is said now
    return FrozenViT(model, encoder.name, contract, distribution=encoder.distribution)


def _path(checkpoint: str | Path) -> Path:
    return Path(checkpoint).expanduser()


def _shipped_weights(encoder: NamedEncoder) -> Path:
    if encoder.shipped is None:
        raise InvalidInput(
            f"{encoder.name} needs a weights file. Give checkpoint='FILE.pth', or random_weights=True for an untrained "
            f"baseline. {encoder.advice}"
        )
    path = WEIGHTS_FOLDER / encoder.shipped
    if encoder.sha256 and path.is_file() and seals.digest(path) != encoder.sha256:
        raise CorruptFile(path, f"it is not the file that {encoder.name} stands for", "Install its package again")
    return path
