"""Files that survive a crash: atomic writes, strict JSON, hashes of records, and leases with a heartbeat."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from virb.errors import UserError, ViRBError


def translate_os_error(error: OSError, path: Path) -> ViRBError:
    """The message a person needs for the usual troubles with a disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ViRBError(f"the disk is full: cannot write {path}; free some space and run the same command again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError(f"cannot write {path}: {error.strerror}; choose a folder you may write to")
    return ViRBError(f"cannot write {path}: {error.strerror or error}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns operating-system errors into messages that name ``path``."""
    try:
        yield
    except OSError as error:
        raise translate_os_error(error, path) from error


def make_folder(path: Path) -> Path:
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_atomic(path: Path, content: bytes | str | Callable[[BinaryIO], None]) -> None:
    """Readers see the old file or the whole new one, never a part of it."""
    make_folder(path.parent)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex[:12]}-{path.name}"
    try:
        with writing(path):
            with open(temporary, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: Path, record: Any) -> None:
    write_atomic(path, json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Strict JSON; a broken file is an error that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ViRBError(f"{path} is not valid JSON ({error}); delete it and run again") from error


def hash_record(record: Any) -> str:
    """64 hex digits of a JSON-able record; key order does not matter, NaN is refused."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()).hexdigest()


def clean_temporaries(folder: Path, older_than: float = 3600.0) -> None:
    """Removes what a killed process left half-written in ``folder``."""
    for path in folder.glob(".tmp-*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > older_than:
                path.unlink()


class Held(ViRBError):
    """Somebody else holds the lease; ``owner`` is what the file says."""

    def __init__(self, path: Path, owner: dict[str, Any]) -> None:
        self.owner = owner
        super().__init__(
            f"{path.parent} is in use by process {owner.get('pid', '?')} on {owner.get('host', '?')} since {owner.get('since', '?')}"
        )


def _process_start(pid: int) -> str | None:
    """When the process started (clock ticks since boot), so that a re-used pid is not taken for the owner; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


class Lease:
    """A file that says "this is mine", created atomically (a hard link, which works on NFS) and touched by a heartbeat.

    A lease whose owner died is taken over: at once on the same host (its process is gone), else after ``stale_after`` seconds without
    a heartbeat.
    """

    def __init__(self, path: Path, stale_after: float = 60.0) -> None:
        self.path = path
        self.stale_after = stale_after
        self.token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._acquire()
        self._thread = threading.Thread(target=self._beat, name=f"lease {path.name}", daemon=True)
        self._thread.start()

    def _acquire(self) -> None:
        make_folder(self.path.parent)
        owner = {
            "token": self.token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start": _process_start(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        mine = self.path.parent / f".tmp-{self.token[:12]}-lease"
        try:
            with writing(self.path):
                mine.write_text(json.dumps(owner))
                for _ in range(20):
                    try:
                        os.link(mine, self.path)
                        return
                    except FileExistsError:
                        self._remove_if_stale()
            raise Held(self.path, self._read())
        finally:
            with suppress(OSError):
                mine.unlink()

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self.path.read_text())
        except (OSError, json.JSONDecodeError):
            return {}

    def _remove_if_stale(self) -> None:
        owner = self._read()
        if not owner:
            return  # just released, or unreadable: try again
        if owner["host"] == socket.gethostname():
            alive = _process_start(int(owner["pid"])) == owner["start"]
        else:
            with suppress(OSError):
                alive = time.time() - self.path.stat().st_mtime < self.stale_after
                if alive:
                    raise Held(self.path, owner)
            alive = False
        if alive:
            raise Held(self.path, owner)
        # Of several takers one wins the rename; a taker that caught a fresh lease by mistake puts it back.
        aside = self.path.parent / f".tmp-{self.token[:12]}-stale"
        with suppress(OSError):
            os.rename(self.path, aside)
            caught = json.loads(aside.read_text())
            if caught["token"] != owner["token"]:
                with suppress(OSError):
                    os.link(aside, self.path)
            aside.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(self.stale_after / 6):
            with suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        self._stop.set()
        if self._read().get("token") == self.token:
            with suppress(OSError):
                self.path.unlink()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
