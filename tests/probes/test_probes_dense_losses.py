"""Dense losses against torch's, numpy's and ViRB 2021's own, with their gradients, and with pixels that do not count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from virb.errors import UserError
from virb.probes.dense_losses import dense_loss_names, find_dense_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "virb_metrics.npz"
KINDS = {
    "cross_entropy": "labels",
    "bce": "mask",
    "l1": "map",
    "sig_loss": "depth",
    "weighted_l1": "map",
    "nonzero_l1": "map",
    "flow_l1": "flow",
    "flow_epe": "flow",
}


def example(kind: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Values with gradients and a target in which about a third of the pixels do not count."""
    generator = torch.Generator().manual_seed(seed)
    channels = {"labels": 5, "mask": 1, "map": 3, "depth": 1, "flow": 2}[kind]
    values = torch.randn(3, channels, 6, 7, generator=generator)
    void = torch.rand(3, 6, 7, generator=generator) < 0.3
    if kind in ("labels", "mask"):
        target = torch.randint(0, 5 if kind == "labels" else 2, (3, 6, 7), generator=generator).to(torch.uint8)
        target[void] = 255
    elif kind == "depth":
        values = values.abs() + 0.1
        target = (torch.rand(3, 6, 7, generator=generator) * 9 + 0.5).masked_fill(void, float("nan"))
    else:
        target = torch.randn(3, channels + (kind == "flow"), 6, 7, generator=generator)
        target = target.masked_fill(void[:, None], float("nan"))
    return values.requires_grad_(), target


def value_and_grad(name: str, values: Tensor, target: Tensor) -> tuple[float, Tensor]:
    loss = find_dense_loss(name)(values, target)
    assert loss.shape == ()
    (grad,) = torch.autograd.grad(loss, values)
    return float(loss.detach()), grad


@pytest.mark.parametrize("case", ["nonzero_l1", "weighted_l1"])
def test_virb_2021s_losses(case: str) -> None:
    with np.load(GOLDEN) as stored:
        out, labels, grad = (torch.from_numpy(stored[f"{case}.{key}"]) for key in ("out", "labels", "grad"))
        expected = float(stored[f"{case}.value"])
    found, slope = value_and_grad(case, out.requires_grad_(), labels)
    assert found == pytest.approx(expected, rel=2e-6)
    torch.testing.assert_close(slope, grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("weights", [None, (0.1, 1.0, 1.0, 2.0, 0.0)])
def test_cross_entropy_is_torchs(weights: tuple[float, ...] | None) -> None:
    values, target = example("labels")
    name = "cross_entropy" if weights is None else f"cross_entropy({','.join(map(str, weights))})"
    found, slope = value_and_grad(name, values, target)
    expected = F.cross_entropy(values, target.long(), None if weights is None else torch.tensor(weights), ignore_index=255)
    assert found == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, values)[0])


def test_cross_entropy_can_ignore_a_class_besides_void() -> None:
    """As ViRB 2021's ignore_index 0 for COCO, with void ignored as well."""
    values, target = example("labels")
    found, slope = value_and_grad("cross_entropy(ignore=0)", values, target)
    expected = F.cross_entropy(values, target.long().masked_fill(target == 255, 0), ignore_index=0)
    assert found == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, values)[0])


def test_bce_is_torchs_over_the_pixels_that_count() -> None:
    values, target = example("mask")
    found, slope = value_and_grad("bce", values, target)
    keep = target != 255
    expected = F.binary_cross_entropy_with_logits(values[:, 0][keep], target[keep].float())
    assert found == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, values)[0])


@pytest.mark.parametrize("kind", ["map", "depth"])
def test_l1_is_torchs_over_the_values_that_count(kind: str) -> None:
    values, target = example(kind)
    wanted = target[:, None] if kind == "depth" else target
    found, slope = value_and_grad("l1", values, target)
    expected = F.l1_loss(values[wanted.isfinite()], wanted[wanted.isfinite()])
    assert found == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, values)[0])


def test_sig_loss_against_numpy() -> None:
    values, target = example("depth")
    keep = target.isfinite().numpy()
    g = np.log(values.detach().numpy()[:, 0][keep].astype(float) + 1e-3) - np.log(target.numpy()[keep].astype(float) + 1e-3)
    found, slope = value_and_grad("sig_loss", values, target)
    assert found == pytest.approx(np.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2), rel=1e-5)
    chosen = values[:, 0][torch.from_numpy(keep)]
    ratio = torch.log(chosen + 1e-3) - torch.log(target[torch.from_numpy(keep)] + 1e-3)
    expected = torch.sqrt(torch.var(ratio) + 0.15 * ratio.mean() ** 2)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, values)[0], rtol=1e-4, atol=1e-6)


