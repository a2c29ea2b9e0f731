"""Unpacks archives into one folder: the way there is checked, files appear whole or not at all, and what is done is stamped.

``.virb_prepare/`` in the folder holds a stamp per archive. An archive that was finished is not read again. One that was begun goes on:
files that are there with the right size are not written again. After an archive turned out damaged, or when another file has its name,
sizes are not trusted, and every file is written again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from virb.data.prepare.archives import Archive, Damaged, is_archive, reading
from virb.errors import UserError, ViRBError
from virb.io import make_folder, read_json, write_json, writing

Rename = Callable[[str], "str | None"]  # a member's path -> its path below the folder, None where it is not needed
Tell = Callable[[str, int, int], None]  # what is read, bytes done, bytes in all
STATE = ".virb_prepare"
_CHUNK = 1 << 20
_TELL_EVERY = 0.1  # seconds
_ENDS = 1 << 16  # bytes at both ends that tell archives of one size apart
_SPARE = 50_000_000  # bytes that a disk keeps free


@dataclass
class Unpacked:
    """What became of one archive."""

    written: int = 0
    kept: int = 0  # were there already
    left_out: list[str] = field(default_factory=list)  # links that name nothing that was unpacked
    before: bool = False  # finished by an earlier call


class Target:
    """The folder that is filled, and its stamps."""

    def __init__(self, folder: Path, sources: tuple[Path, ...] = ()) -> None:
        self.folder = make_folder(folder)
        self.state = make_folder(folder / STATE)
        self._real = os.path.realpath(folder)
        self._sources = {os.path.realpath(path) for path in sources}
        self._ready: dict[Path, str] = {}  # folders that are there and ours, and where they really are

    def clean(self) -> None:
        """Removes what a killed process left half-written; for the one who holds the lease."""
        for left in self.state.glob("tmp-*"):
            with suppress(OSError):
                left.unlink()

    def path(self, relative: str) -> Path:
        """Where a file comes to lie. Its folder is made; links that lead out of ours are not followed."""
        path = self.folder / relative
        real = self._ready.get(path.parent)
        if real is None:
            real = os.path.realpath(path.parent)  # before it is made: nothing is made behind a link, either
            if not self.holds(real):
                raise UserError(f"{path.parent} leads to {real}, outside of {self.folder}, by a link; files are not written through it")
            make_folder(path.parent)
            self._ready[path.parent] = real
        if path.is_dir():
            raise UserError(f"{path} is a folder, but a file of the archive has this name; move it away")
        if os.path.join(real, path.name) in self._sources:
            raise UserError(f"{path} would be written over, but it is a source; give another --data_root")
        return path

    def holds(self, real: str) -> bool:
        """Whether a path without links is the folder or lies in it."""
        return real == self._real or real.startswith(self._real.rstrip(os.sep) + os.sep)

    def write(self, path: Path, source: IO[bytes], size: int, origin: Path, name: str, tick: Callable[[], None]) -> None:
        """Under another name first: what is there is whole."""
        temporary = self.state / f"tmp-{os.getpid()}"
        try:
            total = 0
            with writing(path), open(temporary, "wb") as file:
                while chunk := _read(source, origin, name):
                    file.write(chunk)
                    total += len(chunk)
                    tick()
            if size not in (-1, total):
                raise Damaged(f"{origin} ({name}) is incomplete: {total:,} of {size:,} bytes; download it again, then run this again")
            with writing(path):
                os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()

    def stamp(self, key: str) -> Path:
        return self.state / f"{key}.json"


def unpack(
    source: Path, target: Target, rename: Rename, *, key: str, nested: Callable[[str], bool], tell: Tell, force: bool = False
) -> Unpacked:
    """Brings the files of an archive, or a single file, to where ``rename`` says. Safe to call again at any time."""
    stamp_path, archive_id = target.stamp(f"{key}-{source.name}"), fingerprint(source)
    stamp = _stamp(stamp_path)
    same = stamp.get("archive") == archive_id
    if same and stamp.get("state") == "finished" and not force:
        return Unpacked(before=True)
    record = {
        "state": "begun",
        "archive": archive_id,
        "trusted": not stamp or (same and stamp.get("trusted") is True),
        "inner": [] if force or not same else list(stamp.get("inner", ())),
    }
    if not is_archive(source):
        result = _copy(source, target, rename, tell)
    else:
        archive = Archive(source)
        if not stamp:
            _check_space(archive, target.folder)
        write_json(stamp_path, record)
        result = _unpack(archive, target, rename, record, stamp_path, nested, tell)
    write_json(stamp_path, {"state": "finished", "archive": archive_id, "trusted": True, "files": result.written + result.kept})
    return result


def _unpack(
    archive: Archive, target: Target, rename: Rename, record: dict[str, Any], stamp_path: Path, nested: Callable[[str], bool], tell: Tell
) -> Unpacked:
    result = Unpacked()
    links: list[tuple[str, str]] = []
    done_before = set(record["inner"])
    last = 0.0

    def tick() -> None:
        nonlocal last
        if time.monotonic() - last >= _TELL_EVERY:
            last = time.monotonic()
            tell(archive.path.name, archive.position, archive.size)

    tell(archive.path.name, 0, archive.size)
    try:
        for member in archive.members(nested, done_before.__contains__):
            tick()
            if member.kind == "end":
                record["inner"].append(member.path)
                write_json(stamp_path, record)
            elif (relative := rename(member.path)) is None:
                continue
            elif member.kind == "link":
                links.append((relative, member.target))
            elif record["trusted"] and _is_there(path := target.path(relative), member.size):
                result.kept += 1
            else:
                path = target.path(relative)
                with reading(archive.path, member.path):
                    content = member.stream()
                with content:
                    target.write(path, content, member.size, archive.path, member.path, tick)
                result.written += 1
    except Damaged:
        write_json(stamp_path, {**record, "trusted": False, "inner": []})
        raise
    for relative, named in links:
        _resolve(relative, rename(named), target, result)
    if not (result.written or result.kept or done_before):
        raise UserError(f"{archive.path} has none of the files that are looked for; is it another archive of the same name?")
    tell(archive.path.name, archive.size, archive.size)
    return result


def _is_there(path: Path, size: int) -> bool:
    """Whether the file was unpacked before, by its size; of a single gzipped file the size is not known."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _resolve(relative: str, named: str | None, target: Target, result: Unpacked) -> None:
    """A link within the archive becomes a file of its own; one that names nothing that was unpacked is left out."""
    source = target.folder / (relative if named is None else named)
    if named is None or not source.is_file() or source.is_symlink() or not target.holds(os.path.realpath(source)):
        result.left_out.append(relative)
        return
    path = target.path(relative)
    temporary = target.state / f"tmp-{os.getpid()}"
    with writing(path):
        shutil.copyfile(source, temporary)
        os.replace(temporary, path)
    result.written += 1


