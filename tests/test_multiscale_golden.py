"""`multiscale_forward` against answers of the reference S2-Wrapper itself, over every combination of its arguments."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from golden.make_multiscale import cases, key, toy_model
from s2robot.multiscale import multiscale_forward

ANSWERS = load_file(Path(__file__).parent / "golden" / "multiscale.safetensors")


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: f"{key(case)}{' split' * case['split_forward']}")
def test_the_answer_is_the_references(case: dict[str, Any]) -> None:
    model = toy_model(ANSWERS["weight"], case["output_shape"], case["num_prefix_token"])
    got: Tensor = multiscale_forward(model, ANSWERS["images"], **case)
    torch.testing.assert_close(got, ANSWERS[key(case)], atol=1e-5, rtol=0)


def test_the_answers_tell_cases_apart() -> None:
    """A golden file in which everything is equal would pass anything."""
    answers = [ANSWERS[name] for name in {key(case) for case in cases()} if '"output_shape": "bnc"' in name]
    different = {(tuple(each.shape), round(float(each.double().sum()), 4)) for each in answers}
    assert len(different) > 0.5 * len(answers)  # some arguments are two spellings of one thing


def test_it_takes_the_references_arguments_in_their_order() -> None:
    names = (
        "model input scales img_sizes max_split_size resize_output_to_idx num_prefix_token output_shape split_forward"
    )
    assert list(inspect.signature(multiscale_forward).parameters) == names.split()
