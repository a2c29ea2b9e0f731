"""Files that survive a crash, and leases that one process holds at a time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from virb import io
from virb.errors import DiskFull, UserError, ViRBError
from virb.io import (
    Held,
    Lease,
    can_write,
    clean_temporaries,
    existing_parent,
    hash_record,
    make_folder,
    read_json,
    write_atomic,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Atomic writes


@pytest.mark.parametrize("content", [b"new", "new", lambda file: file.write(b"new")])
def test_write_replaces_the_whole_file(tmp_path, content):
    path = tmp_path / "deep" / "er" / "file"
    write_atomic(path, b"a much longer old content")
    write_atomic(path, content)
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file"]


def test_a_writer_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def writer(file):
        file.write(b"half of the new")
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        write_atomic(path, writer)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_readers_never_see_a_part(tmp_path):
    path = tmp_path / "file"
    texts = ["a" * 300_000, "b" * 200_000]
    write_atomic(path, texts[0])
    stop = threading.Event()
    seen = set()

    def read():
        while not stop.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        write_atomic(path, texts[turn % 2])
    stop.set()
    reader.join()
    assert seen <= set(texts)


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, DiskFull, "the disk is full: cannot write"),
        (errno.EDQUOT, DiskFull, "the disk is full: cannot write"),
        (errno.EROFS, UserError, "Read-only file system; choose a folder you may write to"),
        (errno.EACCES, UserError, "Permission denied; choose a folder you may write to"),
        (errno.EIO, ViRBError, "Input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_a_person_reads_when_the_disk_fails(tmp_path, monkeypatch, number, kind, words, call):
    path = tmp_path / "results.json"
    path.write_text("old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(kind) as caught:
        write_atomic(path, b"new")
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["results.json"]


def test_a_full_disk_in_the_middle_of_a_write(tmp_path):
    """/dev/full is a disk that is always full."""
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(ViRBError, match="the disk is full"), io.writing(tmp_path / "file"):
        os.write(full, b"x")
    os.close(full)


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="a file is in its way"):
            make_folder(place)

    def fail(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(UserError, match="Permission denied; choose a folder"):
        make_folder(tmp_path / "new")


# JSON


def test_what_is_there_of_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    assert existing_parent(Path("a/b/c")) == tmp_path / "a"
    assert existing_parent(Path("x")) == tmp_path
    assert existing_parent(tmp_path / "a") == tmp_path / "a"
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "a" and real(path, mode))
    assert [can_write(Path(name)) for name in ("a", "a/b", "x/y")] == [False, False, True]


def test_json_comes_back(tmp_path):
    record = {"z": [1, 2.5, None, True], "a": {"text": "ViRB – ü"}}
    write_json(tmp_path / "x.json", record)
    assert read_json(tmp_path / "x.json") == record
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert list(json.loads(text)) == ["z", "a"]
    assert "ü" in text


def test_names_that_are_not_unicode_survive_json(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    write_json(tmp_path / "x.json", {name: name})
    assert read_json(tmp_path / "x.json") == {name: name}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_json_refuses_what_is_not_json(tmp_path, value):
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "x.json", {"a": value})
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b'{"a": NaN}', b'{"a": -Infinity}', b'"\xff"'])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ViRBError, match=r"broken\.json is not valid JSON"):
        read_json(path)


def test_an_absent_file_is_absent(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


def test_hash_record():
    expected = hashlib.sha256(b'{"a":[1,2.5,null],"b":{"c":"\\u00fc","d":true}}').hexdigest()
    assert hash_record({"b": {"d": True, "c": "ü"}, "a": (1, 2.5, None)}) == expected
    assert hash_record({"a": [1, 2.5, None], "b": {"c": "ü", "d": True}}) == expected
    assert hash_record({"a": [2.5, 1, None], "b": {"c": "ü", "d": True}}) != expected
    assert hash_record(1) != hash_record("1") != hash_record([1])
    with pytest.raises(ValueError):
        hash_record({"a": float("nan")})


def test_only_old_temporaries_are_cleaned(tmp_path):
    for name in (".tmp-old", ".tmp-new", "keep"):
        (tmp_path / name).write_text("")
    for name in (".tmp-old", "keep"):
        os.utime(tmp_path / name, (time.time() - 4000,) * 2)
    clean_temporaries(tmp_path)
    assert names(tmp_path) == [".tmp-new", "keep"]


# Leases

TAKE = """
import sys, time
from pathlib import Path
from virb.io import Held, Lease
try:
    lease = Lease(Path(sys.argv[1]))
