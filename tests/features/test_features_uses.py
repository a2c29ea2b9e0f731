"""Nobody removes an entry that a living run uses, and what dead runs leave behind is in nobody's way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from virb.features import uses
from virb.features.cache import FeatureCache
from virb.features.uses import FOLDER, Use, entries_in_use, remove_entries, tidy

ONE, TWO = "a1" * 32, "b2" * 32


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    made = FeatureCache(tmp_path / "cache")
    for key in (ONE, TWO):
        made.write_slice(key, 0, np.ones((3, 2), np.float32), {})
    return made


def there(cache: FeatureCache) -> set[str]:
    return {key for key in (ONE, TWO) if cache.has_slice(key, 0)}


def test_entries_are_removed_with_their_folders(cache: FeatureCache) -> None:
    assert remove_entries(cache, [ONE, "c3" * 32]) == [ONE]
    assert there(cache) == {TWO}
    assert sorted(path.name for path in cache.folder.iterdir()) == [FOLDER, "b2"]
    assert remove_entries(cache, [ONE]) == []


def test_what_is_in_use_stays_until_its_user_has_ended(cache: FeatureCache) -> None:
    with Use(cache, [ONE]) as use:
        assert entries_in_use(cache)(ONE)
        assert not entries_in_use(cache)(TWO)
        assert not entries_in_use(cache, except_by=use.name)(ONE)
        assert remove_entries(cache, [ONE, TWO]) == [TWO]
        assert there(cache) == {ONE}
        assert remove_entries(cache, [ONE], except_by="somebody else") == []
    assert remove_entries(cache, [ONE]) == [ONE]
    assert not list((cache.folder / FOLDER).iterdir())


def test_a_run_releases_its_own_entries_and_not_those_of_another(cache: FeatureCache) -> None:
    with Use(cache, [ONE, TWO]) as mine, Use(cache, [TWO]):
        assert remove_entries(cache, [ONE, TWO], except_by=mine.name) == [ONE]
        assert there(cache) == {TWO}


def test_a_use_ends_with_its_process(cache: FeatureCache) -> None:
    script = (
        "import sys, time, pathlib; from virb.features.cache import FeatureCache; from virb.features.uses import Use\n"
        f"Use(FeatureCache(pathlib.Path({str(cache.folder)!r})), [{ONE!r}]); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert remove_entries(cache, [ONE]) == []
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    assert remove_entries(cache, [ONE]) == [ONE]
    tidy(cache)
    assert not list((cache.folder / FOLDER).iterdir())


def test_another_hosts_run_counts_as_long_as_its_heart_beats(cache: FeatureCache) -> None:
    use = Use(cache, [ONE])
    lease = cache.folder / FOLDER / f"{use.name}.lease"
    owner = json.loads(lease.read_text()) | {"host": "other", "place": "other 4026531836", "pid": 1}
    lease.write_text(json.dumps(owner))
    assert remove_entries(cache, [ONE]) == []
    old = time.time() - 61
    os.utime(lease, (old, old))
    assert remove_entries(cache, [ONE]) == [ONE]
    use.release()


def test_a_run_that_does_not_say_what_it_uses_may_use_all(cache: FeatureCache) -> None:
    with Use(cache, [ONE]) as use:
        for broken in ("{", '{"keys": 3}'):
            (cache.folder / FOLDER / f"{use.name}.json").write_text(broken)
            assert remove_entries(cache, [TWO]) == []
    assert there(cache) == {ONE, TWO}


def test_a_run_that_begins_while_entries_are_removed_waits(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []

    def begin() -> None:
        with Use(cache, [ONE]):
            seen.append(there(cache))

    beginner = threading.Thread(target=begin)

    def slow(*arguments: str) -> object:
        found = entries_in_use(cache, *arguments[1:])  # before the run says anything
        beginner.start()
        time.sleep(0.2)
        assert not seen
        return found

    monkeypatch.setattr(uses, "entries_in_use", slow)
    assert remove_entries(cache, [ONE]) == [ONE]
    beginner.join()
    assert seen == [{TWO}]


def test_what_a_killed_remover_left_is_taken_away_later(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache.entry_folder(ONE)
    folder.rename(folder.parent / ".tmp-123-removed")
    (cache.folder / FOLDER).mkdir()
    (cache.folder / FOLDER / "0123.json").write_text("{}")
    tidy(cache)
    assert len(list(cache.folder.glob("??/.tmp-*"))) == 1  # it may be at work
    monkeypatch.setattr(uses, "_FORGOTTEN", -1.0)
    tidy(cache)
    assert not list(cache.folder.glob("??/.tmp-*"))
    assert not list((cache.folder / FOLDER).iterdir())
    assert there(cache) == {TWO}


def test_uses_and_removals_at_once_never_lose_an_entry_in_use(cache: FeatureCache) -> None:
    """Runs begin, look, make what is missing, and end, while others prune."""
    stop, removed = threading.Event(), []

    def prune() -> None:
        while not stop.is_set():
            removed.extend(remove_entries(cache, [ONE]))
            time.sleep(0.01)

    pruners = [threading.Thread(target=prune) for _ in range(2)]
    for pruner in pruners:
        pruner.start()
    try:
        for _ in range(30):
            with Use(cache, [ONE]):
                if not cache.has_slice(ONE, 0):
                    cache.write_slice(ONE, 0, np.ones((3, 2), np.float32), {})
                time.sleep(0.002)
                assert cache.has_slice(ONE, 0)
            time.sleep(0.005)
    finally:
        stop.set()
        for pruner in pruners:
            pruner.join()
    assert len(removed) > 3
