"""Which entries of a cache runs are using, so that nobody takes them away: a lease with a heartbeat for each run, and its keys beside it.

A run says what it uses, waits for removals that are going on, and looks then what is there. Who removes takes the lease of removals, asks
then who uses what, and moves the rest out of sight. So a run finds an entry and keeps it, or sees that it has to be made.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from virb.errors import ViRBError
from virb.features.cache import FeatureCache
from virb.io import Held, Lease, is_held, make_folder, read_json, server_time, write_json

FOLDER = ".uses"
_REMOVAL = "removal"  # the lease of who removes entries
_MOMENT = 0.02
_FORGOTTEN = 3600.0  # seconds after which keys without a lease are nobody's any more


class Use:
    """While it lasts, no entry of ``keys`` is removed from the cache. It ends with the process at the latest."""

    def __init__(self, cache: FeatureCache, keys: Iterable[str], who: str = "") -> None:
        self.name = uuid.uuid4().hex
        place = make_folder(cache.folder / FOLDER)
        self._keys = place / f"{self.name}.json"
        write_json(self._keys, {"kind": "feature_use", "who": who, "keys": sorted(set(keys))})
        self._lease = Lease(place / f"{self.name}.lease")
        while is_held(place / _REMOVAL):
            time.sleep(_MOMENT)

    def release(self) -> None:
        self._lease.release()
        with suppress(OSError):
            self._keys.unlink()

    def __enter__(self) -> Use:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def entries_in_use(cache: FeatureCache, except_by: str = "") -> Callable[[str], bool]:
    """Whether a living run uses an entry, by its key. ``except_by``: the name of a use that does not count (one's own)."""
    place = cache.folder / FOLDER
    if not place.is_dir():
        return lambda key: False
    now = server_time(place)
    used: set[str] = set()
    everything = False
    for lease in place.glob("*.lease"):
        if lease.stem == except_by or not is_held(lease, now):
            continue
        try:
            used |= set(read_json(lease.with_suffix(".json"))["keys"])
        except FileNotFoundError:
            everything |= is_held(lease, now)  # else it has just ended
        except (ViRBError, OSError, KeyError, TypeError):
            everything = True  # a run that does not say what it uses may use all
    return lambda key: everything or key in used


def remove_entries(cache: FeatureCache, keys: Collection[str], except_by: str = "") -> list[str]:
    """Removes entries that no living run uses; the keys that are gone. Those that are not there, or not ours to move, are passed over."""
    gone: dict[str, Path] = {}
    with alone(cache, _REMOVAL):
        in_use = entries_in_use(cache, except_by)
        for key in keys:
            folder = cache.entry_folder(key)
            aside = folder.parent / f".tmp-{uuid.uuid4().hex[:12]}-removed"
            if not in_use(key):
                with suppress(OSError):
                    folder.rename(aside)
                    gone[key] = aside
    for aside in gone.values():
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):
            aside.parent.rmdir()  # unless other keys begin alike
    return list(gone)


@contextmanager
def alone(cache: FeatureCache, what: str) -> Iterator[None]:
    """Waits until nobody else does ``what`` to the cache. It is a file name without an extension: leases of uses have one."""
    place = cache.folder / FOLDER
    while True:
        try:
            lease = Lease(place / what)
        except Held:
            time.sleep(_MOMENT)
            continue
        with lease:
            yield
        return


def tidy(cache: FeatureCache) -> None:
    """Takes away what killed processes left: their uses, and entries that were being removed."""
    place = cache.folder / FOLDER
    if place.is_dir():
        now = server_time(place)
        for lease in place.glob("*.lease"):
            if not is_held(lease, now):
                _unlink(lease.with_suffix(".json"), lease)
        for keys in place.glob("*.json"):
            with suppress(OSError):
                if not keys.with_suffix(".lease").exists() and now - keys.stat().st_mtime > _FORGOTTEN:
                    _unlink(keys)
    for folder in cache.folder.glob("??/.tmp-*-removed"):
        with suppress(OSError):
            if time.time() - os.stat(folder).st_ctime > _FORGOTTEN:
                shutil.rmtree(folder, ignore_errors=True)


def _unlink(*paths: Path) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()
