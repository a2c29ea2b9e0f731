"""How an encoder lies on its device: convnets on GPUs with channels last, the layout that their fast convolutions take.

Other kernels round in other places: so the record of numerics says so there, and no value of the one kind is taken for the other.
"""

from __future__ import annotations

import torch

from virb.encoders.base import Encoder

_FAMILIES = ("resnet", "timm")  # a class of somebody's own may rely on the order in which values lie


def channels_last(encoder: Encoder, device_kind: str) -> bool:
    """Whether an encoder is mostly convolutions, on a kind of device that has faster ones for images with channels last."""
    if device_kind != "cuda" or encoder.spec.n_heads is not None or encoder.spec.family not in _FAMILIES:
        return False
    return any(isinstance(part, torch.nn.Conv2d) and max(part.kernel_size) > 1 and part.in_channels > 3 for part in encoder.modules())


def place(encoder: Encoder, device: torch.device) -> Encoder:
    """The encoder on its device, its weights in the layout that images get there."""
    encoder = encoder.to(device)
    return encoder.to(memory_format=torch.channels_last) if channels_last(encoder, device.type) else encoder
