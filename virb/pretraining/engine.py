"""The training: epochs of steps, with everything that makes it survive: checkpoints, an exact resume, signals, steps that are not finite.

All that a step does is a function of the options, the weights and the step's number. So a run that was killed goes on from its last
checkpoint and ends as if nothing had happened, bit for bit on a CPU.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

import virb
from virb.encoders.vit import Attention
from virb.errors import UserError, ViRBError
from virb.io import Held, Lease, available_cores, make_folder
from virb.pretraining import checkpoints, starting
from virb.pretraining.distributed import LostRank, Ranks
from virb.pretraining.logs import Curves, LogFile, Speed, Sums, Teller, progress_text
from virb.pretraining.methods import Method, Views
from virb.pretraining.monitor import KNN, Alarm
from virb.pretraining.networks import noted_encoder
from virb.pretraining.options import EngineOptions, plain
from virb.pretraining.plan import BatchPlan, plan_batches
from virb.pretraining.signals import Stopper
from virb.pretraining.step import StepReport, Trainer
from virb.pretraining.troubles import explained, first_line

_PATIENCE = 90.0  # seconds; a lease without a heartbeat is stale after 60
BAD_STEP = "bad_step.pth"
_ADVICE = "try precision: bf16 (or fp32), a smaller lr or clip_grad, or a lower teacher temperature"


class Source(Protocol):
    """The images of a training."""

    def __len__(self) -> int: ...

    def batches(self, plan: BatchPlan, first_step: int) -> Generator[Views, None, None]:
        """All micro-batches of this rank from a step to the end of the training, in order; closed when the run stops.
        Order and augmentation are functions of seed, epoch and image alone."""


@dataclass(frozen=True)
class Summary:
    """How a run ended. ``stopped``: the signal that asked for it, None when the training is complete."""

    step: int
    total_steps: int
    folder: Path
    last: Mapping[str, float]
    stopped: int | None = None


AfterEpoch = Callable[[Path, int, Callable[[], bool]], None]  # checkpoint, epochs done, whether to hurry because the run is to stop


def train(
    method: Method,
    options: EngineOptions,
    source: Source,
    ranks: Ranks,
    *,
    console: Any = None,
    recipe: str = "",
    after_epoch: AfterEpoch | None = None,
    keep_going_on_term: bool = False,
) -> Summary:
    """Trains to the end, or until it is told to stop. ``console``: a rich console (first rank). ``recipe``: the config's name, for the
    record. ``after_epoch`` is called on the first rank after every epoch's checkpoint. ``keep_going_on_term``: SIGTERM only saves."""
    folder = make_folder(Path(options.output_dir.replace("%r", recipe or method.name)).expanduser())
    plan = plan_batches(options, len(source), ranks)
    with Stopper(keep_going_on_term) as stopper:
        with ranks.one_by_one() as mine:
            lease: Any = _claim(folder, patient=keep_going_on_term) if mine else nullcontext()
        with lease:
            run = _Run(method, options, ranks, plan, folder, console, recipe, after_epoch)
            try:
                return run.go(source, stopper)
            finally:
                run.close()


def _claim(folder: Path, patient: bool) -> Lease:
    """The folder's lease. ``patient``: a job that was requeued on another machine waits until that of its killed self is stale."""
    deadline = time.monotonic() + (_PATIENCE if patient else 0.0)
    while True:
        try:
            return Lease(folder / ".lease")
        except Held:
            if time.monotonic() >= deadline:
                raise
            time.sleep(2.0)


