"""What every test shares: one thread, no display, no network, and a home of its own."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch, matplotlib and huggingface_hub are imported; worker processes that a test starts inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