def test_sig_loss_minds_scale_little_and_zeros_not_at_all() -> None:
    target = torch.rand(2, 6, 7) * 5 + 1
    loss = find_dense_loss("sig_loss")
    assert float(loss(3 * target[:, None], target)) == pytest.approx(np.sqrt(0.15) * np.log(3), rel=2e-3)
    with_zeros = target.clone()
    with_zeros[0, 0] = 0.0  # a depth that was not measured
    holes = with_zeros.masked_fill(with_zeros == 0, float("nan"))
    values = torch.rand(2, 1, 6, 7) + 1
    assert float(loss(values, with_zeros)) == float(loss(values, holes))


@pytest.mark.parametrize("name", ["sig_loss", "flow_epe"])
def test_a_perfect_output_has_a_finite_slope(name: str) -> None:
    _, target = example(KINDS[name])
    perfect = target[:, :2] if name == "flow_epe" else target[:, None]
    found, slope = value_and_grad(name, perfect.nan_to_num(1.0).clone().requires_grad_(), target)
    assert found < 1e-5
    assert slope.isfinite().all()


@pytest.mark.parametrize("name", ["flow_l1", "flow_epe"])
def test_flow_losses_against_numpy(name: str) -> None:
    values, target = example("flow")
    keep = target[:, 0].isfinite().numpy()
    difference = (values.detach() - target[:, :2]).permute(0, 2, 3, 1).numpy()[keep]
    found, _ = value_and_grad(name, values, target)
    expected = np.abs(difference).sum(1).mean() if name == "flow_l1" else np.hypot(*difference.T).mean()
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_occluded_pixels_count_in_training() -> None:
    values, target = example("flow")
    visible, hidden = target.clone(), target.clone()
    visible[:, 2], hidden[:, 2] = 1.0, 0.0
    assert value_and_grad("flow_epe", values, visible)[0] == value_and_grad("flow_epe", values, hidden)[0]


@pytest.mark.parametrize("name", KINDS)
def test_pixels_that_do_not_count_move_nothing(name: str) -> None:
    values, target = example(KINDS[name])
    void = target == 255 if KINDS[name] in ("labels", "mask") else target.isnan()
    void = void.any(1) if void.ndim == 4 else void
    found, slope = value_and_grad(name, values, target)
    assert slope.permute(0, 2, 3, 1)[void].eq(0).all()
    other = values.detach().clone()
    other.permute(0, 2, 3, 1)[void] += 3.0
    assert value_and_grad(name, other.requires_grad_(), target)[0] == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("name", [*KINDS, "cross_entropy(1,2,1,1,1)", "cross_entropy(ignore=0)"])
def test_a_batch_without_a_valid_pixel_costs_nothing_and_moves_nothing(name: str) -> None:
    kind = KINDS[name.split("(")[0]]
    values, target = example(kind)
    found, slope = value_and_grad(name, values, torch.full_like(target, 255 if kind in ("labels", "mask") else float("nan")))
    assert found == 0.0
    assert torch.equal(slope, torch.zeros_like(slope))


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_values_are_compared_in_float32(name: str) -> None:
    values, target = example(KINDS[name])
    half = values.detach().to(torch.bfloat16)
    assert float(find_dense_loss(name)(half, target)) == float(find_dense_loss(name)(half.float(), target))


def test_a_target_is_never_spread_over_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 1, 4, 5\), but got \(2, 3, 4, 5\)"):
        find_dense_loss("l1")(torch.zeros(2, 1, 4, 5), torch.zeros(2, 3, 4, 5))


def test_names() -> None:
    assert set(dense_loss_names()) == set(KINDS)
    for name, kind in KINDS.items():
        assert callable(find_dense_loss(name, kind))
    assert callable(find_dense_loss(" cross_entropy ( 1, 2 ) ", "labels"))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("crossentropy", None, 'no loss "crossentropy" for a dense probe; did you mean cross_entropy'),
        ("zzz", None, "there is cross_entropy, bce, l1, sig_loss"),
        ("crossentropy(1,2)", None, "did you mean cross_entropy"),
        ("cross_entropy(1,2", None, "no loss"),
        ("cross_entropy(a,b)", None, "cannot be read; write the weight of each class"),
        ("cross_entropy()", None, "cannot be read"),
        ("cross_entropy(1,-1)", None, "cannot be read"),
        ("cross_entropy(nan,1)", None, "cannot be read"),
        ("cross_entropy(0,0)", None, "cannot be read"),
        ("l1(2)", None, r"the loss l1 takes no arguments, but got \(2\)"),
        ("bce", "labels", "needs a target of kind mask, but this task's is labels; there is cross_entropy"),
        ("sig_loss", "flow", "needs a target of kind depth, but this task's is flow; there is flow_l1, flow_epe"),
    ],
)
def test_what_is_no_loss(name: str, kind: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_dense_loss(name, kind)


def test_wrong_number_of_weights() -> None:
    values, target = example("labels")
    with pytest.raises(UserError, match="has 3 weights, but there are 5 classes"):
        find_dense_loss("cross_entropy(1,1,1)")(values, target)
