"""Optimizer steps on stacked parameters: K heads side by side, each row with its own coefficients.

Every tensor is ``(K, n)`` float32 and changed in place; a coefficient is ``(K, 1)`` on the same device, so that a step reads no
number from the host (it can be captured in a CUDA graph). The arithmetic is that of ``torch.optim`` on one head, in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


def sgd_step(
    param: Tensor, grad: Tensor, buffer: Tensor | None, *, minus_lr: Tensor, momentum: Tensor, weight_decay: Tensor | None, nesterov: bool
) -> None:
    """One SGD step as ``torch.optim.SGD`` without dampening. ``grad`` is scratch afterwards.

    ``buffer`` is the momentum, zero before the first step (torch starts from the first gradient, which is the same); None without momentum.
    """
    if weight_decay is not None:
        grad.addcmul_(param, weight_decay)
    if buffer is None:
        param.addcmul_(grad, minus_lr)
        return
    torch.addcmul(grad, buffer, momentum, out=buffer)
    update = grad.addcmul_(buffer, momentum) if nesterov else buffer
    param.addcmul_(update, minus_lr)


def adam_step(
    param: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    *,
    minus_step: Tensor,
    one_minus_beta1: Tensor,
    root_correction2: Tensor,
    weight_decay: Tensor | None,
    keep: Tensor | None,
) -> None:
    """One step of Adam (L2 penalty: ``weight_decay``) or of AdamW (decoupled: ``keep`` = 1 - lr * weight decay). ``grad`` is scratch then.

    ``minus_step`` = -lr / (1 - beta1^t); ``root_correction2`` = sqrt(1 - beta2^t), t counted from 1.
    """
    if weight_decay is not None:
        grad.addcmul_(param, weight_decay)
    if keep is not None:
        param.mul_(keep)
    mean.lerp_(grad, one_minus_beta1)
    square.mul_(ADAM_BETAS[1]).addcmul_(grad, grad, value=1.0 - ADAM_BETAS[1])
    denominator = torch.sqrt(square, out=grad).div_(root_correction2).add_(ADAM_EPS)
    param.addcmul_(torch.div(mean, denominator, out=denominator), minus_step)
