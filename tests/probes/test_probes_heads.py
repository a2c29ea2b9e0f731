"""Stacked heads against ``torch.nn`` modules one by one, and against the heads of ViRB 2021."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from virb.errors import ViRBError
from virb.functional.randomness import derive_seed
from virb.probes.heads import HeadShape, apply_head, backward, forward, head_shape, init_head, stack_heads, take_head

GOLDEN = Path(__file__).parents[1] / "golden"
LINEAR, MLP = HeadShape(6, 4), HeadShape(6, 4, hidden=5)


def module_of(shape: HeadShape) -> nn.Module:
    """The same head as a module with ViRB 2021's names."""
    if shape.hidden is None:
        head: nn.Module = nn.Linear(shape.in_features, shape.n_outputs)
    else:
        head = nn.Sequential(nn.Linear(shape.in_features, shape.hidden), nn.ReLU(), nn.Linear(shape.hidden, shape.n_outputs))
    return nn.ModuleDict({"head": head})


def different_heads(shape: HeadShape, count: int = 3) -> list[dict[str, torch.Tensor]]:
    return [init_head(shape, seed) for seed in range(count)]


@pytest.mark.parametrize("shape", [LINEAR, MLP])
def test_a_fresh_head_is_drawn_as_torch_draws(shape: HeadShape) -> None:
    torch.manual_seed(derive_seed(3, "head", 6, shape.hidden or 0, 4))
    expected = module_of(shape).state_dict()
    head = init_head(shape, 3)
    assert head.keys() == expected.keys()
    for name in head:
        assert torch.equal(head[name], expected[name]), name
    assert not torch.equal(init_head(shape, 4)["head.weight" if shape.hidden is None else "head.0.weight"], next(iter(head.values())))


@pytest.mark.parametrize("shape", [LINEAR, MLP])
def test_forward_and_backward_equal_modules_one_by_one(shape: HeadShape) -> None:
    heads = different_heads(shape)
    stack = stack_heads(heads)
    x, grad = torch.randn(9, 6), torch.randn(9, 3, 4)
    outputs, hidden = forward(stack, x)
    out = backward(stack, x, hidden, grad)
    assert outputs.shape == (9, 3, 4)
    for row, head in enumerate(heads):
        module = module_of(shape)
        module.load_state_dict(head)
        expected = module["head"](x)
        torch.testing.assert_close(outputs[:, row], expected, rtol=1e-5, atol=1e-6)
        expected.backward(grad[:, row])
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(out[name][row], parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [LINEAR, MLP])
def test_a_row_goes_out_and_in_as_a_state_dict(shape: HeadShape) -> None:
    heads = different_heads(shape)
    stack = stack_heads(heads)
    taken = take_head(stack, 1)
    for name in taken:
        assert torch.equal(taken[name], heads[1][name])
        stack[name].zero_()
    assert taken["head.weight" if shape.hidden is None else "head.0.weight"].abs().sum() > 0  # a copy, not a view
    assert head_shape(taken) == shape
    module_of(shape).load_state_dict(taken)
    x = torch.randn(5, 6)
    torch.testing.assert_close(apply_head(taken, x), forward(stack_heads([taken]), x)[0][:, 0])


@pytest.mark.parametrize("case", ["classification", "classification_half", "multi_embedding"])
def test_equals_the_heads_of_virb_2021(case: str) -> None:
    with np.load(GOLDEN / "virb_heads_small.npz") as stored:
        prefix = f"{case}.sd."
        head = {name.removeprefix(prefix): torch.from_numpy(stored[name]) for name in stored.files if name.startswith(prefix)}
        x, expected = torch.from_numpy(stored[f"{case}.in.embedding"]), stored[f"{case}.out"]
    tolerance = 1e-4 if case == "multi_embedding" else 5e-6
    np.testing.assert_allclose(apply_head(head, x).numpy(), expected, rtol=0, atol=tolerance)


def test_what_is_no_head_is_refused() -> None:
    for wrong in (
        {},
        {"head.weight": torch.zeros(3, 2)},
        {"head.weight": torch.zeros(3, 2), "head.bias": torch.zeros(4)},
        {"head.weight": torch.zeros(3, 2, 1, 1), "head.bias": torch.zeros(3)},
        {
            "head.0.weight": torch.zeros(5, 2),
            "head.0.bias": torch.zeros(5),
            "head.2.weight": torch.zeros(3, 4),
            "head.2.bias": torch.zeros(3),
        },
    ):
        with pytest.raises(ViRBError, match=r"not a head: expected head\.weight"):
            head_shape(wrong)
    with pytest.raises(ViRBError, match="takes 6 numbers per sample, but the features have 7"):
        apply_head(init_head(LINEAR, 0), torch.zeros(2, 7))