class _Run:
    def __init__(
        self,
        method: Method,
        options: EngineOptions,
        ranks: Ranks,
        plan: BatchPlan,
        folder: Path,
        console: Any,
        recipe: str,
        after_epoch: AfterEpoch | None,
    ) -> None:
        self.options, self.ranks, self.plan, self.folder, self.recipe, self.after_epoch = options, ranks, plan, folder, recipe, after_epoch
        self.teller = Teller(console if ranks.is_main else None)
        self.trainer = Trainer(method, options, ranks, plan.steps_per_epoch)
        for line in self.trainer.notes:
            self.teller.say(line)
        quiet = min(options.warmup_epochs, options.epochs // 2) * plan.steps_per_epoch
        self.alarm = Alarm(method.n_outputs if options.collapse_alarm else None, max(quiet, 100))
        self.sums = Sums()
        self.bad_in_row = self.bad_steps = 0
        self.good_steps = 1  # of the running epoch, or of the one that just ended
        self.values: dict[str, float] = {}
        self.knn = self._make_knn(method)
        if ranks.is_main:
            self.saved = checkpoints.Folder(folder, options.saveckp_freq, options.keep)
        with ranks.one_by_one():
            pass  # nobody looks for a checkpoint before the first rank has tidied up
        self._start()
        first = self._saved_step = self.trainer.step_number
        if ranks.is_main:
            self.log = LogFile(folder, first // plan.steps_per_epoch)
        self.curves = Curves(folder if ranks.is_main and options.tensorboard else None, first)
        self.speed = Speed()

    def _make_knn(self, method: Method) -> KNN | None:
        o = self.options
        if not o.knn_every or not self.ranks.is_main:
            return None
        return KNN(o.knn_data, method.views().views[0].size, o.knn_k, min(o.num_workers, available_cores()))

    def _start(self) -> None:
        last = self.folder / checkpoints.LAST
        if last.exists():
            if not self.options.resume:
                raise UserError(f"{last} is there already; choose another output_dir, or resume: true")
            if self.options.init_from:
                self.teller.say(f"init_from {self.options.init_from} is not looked at: {last} is there, and the training goes on from it")
            told = starting.resume(self.trainer, last)
        elif self.options.init_from:
            told = starting.init_from(self.trainer, Path(self.options.init_from).expanduser())
        else:
            return
        self.sums = Sums(told.record.get("sums")) if told.same_epoch else Sums()
        self.bad_steps, self.bad_in_row = int(told.record.get("bad_steps", 0)), int(told.record.get("bad_in_row", 0))
        self.good_steps = int(told.record.get("good_steps", 1)) if told.same_epoch else 1
        self.alarm.resume(told.record.get("alarm"))
        for line in told.lines:
            self.teller.say(line)

    def go(self, source: Source, stopper: Stopper) -> Summary:
        trainer, plan = self.trainer, self.plan
        complete = trainer.step_number >= plan.total_steps
        if complete:
            self.teller.say(f"all epochs ({self.options.epochs}) are done ({self.folder / checkpoints.LAST}); more epochs go on from there")
            if not self.good_steps:
                raise ViRBError(f"no step of the last epoch was finite\n  {_ADVICE}")
        if self._after_epoch(stopper):  # of a run that was killed between a checkpoint and what comes after it
            return self._stopped(stopper)
        if complete:
            return self._summary(None)
        self.speed.pause()
        with closing(source.batches(plan, trainer.step_number)) as batches:
            while trainer.step_number < plan.total_steps:
                try:
                    report = trainer.step(batches, stopper.asked)
                except (ViRBError, RuntimeError, ValueError, OSError, MemoryError) as error:
                    self._rescue(error)
                    told = explained(error, f"{self.ranks.device} in step {trainer.step_number + 1:,}")
                    if told is None:
                        raise
                    raise told from error
                self._count(report)
                step = trainer.step_number
                ended = step % plan.steps_per_epoch == 0
                if ended:
                    self._end_epoch(step // plan.steps_per_epoch - 1)
                    if not self.good_steps:
                        raise ViRBError(self._dump(report, f"no step of epoch {step // plan.steps_per_epoch} was finite"))
                elif report.stop or (self.options.save_every_steps and step % self.options.save_every_steps == 0):
                    self._save(None)
                if report.stop:
                    name = signal.Signals(stopper.signal or signal.SIGTERM).name
                    if not stopper.stays:
                        return self._stopped(stopper)
                    self.teller.say(f"{name}: saved after step {step:,}")
                    stopper.answered()
                if ended:
                    if self._after_epoch(stopper):
                        return self._stopped(stopper)
                    self.speed.pause()
        if self.bad_steps:
            self.teller.say(f"{self.bad_steps:,} of {plan.total_steps:,} steps were not finite and were skipped")
        return self._summary(None)

    def _stopped(self, stopper: Stopper) -> Summary:
        name, step = signal.Signals(stopper.signal or signal.SIGTERM).name, self.trainer.step_number
        self.teller.say(f"stopped by {name} after step {step:,}; everything is saved, the same command goes on from here")
        return self._summary(stopper.signal or signal.SIGTERM)

    def _rescue(self, error: Exception) -> None:
        """Saves the steps since the last checkpoint before an error is told, where they are whole. All ranks know the same; so the one does
        it whose error it is, without the others, and of those that lost one the first (on a GPU it could wait for a message for ever)."""
        lost = isinstance(error, LostRank)
        mine = not lost or (self.ranks.is_main and self.ranks.device.type == "cpu")
        if not mine or not self.trainer.whole or self.trainer.step_number == self._saved_step:
            return
        try:
            checkpoints.save(self.folder / checkpoints.LAST, self._content())
        except (ViRBError, OSError, RuntimeError) as other:  # not what stopped the run
            self.teller.say(f"the steps since the last checkpoint could not be saved: {first_line(other)}")
            return
        self.teller.say(f"an error stops the run; everything up to step {self.trainer.step_number:,} is saved")

    def _count(self, report: StepReport) -> None:
        """What the step says goes to sums, curves and the screen; too many bad ones stop the run."""
        step = self.trainer.step_number
        self.speed.lap(report.images, report.waited)
        self.values = report.values
        self.sums.add(report.values)
        self.bad_in_row = self.bad_in_row + 1 if report.bad else 0
        self.bad_steps += report.bad
        if (step - 1) % self.plan.steps_per_epoch == 0:
            self.good_steps = 0
        self.good_steps += not report.bad
        if report.bad:
            self.teller.say(f"step {step:,} is not finite (loss {report.values['loss']:g}) and was skipped; {self.bad_in_row} in a row")
            if self.bad_in_row >= max(1, self.options.max_bad_steps):
                raise ViRBError(self._dump(report, f"{self.bad_in_row} steps in a row were not finite"))
        if step % self.options.log_every == 0:
            self.curves.add({**report.values, **self.speed.values()}, step)
        if self.ranks.is_main and math.isfinite(report.values["loss"]):
            self.teller.follow(progress_text(report.values, self.speed, step, self.options.epochs, self.plan.steps_per_epoch))

    def _dump(self, report: StepReport, what: str) -> str:
        """Writes what the last bad step saw, and returns what to say."""
        path = self.folder / BAD_STEP
        if self.ranks.is_main:
            views = [{"crops": list(v.crops), "geometry": v.geometry, "samples": v.samples} for v in report.views]
            checkpoints.save(path, {**self._content(), "views": views, "values": dict(report.values)})
        return f"{what}, the last is step {self.trainer.step_number:,}; what it saw is in {path}\n  {_ADVICE}"

    def _end_epoch(self, epoch: int) -> None:
        means = self.sums.means()
        more: dict[str, Any] = {"bad_steps": self.bad_steps} if self.bad_steps else {}
        with self.ranks.one_by_one() as mine:
            if mine and self.knn is not None and ((epoch + 1) % self.options.knn_every == 0 or epoch + 1 == self.options.epochs):
                backbone = getattr(self.trainer.networks.teacher, "backbone", self.trainer.networks.teacher)
                more["knn_top1"] = self.knn.score(backbone, self.ranks.device, self.trainer.autocast_dtype)
                self.curves.add({"knn_top1": more["knn_top1"]}, self.trainer.step_number)
        self.sums = Sums()
        alarm = self.alarm.look(means, self.trainer.step_number)
        if self.ranks.is_main:
            self.log.add(means, epoch, more)
            shown = {name: value for name, value in {**means, **more}.items() if name in ("loss", "teacher_entropy", "kl", "knn_top1")}
            self.teller.say(f"epoch {epoch + 1}/{self.options.epochs} done   " + "   ".join(f"{k} {v:.4f}" for k, v in shown.items()))
            if alarm:
                self.teller.say(alarm)
        self._save(epoch)

    def _after_epoch(self, stopper: Stopper) -> bool:
        """Whether a rank was asked to stop meanwhile. Then no further step is made: what was cut off is done by the next start, which finds
        the epoch just ended."""
        step = self.trainer.step_number
        if self.after_epoch is None or not step or step % self.plan.steps_per_epoch:
            return False
        hurry = lambda: stopper.asked and not stopper.stays  # noqa: E731
        with self.ranks.one_by_one() as mine:
            if mine and not hurry():
                self.after_epoch(self.folder / checkpoints.LAST, step // self.plan.steps_per_epoch, hurry)
        return self.ranks.anywhere(hurry())

    def _save(self, finished: int | None) -> None:
        with self.ranks.one_by_one() as mine:  # a slow disk must not look like a lost rank to those that went on
            if mine:
                self.saved.save(self._content(), finished)
        self._saved_step = self.trainer.step_number
        self.speed.pause()

    def _content(self) -> dict[str, Any]:
        trainer, method = self.trainer, self.trainer.method
        content: dict[str, Any] = {
            "student": {f"module.{name}": value for name, value in trainer.networks.student.state_dict().items()},
            "teacher": _named_as_the_original(trainer.networks.teacher),
            "optimizer": trainer.optimizer.state_dict(),
            "epoch": trainer.progress.epoch,
            "args": plain(self.options),
            method.state_key: dict(trainer.state.state_dict()),
            "virb": {
                "engine": 1,
                "version": virb.__version__,
                "method": method.name,
                "recipe": self.recipe,
                "heads": _heads(trainer.networks.teacher),
                "network": noted_encoder(trainer.networks.teacher),
                "step": trainer.step_number,
                "steps_per_epoch": self.plan.steps_per_epoch,
                "joint_batch": self.plan.joint,
                "options": plain(self.options),
                "sums": self.sums.record(),
                "bad_steps": self.bad_steps,
                "bad_in_row": self.bad_in_row,
                "good_steps": self.good_steps,
                "alarm": self.alarm.record(),
            },
        }
        if trainer.scaler.is_enabled():
            content["fp16_scaler"] = trainer.scaler.state_dict()
        return content

    def _summary(self, stopped: int | None) -> Summary:
        return Summary(self.trainer.step_number, self.plan.total_steps, self.folder, dict(self.values), stopped)

    def close(self) -> None:
        self.curves.close()
        self.teller.close()


def _named_as_the_original(teacher: nn.Module) -> dict[str, Any]:
    """There a teacher with batch norms is wrapped by DDP, and its resume looks for nothing but the names that this gives."""
    wrapped = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in teacher.modules())
    return {f"module.{name}" if wrapped else name: value for name, value in teacher.state_dict().items()}


def _heads(network: nn.Module) -> int | None:
    """Of our own vision transformers, for those who read the checkpoint."""
    found = {int(module.heads) for module in network.modules() if isinstance(module, Attention)}
    return found.pop() if len(found) == 1 else None
