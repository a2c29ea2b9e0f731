"""What rooms share of a GPU, with a GPU that is not there: names with numbers, one stream per purpose, memory that can be had."""

from __future__ import annotations

import pytest
import torch

from virb.functional import cuda
from virb.functional.cuda import free_device_memory, numbered, side_stream


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices that streams were made on, of a process where device 1 is the current one."""
    made: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or len(made))
    known = cuda._stream.__wrapped__
    monkeypatch.setattr(cuda, "_stream", cuda.cache(known))  # streams that are none are forgotten with the test
    return made


def test_a_device_without_a_number_is_the_current_one(streams: list[torch.device]) -> None:
    assert numbered(torch.device("cuda")) == torch.device("cuda:1")
    for name in ("cuda:0", "cuda:1", "cpu"):
        assert numbered(torch.device(name)) == torch.device(name)


def test_one_stream_per_device_and_purpose(streams: list[torch.device]) -> None:
    one = [side_stream(torch.device(name), "reading") for name in ("cuda:1", "cuda", "cuda:1")]
    assert one == [1, 1, 1]
    assert side_stream(torch.device("cuda:0"), "reading") == 2
    assert side_stream(torch.device("cuda:1"), "pixels") == 3
    assert streams == [torch.device("cuda:1"), torch.device("cuda:0"), torch.device("cuda:1")]


def test_what_torch_holds_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"mem_get_info": (40, 80), "memory_reserved": 30, "memory_allocated": 10}
    for name, value in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value if device == torch.device("cuda:1") else None)
    assert free_device_memory(torch.device("cuda:1")) == 60
