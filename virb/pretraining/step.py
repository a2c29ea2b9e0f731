"""One optimizer step of any method, on one device or many, in full or half precision, over one micro-batch or several."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from virb.errors import UserError
from virb.functional.randomness import derive_seed
from virb.pretraining.batch_norm import join_batch_norm
from virb.pretraining.distributed import Ranks
from virb.pretraining.methods import Method, Networks, Progress, Views
from virb.pretraining.networks import synchronise_batch_norm, use_checkpointing
from virb.pretraining.optim import clip_gradients, make_optimizer, scaled_lr, set_rates
from virb.pretraining.options import EngineOptions
from virb.pretraining.schedules import cosine


@dataclass
class StepReport:
    """What a step says: means over the joint batch. ``moved``: whether the weights changed; ``bad``: loss or gradient were not finite
    (a gradient too long for fp16 is not bad, the scaler deals with it). ``stop``: some rank was asked to stop."""

    values: dict[str, float]
    moved: bool = True
    bad: bool = False
    stop: bool = False
    waited: float = 0.0
    images: int = 0
    views: list[Views] = field(default_factory=list)  # of a bad step, to look at


class Trainer:
    """Networks, optimizer and the method's state, and the step that moves them."""

    def __init__(self, method: Method, options: EngineOptions, ranks: Ranks, steps_per_epoch: int) -> None:
        self.method, self.options, self.ranks, self.steps_per_epoch = method, options, ranks, steps_per_epoch
        self.step_number = 0
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(options.seed, "networks"))
            networks = method.build()
        if options.checkpoint_activations and not use_checkpointing(networks.student):
            raise UserError("checkpoint_activations: this architecture cannot; it is for vit_* and timm's networks")
        device = ranks.device
        self.networks = Networks(_synchronised(networks.student, ranks).to(device), _synchronised(networks.teacher, ranks).to(device))
        self.notes = networks.notes
        self.networks.teacher.requires_grad_(False)
        self.state = method.state().to(device)
        self.optimizer = make_optimizer(options.optimizer, method.parameter_groups(self.networks.student))
        self.autocast_dtype = half_precision(options, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.autocast_dtype is torch.float16)
        self._wrapped = self._wrap()
        self.whole = True  # whether all is as it was after the last step, so that it may be saved

    @property
    def progress(self) -> Progress:
        return Progress(self.step_number, self.options.epochs, self.steps_per_epoch, self.options.seed)

    @property
    def joint_batch(self) -> int:
        return self.options.batch_size_per_gpu * self.options.accumulation_steps * self.ranks.world

    def rates(self, progress: Progress) -> tuple[float, float]:
        """Learning rate and weight decay of a step."""
        o, total = self.options, progress.total_steps
        lr = cosine(progress.step, total, scaled_lr(o.lr, self.joint_batch), o.min_lr, o.warmup_epochs * self.steps_per_epoch)
        return lr, cosine(progress.step, total, o.weight_decay, o.weight_decay_end)

    def step(self, batches: Iterator[Views], stop: bool = False) -> StepReport:
        """The next step on the next ``accumulation_steps`` micro-batches. After one that is not finite, and after an error, all is as it
        was before, but for an error in the middle of moving (not ``whole``)."""
        networks = (self.networks.student, self.networks.teacher)
        kept = [(buffer, buffer.clone()) for network in networks for buffer in network.buffers()]  # batch norms move theirs in forwards
        try:
            report = self._step(batches, stop)
        except BaseException:
            if self.whole:
                _put_back(kept)
            raise
        if not report.moved:
            _put_back(kept)
        return report

    def _step(self, batches: Iterator[Views], stop: bool) -> StepReport:
        progress, n_micro = self.progress, self.options.accumulation_steps
        lr, weight_decay = self.rates(progress)
        set_rates(self.optimizer, lr, weight_decay)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        logs: dict[str, Tensor] = {}
        seen: list[Views] = []
        waited = 0.0
        for micro in range(n_micro):
            began = time.perf_counter()
            views = next(batches).to(self.ranks.device, non_blocking=True)
            waited += time.perf_counter() - began
            seen.append(views)
            # Networks that draw from the global generator draw the same after a resume.
            torch.manual_seed(derive_seed(progress.seed, "step", progress.step, micro, self.ranks.rank))
            with self.ranks.together(), self._gradients(last=micro == n_micro - 1):
                with torch.autocast(self.ranks.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
                    out = self.method.loss(self._wrapped, views, self.state, progress)
                self.scaler.scale(out.loss / n_micro).backward()
            for name, value in out.statistics.items():
                sums[name] = value if name not in sums else sums[name] + value
            for name, value in {"loss": out.loss.detach(), **out.logs}.items():
                logs[name] = value.float() if name not in logs else logs[name] + value.float()
        self.scaler.unscale_(self.optimizer)
        length = clip_gradients(self.networks.student.parameters(), self.options.clip_grad, self.options.clip_mode)
        report = self._joint({name: value / n_micro for name, value in logs.items()}, length, stop, waited)
        report.values |= {"lr": lr, "wd": weight_decay, **self.method.values(progress)}
        report.images = self.joint_batch
        if report.bad:
            report.views = seen
        self.whole = False
        if not report.bad:
            self.method.before_step(self.networks.student, progress)
            self.scaler.step(self.optimizer)
        if self.scaler.is_enabled():
            self.scaler.update()
        if report.moved:
            self.method.after_step(self.networks, self.state, self.ranks.add_up_named(sums), progress)
        self.step_number += 1
        self.whole = True
        return report

    def _joint(self, logs: dict[str, Tensor], length: Tensor, stop: bool, waited: float) -> StepReport:
        """Means over ranks, in one message and with one wait for the device. All ranks decide alike whether the step counts."""
        names = sorted(logs)
        device = self.ranks.device
        told = torch.tensor([float(stop), waited], dtype=torch.float64).to(device)
        numbers = torch.cat([told, torch.stack([logs[name].double().to(device) for name in names])])
        self.ranks.add_up([numbers])
        stopping, waiting, *means = numbers.tolist()
        values = {name: mean / self.ranks.world for name, mean in zip(names, means, strict=True)}
        norm = float(length)  # the gradient is the ranks' common one already
        finite = math.isfinite(norm)
        small_scale = not self.scaler.is_enabled() or self.scaler.get_scale() < 1.0
        bad = not math.isfinite(values["loss"]) or (not finite and small_scale)
        return StepReport({**values, "grad_norm": norm}, finite and not bad, bad, stopping > 0, waiting / self.ranks.world)

    def _gradients(self, last: bool) -> AbstractContextManager[Any]:
        """Ranks exchange gradients with the last micro-batch only."""
        student = self._wrapped.student
        return nullcontext() if last or self.ranks.world == 1 else student.no_sync()  # type: ignore[operator]

    def _wrap(self) -> Networks:
        student, teacher = self.networks.student, self.networks.teacher
        if self.options.compile:
            student, teacher = torch.compile(student), torch.compile(teacher)  # type: ignore[assignment]
        if self.ranks.world > 1:
            from torch.nn.parallel import DistributedDataParallel

            with self.ranks.together():
                # No broadcast of buffers: the only ones that change are those of batch norms, which are synchronised by themselves.
                known = inspect.signature(DistributedDataParallel).parameters
                name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.15
                student = DistributedDataParallel(student, **{name: False})  # type: ignore[arg-type]
        return Networks(student, teacher)


def half_precision(options: EngineOptions, device: torch.device) -> torch.dtype | None:
    """What autocast computes in; None: float32 throughout."""
    if options.precision == "auto":
        if device.type != "cuda" or not options.use_fp16:
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if options.precision == "fp16" and device.type == "cpu":
        raise UserError("precision: fp16 is for GPUs; use fp32 or bf16 on CPUs")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]


def _synchronised(network: nn.Module, ranks: Ranks) -> nn.Module:
    """Batch norms that see the joint batch."""
    if ranks.world == 1:
        return network
    return synchronise_batch_norm(network) if ranks.device.type == "cuda" else join_batch_norm(network)


@torch.no_grad()
def _put_back(kept: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, before in kept:
        buffer.copy_(before)
