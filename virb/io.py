"""Files that survive a crash: atomic writes, strict JSON, hashes of records, and leases with a heartbeat."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from virb.errors import DiskFull, UserError, ViRBError


def translate_os_error(error: OSError, path: Path) -> ViRBError:
    """The message a person needs for the usual troubles with a disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk is full: cannot write {path}; free some space and run the same command again")
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
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{path} cannot be made: a file is in its way; choose another folder") from error
    return path


def existing_parent(path: Path) -> Path:
    """``path`` made absolute, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def can_write(folder: Path) -> bool:
    """Whether files can be made in ``folder``, which may still have to be made itself."""
    return os.access(existing_parent(folder), os.W_OK | os.X_OK)


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its container where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores


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
    text = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    # File names that are not valid UTF-8 hold lone surrogates; written as \udcxx they come back as they were.
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> Any:
    """Strict JSON; a broken file is an error that names it, an absent one a FileNotFoundError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:  # a syntax error, or bytes that are not UTF-8
        raise ViRBError(f"{path} is not valid JSON ({error}); delete it and run again") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


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
    """When the process started (clock ticks since boot), so that a re-used pid is not taken for the owner; None when it is gone,
    "unknown" when it is there but hides from us."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:  # somebody else's process
        pass
    return "unknown"


def _place() -> str:
    """Where a pid means one process: this host, and on it this container."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


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
            "place": _place(),
            "pid": os.getpid(),
            "start": _process_start(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        mine = self.path.parent / f".tmp-{self.token[:12]}-lease"
        try:
            with writing(self.path):
                mine.write_text(json.dumps(owner))
                for attempt in range(40):
                    if _create_as(self.path, mine):
                        return
                    self._remove_if_stale(mine)
                    time.sleep(0.001 * attempt)  # for the owner that is just letting go, or the taker that is just removing it
            raise Held(self.path, _read_owner(self.path))
        finally:
            with suppress(OSError):
                mine.unlink()

    def _remove_if_stale(self, mine: Path) -> None:
        """Raises Held when the owner lives."""
        owner = _read_owner(self.path)
        if not self._is_dead(self.path, owner, mine):
            if owner:
                raise Held(self.path, owner)
            return  # just released, or just being written
        # One taker at a time, and it looks again: a slow one would remove the lease of a taker that was faster.
        guard = self.path.parent / f".tmp-{self.path.name}-takeover"
        if not _create_as(guard, mine):
            if self._is_dead(guard, _read_owner(guard), mine):
                with suppress(OSError):
                    guard.unlink()
            return
        try:
            if _read_owner(self.path) == owner:
                self.path.unlink(missing_ok=True)
        finally:
            guard.unlink(missing_ok=True)

    def _is_dead(self, path: Path, owner: dict[str, Any], mine: Path) -> bool:
        try:  # both times by the file server's clock: hosts may disagree
            return _owner_is_dead(path, owner, mine.stat().st_mtime, self.stale_after)
        except FileNotFoundError:
            return False

    def _beat(self) -> None:
        while not self._stop.wait(self.stale_after / 6):
            with suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        self._stop.set()
        if _read_owner(self.path).get("token") == self.token:
            with suppress(OSError):
                self.path.unlink()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def is_held(path: Path, now: float | None = None, stale_after: float = 60.0) -> bool:
    """Whether a lease is there whose owner lives. ``now`` is the file server's time where it is known (``server_time``)."""
    try:
        return not _owner_is_dead(path, _read_owner(path), time.time() if now is None else now, stale_after)
    except FileNotFoundError:
        return False


def server_time(folder: Path) -> float:
    """The time by the clock of whoever keeps ``folder``; this host's where nothing can be written there."""
    probe = folder / f".tmp-{uuid.uuid4().hex[:12]}-clock"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink()


def _owner_is_dead(path: Path, owner: dict[str, Any], now: float, stale_after: float) -> bool:
    """At once on the same host, where its process can be looked for, else by the age of the last heartbeat."""
    if owner.get("place") == _place():
        start = _process_start(owner["pid"])
        if start is None or "unknown" not in (start, owner["start"]):
            return start != owner["start"]
    return now - path.stat().st_mtime >= stale_after


def _create_as(path: Path, source: Path) -> bool:
    """``path`` with the content of ``source``, all at once; False when it is there already."""
    try:
        os.link(source, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # No hard links here (exFAT, some network drives). A reader may see the file before its content, and asks again.
        try:
            with open(path, "xb") as file:
                file.write(source.read_bytes())
        except FileExistsError:
            return False
    return True


def _read_owner(path: Path) -> dict[str, Any]:
    """What a lease file says; empty when it is gone, or not (yet) a whole record."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    complete = isinstance(owner, dict) and isinstance(owner.get("pid"), int) and {"token", "place", "start"} <= owner.keys()
    return owner if complete else {}
