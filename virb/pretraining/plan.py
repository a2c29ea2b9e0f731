"""Which images a rank sees at which step."""

from __future__ import annotations

from dataclasses import dataclass

from virb.errors import UserError
from virb.pretraining.distributed import Ranks
from virb.pretraining.options import EngineOptions


@dataclass(frozen=True)
class BatchPlan:
    """Which images this rank sees at which step. A step takes ``joint`` images, the next ones of the epoch's order; this rank has
    ``batch`` of them in each of its ``micro`` micro-batches."""

    batch: int
    micro: int
    rank: int
    world: int
    steps_per_epoch: int
    total_steps: int

    @property
    def joint(self) -> int:
        return self.batch * self.micro * self.world


def plan_batches(options: EngineOptions, n_images: int, ranks: Ranks) -> BatchPlan:
    """UserError when the images do not fill one step."""
    joint = options.batch_size_per_gpu * options.accumulation_steps * ranks.world
    steps = n_images // joint
    if not steps:
        parts = [f"batch_size_per_gpu {options.batch_size_per_gpu}"]
        parts += [f"{options.accumulation_steps} micro-batches"] if options.accumulation_steps > 1 else []
        parts += [f"{ranks.world} ranks"] if ranks.world > 1 else []
        raise UserError(
            f"a step takes {joint:,} images ({' x '.join(parts)}), but there {'are' if n_images != 1 else 'is'} only {n_images:,}; "
            "lower batch_size_per_gpu"
        )
    return BatchPlan(options.batch_size_per_gpu, options.accumulation_steps, ranks.rank, ranks.world, steps, steps * options.epochs)
