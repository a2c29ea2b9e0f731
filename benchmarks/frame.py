"""What benchmarks share: tables, timing of pairs, the machine's name, and the command line.

A benchmark is a file with ``table(quick)``; it prints its table when it is run, and ``benchmarks/run.py`` puts it into docs/performance.md.
Figures are ratios within one run: ours and the baseline take turns, and the median of the ratios counts.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Table:
    """``rows`` have a text per column; ``notes`` say what bounds a figure and what was tried."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    gpu: str = ""  # the command for the rows that need a GPU, where none was there

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"{wrong[0]} has {len(wrong[0])} cells for {len(self.columns)} columns")

    def text(self) -> str:
        widths = [max(map(len, cells)) for cells in zip(self.columns, *self.rows, strict=True)]
        lines = [self.title, ""]
        for row in (self.columns, *self.rows):
            first, *rest = (
                cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join([first, *rest]).rstrip())
        return "\n".join([*lines, *self._last_words(), ""])

    def markdown(self) -> str:
        rows = [self.columns, ("---", *["---:"] * (len(self.columns) - 1)), *self.rows]
        lines = [f"**{self.title}**", "", *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)]
        return "\n".join([*lines, *self._last_words(), ""])

    def _last_words(self) -> list[str]:
        notes = [*self.notes, *([f"GPU rows: {NOT_MEASURED} (no GPU here); with one: `{self.gpu}`"] if self.gpu else [])]
        return ["", *(f"- {note}" for note in notes)] if notes else []


def timed(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a call, with everything that a GPU still has to do for it. ``time.process_time`` as the clock gives the process's own
    CPU time, which hardly depends on what else the machine does."""
    began = clock()
    call()
    _synchronise()
    return clock() - began


def children_time() -> float:
    """CPU seconds of processes that were started and have ended: a clock for ``timed``."""
    spent = os.times()
    return spent.children_user + spent.children_system


def paired(
    ours: Callable[[], object], baseline: Callable[[], object], repeats: int = 3, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float, float]:
    """Medians of both, and the median of the ratios ours / baseline of pairs run in turn."""
    pairs = []
    for i in range(repeats):
        gc.collect()
        order = (ours, baseline) if i % 2 == 0 else (baseline, ours)  # neither is always the one that runs on a warmer machine
        took = {call: timed(call, clock) for call in order}
        pairs.append((took[ours], took[baseline]))
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), statistics.median(a / b for a, b in pairs)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """How many threads torch may use within one operation."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds_text(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def times(ratio: float) -> str:
    return f"{ratio:.2f} x" if ratio < 10 else f"{ratio:,.0f} x"


def verdict(reached: bool) -> str:
    return "yes" if reached else "no"


def machine() -> str:
    """The hardware and the libraries, in one line."""
    import torch

    import virb
    from virb.results.environment import hardware

    found = hardware()
    memory = f", {found.memory_bytes / 2**30:.0f} GiB" if found.memory_bytes else ""
    gpus = ", ".join(found.gpus) or "no GPU"
    return f"{found.cpu}, {found.cores} core{'s' * (found.cores != 1)}{memory}; {gpus}; torch {torch.__version__}, ViRB {virb.__version__}"


def main(table: Callable[[bool], Table], about: str | None, arguments: Sequence[str] | None = None) -> None:
    """The command line of a benchmark that has no options of its own."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it works, not for figures")
    options = parser.parse_args(arguments)
    print(f"{machine()}\n\n{table(options.quick).text()}")


def _synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
