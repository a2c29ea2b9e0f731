"""``virb pretrain`` with a network of a few thousand parameters, for tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = dict(
    data_path="digits", arch="vit", embed_dim=16, depth=2, num_heads=2, patch_size=8, global_crops_size=16, local_crops_size=8,
    local_crops_number=1, out_dim=32, head_hidden_dim=16, head_bottleneck_dim=8, batch_size_per_gpu=240, epochs=2, num_workers=0,
    warmup_epochs=1, device="cpu", tensorboard=False,
)  # fmt: skip


def flags(folder: Path, method: str = "dino", **more: Any) -> list[str]:
    found = ["pretrain", method, "--output_dir", str(folder)]
    for name, value in {**TINY, **more}.items():
        found += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return found


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
