"""Whether what a server sent can be weights, told by its first bytes and its end; nothing is unpickled."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

LONGEST_HEADER = 100_000_000  # bytes, of safetensors
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that torch before 1.6 wrote first
_SHOWN = 60  # characters of a text that came instead


def why_no_weights(path: Path, whole: bool) -> str | None:
    """What is wrong with a file that has just arrived; None when it looks like a weights file. ``whole``: the server had said how long
    the file is, and it is that long. Where it had not, the end of a file is looked at, for it may have been cut short."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(512)
        file.seek(max(0, size - 1))
        last = file.read(1)
    if head.startswith(b"PK\x03\x04"):
        return None if zipfile.is_zipfile(path) else "it begins like a torch file, but its end is missing"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        cut = not whole and (_legacy_is_cut(path) if head.startswith(_LEGACY) else last != b".")
        return "it begins like a pickle, but its end is missing" if cut else None
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < LONGEST_HEADER:
        return _wrong_safetensors(path, size)
    text = next(iter(head.decode("utf-8", "replace").strip().splitlines()), "")[:_SHOWN]
    shown = f"begins with {text!r}" if text.isprintable() and "\ufffd" not in text else "is of another kind"
    return f"it {shown}; weights are torch files (zip or pickle) or safetensors"


def _legacy_is_cut(path: Path) -> bool:
    """Old torch files have their tensors after the pickles, so that only reading them tells."""
    from virb.encoders.inert import Damaged, Refused
    from virb.encoders.torchfiles import read_path

    try:
        read_path(path)
    except Damaged:
        return True
    except Refused:
        return False  # whatever asks for code is refused, by name, when it is loaded
    return False


def _wrong_safetensors(path: Path, size: int) -> str | None:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
    try:
        entries = json.loads(header)
        end = 8 + length + max((int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return "it begins like safetensors, but its header is not whole"
    return None if size >= end else f"it has {size:,} bytes, but its header says {end:,}"
