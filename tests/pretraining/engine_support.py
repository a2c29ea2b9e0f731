"""A tiny method and tiny data for tests of the engine; as a script, a training of them in a process of its own.

python engine_support.py OUTPUT_DIR key=value ...
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from virb.config.check import Strict
from virb.config.tree import Where
from virb.errors import ViRBError
from virb.functional.randomness import numpy_generator, torch_generator
from virb.pretraining import checkpoints
from virb.pretraining.distributed import Ranks, join
from virb.pretraining.engine import Summary, train
from virb.pretraining.methods import CropRecipe, LossOut, Method, Networks, Progress, Views, ViewSpec
from virb.pretraining.optim import move_teacher
from virb.pretraining.options import Given, make_options
from virb.pretraining.plan import BatchPlan


class TinyOptions(Strict):
    width: int = Field(8, description="of everything")
    break_from: int = Field(-1, description="step from which the loss is not finite; -1: never")
    break_until: int = Field(10**6, description="step until which it is not")
    flat: bool = Field(False, description="a teacher without an opinion")
    dropout: float = Field(0.0, description="of the backbone")
    linear_loss: bool = Field(False, description="loss without batch effects")
    norm: bool = Field(False, description="batch norms of maps and of vectors")
    fail_at: int = Field(-1, description="step at which the loss of a rank raises an error of its own")
    fail_rank: int = Field(0, description="that rank")
    fail_how: Literal["memory", "shape", "one"] = Field("memory", description="that error")


class Net(nn.Module):
    def __init__(self, width: int, dropout: float, norm: bool = False) -> None:
        super().__init__()
        maps: list[nn.Module] = [nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU()] if norm else []
        vectors: list[nn.Module] = [nn.BatchNorm1d(width, momentum=None)] if norm else []
        self.backbone = nn.Sequential(
            *maps, nn.Flatten(), nn.Linear(3 * 16, width), *vectors, nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width)
        )
        self.head = nn.Linear(width, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


class Tiny(Method):
    """DINO's structure in four lines: a teacher that follows, and a centre."""

    name: ClassVar[str] = "tiny"
    Options = TinyOptions

    def views(self) -> ViewSpec:
        return ViewSpec((CropRecipe(4, (0.4, 1.0), count=2),), 2)

    def build(self) -> Networks:
        o = self.options
        student, teacher = Net(o.width, o.dropout, o.norm), Net(o.width, 0.0, o.norm)
        teacher.load_state_dict(student.state_dict())
        return Networks(student, teacher.requires_grad_(False))

    def state(self) -> nn.Module:
        state = nn.Module()
        state.register_buffer("center", torch.zeros(1, 5))
        return state

    def loss(self, networks: Networks, views: Views, state: nn.Module, progress: Progress) -> LossOut:
        student = networks.student(views.crops[1])
        with torch.no_grad():
            teacher = networks.teacher(views.crops[0])
        target = torch.softmax((teacher - state.center) / (1e3 if self.options.flat else 0.5), -1)
        loss = -(target * torch.log_softmax(student.float(), -1)).sum(-1).mean()
        entropy = -(target * target.log()).sum(-1).mean()
        if self.options.fail_at == progress.step and self.options.fail_rank == int(os.environ.get("RANK", "0")):
            self._fail()
        if self.options.break_from >= 0 and self.options.break_from <= progress.step < self.options.break_until:
            loss = loss * float("nan")
        rows = torch.tensor(float(len(teacher)), device=teacher.device)
        return LossOut(loss, {"teacher_entropy": entropy}, {"sum": teacher.sum(0, keepdim=True), "rows": rows})

    def _fail(self) -> None:
        if self.options.fail_how == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if self.options.fail_how == "one":
            nn.functional.batch_norm(torch.zeros(1, 3, 1, 1), None, None, training=True)
        torch.zeros(2, 3) @ torch.zeros(4, 5)

    def after_step(self, networks: Networks, state: nn.Module, statistics: Mapping[str, Tensor], progress: Progress) -> None:
        state.center.mul_(0.9).add_(statistics["sum"] / statistics["rows"], alpha=0.1)
        move_teacher(networks.teacher, networks.student, 0.9 + 0.1 * progress.step / progress.total_steps)

    @property
    def n_outputs(self) -> int:
        return 5


