"""Where the command line writes: results and reports to stdout; notes and problems to stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def stdout() -> Any:
    """A rich console on the current standard output (made anew, for it may have been redirected)."""
    from rich.console import Console

    return Console(highlight=False)


def say(text: str = "", console: Any = None) -> None:
    """One line as it is: no markup, no wrapping."""
    (console or stdout()).print(text, markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Something to know that stops nothing."""
    print(f"note: {text}", file=sys.stderr)


def columns(rows: Sequence[Sequence[str]], indent: str = "  ", gap: str = "  ") -> list[str]:
    """Rows of cells as aligned lines; the last cell of a row is not padded."""
    widths = [max((len(row[i]) for row in rows if i < len(row)), default=0) for i in range(max(map(len, rows), default=0))]
    return [indent + gap.join(cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip() for row in rows]
