"""Errors of torch that have a cure, told with it."""

from __future__ import annotations

import torch
import torch.distributed as dist

from virb.errors import ViRBError

# gloo raises plain RuntimeErrors: with its source's path, or by these words.
_OF_GLOO = ("gloo/", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "pair closure", "Timed out waiting")
_MEMORY = ("DefaultCPUAllocator", "not enough memory", "CUDA out of memory")
_ONE_VALUE = "more than 1 value per channel"


def of_a_peer(error: BaseException) -> bool:
    """Whether a collective failed, rather than this rank's own work."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError):
        return True
    own = not isinstance(error, RuntimeError) or is_memory(error)
    return not own and any(text in str(error) for text in _OF_GLOO)


def is_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY)


def first_line(error: BaseException, length: int = 200) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:length]


def explained(error: Exception, where: str) -> ViRBError | None:
    """What to say of an error of a step, ``where`` being the device and the step; None for one that speaks for itself."""
    if is_memory(error):
        return ViRBError(
            f"out of memory on {where}: {first_line(error)}\n"
            "  try a smaller batch_size_per_gpu with more accumulation_steps, checkpoint_activations: true, half precision, or fewer views"
        )
    if isinstance(error, ValueError) and _ONE_VALUE in str(error):
        return ViRBError(
            f"a batch norm has nothing to compare on {where}: {first_line(error)}\n"
            "  small views shrink to one pixel, so it needs more than one of them: a larger batch_size_per_gpu, local_crops_number or "
            "local_crops_size"
        )
    return None
