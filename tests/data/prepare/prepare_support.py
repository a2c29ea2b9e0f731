"""Archives as their makers publish them, in miniature."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from sets_support import Palette

Files = Mapping[str, Any]  # member -> bytes, text, or something for JSON


def content(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else json.dumps(value)).encode()


def picture(palette: Palette, name: str, kind: str = "JPEG", size: tuple[int, int] = (20, 16)) -> bytes:
    """An image file of this class's colour."""
    file = io.BytesIO()
    Image.new("RGB", size, palette.colour(name)).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def tar(path: Path, files: Files, *extra: tarfile.TarInfo) -> Path:
    """Compressed as the name says; folders have entries of their own, as ``tar`` writes them. ``extra``: links, devices ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as file:  # type: ignore[call-overload]
        for folder in sorted({parent for name in files for parent in parents(name)}):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            file.addfile(info)
        for name, value in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content(value))
            file.addfile(info, io.BytesIO(content(value)))
        for info in extra:
            file.addfile(info)
    return path


def parents(name: str) -> list[str]:
    words = name.split("/")[:-1]
    return [] if name.startswith("/") or ".." in words else ["/".join(words[: i + 1]) for i in range(len(words))]


def tar_bytes(files: Files, tmp: Path) -> bytes:
    path = tar(tmp / "inner.tar", files)
    try:
        return path.read_bytes()
    finally:
        path.unlink()


def zipped(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for folder in sorted({parent for name in files for parent in parents(name)}):
            file.writestr(f"{folder}/", "")
        for name, value in files.items():
            file.writestr(name, content(value))
    return path


def gzipped(path: Path, value: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(value))
    return path


def put(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(value))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """All files below, hidden ones left out."""
    found = {}
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(base) / name
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found
