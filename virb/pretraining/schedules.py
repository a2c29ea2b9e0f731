"""What changes during training, as pure functions of the step or epoch: nothing to save, nothing to resume."""

from __future__ import annotations

import math


def cosine(step: int, total: int, base: float, final: float, warmup: int = 0, start: float = 0.0) -> float:
    """Rises in a line from ``start`` to ``base`` over ``warmup`` steps (both ends are taken), then falls along half a cosine, which would
    reach ``final`` at step ``total``. A warm-up longer than the training is cut off where the training ends."""
    if step < warmup:
        return start + (base - start) * step / (warmup - 1) if warmup > 1 else start
    share = (step - warmup) / (total - warmup) if total > warmup else 0.0
    return final + (base - final) * (1.0 + math.cos(math.pi * share)) / 2.0


def ramp(epoch: int, first: float, last: float, warmup: int) -> float:
    """A line from ``first`` to ``last`` over ``warmup`` epochs (both ends are taken), ``last`` from then on: the teacher's temperature."""
    if epoch >= warmup:
        return last
    return first + (last - first) * epoch / (warmup - 1) if warmup > 1 else first