class TinyData:
    """Images that are functions of their number; views that are functions of (seed, epoch, number, view)."""

    def __init__(self, n: int, seed: int = 0, pause: float = 0.0, seen: list[Any] | None = None) -> None:
        self.n, self.seed, self.pause, self.seen = n, seed, pause, seen

    def __len__(self) -> int:
        return self.n

    def batches(self, plan: BatchPlan, first_step: int) -> Generator[Views, None, None]:
        for step in range(first_step, plan.total_steps):
            epoch, within = divmod(step, plan.steps_per_epoch)
            order = numpy_generator(self.seed, "order", epoch).permutation(self.n)
            joint = order[within * plan.joint : (within + 1) * plan.joint]
            for micro in range(plan.micro):
                start = (micro * plan.world + plan.rank) * plan.batch
                samples = torch.from_numpy(joint[start : start + plan.batch].copy())
                if self.seen is not None:
                    self.seen.append((step, samples.tolist()))
                time.sleep(self.pause)
                crops = tuple(torch.stack([self._view(int(s), epoch, view) for s in samples]) for view in range(2))
                yield Views(crops, 2, torch.zeros(len(samples), 2, 6), samples)

    def _view(self, sample: int, epoch: int, view: int) -> Tensor:
        image = torch.randn(3, 4, 4, generator=torch_generator(7, "image", sample))
        return image + 0.3 * torch.randn(3, 4, 4, generator=torch_generator(self.seed, "view", epoch, sample, view))


DEFAULTS: dict[str, Any] = dict(
    epochs=3,
    batch_size_per_gpu=4,
    warmup_epochs=1,
    lr=0.05,
    tensorboard=False,
    saveckp_freq=1,
    num_workers=0,
    device="cpu",
    weight_decay_end=0.1,
)


def options_for(folder: Path | str, **keys: Any) -> Any:
    given = {"output_dir": str(folder), **DEFAULTS, **keys}
    return make_options(Tiny, {name: Given(value, Where("test", 0, name)) for name, value in given.items()})


def run(
    folder: Path | str,
    n: int = 26,
    ranks: Ranks | None = None,
    data: TinyData | None = None,
    console: Any = None,
    after_epoch: Any = None,
    **keys: Any,
) -> Summary:
    options = options_for(folder, **keys)
    ranks = ranks or Ranks(0, 1, torch.device("cpu"))
    return train(Tiny(options), options, data or TinyData(n), ranks, console=console, recipe="tiny_recipe", after_epoch=after_epoch)


def tensors(value: Any, prefix: str = "") -> dict[str, Tensor]:
    """All tensors of nested containers by path."""
    if isinstance(value, Tensor):
        return {prefix: value}
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {name: tensor for key, item in items for name, tensor in tensors(item, f"{prefix}/{key}").items()}


def same(a: Path, b: Path) -> None:
    """Two checkpoints hold the same numbers, bit for bit, and the same record."""
    one, two = (torch.load(path, weights_only=True) for path in (a, b))
    mine, theirs = tensors(one), tensors(two)
    assert mine.keys() == theirs.keys()
    assert len(mine) > 10
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different
    assert one["epoch"] == two["epoch"]
    records = [{key: value for key, value in content["virb"].items() if key != "options"} for content in (one, two)]
    assert records[0] == records[1]


if __name__ == "__main__":
    import yaml

    keys = {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in sys.argv[2:])}
    data = TinyData(keys.pop("n", 26), pause=keys.pop("pause", 0.0))
    die_at, die_how = keys.pop("die_at", -1), keys.pop("die_how", "kill")
    ranks = join("cpu", keys.pop("wait", 60))
    if die_at >= 0 and ranks.rank == keys.pop("die_rank", 0):
        batches = data.batches

        def dying(plan: BatchPlan, first_step: int) -> Generator[Views, None, None]:
            for number, views in enumerate(batches(plan, first_step)):
                if first_step + number // plan.micro == die_at:
                    if die_how == "kill":
                        os.kill(os.getpid(), signal.SIGKILL)
                    raise ViRBError("the images are gone")
                yield views

        data.batches = dying  # type: ignore[method-assign]
    keys.pop("die_rank", None)
    probe = keys.pop("probe_seconds", 0.0)
    pause = keys.pop("save_seconds", 0.0)
    if pause:
        save = checkpoints.save
        checkpoints.save = lambda path, content: (time.sleep(pause), save(path, content))  # type: ignore[assignment, func-returns-value]
    after = (lambda path, epochs, stopping: time.sleep(probe)) if probe else None
    try:
        summary = run(sys.argv[1], ranks=ranks, data=data, after_epoch=after, **keys)
    except (ViRBError, RuntimeError) as error:
        ranks.tell(str(error).splitlines()[0])
        print(error, file=sys.stderr, flush=True)
        sys.exit(1)
    finally:
        ranks.close()
    sys.exit(128 + summary.stopped if summary.stopped else 0)
