"""Unpacking: what archives may not do, what is damaged, what was begun."""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
import zipfile

import pytest
from prepare_support import gzipped, put, tar, tar_bytes, tree, zipped

from virb.data.prepare import archives, extract
from virb.data.prepare.archives import Archive, Damaged, Hostile
from virb.data.prepare.extract import STATE, Target, link, unpack
from virb.data.prepare.recipes import below, named, rules
from virb.errors import UserError, ViRBError

ALL = rules((r".+", r"\g<0>"))


def open_up(source, folder, rename=ALL, *, nested=lambda path: False, force=False, tell=lambda *_: None):
    return unpack(source, Target(folder, (source,)), rename, key="all", nested=nested, tell=tell, force=force)


def entry(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


FILES = {"a/one.txt": b"1" * 700, "a/b/two.txt": b"22", "three.txt": b"", "ä/vier.txt": b"4"}


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz", "x.zip"])
def test_every_kind_of_archive(tmp_path, name):
    source = (zipped if name.endswith("zip") else tar)(tmp_path / name, FILES)
    before = source.read_bytes()
    done = open_up(source, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
    assert (done.written, done.kept, done.before) == (4, 0, False)
    assert source.read_bytes() == before
    again = open_up(source, tmp_path / "out")
    assert again.before
    (tmp_path / "out/a/one.txt").unlink()
    assert open_up(source, tmp_path / "out").before  # a finished archive is not read again ...
    forced = open_up(source, tmp_path / "out", force=True)  # ... but when it is asked for
    assert (forced.written, forced.kept) == (1, 3)
    assert tree(tmp_path / "out") == FILES


def test_a_single_gzipped_file_and_a_plain_one(tmp_path):
    open_up(gzipped(tmp_path / "x.h5.gz", b"pixels"), tmp_path / "out", named("y.h5"))
    source = put(tmp_path / "setid.mat", b"numbers")
    assert open_up(source, tmp_path / "out", named("setid.mat")).written == 1
    assert tree(tmp_path / "out") == {"y.h5": b"pixels", "setid.mat": b"numbers"}
    assert open_up(source, tmp_path / "out", named("setid.mat")).before
    put(source, b"Numbers")
    assert open_up(source, tmp_path / "out", named("setid.mat")).written == 1
    assert (tmp_path / "out/setid.mat").read_bytes() == b"Numbers"


def test_what_macos_adds_is_left_out(tmp_path):
    source = zipped(tmp_path / "x.zip", {"__MACOSX/a/._1.jpg": b"x", "a/._1.jpg": b"x", "a/.DS_Store": b"x", "a/1.jpg": b"1"})
    open_up(source, tmp_path / "out")
    assert tree(tmp_path / "out") == {"a/1.jpg": b"1"}


# Hostile archives


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "a\\..\\..\\evil.txt", "C:\\evil.txt", "C:evil.txt"])
@pytest.mark.parametrize("kind", ["x.tar", "x.tar.gz", "x.zip"])
def test_names_outside_of_the_folder(tmp_path, kind, name):
    source = (zipped if kind.endswith("zip") else tar)(tmp_path / "in" / kind, {"ok.txt": b"1", name: b"evil", "later.txt": b"2"})
    with pytest.raises(Hostile, match="outside of the folder"):
        open_up(source, tmp_path / "deep/er/out")
    assert tree(tmp_path / "deep") == {"er/out/ok.txt": b"1"}
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret.txt", "a/../../../secret.txt"])
def test_links_out_of_the_folder(tmp_path, kind, target):
    put(tmp_path / "secret.txt", b"secret")
    source = tar(tmp_path / "x.tar", {"ok.txt": b"1"}, entry("a/link.txt", kind, target))
    with pytest.raises(Hostile, match=r"is a link to .* outside of the folder"):
        open_up(source, tmp_path / "deep/out")
    assert tree(tmp_path / "deep/out") == {"ok.txt": b"1"}


