"""Processes that do not outlive the one that started them, however that one ended."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait

_EVERY = 0.5  # seconds between looks where nothing tells at once


def end_with_parent() -> None:
    """From now on this process ends at once (exit code 1) when its parent does."""
    when_parent_ends(lambda: os._exit(1))


def when_parent_ends(do: Callable[[], object], parent: int | None = None) -> None:
    """``do`` is called, from a thread, within a second after the parent has ended. ``parent``: its process id, which a process that is not
    one of ``multiprocessing``'s has to be told: what it asked for itself might be the id of whoever adopted it."""
    threading.Thread(target=_watch, args=(do, parent), name="parent", daemon=True).start()


def _watch(do: Callable[[], object], parent: int | None) -> None:
    known = multiprocessing.parent_process() if parent is None else None
    pid = known.pid if known is not None else parent
    if pid is None:  # nobody's child
        return
    # The sentinel of a forked process is also held by those that were forked after it: so both are looked at.
    while os.getppid() == pid:
        if known is None:
            time.sleep(_EVERY)
        elif wait([known.sentinel], _EVERY):
            break
    do()
