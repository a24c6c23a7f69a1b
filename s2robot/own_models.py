"""A model of anybody's own code as a backbone: `NamedEncoder(name, OwnModel(make, contract), licence, source)`.

    backbone = load_backbone(that)          frozen, in this process
    Encoder(backbone, EncoderConfig())      scales, tiles, features, as every other
    load_encoder(name)                      once an entry point names it, see `s2robot.plugins`

Nothing tells what code computes: features are known by the names of encoder and distribution, the contract and every
weight and buffer. A model that computes otherwise with the same weights is another encoder: give it another name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from s2robot.errors import InvalidInput, S2RobotError, in_words

if TYPE_CHECKING:
    from s2robot.catalogue import ImageContract


@dataclass(frozen=True)
class OwnModel:
    """An architecture that is neither timm's nor MAE's.

    make: gives an `nn.Module`, with its trained weights for True, with random ones for False. It maps normalised images
        (B, 3, H, W) to tokens (B, K+N, D), row-major behind K prefix tokens, or to a map (B, D, h, w) where K is 0.
    contract: what it takes and gives; `patch` is its stride in pixels, and what has no heads or blocks has 0 of them.
    """

    make: Callable[[bool], nn.Module]
    contract: ImageContract

    def build(self, name: str, pretrained: bool) -> OwnTokens:
        """The model behind what timm's ViTs have in common.

        Raises:
            S2RobotError: its own code failed.
            InvalidInput: it made something else.
        """
        try:
            model: Any = self.make(pretrained)
        except S2RobotError:
            raise
        except Exception as error:  # code of others
            raise S2RobotError(f"{name}'s own code could not make it: {_words(error)}") from error
        if not isinstance(model, nn.Module) or next(model.parameters(), None) is None:
            raise InvalidInput(
                f"{name}'s own code made a {type(model).__name__}; expected an nn.Module that holds its weights as"
                " parameters, by which its features are told from others'"
            )
        return OwnTokens(model, name, self.contract)


class OwnTokens(nn.Module):
    """What `FrozenViT` asks of a model, answered by one that is none of timm's."""

    def __init__(self, own: nn.Module, name: str, contract: ImageContract) -> None:
        super().__init__()
        self.own = own
        self.name, self.contract = name, contract

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K+N, D)."""
        out: Tensor = self.own(images)
        return out.flatten(2).transpose(1, 2) if out.ndim == 4 else out

    @torch.no_grad()
    def set_input_size(self, img_size: tuple[int, int]) -> None:
        """Make it one for images of (height, width), where it has to be told, and see that it gives their grid.

        Raises:
            InvalidInput: it does not take them, or gives other shapes than its contract says.
        """
        contract, (height, width) = self.contract, img_size
        self.own.eval()
        first = next(self.own.parameters())
        images = torch.zeros(1, 3, height, width, device=first.device, dtype=first.dtype)
        try:
            if callable(resize := getattr(self.own, "set_input_size", None)):
                resize(img_size=img_size)
            out: Any = self.own(images)
        except Exception as error:  # code of others
            raise InvalidInput(
                f"{self.name} does not take images of {height}x{width}: {_words(error)}. One that takes"
                f" {contract.size}x{contract.size} alone goes with fit='crop' or 'pad', and whole numbers as scales"
            ) from error
        h, w = height // contract.patch, width // contract.patch
        tokens = (1, contract.prefix_tokens + h * w, contract.width)
        right = [tokens] if contract.prefix_tokens else [tokens, (1, contract.width, h, w)]
        shape = tuple(out.shape) if isinstance(out, Tensor) else None
        if shape not in right:
            raise InvalidInput(
                f"{self.name} makes {shape or f'a {type(out).__name__}'} of images (1, 3, {height}, {width}); by its"
                f" contract (patch {contract.patch}, width {contract.width}, {contract.prefix_tokens} prefix tokens)"
                f" expected {' or '.join(map(str, right))}"
            )


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {in_words(error)}"
