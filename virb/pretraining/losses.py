"""Self-distillation: the student predicts, from every view, what the teacher sees in the others. All in float32.

Both losses carry their centre as a buffer, the mean of the teacher's logits over past batches. A loss reads the centre of the last step and
returns the sums of this batch; ``move_center`` takes the sums of *all* micro-batches and ranks of a step. So the centre moves once per step
and is that of the joint batch, however it was cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from virb.pretraining.methods import LossOut, Matches

CenterMode = Literal["position", "shared"]


def cross_entropy(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Of distributions ``target`` (... x K) and softmax(``logits`` / temperature), per row. Rows of ``target`` may sum to anything."""
    return -(target * torch.log_softmax(logits.float() / temperature, dim=-1)).sum(-1)


def sharpen(logits: Tensor, center: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The teacher's distributions, ... x K, centred against one prototype taking all, sharpened against all being alike; and their
    entropies, one per row."""
    log_p = torch.log_softmax((logits.float() - center) / temperature, dim=-1)
    p = log_p.exp()
    return p, -(p * log_p).sum(-1)


class _Centred(nn.Module):
    """A centre that follows the teacher. ``center`` is 1 x K or 1 x positions x K, as in the original's checkpoints."""

    center: Tensor

    def __init__(self, shape: tuple[int, ...], student_temp: float, center_momentum: float) -> None:
        super().__init__()
        self.student_temp = student_temp
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(1, *shape))

    @torch.no_grad()
    def move_center(self, statistics: Mapping[str, Tensor]) -> None:
        """``statistics``: ``LossOut.statistics`` summed over the micro-batches and ranks of one step."""
        mean = statistics["teacher_sum"] / statistics["teacher_rows"]
        self.center.mul_(self.center_momentum).add_(mean, alpha=1.0 - self.center_momentum)


class DINOLoss(_Centred):
    def __init__(self, out_dim: int, student_temp: float = 0.1, center_momentum: float = 0.9) -> None:
        super().__init__((out_dim,), student_temp, center_momentum)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], teacher_temp: float) -> LossOut:
        """Logits per view, each B x K; the teacher's views are the first of the student's. The mean over all pairs of a teacher's view and
        *another* view of the student."""
        with torch.no_grad():
            logits = torch.stack(tuple(teacher)).float()
            targets, entropies = sharpen(logits, self.center, teacher_temp)
            statistics = {"teacher_sum": logits.sum((0, 1))[None], "teacher_rows": logits.new_tensor(float(logits[..., 0].numel()))}
        n_pairs = len(teacher) * (len(student) - 1)
        total = logits.new_zeros(())
        for view, seen in enumerate(student):
            others = [targets[other] for other in range(len(teacher)) if other != view]
            if others:  # the cross-entropy is linear in its target, so all the teacher's views go in at once
                total = total + cross_entropy(sum(others[1:], others[0]), seen, self.student_temp).mean()
        loss = total / n_pairs
        entropy = entropies.mean()
        return LossOut(loss, {"teacher_entropy": entropy, "kl": loss.detach() - entropy}, statistics)


class PatchLoss(_Centred):
    """DINO's loss for [CLS] and for patches that show the same place.

    ``weights``: None lets every matched token of an image count the same, [CLS] being one of them (the original); (a, b) gives a times the
    loss of [CLS] plus b times the mean over the image's matched patches, so that (1, 0) is DINO.
    ``center_mode``: "position" has a centre for every token position (the original), "shared" one for [CLS] and one for all patches.
    """

    def __init__(
        self,
        out_dim: int,
        n_tokens: int,
        weights: tuple[float, float] | None = None,
        center_mode: CenterMode = "position",
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__((n_tokens if center_mode == "position" else 2, out_dim), student_temp, center_momentum)
        self.weights = weights
        self.center_mode = center_mode

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        matches: Mapping[tuple[int, int], Matches],
        teacher_temp: float,
    ) -> LossOut:
        """Logits per view, each B x tokens x K, [CLS] first; ``matches[g, v]`` from the teacher's view g to the student's view v, for all
        pairs that count. The mean over these pairs, over images, over matched tokens."""
        with torch.no_grad():
            logits = torch.stack(tuple(teacher)).float()
            views, images, tokens, _ = logits.shape
            center = self.center if self.center_mode == "position" else self._of_tokens(self.center, tokens)
            targets, entropies = sharpen(logits, center, teacher_temp)
            statistics = self._statistics(logits)
        totals: dict[str, Tensor] = {name: logits.new_zeros(()) for name in ("cls", "patch", "entropy", "weight")}
        for view, seen in enumerate(student):
            target = torch.zeros_like(seen, dtype=torch.float32).flatten(0, 1)  # of each token, a weighted sum over what it is matched with
            for other in (g for g in range(views) if (g, view) in matches):
                pairs = matches[other, view]
                weight = self._weights(pairs, images).to(seen.device)
                at = (pairs.image * tokens + pairs.first).to(seen.device)
                to = (pairs.image * seen.shape[1] + pairs.second).to(seen.device)
                target.index_add_(0, to, weight[:, None] * targets[other].flatten(0, 1)[at])
                totals["entropy"] = totals["entropy"] + (weight * entropies[other].flatten()[at]).sum()
                totals["weight"] = totals["weight"] + weight.sum()
            losses = cross_entropy(target.view_as(seen), seen, self.student_temp)
            totals["cls"] = totals["cls"] + losses[:, 0].sum()
            totals["patch"] = totals["patch"] + losses[:, 1:].sum()
        cls, patch, entropy, weights = (total / (len(matches) * images) for total in totals.values())
        loss = cls + patch
        logs = {"teacher_entropy": entropies.mean(), "kl": loss.detach() - entropy, "cls_loss": cls.detach(), "patch_loss": patch.detach()}
        if self.weights is not None:  # they need not sum to 1, and images whose views do not overlap have no patches
            logs["loss_weight"] = weights
        return LossOut(loss, logs, statistics)

    def _weights(self, pairs: Matches, images: int) -> Tensor:
        """One per pair; those of an image sum to 1, or to the two weights."""
        is_patch = (pairs.first > 0).long()
        counts = torch.zeros(images, 2, dtype=torch.int64)
        counts.index_put_((pairs.image, is_patch), torch.ones_like(pairs.image), accumulate=True)
        if self.weights is None:
            return 1.0 / counts.sum(1)[pairs.image].float()
        return torch.tensor(self.weights)[is_patch] / counts[pairs.image, is_patch]

    def _statistics(self, logits: Tensor) -> dict[str, Tensor]:
        sums = logits.sum((0, 1))
        rows = torch.full((len(sums), 1), float(logits.shape[0] * logits.shape[1]), device=logits.device)
        if self.center_mode == "shared":
            sums, rows = (torch.stack([values[0], values[1:].sum(0)]) for values in (sums, rows))
        return {"teacher_sum": sums[None], "teacher_rows": rows[None]}

    @staticmethod
    def _of_tokens(center: Tensor, tokens: int) -> Tensor:
        return torch.cat([center[:, :1], center[:, 1:].expand(-1, tokens - 1, -1)], dim=1)
