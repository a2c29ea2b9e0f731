"""The losses against stored values of the original code, and against what is known without it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from virb.pretraining.losses import DINOLoss, PatchLoss
from virb.pretraining.methods import Matches
from virb.pretraining.schedules import ramp

GOLDEN = Path(__file__).parents[1] / "golden"
K = 16


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def temperature(stored: dict[str, np.ndarray], epoch: int) -> float:
    return ramp(epoch, *(stored[key].item() for key in ("warmup_teacher_temp", "teacher_temp", "warmup_teacher_temp_epochs")))


def views(array: np.ndarray, count: int) -> list[Tensor]:
    return [view.clone().requires_grad_() for view in torch.from_numpy(array).chunk(count)]


def close(ours: Tensor, stored: np.ndarray, tolerance: float) -> None:
    torch.testing.assert_close(ours.detach(), torch.from_numpy(stored), atol=tolerance, rtol=0)


@pytest.mark.parametrize("crops", [4, 10])
def test_dino_loss_equals_the_original(crops: int) -> None:
    stored = load("dino_loss")
    criterion = DINOLoss(64)
    for call, epoch in enumerate(stored["epoch_calls"].tolist()):
        student = views(stored[f"ncrops{crops}.student"][call], crops)
        teacher = views(stored[f"ncrops{crops}.teacher"][call], 2)
        close(criterion.center, stored[f"ncrops{crops}.center"][call][None], 1e-6)
        out = criterion(student, teacher, temperature(stored, epoch))
        out.loss.backward()
        criterion.move_center(out.statistics)
        assert out.loss.item() == pytest.approx(stored[f"ncrops{crops}.loss"][call], abs=1e-5)
        close(torch.cat([view.grad for view in student if view.grad is not None]), stored[f"ncrops{crops}.student_grad"][call], 3e-6)
        assert all(view.grad is None for view in teacher)
    close(criterion.center, stored[f"ncrops{crops}.center"][5][None], 1e-6)


def test_loss_and_entropy_at_collapse_are_ln_k() -> None:
    same = [torch.full((3, 64), 0.7) for _ in range(4)]
    out = DINOLoss(64)(same, same[:2], 0.04)
    assert out.loss.item() == pytest.approx(math.log(64), abs=1e-5)
    assert out.loss.item() == pytest.approx(load("dino_loss")["collapsed_loss"].item(), abs=1e-5)
    assert out.logs["teacher_entropy"].item() == pytest.approx(math.log(64), abs=1e-5)
    assert out.logs["kl"].item() == pytest.approx(0.0, abs=1e-5)


def test_loss_by_hand() -> None:
    """Two prototypes, two views of one image. p0 = (3/4, 1/4), p1 = (1/2, 1/2); the student gives both as they are."""
    logits = [torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])]
    out = DINOLoss(2, student_temp=1.0)(logits, logits, 1.0)
    p0_of_q1 = math.log(2.0)
    p1_of_q0 = -(0.5 * math.log(0.75) + 0.5 * math.log(0.25))
    assert out.loss.item() == pytest.approx((p0_of_q1 + p1_of_q0) / 2, abs=1e-6)
    entropies = (-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), math.log(2.0))
    assert out.logs["teacher_entropy"].item() == pytest.approx(sum(entropies) / 2, abs=1e-6)
    assert out.logs["kl"].item() == pytest.approx((p0_of_q1 + p1_of_q0 - sum(entropies)) / 2, abs=1e-6)


def test_the_centre_moves_by_a_tenth_and_only_when_told() -> None:
    criterion = DINOLoss(K)
    teacher = list(torch.randn(2, 5, K))
    out = criterion([*teacher, torch.randn(5, K)], teacher, 0.04)
    assert criterion.center.eq(0).all()
    criterion.move_center(out.statistics)
    torch.testing.assert_close(criterion.center, 0.1 * torch.cat(teacher).mean(0, keepdim=True))


def added(outs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([out[name] for out in outs]).sum(0) for name in outs[0]}


def test_micro_batches_and_ranks_give_the_centre_of_the_joint_batch() -> None:
    """The same sums serve micro-batches and ranks: unequal parts of a batch, added up, are the batch."""
    student, teacher = torch.randn(4, 7, K), torch.randn(2, 7, K)
    joint, parted = DINOLoss(K), DINOLoss(K)
    joint.move_center(joint(list(student), list(teacher), 0.04).statistics)
    outs = [parted(list(student[:, part]), list(teacher[:, part]), 0.04) for part in (slice(0, 2), slice(2, 3), slice(3, 7))]
    parted.move_center(added([out.statistics for out in outs]))
    torch.testing.assert_close(parted.center, joint.center)


def test_loss_of_equal_micro_batches_is_that_of_the_joint_batch() -> None:
    criterion = DINOLoss(K)
    student, teacher = torch.randn(4, 6, K), torch.randn(2, 6, K)
    halves = [criterion(list(student[:, part]), list(teacher[:, part]), 0.04).loss for part in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(sum(halves) / 2, criterion(list(student), list(teacher), 0.04).loss)


def test_half_precision_logits_are_compared_in_float32() -> None:
    student, teacher = torch.randn(3, 4, K).bfloat16(), torch.randn(2, 4, K).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        half = DINOLoss(K)(list(student), list(teacher), 0.04)
    full = DINOLoss(K)(list(student.float()), list(teacher.float()), 0.04)
    assert half.loss.dtype == half.statistics["teacher_sum"].dtype == torch.float32
    torch.testing.assert_close(half.loss, full.loss)


# Patches


def stored_matches(stored: dict[str, np.ndarray], tag: str, images: int) -> dict[tuple[int, int], Matches]:
    offsets = stored[f"{tag}.offsets"]
    found = {}
    for n, (g, v) in enumerate(stored[f"{tag}.pairs"].tolist()):
        part = slice(offsets[n], offsets[n + 1])
        first, second = (torch.from_numpy(stored[f"{tag}.tokens_{who}.values"][part]) for who in ("teacher", "student"))
        image = torch.arange(images).repeat_interleave(len(first))
        found[g, v] = Matches(image, first.repeat(images), second.repeat(images))
    return found


@pytest.mark.parametrize(("tag", "n_local", "n_tokens", "n_outputs"), [("p16", 4, 197, 12), ("p32", 8, 50, 24)])
def test_patch_loss_equals_the_original(tag: str, n_local: int, n_tokens: int, n_outputs: int) -> None:
    stored = load("patchwise_loss")
    criterion = PatchLoss(n_outputs, n_tokens)
    matches = stored_matches(stored, tag, images=2)
    for call, epoch in enumerate(stored["epoch_calls"].tolist()):
        large = views(stored[f"{tag}.call{call}.student_global"], 2)
        small = views(stored[f"{tag}.call{call}.student_local"], n_local)
        teacher = views(stored[f"{tag}.call{call}.teacher"], 2)
        close(criterion.center, stored[f"{tag}.center"][call][None], 1e-6)
        out = criterion([*large, *small], teacher, matches, temperature(stored, epoch))
        out.loss.backward()
        criterion.move_center(out.statistics)
        assert out.loss.item() == pytest.approx(stored[f"{tag}.loss"][call], abs=1e-5)
        if call == 1:
            for ours, name in ((large, "student_global_grad"), (small, "student_local_grad")):
                close(torch.cat([view.grad for view in ours if view.grad is not None]), stored[f"{tag}.call1.{name}"], 3e-6)
    close(criterion.center, stored[f"{tag}.center"][3][None], 1e-6)


def random_views(sizes: tuple[int, ...], images: int) -> list[Tensor]:
    return [torch.randn(images, tokens, K) for tokens in sizes]


def cls_only(images: int, pairs: list[tuple[int, int]]) -> dict[tuple[int, int], Matches]:
    zeros = torch.zeros(images, dtype=torch.int64)
    return {pair: Matches(torch.arange(images), zeros, zeros) for pair in pairs}


PAIRS = [(0, 1), (0, 2), (1, 0), (1, 2)]


@pytest.mark.parametrize("weights", [None, (1.0, 0.0), (1.0, 0.5)])
def test_views_without_overlap_give_dino(weights: tuple[float, float] | None) -> None:
    student, teacher = random_views((5, 5, 2), 3), random_views((5, 5), 3)
    out = PatchLoss(K, 5, weights)(student, teacher, cls_only(3, PAIRS), 0.05)
    dino = DINOLoss(K)([x[:, 0] for x in student], [x[:, 0] for x in teacher], 0.05)
    torch.testing.assert_close(out.loss, dino.loss)


def some_matches(images: int) -> dict[tuple[int, int], Matches]:
    """Another number of patches in every image, one patch of the student matched twice."""
    found = {}
    for g, v in PAIRS:
        rows = [(b, 0, 0) for b in range(images)]
        rows += [(0, 3, 1), (1, 1, 1), (1, 2, 1)] if v == 2 else [(0, 4, 4), (1, 1, 2), (1, 2, 1), (1, 3, 3)]
        found[g, v] = Matches(*map(torch.tensor, zip(*rows, strict=True)))
    return found


@pytest.mark.parametrize("mode", ["position", "shared"])
@pytest.mark.parametrize("weights", [None, (0.9, 0.1), (1.0, 0.0)])
def test_patch_loss_against_a_loop_over_pairs(weights: tuple[float, float] | None, mode: str) -> None:
    images, student, teacher = 3, random_views((5, 5, 2), 3), random_views((5, 5), 3)
    matches = some_matches(images)
    criterion = PatchLoss(K, 5, weights, mode)  # type: ignore[arg-type]
    criterion.center.normal_()
    terms = []
    for (g, v), pairs in matches.items():
        for b in range(images):
            losses: dict[bool, list[Tensor]] = {True: [], False: []}
            for image, i, j in zip(*(column.tolist() for column in pairs), strict=True):
                if image == b:
                    center = criterion.center[0, i if mode == "position" else min(i, 1)]
                    p = torch.softmax((teacher[g][b, i] - center) / 0.05, 0)
                    losses[i > 0].append(-(p * torch.log_softmax(student[v][b, j] / 0.1, 0)).sum())
            if weights is None:
                terms.append(torch.stack([*losses[False], *losses[True]]).mean())
            else:
                patches = torch.stack(losses[True]).mean() if losses[True] else torch.zeros(())
                terms.append(weights[0] * losses[False][0] + weights[1] * patches)
    out = criterion(student, teacher, matches, 0.05)
    torch.testing.assert_close(out.loss, torch.stack(terms).mean())
    torch.testing.assert_close(out.logs["cls_loss"] + out.logs["patch_loss"], out.loss)


def test_patch_loss_at_collapse_is_ln_k() -> None:
    same = [torch.zeros(3, tokens, K) for tokens in (5, 5, 2)]
    out = PatchLoss(K, 5)(same, same[:2], some_matches(3), 0.05)
    assert out.loss.item() == pytest.approx(math.log(K), abs=1e-5)
    assert out.logs["teacher_entropy"].item() == pytest.approx(math.log(K), abs=1e-5)
    assert out.logs["kl"].item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.9, 0.1), (0.0, 3.0)])
def test_loss_over_its_weight_is_ln_k_at_collapse(weights: tuple[float, float]) -> None:
    """Of two images, of which the views of one overlap."""
    logits = [torch.zeros(2, 5, K)] * 2
    pairs = Matches(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 2, 3, 0]), torch.tensor([0, 1, 4, 0]))
    out = PatchLoss(K, 5, weights)(logits, logits, {(0, 1): pairs, (1, 0): pairs}, 0.04)
    assert out.logs["loss_weight"].item() == pytest.approx(weights[0] + weights[1] / 2)
    assert out.loss.item() / out.logs["loss_weight"].item() == pytest.approx(math.log(K))


def test_the_shared_centre_is_one_for_cls_and_one_for_patches() -> None:
    criterion = PatchLoss(K, 5, center_mode="shared")
    teacher = random_views((5, 5), 3)
    out = criterion([*random_views((5, 5, 2), 3)], teacher, cls_only(3, PAIRS), 0.05)
    criterion.move_center(out.statistics)
    tokens = torch.cat(teacher)
    expected = torch.stack([tokens[:, 0].mean(0), tokens[:, 1:].mean((0, 1))])[None]
    torch.testing.assert_close(criterion.center, 0.1 * expected)


@pytest.mark.parametrize("mode", ["position", "shared"])
def test_patch_centre_of_parts_is_that_of_the_joint_batch(mode: str) -> None:
    student, teacher = random_views((5, 5, 2), 4), random_views((5, 5), 4)
    joint, parted = (PatchLoss(K, 5, center_mode=mode) for _ in range(2))  # type: ignore[arg-type]
    joint.move_center(joint(student, teacher, cls_only(4, PAIRS), 0.05).statistics)
    parts = (slice(0, 1), slice(1, 4))
    outs = [parted([x[part] for x in student], [x[part] for x in teacher], cls_only(part.stop - part.start, PAIRS), 0.05) for part in parts]
    parted.move_center(added([out.statistics for out in outs]))
    torch.testing.assert_close(parted.center, joint.center)
