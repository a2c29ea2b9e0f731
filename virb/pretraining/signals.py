"""Signals that ask a training to stop: it finishes its step and saves first. And those that tell of a loading process that died."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
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
        """Whether the training goes on after it has saved. No signal of its own: another rank was asked, and all do the same."""
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


class Deaths:
    """Torch's loader tells of a process that died by an error out of a signal handler, wherever the training is at that moment. With this
    one around its handler the error comes while somebody waits for a batch (``with deaths:``), or as soon as somebody does."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self._handler = handler
        self._waiting = False
        self._error: RuntimeError | None = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        try:
            self._handler(signum, frame)
        except RuntimeError as error:
            if self._waiting:
                raise
            self._error = error

    def __enter__(self) -> None:
        self._waiting = True
        if self._error is not None:
            error, self._error = self._error, None
            self._waiting = False
            raise error

    def __exit__(self, *_: object) -> None:
        self._waiting = False


def deaths() -> Deaths:
    """For the loader that was started just now, and has set its handler where it may."""
    name = getattr(signal, "SIGCHLD", None)
    handler = signal.getsignal(name) if name is not None else None
    found = Deaths(handler._handler if isinstance(handler, Deaths) else handler if callable(handler) else lambda signum, frame: None)
    if name is not None and callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(name, found)
    return found
