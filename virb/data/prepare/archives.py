"""Reads archives of strangers, member by member: tar (plain, gz, bz2, xz), zip, archives within them, and single files that are gzipped.

Names are checked before anything is done with them. A member that would leave the folder (``..``, an absolute path, a link out of it), or
that is a device, stops the reading: no official archive has any. What is cut short or damaged is said so, with the member's name.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

from virb.errors import ViRBError

Kind = Literal["file", "link", "end"]
_TAR = re.compile(r"\.(tar|tar\.(gz|bz2|xz)|tgz|tbz2?|txz)$", re.IGNORECASE)
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError)
_CHUNK = 1 << 20
_LONGEST_LINK = 4096  # bytes of a path; in a zip the target of a link is its content
_WEB_PAGE = (b"<!doctype", b"<html", b"<?xml")


class Damaged(ViRBError):
    """The archive is cut short, damaged, or none. Files written from it so far may be wrong."""


class Hostile(ViRBError):
    """A member that would write outside of the folder, or make something that is no file."""


@dataclass(frozen=True)
class Member:
    """A file (``size`` is -1 when it is not known before reading), a link to ``target`` (a path in the archive), or the ``end`` of an
    archive within the archive. The members of ``a.tar`` in the archive are ``a.tar/...``."""

    path: str
    kind: Kind
    size: int = -1
    target: str = ""
    stream: Callable[[], IO[bytes]] = io.BytesIO


def is_archive(path: Path) -> bool:
    """By its name: whether it has members (or is one gzipped file) rather than being a file to copy."""
    return bool(_TAR.search(path.name)) or path.suffix.lower() in (".zip", ".gz")


class Archive:
    """An archive opened for reading; ``position`` of ``size`` bytes have been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._is_zip = path.suffix.lower() == ".zip"
        self._file: BinaryIO | None = None
        self._passed = 0  # compressed bytes of a zip's members so far: it is not read from front to back

    @property
    def position(self) -> int:
        """Bytes of the archive that have been gone through."""
        if self._is_zip or self._file is None or self._file.closed:
            return self._passed
        return min(self._file.tell(), self.size)

    def unpacked_size(self) -> int:
        """Bytes that its files take, or the least that they can take."""
        if self._is_zip:
            with reading(self.path), zipfile.ZipFile(self.path) as content:
                return sum(info.file_size for info in content.infolist())
        return self.size

    def members(
        self, nested: Callable[[str], bool] = lambda path: False, skip: Callable[[str], bool] = lambda path: False
    ) -> Iterator[Member]:
        """Files and links, in the archive's order; a member's content can be read until the next one is asked for. Members whose path is
        ``nested`` are archives, and are read through unless ``skip`` says that they are done."""
        with self.path.open("rb") as self._file:
            if _TAR.search(self.path.name):
                yield from self._tar(self._file, "", nested, skip, "r:*")
            elif self._is_zip:
                yield from self._zip(self._file, nested, skip)
            else:
                yield Member(self.path.stem, "file", stream=lambda: gzip.GzipFile(fileobj=self._file))  # type: ignore[arg-type, return-value]

    def _tar(self, file: IO[bytes], prefix: str, nested: Callable[[str], bool], skip: Callable[[str], bool], mode: Any) -> Iterator[Member]:
        with reading(self.path, prefix):
            content = tarfile.open(fileobj=file, mode=mode, tarinfo=_StrictInfo, errorlevel=1)  # noqa: SIM115
        with content:
            while True:
                with reading(self.path, prefix):
                    info = content.next()
                if info is None:
                    break
                content.members = []  # type: ignore[attr-defined]  # tarfile keeps all of a million otherwise
                path = prefix + self._checked(info.name)
                if info.isdir() or _ignored(path):
                    continue
                if info.islnk() or info.issym():
                    base = "" if info.islnk() else posixpath.dirname(info.name)
                    yield Member(path, "link", target=prefix + self._target(info.name, base, info.linkname))
                elif not info.isreg():
                    raise Hostile(f"{self.path}: {info.name} is a device or a pipe, which no dataset has; nothing of it was made")
                elif nested(path):
                    if not skip(path):
                        yield from self._inner(_of_tar(content, info), path, skip)
                else:
                    yield Member(path, "file", info.size, stream=partial(_of_tar, content, info))
            with reading(self.path, prefix):  # to the very end, where the check sum of what was packed stands
                for end in (content.fileobj, file):
                    while end is not None and end.read(_CHUNK):
                        pass

    def _zip(self, file: BinaryIO, nested: Callable[[str], bool], skip: Callable[[str], bool]) -> Iterator[Member]:
        with reading(self.path):
            content = zipfile.ZipFile(file)
        with content:
            for info in content.infolist():
                path = self._checked(info.filename)
                mode = info.external_attr >> 16 if info.create_system == 3 else 0
                if not (info.is_dir() or _ignored(path)):
                    if stat.S_ISLNK(mode):
                        with reading(self.path, path), content.open(info) as text:
                            target = os.fsdecode(text.read(_LONGEST_LINK))
                        yield Member(path, "link", target=self._target(path, posixpath.dirname(path), target))
                    elif mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                        raise Hostile(f"{self.path}: {info.filename} is a device or a pipe, which no dataset has; nothing of it was made")
                    elif nested(path):
                        if not skip(path):
                            with reading(self.path, path):
                                inner = content.open(info)
                            yield from self._inner(inner, path, skip)
                    else:
                        yield Member(path, "file", info.file_size, stream=partial(content.open, info))
                self._passed += info.compress_size
        self._passed = self.size

    def _inner(self, file: IO[bytes], path: str, skip: Callable[[str], bool]) -> Iterator[Member]:
        """The members of an archive within this one, which is read as a stream: only forwards, never unpacked to the disk."""
        if not _TAR.search(path):
            raise Damaged(f"{self.path}: {path} is not a tar archive")
        yield from self._tar(file, f"{path}/", lambda path: False, skip, "r|*")
        yield Member(path, "end")

    def _checked(self, name: str) -> str:
        """The member's path: relative, forward slashes, no ``.``; Hostile when it leads out of the folder."""
        path = name.replace("\\", "/")
        words = [word for word in path.split("/") if word not in ("", ".")]
        if path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in words or "\0" in path:
            raise Hostile(f"{self.path}: a member is named {name!r}, which is outside of the folder; it is not unpacked further")
        return "/".join(words)

    def _target(self, name: str, base: str, target: str) -> str:
        path = posixpath.normpath(posixpath.join(base.replace("\\", "/"), target.replace("\\", "/")))
        if path.startswith(("/", "../")) or path == ".." or re.match(r"[A-Za-z]:", path):
            raise Hostile(f"{self.path}: {name} is a link to {target!r}, which is outside of the folder; it is not unpacked further")
        return path


