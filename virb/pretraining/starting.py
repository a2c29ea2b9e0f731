"""Where a training starts: at the checkpoint of the same run (resume), or with the weights of another one (init_from)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virb.errors import UserError
from virb.pretraining import checkpoints, fitting
from virb.pretraining.optim import is_state_of
from virb.pretraining.options import changes, plain
from virb.pretraining.step import Trainer


@dataclass(frozen=True)
class Start:
    """``record``: what the engine noted; ``same_epoch``: whether its sums are those of the epoch that goes on; ``lines``: what to say."""

    record: Mapping[str, Any] = field(default_factory=dict)
    same_epoch: bool = False
    lines: tuple[str, ...] = ()


def resume(trainer: Trainer, path: Path) -> Start:
    """Everything as it was saved. Other hyper-parameters than then are told; another method or architecture is a UserError."""
    content = checkpoints.read(path)
    record = checkpoints.noted(content)
    if record is None:  # the original's file, put here to be gone on with
        return _take(trainer, content, path, head="load", center=True, optimizer=True, go_on=True)
    method = trainer.method
    if record.get("method") != method.name:
        raise UserError(f"{path} is of a training by {record.get('method')}, not {method.name}; choose another output_dir")
    checkpoints.fill(trainer.networks.student, content.get("student") or {}, "student", path)
    checkpoints.fill(trainer.networks.teacher, content.get("teacher") or {}, "teacher", path)
    _load_state(trainer, content, path)
    _load_optimizer(trainer, content, path)
    if trainer.scaler.is_enabled() and content.get("fp16_scaler"):
        trainer.scaler.load_state_dict(content["fp16_scaler"])
    step, same = _place(trainer, record)
    trainer.step_number = step
    lines = [f"going on from {path}: step {step:,}, epoch {step // trainer.steps_per_epoch + 1}"]
    changed = changes(record.get("options") or {}, plain(trainer.options))
    if changed:
        lines.append(f"changed since then: {', '.join(changed)}")
    if not same:
        lines.append(
            f"a step took {record.get('joint_batch', 0):,} images then and takes {trainer.joint_batch:,} now; "
            f"an epoch had {record.get('steps_per_epoch', 0):,} steps and has {trainer.steps_per_epoch:,}; schedules follow the epochs"
        )
    return Start(record, same, tuple(lines))


def _place(trainer: Trainer, record: Mapping[str, Any]) -> tuple[int, bool]:
    """The step to go on with, and whether steps mean what they meant. Otherwise no image of the running epoch is left out: those that were
    seen fill fewer or more steps now."""
    step, then = int(record["step"]), int(record.get("steps_per_epoch", 0)) or trainer.steps_per_epoch
    joint = int(record.get("joint_batch", 0)) or trainer.joint_batch
    if then == trainer.steps_per_epoch and joint == trainer.joint_batch:
        return step, True
    epoch, within = divmod(step, then)
    return epoch * trainer.steps_per_epoch + min(within * joint // trainer.joint_batch, trainer.steps_per_epoch - 1), False


def init_from(trainer: Trainer, path: Path) -> Start:
    """Weights of any checkpoint, and of a full one what the options say. The rest starts new."""
    o = trainer.options
    content = checkpoints.read(path)
    return _take(
        trainer,
        content,
        path,
        head=o.init_head,
        center=o.init_center,
        optimizer=o.init_optimizer,
        go_on=o.init_schedule == "continue",
        fit=True,
    )


def _take(
    trainer: Trainer, content: dict[str, Any], path: Path, *, head: str, center: bool, optimizer: bool, go_on: bool, fit: bool = False
) -> Start:
    """``fit``: what is almost that of this training is made to fit, and told; otherwise everything has to be as it was."""
    student, teacher, has_head = checkpoints.branches(content, path)
    lines: list[str] = []
    if fit:
        student, lines = fitting.fit_backbone(trainer.networks.student, student)
        teacher, _ = fitting.fit_backbone(trainer.networks.teacher, teacher)
    why = "" if has_head else "the file has none"
    if head == "load" and not has_head and fit:
        raise UserError(f"init_head: load, but {path} holds a backbone alone; leave it out")
    if has_head and fit:
        (student, told), (teacher, _) = (
            fitting.fit_head(network, state)
            for network, state in ((trainer.networks.student, student), (trainer.networks.teacher, teacher))
        )
        why = "init_head: new" if head == "new" else fitting.misfit(trainer.networks.student, student) if head == "auto" else ""
        lines += [] if why else told
    prefix = "backbone." if why else ""
    checkpoints.fill(trainer.networks.student, student, "student", path, prefix=prefix)
    checkpoints.fill(trainer.networks.teacher, teacher, "teacher", path, prefix=prefix)
    taken, left = ["weights of the backbone" if why else "weights"], [f"head ({why})"] if why else []
    odd = _odd_center(trainer, content) if fit and not why else ""
    if center and not why and not odd and isinstance(content.get(trainer.method.state_key), Mapping):
        _load_state(trainer, content, path)
        taken.append("centre")
    else:
        left.append(f"centre ({odd})" if odd and center else "centre")
    if optimizer:
        if "optimizer" not in content:
            raise UserError(f"init_optimizer: {path} has no optimizer; leave it out")
        if why or lines:
            raise UserError(f"init_optimizer: the optimizer of {path} is of other weights ({why or lines[0]}); leave it out")
        _load_optimizer(trainer, content, path)
        taken.append("optimizer")
    else:
        left.append("optimizer")
    if go_on:
        if not isinstance(content.get("epoch"), int):
            raise UserError(f"init_schedule continue: {path} does not say its epoch; take restart")
        trainer.step_number = content["epoch"] * trainer.steps_per_epoch
        if content["epoch"] >= trainer.options.epochs:
            raise UserError(f"{path} has {content['epoch']} epochs already; set epochs to more, or init_schedule to restart")
        taken.append(f"schedules from epoch {content['epoch'] + 1}")
        if trainer.scaler.is_enabled() and isinstance(content.get("fp16_scaler"), Mapping):
            trainer.scaler.load_state_dict(dict(content["fp16_scaler"]))
    else:
        left.append("schedules")
    lines.insert(0, f"starting from {path}: {', '.join(taken)}; new: {', '.join(left) or 'nothing'}")
    if not go_on and not why and trainer.options.warmup_epochs == 0:
        lines.append("the learning rate starts at its peak, which destroys what was learned; give it warmup_epochs, or a smaller lr")
    return Start(lines=tuple(lines))


def _odd_center(trainer: Trainer, content: Mapping[str, Any]) -> str:
    """What keeps the file's centre from being taken; empty when nothing does."""
    saved = content.get(trainer.method.state_key)
    if not isinstance(saved, Mapping):
        return ""
    wanted, given = trainer.state.state_dict(), checkpoints.plain_names(saved)
    return next((text for name in wanted if (text := checkpoints.difference(name, given.get(name), wanted[name]))), "")


def _load_state(trainer: Trainer, content: Mapping[str, Any], path: Path) -> None:
    key = trainer.method.state_key
    checkpoints.fill(trainer.state, content.get(key) or {}, f"{key} (centre)", path)


def _load_optimizer(trainer: Trainer, content: Mapping[str, Any], path: Path) -> None:
    saved = content.get("optimizer")
    try:
        if not isinstance(saved, Mapping):
            raise ValueError("there is none")
        if not is_state_of(trainer.optimizer, saved):
            raise ValueError("it is of another kind; init_from with a new output_dir takes weights alone")
        trainer.optimizer.load_state_dict(dict(saved))
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{path}: its optimizer does not fit {trainer.options.optimizer} of these networks ({str(error).splitlines()[0]})"
        ) from error
    for parameter, state in trainer.optimizer.state.items():
        for name, value in state.items():
            if hasattr(value, "shape") and value.ndim and value.shape != parameter.shape:
                raise UserError(f"{path}: its optimizer's {name} is {tuple(value.shape)}, the parameter {tuple(parameter.shape)}")