def _copy(source: Path, target: Target, rename: Rename, tell: Tell) -> Unpacked:
    relative = rename(source.name)
    if relative is None:
        raise UserError(f"{source} has a name that is not understood")
    size = source.stat().st_size
    path, done = target.path(relative), 0

    def tick() -> None:
        nonlocal done
        done = min(done + _CHUNK, size)
        tell(source.name, done, size)

    if path.is_file() and _same_content(source, path):
        return Unpacked(kept=1)
    with reading(source):
        content = source.open("rb")
    with content:
        target.write(path, content, size, source, source.name, tick)
    return Unpacked(written=1)


def link(source: Path, target: Target, relative: str) -> bool:
    """A folder that is unpacked already is linked, not copied; False when the link is there already."""
    path = target.folder / relative
    make_folder(path.parent)
    wanted = os.path.realpath(source)
    if os.path.realpath(path) == wanted:
        return False
    if path.is_symlink() or path.exists():
        raise UserError(f"{path} is there already and is not {source}; move it away, or leave it and give no {source.name} in --source")
    with writing(path):
        try:
            path.symlink_to(wanted, target_is_directory=True)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            raise ViRBError(f"{path.parent} is on a disk without links; copy or move {source} to {path} yourself") from None
    return True


def fingerprint(path: Path) -> str:
    """Size and the bytes at both ends: tells an archive from another, and from one that was cut short."""
    try:
        with path.open("rb") as file:
            digest = hashlib.blake2b(file.read(_ENDS), digest_size=12)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _ENDS))
            digest.update(file.read(_ENDS))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return f"{size}-{digest.hexdigest()}"


def _stamp(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (FileNotFoundError, ViRBError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_space(archive: Archive, folder: Path) -> None:
    needed, free = archive.unpacked_size(), shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise UserError(
            f"{archive.path.name} needs at least {needed / 1e9:.3g} GB in {folder}, but {free / 1e9:.3g} GB are free there; "
            "make room, or give another --data_root"
        )


def _read(source: IO[bytes], origin: Path, name: str) -> bytes:
    with reading(origin, name):
        return source.read(_CHUNK)


def _same_content(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        while chunk := a.read(_CHUNK):
            if b.read(len(chunk)) != chunk:
                return False
    return True