except Held:
    print("held", flush=True)
else:
    print("mine", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def taker(path: Path, seconds: float = 60) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", TAKE, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)


def forge(path: Path, **changes) -> dict:
    """A lease file as this process would write it, with some fields changed."""
    with Lease(path):
        owner = json.loads(path.read_text())
    owner.update(token="f" * 32, **changes)
    path.write_text(json.dumps(owner))
    return owner


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_lease_is_exclusive_and_released(tmp_path):
    path = tmp_path / "new" / "folder" / ".lease"
    with Lease(path):
        with pytest.raises(Held) as held:
            Lease(path)
        assert held.value.owner["pid"] == os.getpid()
        assert str(os.getpid()) in str(held.value)
        assert socket.gethostname() in str(held.value)
        assert names(path.parent) == [".lease"]
    assert names(path.parent) == []
    Lease(path).release()
    assert names(path.parent) == []


def test_release_leaves_the_lease_of_somebody_else(tmp_path):
    lease = Lease(tmp_path / ".lease")
    (tmp_path / ".lease").unlink()
    other = Lease(tmp_path / ".lease")
    lease.release()
    with pytest.raises(Held):
        Lease(tmp_path / ".lease")
    other.release()


def test_the_heart_beats(tmp_path):
    path = tmp_path / ".lease"
    with Lease(path, stale_after=0.3):
        age(path, 100)
        deadline = time.monotonic() + 5
        while path.stat().st_mtime < time.time() - 50 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > time.time() - 50
    assert not path.exists()
    time.sleep(0.1)  # the heart has stopped: it must not make the file again
    assert not path.exists()


def test_a_killed_owner_is_replaced_at_once(tmp_path):
    path = tmp_path / ".lease"
    owner = taker(path)
    assert owner.stdout.readline() == "mine\n"
    with pytest.raises(Held) as held:
        Lease(path)
    assert held.value.owner["pid"] == owner.pid
    owner.send_signal(signal.SIGKILL)
    while Path(f"/proc/{owner.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.005)
    began = time.monotonic()
    with Lease(path):  # a zombie is dead
        assert time.monotonic() - began < 1
    owner.wait()
    owner.stdout.close()
    assert names(tmp_path) == []


def test_a_dead_owner_whose_pid_is_in_use_again(tmp_path):
    path = tmp_path / ".lease"
    forge(path, pid=os.getppid(), start="1")  # the parent lives, but it did not start one tick after the machine
    Lease(path).release()


def test_a_living_owner_is_never_stale_here(tmp_path):
    path = tmp_path / ".lease"
    with Lease(path):
        age(path, 10_000)  # as when the machine slept
        with pytest.raises(Held):
            Lease(path)


@pytest.mark.parametrize("changes", [{"host": "elsewhere", "place": "elsewhere pid:[1]"}, {"place": "another container here"}])
def test_an_owner_elsewhere_lives_by_its_heartbeat(tmp_path, changes):
    path = tmp_path / ".lease"
    owner = forge(path, pid=2**22 + 7, **changes)  # no such process here, which says nothing
    with pytest.raises(Held) as held:
        Lease(path)
    assert held.value.owner == owner
    age(path, 50)
    with pytest.raises(Held):
        Lease(path)
    age(path, 70)
    Lease(path).release()


def test_a_process_we_may_not_look_at_lives_by_its_heartbeat(tmp_path, monkeypatch):
    path = tmp_path / ".lease"
    forge(path)
    monkeypatch.setattr(io, "_process_start", lambda pid: "unknown")
    with pytest.raises(Held):
        Lease(path)
    age(path, 70)
    Lease(path).release()


def test_process_start_of_the_hidden(monkeypatch):
    assert io._process_start(os.getpid()).isdigit()
    assert io._process_start(2**22 + 7) is None
    monkeypatch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))
    assert io._process_start(os.getpid()) == "unknown"
    assert io._process_start(1) == "unknown"
    assert io._process_start(2**22 + 7) is None


