"""Seconds that a device spends on pieces of work: between CUDA events on a GPU, where the host only sends them, else of the host."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class DeviceClock:
    """Adds up by name. A piece that raises is not counted."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counted: dict[Hashable, float] = defaultdict(float)
        self._pairs: list[tuple[Hashable, Any, Any]] = []  # CUDA events around a piece that has been sent

    @contextmanager
    def on(self, name: Hashable) -> Iterator[None]:
        began, event = time.perf_counter(), self._event()
        yield
        if event is None:
            self._counted[name] += time.perf_counter() - began
        else:
            self._pairs.append((name, event, self._event()))

    def between(self, name: Hashable, begin: Any, end: Any) -> None:
        """What lies between two CUDA events of somebody else's."""
        self._pairs.append((name, begin, end))

    def seconds(self) -> dict[Hashable, float]:
        """By name; waits for what has been sent."""
        for name, begin, end in self._pairs:
            end.synchronize()
            self._counted[name] += begin.elapsed_time(end) / 1000
        self._pairs.clear()
        return dict(self._counted)

    def _event(self) -> Any:
        """The moment when a GPU gets here; None elsewhere."""
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
