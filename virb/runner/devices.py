"""Which devices a run uses, and how a worker sets itself up on one.

Every product on a CPU is computed by one thread, whatever the number of workers: so numbers do not depend on it. ``cpu`` means a worker
per core; a worker that has several cores for itself gives them products of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from virb.errors import UserError
from virb.io import available_cores


def parse_devices(text: str) -> tuple[str, ...]:
    """``auto``, ``cpu``, ``cpu:4``, ``cuda:0,cuda:2`` -> one name per worker (``cpu`` may repeat)."""
    import torch

    if text == "auto":
        text = ",".join(f"cuda:{i}" for i in range(torch.cuda.device_count())) or "cpu"
    names: list[str] = []
    for part in text.split(","):
        part = part.strip()
        match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", part)
        if not match:
            raise UserError(f"--devices {text}: {part!r} is no device; use auto, cpu, cpu:4 or cuda:0,cuda:2")
        kind, number = match.groups()
        if kind == "cpu":
            count = int(number) if number else available_cores()
            if count < 1:
                raise UserError(f"--devices {text}: at least one worker is needed (cpu:1)")
            names += ["cpu"] * count
        else:
            index = int(number or 0)
            if index >= torch.cuda.device_count():
                raise UserError(f"--devices {text}: there is no cuda:{index} here ({torch.cuda.device_count()} CUDA devices found)")
            names.append(f"cuda:{index}")
    if len({name for name in names if name != "cpu"}) != sum(name != "cpu" for name in names):
        raise UserError(f"--devices {text}: a device is named twice")
    if len({name.split(":")[0] for name in names}) > 1:
        raise UserError(f"--devices {text}: mixing cpu and cuda would make numbers depend on who did what; use one kind")
    return tuple(names)


def set_up(device: str) -> None:
    """Called once in a worker, before it computes anything."""
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
    else:
        torch.cuda.set_device(device)
        # float32 means float32: TF32, which keeps 10 bits of 23 of what it multiplies, is never on, and no option turns it on.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def cores_of_worker(devices: Sequence[str], n_jobs: int) -> int:
    """How many cores a CPU worker may keep busy: its share of the machine. Workers that there is no job for leave theirs to the others."""
    if devices[0] != "cpu":
        return 1
    return max(1, available_cores() // max(1, min(len(devices), n_jobs)))


def resolve_precision(text: str, device: str) -> str:
    """``auto`` is float32 on CPUs and bfloat16 on CUDA."""
    names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    if text == "auto":
        return "float32" if device == "cpu" else "bfloat16"
    if text not in names:
        raise UserError(f"--precision {text}: use auto, fp32, bf16 or fp16")
    if device == "cpu" and text == "fp16":
        raise UserError("--precision fp16 needs a CUDA device; on CPUs use fp32 or bf16")
    return names[text]
