"""What passes and streams tell of themselves: images, seconds by stage, what failed and why."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from virb.encoders.base import Encoder
from virb.features.clock import DeviceClock
from virb.features.encoding import Memory, PassOptions, send, warm_up


@dataclass
class PassReport:
    """What a pass, or the streams of a job, did: images decoded, seconds per stage, entries that failed and why. ``decode`` is waiting for
    images, ``write`` for features to be on the disk; ``load`` (of the loader itself, by thread), ``transfer`` and ``compute`` (of the
    device in the encoders) go on beside the others. ``compile`` is there when something was compiled, and no part of ``encode``."""

    decoded: int = 0
    rows: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("decode", "load", "transfer", "encode", "compute", "write"), 0.0)
    )
    failed: dict[str, str] = field(default_factory=dict)  # entry key -> reason
    notes: list[str] = field(default_factory=list)


def timed(batches: Iterator[Any], report: PassReport, stage: str) -> Iterator[Any]:
    """The same batches; what waiting for them takes is added to the report."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        report.seconds[stage] += time.perf_counter() - began
        if batch is None:
            return
        yield batch
        del batch  # the next one may need its memory


def encode_counted(
    report: PassReport,
    encoder: Encoder,
    pixels: Any,
    requests: Sequence[str],
    device: torch.device,
    options: PassOptions,
    memory: Memory | None = None,
) -> dict[str, list[torch.Tensor]]:
    """``encode`` for streams: what it takes is added to the report."""
    compile_counted(report, encoder, pixels, requests, device, options)
    clock, began = DeviceClock(device), time.perf_counter()
    with clock.on("encode"):
        sent = send(encoder, pixels, requests, device, options, memory)
    found = {request: list(taken.values) for request, taken in sent.take().items()}
    seconds = time.perf_counter() - began
    report.seconds["encode"] += seconds
    report.seconds["compute"] += sum(clock.seconds().values()) if device.type == "cuda" else seconds
    return found


def compile_counted(
    report: PassReport, encoder: Encoder, pixels: Any, requests: Sequence[str], device: torch.device, options: PassOptions
) -> None:
    """With ``--compile``, before the clock of a forward runs."""
    if options.numerics.compile:
        began = time.perf_counter()
        warm_up(encoder, pixels, requests, device, options)
        report.seconds["compile"] = report.seconds.get("compile", 0.0) + time.perf_counter() - began
