"""What every test shares: one thread, no display, no network, and a home of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch, matplotlib and huggingface_hub are imported; worker processes that a test starts inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def miniatures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Public datasets may have a few of their classes here, except where a test asks for ``published_classes``."""
    with pytest.MonkeyPatch.context() as patch:
        if "published_classes" not in request.fixturenames:
            patch.setattr("virb.data.datasets.common.n_classes_of", lambda name: None)
        yield


@pytest.fixture
def published_classes() -> None:
    """Public datasets have to have all their classes, as they do everywhere but in tests."""
