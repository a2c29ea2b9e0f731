"""Seconds by name; between the events of a GPU, which a stand-in has here."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
import torch

from virb.features.clock import DeviceClock


@dataclass
class Event:
    at: float  # ms
    waited: bool = False

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, other: Event) -> float:
        assert other.waited
        return other.at - self.at


def test_of_the_host() -> None:
    clock = DeviceClock(torch.device("cpu"))
    for name in ("a", "b", "a"):
        with clock.on(name):
            time.sleep(0.02)
    with pytest.raises(ValueError, match="no"), clock.on("c"):
        raise ValueError("no")
    found = clock.seconds()
    assert set(found) == {"a", "b"}
    assert found["a"] >= 0.04
    assert found["b"] >= 0.02


def test_of_a_gpu_each_name_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = DeviceClock(torch.device("cuda"))
    marks = iter([0, 500, 500, 2000, 2000, 2250])
    monkeypatch.setattr(clock, "_event", lambda: Event(next(marks)))
    for name in ("small", "large", "small"):
        with clock.on(name):
            pass
    clock.between("copy", Event(0), Event(125))
    assert clock.seconds() == {"small": 0.75, "large": 1.5, "copy": 0.125}
    assert clock.seconds() == {"small": 0.75, "large": 1.5, "copy": 0.125}  # nothing twice
