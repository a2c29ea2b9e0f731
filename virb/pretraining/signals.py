"""Signals that ask a training to stop: it finishes its step and saves first."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

# Slurm announces preemption and the end of the time by USR1 or USR2, as the job was submitted; Ctrl-C is a wish like the others.
SIGNALS = (signal.SIGTERM, signal.SIGINT, *(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)))


class Stopper:
    """While it is open, the first signal is remembered instead of obeyed. A second Ctrl-C stops at once.

    ``keep_going_on_term``: after SIGTERM the training saves and goes on until it is killed. A Slurm job that is preempted gets SIGTERM
    first, and one that ends by itself then is not requeued.
    """

    def __init__(self, keep_going_on_term: bool = False) -> None:
        self._keep_going = keep_going_on_term
        self._before: dict[signal.Signals, Any] = {}
        self.signal: int | None = None

    @property
    def asked(self) -> bool:
        return self.signal is not None

    @property
    def stays(self) -> bool:
        """Whether the training goes on after it has saved."""
        return self._keep_going and self.signal in (signal.SIGTERM, None)

    def answered(self) -> None:
        self.signal = None

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal in (None, signal.SIGTERM):  # a wish to save does not hide one to stop
            self.signal = signum

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():  # Python lets no other set handlers
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()
