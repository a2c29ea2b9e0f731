"""The optimizer's side of a step: parameter groups, LARS, clipping, frozen last layer, EMA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

Clipping = Literal["per_tensor", "global"]
OPTIMIZERS = ("adamw", "sgd", "lars")


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups: what weight decay is for, and biases and other one-dimensional parameters, which are never decayed. (So positions, [CLS]
    and the prototypes' lengths are decayed, as in the original.)"""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (free if name.endswith(".bias") or parameter.ndim == 1 else decayed).append(parameter)
    return [{"params": decayed}, {"params": free, "weight_decay": 0.0}]


def make_optimizer(name: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """One of ``OPTIMIZERS`` with the original's constants; learning rate and weight decay come with every step (``set_rates``)."""
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    if name == "lars":
        return LARS(groups)
    raise ValueError(f"Expected argument `name` to be one of {', '.join(OPTIMIZERS)}, but got {name!r}")


def is_state_of(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> bool:
    """Whether it was saved by an optimizer of this kind. Keys that only later versions of torch know may be missing."""
    sign = {torch.optim.AdamW: "betas", torch.optim.SGD: "nesterov", LARS: "eta"}.get(type(optimizer))
    return sign is None or all(sign in group for group in saved["param_groups"])


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """The learning rate of all groups, the weight decay of the first."""
    for i, group in enumerate(optimizer.param_groups):
        group["lr"] = lr
        if i == 0:
            group["weight_decay"] = weight_decay


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is, for each tensor, ``eta`` times the tensor's own length (You et al., 2017). One-dimensional
    parameters are neither decayed nor scaled."""

    def __init__(self, params: Any, lr: float = 0.0, weight_decay: float = 0.0, momentum: float = 0.9, eta: float = 0.001) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum, eta=eta))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim != 1:
                    update = update.add(parameter, alpha=group["weight_decay"])
                    length, other = parameter.norm(), update.norm()
                    trust = torch.where((length > 0) & (other > 0), group["eta"] * length / other, 1.0)  # where: no wait for the device
                    update = update * trust
                state = self.state[parameter]
                if "mu" not in state:
                    state["mu"] = torch.zeros_like(parameter)
                state["mu"].mul_(group["momentum"]).add_(update)
                parameter.add_(state["mu"], alpha=-group["lr"])
        return loss


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, how: Clipping = "per_tensor") -> Tensor:
    """Shortens gradients in place to length ``limit``: "per_tensor" each by itself (DINO), "global" all by one factor. 0 shortens nothing.
    Returns the length of all together before, 0-dimensional, on their device; infinite or NaN when one of them is."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:
        return torch.zeros(())
    lengths = torch.stack(torch._foreach_norm(grads))
    total = lengths.norm()
    if limit > 0:
        factors = (limit / ((lengths if how == "per_tensor" else total.expand(len(grads))) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, list(factors.unbind()))
    return total


def freeze_last_layer(student: nn.Module) -> None:
    """Takes the gradients of the prototypes away, so that the optimizer passes them over."""
    for name, parameter in student.named_parameters():
        if "last_layer" in name:
            parameter.grad = None


@torch.no_grad()
def move_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Every parameter of the teacher moves by 1 - momentum towards the student's. Buffers do not: the teacher's batch norms see its own
    batches. The two may be wrapped: parameters are taken in order."""
    mine: list[Tensor] = list(teacher.parameters())
    theirs: list[Tensor] = list(student.parameters())
    if len(mine) != len(theirs):
        raise ValueError(f"Expected teacher and student to have as many parameters, but got {len(mine)} and {len(theirs)}")
    torch._foreach_mul_(mine, momentum)
    torch._foreach_add_(mine, theirs, alpha=1.0 - momentum)


def scaled_lr(lr: float, joint_batch: int) -> float:
    """The peak learning rate for a step over ``joint_batch`` images, given that for 256."""
    return lr * joint_batch / 256