@contextmanager
def reading(path: Path, member: str = "") -> Iterator[None]:
    """Turns what goes wrong with an archive into a message that names it."""
    where = f"{path}{f' ({member})' if member else ''}"
    try:
        yield
    except _DAMAGED as error:
        if isinstance(error, RuntimeError) and "password" in str(error):
            raise Damaged(f"{where} is encrypted; unpack it with its password, or get another copy") from None
        if (hint := _instead(path)) is not None:
            raise Damaged(f"{where} {hint}") from None
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
        raise Damaged(f"{where} is damaged or incomplete ({reason}); download it again, then run this again") from None
    except OSError as error:  # bzip2 says so, too, when the data are bad
        if error.errno is None:
            raise Damaged(f"{where} is damaged ({error}); download it again, then run this again") from None
        raise ViRBError(f"{where} cannot be read: {error.strerror or error}") from None


def _instead(path: Path) -> str | None:
    """What a file that is no archive is, if that is easily said."""
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError:
        return None
    if not start:
        return "is empty; download it again"
    if start.startswith(_WEB_PAGE):
        return "is a web page, not an archive: the server asked for something (a login, a confirmation); download it again"
    return None


def _ignored(path: str) -> bool:
    """What macOS adds to archives."""
    return not path or path.startswith("__MACOSX/") or posixpath.basename(path).startswith("._") or path.endswith("/.DS_Store")


def _of_tar(content: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = content.extractfile(info)
    return io.BytesIO() if file is None else file  # None is for what is no file; the members that come here are


class _StrictInfo(tarfile.TarInfo):
    """tarfile takes a broken header in the middle for the end of the archive, and says nothing."""

    @classmethod
    def fromtarfile(cls, tar: Any) -> Any:
        try:
            return super().fromtarfile(tar)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            if tar.offset:
                raise tarfile.ReadError(f"a broken header after {tar.offset:,} bytes: {error}") from None
            raise
