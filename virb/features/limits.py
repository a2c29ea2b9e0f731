"""How much memory encoders and features may take: one number for the plan, which groups encoders into passes and says where features will
be, and for the workers, which keep them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from virb.encoders.base import EncoderSpec
from virb.functional.cuda import free_device_memory

ENCODER_BYTES = {"cpu": 4e9, "cuda": 2e10}  # of weights held at once, by all workers of the host or on one GPU


def encoder_limit(devices: Sequence[str]) -> float:
    """Bytes of weights that one of the workers on ``devices`` holds at once: workers on the CPU share the host's memory, and each CUDA
    worker has its device; never more than half of what there is, for activations and features need room too."""
    kind = devices[0].split(":")[0]
    if kind == "cpu":
        return min(ENCODER_BYTES[kind], 0.5 * free_memory()) / len(devices)
    return min(ENCODER_BYTES[kind], *(0.5 * _device_memory(name) for name in devices))


def slice_limit(devices: Sequence[str]) -> float:
    """Bytes of outputs, in float32, that one worker may hold until a slice of a pass is written."""
    return 0.3 * free_memory() / len(devices)


def working_tier(nbytes: float, device: str, workers: int, taken: float = 0.0) -> str:
    """Where the features of one role of a job are read from: the fastest of ``device``, ``host`` and ``mapped`` (the cache on disk) that
    has room for them. ``taken``: bytes that what is planned before will have taken by then. A device needs no room on the host: features
    go there piece by piece."""
    if device.startswith("cuda") and nbytes < 0.5 * (_free_device_memory(device) - taken):
        return "device"
    return "host" if nbytes < 0.5 * (free_memory() - taken) / workers else "mapped"


def weight_bytes(spec: EncoderSpec) -> float:
    return 4.0 * spec.n_params


def free_memory() -> int:
    """Bytes of host memory that can be had; a modest guess where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 * 2**30


def _free_device_memory(name: str) -> float:
    return free_device_memory(torch.device(name)) if torch.cuda.is_available() else float("inf")


def _device_memory(name: str) -> float:
    return torch.cuda.get_device_properties(name).total_memory if torch.cuda.is_available() else float("inf")