def test_a_link_first_and_a_file_through_it(tmp_path):
    """The usual trick: a link to somewhere, then a file behind the link."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for target in (str(outside), "../outside"):
        source = tar(tmp_path / "x.tar", {}, entry("a", tarfile.SYMTYPE, target), entry("a/evil.txt", tarfile.REGTYPE))
        with pytest.raises(Hostile):
            open_up(source, tmp_path / "out")
    assert not list(outside.iterdir())


def test_links_within_become_files_and_broken_ones_are_said(tmp_path):
    links = [
        entry("a/soft.txt", tarfile.SYMTYPE, "one.txt"),
        entry("hard.txt", tarfile.LNKTYPE, "a/one.txt"),
        entry("b/up.txt", tarfile.SYMTYPE, "../three.txt"),
        entry("dead.txt", tarfile.SYMTYPE, "nothing.txt"),
        entry("folder", tarfile.SYMTYPE, "a"),
    ]
    done = open_up(tar(tmp_path / "x.tar.gz", FILES, *links), tmp_path / "out")
    assert tree(tmp_path / "out") == {**FILES, "a/soft.txt": b"1" * 700, "hard.txt": b"1" * 700, "b/up.txt": b""}
    assert done.left_out == ["dead.txt", "folder"]
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices(tmp_path, kind):
    with pytest.raises(Hostile, match="is a device or a pipe"):
        open_up(tar(tmp_path / "x.tar", {}, entry("null", kind)), tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_links_in_a_zip(tmp_path):
    def link_in_zip(name, target):
        path = zipped(tmp_path / "x.zip", {"a/one.txt": b"1"})
        with zipfile.ZipFile(path, "a") as file:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o120777 << 16
            file.writestr(info, target)
        return path

    open_up(link_in_zip("a/two.txt", "one.txt"), tmp_path / "out")
    assert tree(tmp_path / "out") == {"a/one.txt": b"1", "a/two.txt": b"1"}
    with pytest.raises(Hostile, match="outside of the folder"):
        open_up(link_in_zip("a/two.txt", "../../x"), tmp_path / "out2")


def test_links_in_the_folder_are_not_written_through(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").symlink_to(elsewhere)
    with pytest.raises(UserError, match="by a link; files are not written through it"):
        open_up(tar(tmp_path / "x.tar", {"a/b/one.txt": b"1"}), tmp_path / "out")
    assert not list(elsewhere.iterdir())
    # the folder itself may be a link: many keep their data so
    (tmp_path / "data").symlink_to(elsewhere)
    open_up(tar(tmp_path / "x.tar", {"a/one.txt": b"1"}), tmp_path / "data")
    assert tree(elsewhere) == {"a/one.txt": b"1"}


def test_a_file_that_is_a_link_is_replaced_not_followed(tmp_path):
    victim = put(tmp_path / "victim.txt", b"old")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/one.txt").symlink_to(victim)
    open_up(tar(tmp_path / "x.tar", {"one.txt": b"new"}), tmp_path / "out")
    assert victim.read_bytes() == b"old"
    assert (tmp_path / "out/one.txt").read_bytes() == b"new"


def test_a_source_is_never_written_over(tmp_path):
    source = tar(tmp_path / "x.tar", {"x.tar": b"gone"})
    before = source.read_bytes()
    with pytest.raises(UserError, match="is a source"):
        open_up(source, tmp_path)
    assert source.read_bytes() == before


# Damaged archives


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tar.bz2", "x.tar.xz", "x.zip"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_cut_short(tmp_path, name, share):
    files = {f"{i}.bin": os.urandom(3000) for i in range(20)}
    source = (zipped if name.endswith("zip") else tar)(tmp_path / name, files)
    whole = source.read_bytes()
    source.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(Damaged, match=rf"{name}.* is (damaged|incomplete).*download it again"):
        open_up(source, tmp_path / "out")
    assert all(files[path] == found for path, found in tree(tmp_path / "out").items())  # no half files
    source.write_bytes(whole)
    open_up(source, tmp_path / "out")
    assert tree(tmp_path / "out") == files


def test_a_broken_header_is_not_the_end(tmp_path):
    source = tar(tmp_path / "x.tar", {f"{i}.bin": b"x" * 512 for i in range(4)})
    raw = bytearray(source.read_bytes())
    raw[2 * 1024 + 10] ^= 0xFF  # the third header: tarfile alone would end here in silence
    source.write_bytes(raw)
    with pytest.raises(Damaged, match="a broken header after 2,048 bytes"):
        open_up(source, tmp_path / "out")


def test_what_a_damaged_archive_wrote_is_written_again(tmp_path):
    """A flipped bit shows at the end only, when a file of the right size has been written already."""
    files = {f"{i}.bin": os.urandom(200_000) for i in range(3)}
    source = tar(tmp_path / "x.tar.gz", files)
    whole = source.read_bytes()
    source.write_bytes(whole[:100_000] + bytes([whole[100_000] ^ 1]) + whole[100_001:])
    with pytest.raises(Damaged):
        open_up(source, tmp_path / "out")
    assert (tmp_path / "out/0.bin").stat().st_size == 200_000
    assert tree(tmp_path / "out")["0.bin"] != files["0.bin"]
    source.write_bytes(whole)
    assert open_up(source, tmp_path / "out").kept == 0
    assert tree(tmp_path / "out") == files


def test_what_is_no_archive(tmp_path):
    for text, message in (
        (b"<!DOCTYPE html><html>log in</html>", "is a web page, not an archive"),
        (b"", "is empty; download it again"),
        (b"hello " * 200, "is damaged or incomplete"),
    ):
        for name in ("x.tar.gz", "x.zip", "x.tar"):
            with pytest.raises(Damaged, match=message):
                open_up(put(tmp_path / name, text), tmp_path / "out")


def test_another_archive_of_the_same_name(tmp_path):
    with pytest.raises(UserError, match="has none of the files that are looked for"):
        open_up(tar(tmp_path / "images.tar.gz", FILES), tmp_path / "out", below("images"))


def test_a_full_disk(tmp_path, monkeypatch):
    source = tar(tmp_path / "x.tar", FILES)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(extract.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"x.tar needs at least .* GB in .*, but 1e-06 GB are free there"):
        open_up(source, tmp_path / "out")
    monkeypatch.undo()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(extract.os, "replace", full)
    with pytest.raises(ViRBError, match=r"the disk is full: cannot write .*run the same command again"):
        open_up(source, tmp_path / "out")
    monkeypatch.undo()
    assert tree(tmp_path / "out") == {}
    assert not list((tmp_path / "out" / STATE).glob("tmp-*"))
    open_up(source, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES


# Going on


def stop_after(monkeypatch, n):
    """Ctrl-C while file ``n`` is written."""
    original, count = Target.write, iter(range(1, 10_000))

    def write(self, path, source, *rest):
        if next(count) == n:
            (self.state / "tmp-1").write_bytes(source.read(10))  # as a killed process leaves it
            raise KeyboardInterrupt
        original(self, path, source, *rest)

    monkeypatch.setattr(Target, "write", write)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.zip"])
def test_interrupted_unpacking_goes_on(tmp_path, monkeypatch, name):
    files = {f"{i:02}.bin": os.urandom(1000 + i) for i in range(10)}
    source = (zipped if name.endswith("zip") else tar)(tmp_path / name, files)
    stop_after(monkeypatch, 6)
    with pytest.raises(KeyboardInterrupt):
        open_up(source, tmp_path / "out")
    monkeypatch.undo()
    assert tree(tmp_path / "out") == dict(list(files.items())[:5])
    times = {path: (tmp_path / "out" / path).stat().st_mtime_ns for path in tree(tmp_path / "out")}
    put(tmp_path / "out/04.bin", b"cut")  # a file that is not whole is written again
    done = open_up(source, tmp_path / "out")
    assert (done.written, done.kept) == (6, 4)
    assert tree(tmp_path / "out") == files
    assert all((tmp_path / "out" / path).stat().st_mtime_ns == times[path] for path in sorted(times)[:4])


def test_archives_within_an_archive_go_on_one_by_one(tmp_path, monkeypatch):
    inner = {f"n{i}.tar": {f"{i}_{j}.jpg": os.urandom(700) for j in range(3)} for i in range(4)}
    source = tar(tmp_path / "train.tar", {name: tar_bytes(files, tmp_path) for name, files in inner.items()})
    rename = rules((r"(n\d)\.tar/(.+)", r"train/\1/\2"))
    stop_after(monkeypatch, 8)  # in the third
    with pytest.raises(KeyboardInterrupt):
        open_up(source, tmp_path / "out", rename, nested=lambda path: path.endswith(".tar"))
    monkeypatch.undo()
    opened = []
    original = Archive._inner
    monkeypatch.setattr(Archive, "_inner", lambda self, file, path, skip: opened.append(path) or original(self, file, path, skip))
    done = open_up(source, tmp_path / "out", rename, nested=lambda path: path.endswith(".tar"))
    assert opened == ["n2.tar", "n3.tar"]
    assert (done.written, done.kept) == (5, 1)
    expected = {f"train/n{i}/{name}": data for i, files in enumerate(inner.values()) for name, data in files.items()}
    assert tree(tmp_path / "out") == expected


def test_another_file_under_a_finished_name_is_unpacked_anew(tmp_path):
    open_up(tar(tmp_path / "x.tar", {"a.txt": b"old"}), tmp_path / "out")
    open_up(tar(tmp_path / "x.tar", {"a.txt": b"new"}), tmp_path / "out")
    assert tree(tmp_path / "out") == {"a.txt": b"new"}


def test_progress_runs_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "_TELL_EVERY", 0.0)
    for name in ("x.tar", "x.tar.gz", "x.zip"):
        source = (zipped if name.endswith("zip") else tar)(tmp_path / name, {f"{i}.bin": os.urandom(20_000) for i in range(10)})
        seen = []
        open_up(source, tmp_path / f"out {name}", tell=lambda *what, seen=seen: seen.append(what))
        assert {(what, total) for what, _, total in seen} == {(name, source.stat().st_size)}
        places = [done for _, done, _ in seen]
        assert places == sorted(places)
        assert places[0] == 0
        assert places[-1] == source.stat().st_size
        assert len(set(places)) > 3


def test_folders_are_linked(tmp_path):
    put(tmp_path / "downloads/samples/a.jpg", b"1")
    target = Target(tmp_path / "out")
    assert link(tmp_path / "downloads/samples", target, "samples")
    assert not link(tmp_path / "downloads/samples", target, "samples")
    assert (tmp_path / "out/samples/a.jpg").read_bytes() == b"1"
    put(tmp_path / "other/samples/a.jpg", b"2")
    with pytest.raises(UserError, match="is there already and is not"):
        link(tmp_path / "other/samples", target, "samples")


def test_an_encrypted_zip_and_unreadable_files(tmp_path):
    source = zipped(tmp_path / "x.zip", {"a.txt": b"1"})
    raw = bytearray(source.read_bytes())
    raw[6] |= 1  # flag of the local header ...
    raw[raw.index(b"PK\x01\x02") + 8] |= 1  # ... and of the directory
    source.write_bytes(raw)
    with pytest.raises(Damaged, match="is encrypted"):
        open_up(source, tmp_path / "out")
    with pytest.raises(ViRBError, match="cannot be read: No such file"), archives.reading(tmp_path / "none"):
        (tmp_path / "none").read_bytes()
