"""Make multiscale.safetensors: what the reference S2-Wrapper answers, for tests/test_multiscale_golden.py.

    git clone https://github.com/bfshi/scaling_on_scales && pip install einops
    python tests/golden/make_multiscale.py scaling_on_scales

Made with commit 9c008a37540e761f53574b488979db6e49a64312.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parent
PATCH = 4
SIZES: list[dict[str, Any]] = [
    {"scales": [1]},
    {"scales": [1, 2]},
    {"scales": [1, 2, 3]},
    {"scales": [3, 1]},
    {"scales": [0.5, 1, 1.5]},
    {"img_sizes": [16, 32]},
    {"img_sizes": [24, 48]},
    {"img_sizes": [32], "scales": [1, 2], "max_split_size": 8},
    {"scales": [1, 2], "max_split_size": 64},
    {"img_sizes": [16, 24], "max_split_size": 12},
]


def cases() -> Iterator[dict[str, Any]]:
    """Every combination of arguments, as keyword arguments of both functions."""
    for sizes, (shape, prefix) in itertools.product(SIZES, [("bnc", 0), ("bnc", 1), ("bnc", 5), ("bchw", 0)]):
        count = len(sizes.get("img_sizes") or sizes["scales"])
        for target, split in itertools.product(sorted({0, count - 1, -1}), (False, True)):
            yield {
                **sizes, "output_shape": shape, "num_prefix_token": prefix, "resize_output_to_idx": target,
                "split_forward": split,
            }  # fmt: skip


def toy_model(weight: Tensor, shape: str, prefix: int) -> Callable[[Tensor], Tensor]:
    """A patch embedding; as tokens, behind prefix tokens that see the whole tile."""

    def forward(images: Tensor) -> Tensor:
        grid = torch.tanh(F.conv2d(images, weight, stride=PATCH))  # (B, D, h, w)
        if shape == "bchw":
            return grid
        tokens = grid.flatten(2).transpose(1, 2)
        return torch.cat([*[(k + 1) * tokens.amax(dim=1, keepdim=True) for k in range(prefix)], tokens], dim=1)

    return forward


def key(case: dict[str, Any]) -> str:
    """One answer for `split_forward` on and off: it must not matter."""
    return json.dumps({name: value for name, value in case.items() if name != "split_forward"}, sort_keys=True)


def main(reference: str) -> None:
    sys.path.insert(0, reference)
    from s2wrapper import forward

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 16, 16, generator=generator)
    weight = torch.randn(2, 3, PATCH, PATCH, generator=generator) / 4
    answers: dict[str, Tensor] = {"images": images, "weight": weight}
    for case in cases():
        model = toy_model(weight, case["output_shape"], case["num_prefix_token"])
        answer = forward(model, images, **case).contiguous()
        assert key(case) not in answers or torch.allclose(answers[key(case)], answer, atol=1e-6)
        answers[key(case)] = answer
    save_file(answers, HERE / "multiscale.safetensors")
    print(f"{len(answers) - 2} answers")


if __name__ == "__main__":
    main(sys.argv[1])