@pytest.mark.parametrize("content", ["", "null", '{"token": "x", "place": "y", "start": "z", "pid": "?"}'])
def test_an_unreadable_lease_goes_when_it_is_old(tmp_path, content):
    path = tmp_path / ".lease"
    path.write_text(content)
    with pytest.raises(Held):
        Lease(path)
    age(path, 70)
    Lease(path).release()
    assert names(tmp_path) == []


def test_a_taker_that_died_at_work_does_not_block(tmp_path):
    path = tmp_path / ".lease"
    owner = forge(path, start="1")
    (tmp_path / ".tmp-.lease-takeover").write_text(json.dumps(owner))
    Lease(path).release()
    assert names(tmp_path) == []


def test_one_taker_at_a_time(tmp_path):
    """While a living taker is at it, nobody else removes a dead owner's lease."""
    path, guard = tmp_path / ".lease", tmp_path / ".tmp-.lease-takeover"
    with Lease(guard):
        owner = forge(path, start="1")
        with pytest.raises(Held):
            Lease(path)
        assert json.loads(path.read_text()) == owner
        assert guard.exists()
    Lease(path).release()


def test_without_hard_links(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", fail)
    path = tmp_path / ".lease"
    with Lease(path), pytest.raises(Held):
        Lease(path)
    forge(path, start="1")
    Lease(path).release()
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(UserError, match="Read-only"):
        Lease(tmp_path / ".lease")


@pytest.mark.parametrize("dead_owner", [False, True])
def test_of_many_threads_one_wins(tmp_path, dead_owner):
    for turn in range(20):
        path = tmp_path / str(turn) / ".lease"
        if dead_owner:
            forge(path, start="1")
        barrier = threading.Barrier(8)
        won: list[Lease] = []
        errors: list[BaseException] = []

        def take(path=path, barrier=barrier, won=won, errors=errors):
            barrier.wait()
            try:
                won.append(Lease(path))
            except Held:
                pass
            except (ViRBError, OSError) as error:
                errors.append(error)

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert len(won) == 1
        assert json.loads(path.read_text())["token"] == won[0].token
        won[0].release()
        assert names(path.parent) == []


def test_a_slow_taker_does_not_remove_the_lease_of_a_faster_one(tmp_path, monkeypatch):
    """The slow one reads the dead owner's record; before it acts, the fast one has taken over."""
    path = tmp_path / ".lease"
    forge(path, start="1")
    read, fast = io._read_owner, []

    def slow_read(where: Path):
        owner = read(where)
        if not fast and where == path:
            fast.append(None)
            fast[0] = Lease(path)
        return owner

    monkeypatch.setattr(io, "_read_owner", slow_read)
    with pytest.raises(Held):
        Lease(path)
    assert json.loads(path.read_text())["token"] == fast[0].token
    fast[0].release()


def test_of_many_processes_one_wins(tmp_path):
    path = tmp_path / ".lease"
    forge(path, start="1")
    takers = [taker(path, 3) for _ in range(6)]
    said = [process.stdout.readline().strip() for process in takers]
    for process in takers:
        process.kill()
        process.wait()
        process.stdout.close()
    assert sorted(said) == ["held"] * 5 + ["mine"]
