"""Weights from an address: downloaded once, whole or not at all, into ``pretrained_weights/`` below the current folder."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from virb.encoders.sniff import why_no_weights
from virb.errors import UserError
from virb.io import make_folder, write_json, writing
from virb.transfer import Progress, Tell, alone, hash_of, name_in, note_of, read_note, read_record, size_of, transfer

FOLDER = Path("pretrained_weights")


class NotDownloaded(UserError):
    """Something that a run would download is not on this machine yet; ``address`` is where it is from."""

    def __init__(self, message: str, address: str) -> None:
        self.address = address
        super().__init__(message)


def weights_file(
    url: str,
    *,
    path: Path | None = None,
    sha256: str | None = None,
    offline: bool = False,
    progress: Tell | None = None,
) -> Path:
    """The local file of ``url``, downloaded unless it is there. ``path`` says where it goes; without one, ``pretrained_weights/`` and the
    name that the server or the address gives. ``offline``: NotDownloaded instead of a download. With ``sha256`` another content is
    refused, whether it was there or has just arrived."""
    there = _existing(url, path)
    if there is None:
        if offline:
            raise NotDownloaded(_missing(url, path), url)
        return _download(url, path, sha256, progress or (lambda state: None))
    check_sha256(there, sha256)
    return there


def check_sha256(path: Path, sha256: str | None) -> None:
    """UserError when the file is not the one that was meant; nothing is removed."""
    if sha256 is None:
        return
    found = hash_of(path)
    if found != sha256.lower():
        raise UserError(
            f"{path} has sha256 {found}, expected {sha256.lower()}; it is another file, or a damaged one: move it away to go on"
        )


def _existing(url: str, path: Path | None) -> Path | None:
    """The file that came from ``url``, or that somebody has put where it would go."""
    if path is not None:
        return path if path.exists() else None
    for record in sorted(FOLDER.glob("*.source.json")) if FOLDER.is_dir() else ():
        if read_record(record).get("url") == url:
            file = FOLDER / record.name.removesuffix(".source.json")
            if file.is_file():
                return file
    name = name_in(url)
    if name is None:
        return None
    file = FOLDER / name
    return file if file.is_file() and read_record(_record_of(file)).get("url", url) == url else None


def _missing(url: str, path: Path | None) -> str:
    name = name_in(url)
    if path is None and name is None:
        return (
            f"not downloaded yet: {url}\n  without a network, put the file anywhere and name it with `weights:` (`url:` keeps the address)"
        )
    return f"not downloaded yet: {url}\n  a run puts it at {path or FOLDER / str(name)}; without a network, put it there yourself"


# Downloading


def _download(url: str, path: Path | None, sha256: str | None, tell: Tell) -> Path:
    folder = make_folder(FOLDER if path is None else path.parent)
    label = path.name if path is not None else name_in(url) or "download"
    part = folder / f"{label}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part"
    with alone(part.with_suffix(".lease"), lambda: tell(Progress(url, part, size_of(part), read_note(part).get("total")))):
        there = _existing(url, path)  # another process may have been faster
        if there is not None:
            check_sha256(there, sha256)
            return there
        name = transfer(url, part, tell)
        found = hash_of(part)
        if sha256 is not None:
            wrong = None if found == sha256.lower() else f"a file with sha256 {found}, expected {sha256.lower()}"
        else:
            why = why_no_weights(part, whole=read_note(part).get("total") == size_of(part))
            wrong = f"no weights: {why}" if why else None
        if wrong is not None:
            refused = folder / f"{label}.refused"
            with writing(refused):
                part.replace(refused)
                note_of(part).unlink(missing_ok=True)
            raise UserError(f"{url} gave {wrong}\n  it is not used; it lies at {refused}")
        return _publish(url, part, path or folder / name, found, fixed=path is not None)


def _publish(url: str, part: Path, target: Path, sha256: str, *, fixed: bool) -> Path:
    """The finished file under its name, with a record of where it is from beside it. Two addresses never share a name."""
    with alone(target.parent / ".publish.lease"), writing(target):
        if target.exists() and not fixed:
            stem, dot, ending = target.name.partition(".")
            target = target.with_name(f"{stem}-{hashlib.sha256(url.encode()).hexdigest()[:8]}{dot}{ending}")
        write_json(
            _record_of(target), {"url": url, "sha256": sha256, "bytes": part.stat().st_size, "downloaded": time.strftime("%Y-%m-%d")}
        )
        part.replace(target)
        note_of(part).unlink(missing_ok=True)
    return target


# Names and records


def _record_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.source.json")
