"""What all rooms share of a GPU: its name with a number, side streams that are kept, and how much of its memory can be had."""

from __future__ import annotations

from functools import cache

import torch


def numbered(device: torch.device) -> torch.device:
    """``cuda`` with the number of the current device. Tensors say where they are with a number, and ``cuda`` is not equal to ``cuda:0``."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def side_stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    """The one stream of this process for a purpose. It is kept: torch's allocator keeps the memory of every stream to itself, so that a
    stream for each epoch or slice would have as many sets of batches reserved as torch has streams (32)."""
    return _stream(numbered(device), purpose)


@cache
def _stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def free_device_memory(device: torch.device) -> int:
    """Bytes that can be had: those that the driver has, and those that torch's allocator holds for this process and nobody uses."""
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
