"""Randomness as a function of what it is for: (seed, purpose, epoch or view, sample), never of rank, worker or order."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed for one purpose (``"order"``, ``"head"``, ``"view"`` ...) and any number of indices."""
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def torch_generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """A CPU generator: draws are made on the CPU and moved, so that they are the same on every device."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *indices))


def numpy_generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(derive_seed(seed, purpose, *indices)))
