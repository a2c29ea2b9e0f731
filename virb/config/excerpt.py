"""The lines of a config file that are about one label, as results keep them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from virb.config.tree import Where


def own_part(text: str, where: Where) -> str:
    """The lines of a file that are about one label, each block to the next key of its own: the ``defaults:`` and the label's."""
    lines = text.splitlines() if where.line else []
    defaults = next((number for number, line in enumerate(lines, 1) if re.match(r"""(['"]?)defaults\1\s*:""", line)), None)
    starts = [where.line] if defaults in (None, where.line) else sorted([where.line, defaults])
    return "\n".join(_block(lines[start - 1 :]) for start in starts if start)


def _block(lines: Sequence[str]) -> str:
    end = next((number for number, line in enumerate(lines[1:], 1) if line[:1] not in ("", " ", "\t", "#", "}", "]")), len(lines))
    return "\n".join(lines[:end]).rstrip()
