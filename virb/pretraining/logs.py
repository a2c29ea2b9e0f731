"""What a run tells: lines (or a live one on a terminal) with the time left, ``log.txt`` as the original writes it, TensorBoard curves."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from virb.io import write_atomic, writing

_LINE_EVERY = 15.0  # seconds between progress lines without a terminal
_LIVE_EVERY = 0.25
_RECENT = 50  # steps that the speed is told from
LOG = "log.txt"


class Sums:
    """Sums of values over the steps of an epoch; saved and resumed with the run."""

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        self.totals: dict[str, float] = dict((saved or {}).get("totals", {}))
        self.counts: dict[str, int] = dict((saved or {}).get("counts", {}))

    def add(self, values: Mapping[str, float]) -> None:
        """What is not finite does not count."""
        for name, value in values.items():
            if math.isfinite(value):
                self.totals[name] = self.totals.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.totals.items()}

    def record(self) -> dict[str, Any]:
        return {"totals": dict(self.totals), "counts": dict(self.counts)}


class LogFile:
    """``log.txt``: a JSON object per epoch. Lines of epochs that will be done again are taken out."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        self._path = folder / LOG
        self._lines = [line for line in self._read() if line.get("epoch", math.inf) < first_epoch]

    def _read(self) -> list[dict[str, Any]]:
        try:
            texts = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        found = []
        for text in texts:
            try:
                line = json.loads(text)
            except ValueError:  # half a line, of a run that was killed while writing
                continue
            if isinstance(line, dict):
                found.append(line)
        return found

    def add(self, means: Mapping[str, float], epoch: int, more: Mapping[str, Any] | None = None) -> None:
        self._lines.append({**{f"train_{name}": value for name, value in means.items()}, **(more or {}), "epoch": epoch})
        write_atomic(self._path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in self._lines))


class Curves:
    """TensorBoard, on the first rank; a resumed run takes out what it does again."""

    def __init__(self, folder: Path | None, first_step: int) -> None:
        self._folder, self._first = folder, first_step
        self._writer: Any = None

    def add(self, values: Mapping[str, float], step: int) -> None:
        if self._folder is None:
            return
        with writing(self._folder):
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self._folder), purge_step=self._first or None)
            for name, value in values.items():
                if math.isfinite(value):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            with writing(Path(str(self._folder))):
                self._writer.close()


class Speed:
    """Images per second, share of the time that is spent waiting for data, and seconds per step, over the last steps."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int, float]] = deque(maxlen=_RECENT)
        self._last = time.perf_counter()

    def lap(self, images: int, waited: float) -> None:
        now = time.perf_counter()
        self._steps.append((now - self._last, images, waited))
        self._last = now

    def pause(self) -> None:
        """What happened since the last step was no training."""
        self._last = time.perf_counter()

    def values(self) -> dict[str, float]:
        took = sum(seconds for seconds, _, _ in self._steps) or 1e-9
        waited = sum(seconds for _, _, seconds in self._steps)
        return {"images_per_s": sum(images for _, images, _ in self._steps) / took, "data_wait": min(1.0, waited / took)}

    @property
    def seconds_per_step(self) -> float | None:
        return sum(seconds for seconds, _, _ in self._steps) / len(self._steps) if len(self._steps) > 2 else None


def time_text(seconds: float | None) -> str:
    """``1:05``, ``2:03:09``; ``?`` when unknown."""
    if seconds is None:
        return "?"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


class Teller:
    """Tells on a rich console: timestamped lines, and on a terminal one line that follows the training instead of many."""

    def __init__(self, console: Any = None) -> None:
        self._console = console
        self._status: Any = None
        self._last = time.monotonic() - _LINE_EVERY  # the first step is told: it says that all is well

    @property
    def is_live(self) -> bool:
        return self._console is not None and bool(self._console.is_terminal)

    def say(self, text: str) -> None:
        if self._console is not None:
            stamp = "" if self.is_live else f"{time.strftime('%Y-%m-%d %H:%M:%S')}  "
            self._console.print(f"{stamp}{text}", highlight=False, markup=False, soft_wrap=True)

    def follow(self, text: str) -> None:
        """Where the training is. Not every call is shown."""
        now = time.monotonic()
        if self._console is None or now - self._last < (_LIVE_EVERY if self.is_live else _LINE_EVERY):
            return
        self._last = now
        if not self.is_live:
            self.say(text)
            return
        from rich.text import Text

        if self._status is None:
            self._status = self._console.status(Text(text))
            self._status.start()
        self._status.update(Text(text))

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def progress_text(values: Mapping[str, float], speed: Speed, step: int, epochs: int, steps_per_epoch: int) -> str:
    """``epoch 3/100   step 120/1,000   loss 5.12   lr 1.2e-04   312 img/s   data 12 %   eta 1:05``, counted from 1."""
    now, each = speed.values(), speed.seconds_per_step
    left = each * (epochs * steps_per_epoch - step) if each is not None else None
    return "   ".join(
        (
            f"epoch {min((step - 1) // steps_per_epoch + 1, epochs)}/{epochs}",
            f"step {step:,}/{epochs * steps_per_epoch:,}",
            f"loss {values['loss']:.4f}",
            f"lr {values['lr']:.1e}",
            f"{now['images_per_s']:,.0f} img/s",
            f"data {now['data_wait']:.0%}",
            f"eta {time_text(left)}",
        )
    )
