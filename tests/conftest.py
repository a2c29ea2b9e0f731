"""What every test shares: one thread, no display, no network, and a home of its own."""

from __future__ import annotations

import os

# Before torch, matplotlib and huggingface_hub are imported; worker processes that a test starts inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
