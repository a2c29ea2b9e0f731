"""Working copies: the same values on every place, and on a GPU (here one that is not there) piece by piece through two buffers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from virb.features import copies
from virb.features.copies import copied

N, SHAPE = 50, (3, 5)


class FakeCuda:
    """Memory and events of a GPU that is not there. What is sent arrives when its event is waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allocated: list[tuple[str, tuple[int, ...]]] = []
        self.sent: list[tuple[torch.Tensor, torch.Tensor]] = []  # since the last event
        self.events: list[Event] = []
        empty = torch.empty

        def made(shape: Any, dtype: torch.dtype, device: Any = None, pin_memory: bool = False) -> torch.Tensor:
            self.allocated.append(("pinned" if pin_memory else str(device), tuple(shape)))
            return empty(shape, dtype=dtype) if pin_memory else empty(shape, dtype=dtype).as_subclass(OnDevice)

        monkeypatch.setattr(copies.torch, "empty", made)
        monkeypatch.setattr(copies.torch.cuda, "Event", lambda: Event(self))
        monkeypatch.setattr(copies.torch.cuda, "current_stream", lambda device: SimpleNamespace(device=device))
        monkeypatch.setattr(OnDevice, "cuda", self, raising=False)


class OnDevice(torch.Tensor):
    """What is sent here arrives late: it is wrong where the source was written to meanwhile."""

    cuda: FakeCuda

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> Any:
        assert non_blocking
        self.cuda.sent.append((self, source))
        return self


class Event:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []
        cuda.events.append(self)

    def record(self, stream: SimpleNamespace) -> None:
        assert str(stream.device) == "cuda:0"
        self.before, self.cuda.sent = self.cuda.sent, []

    def synchronize(self) -> None:
        for there, source in self.before:
            torch.Tensor.copy_(there, source)
        self.before = []


@pytest.mark.parametrize("n_rows", [0, 1, 8, 37, 50])
def test_a_copy_on_a_gpu_is_filled_piece_by_piece(monkeypatch: pytest.MonkeyPatch, n_rows: int) -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(N, *SHAPE)).astype(np.float16))
    rows = np.sort(np.random.default_rng(1).permutation(N)[:n_rows])
    asked: list[int] = []
    cuda = FakeCuda(monkeypatch)
    monkeypatch.setattr(copies, "_PIECE_BYTES", 8 * 15 * 4)  # 8 rows in float32

    def read(wanted: np.ndarray) -> torch.Tensor:
        asked.append(len(wanted))
        return values[torch.from_numpy(wanted)]

    copy = copied(read, rows, SHAPE, torch.device("cuda:0"))
    for event in cuda.events:
        event.synchronize()
    assert torch.equal(copy.as_subclass(torch.Tensor), values[torch.from_numpy(rows)])
    assert copy.dtype == torch.float16
    assert sum(asked) == n_rows
    assert max(asked) <= 8
    piece = (min(8, n_rows), *SHAPE)
    assert cuda.allocated == [("cuda:0", (n_rows, *SHAPE)), ("pinned", piece), ("pinned", piece)]


def test_on_the_host_nothing_is_copied_again() -> None:
    values = torch.zeros(4, 3)
    assert copied(lambda rows: values, np.arange(4), (3,), torch.device("cpu")) is values
