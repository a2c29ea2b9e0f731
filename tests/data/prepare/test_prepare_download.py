"""Downloading, from a server on this machine in place of the net: through torchvision's own code with its check sums, and from plain
addresses, which are gone on with where they broke."""

from __future__ import annotations

import functools
import hashlib
import http.server
import re
import threading
from pathlib import Path

import pytest
import torchvision.datasets
from prepare_support import picture, tar, zipped
from sets_support import Palette, check_planted, write

from virb import transfer
from virb.data.datasets.caltech import BACKGROUND
from virb.data.datasets.facts import FACTS
from virb.data.prepare import download as module
from virb.data.prepare import recipes_of
from virb.data.prepare.addresses import ARCHIVES, LISTS, Address
from virb.data.prepare.download import _CALLS, download, downloadable, fetch, lists_only
from virb.errors import UserError, ViRBError

textures = Palette(("banded", "dotted"))


@pytest.fixture
def served(tmp_path, monkeypatch):
    """torchvision's DTD comes from a server on this machine."""
    folder = tmp_path / "server"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield from _dtd(folder, f"http://127.0.0.1:{server.server_port}", monkeypatch)
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def _dtd(folder, address, monkeypatch):
    files = {f"dtd/images/{name}/{name}_{i:04d}.jpg": picture(textures, name) for name in textures.names for i in range(3)}
    for i, split in enumerate(("train", "val", "test")):
        files[f"dtd/labels/{split}1.txt"] = "".join(f"{name}/{name}_{i:04d}.jpg\n" for name in textures.names)
    source = tar(folder / "dtd-r1.0.1.tar.gz", files)
    monkeypatch.setattr(torchvision.datasets.DTD, "_URL", f"{address}/{source.name}")
    monkeypatch.setattr(torchvision.datasets.DTD, "_MD5", hashlib.md5(source.read_bytes()).hexdigest())
    yield source


def test_dtd_comes_by_torchvision(served, tmp_path):
    said = []
    dataset = download("dtd", tmp_path / "data", said.append)
    check_planted(dataset, textures)
    assert "by torchvision's DTD" in said[0]
    assert FACTS["dtd"].licence in said[0]
    served.unlink()
    again = []
    download("dtd", tmp_path / "data", again.append)  # what is there is not fetched again
    assert again == []


def test_a_wrong_check_sum_or_a_server_that_is_gone(served, tmp_path):
    served.write_bytes(served.read_bytes() + b"more")
    with pytest.raises(ViRBError, match=r"dtd could not be downloaded \(File not found or corrupted.*By hand: https://"):
        download("dtd", tmp_path / "data")
    served.unlink()
    with pytest.raises(ViRBError, match=r"dtd could not be downloaded \(.*404"):
        download("dtd", tmp_path / "other")


def test_the_others_say_where_to_get_them(tmp_path):
    for name in set(FACTS) - set(_CALLS) - set(ARCHIVES) - set(LISTS):
        with pytest.raises(UserError, match=r"is not downloaded by ViRB. Get it from") as caught:
            download(name, tmp_path)
        assert FACTS[name].source in str(caught.value)
    assert not downloadable("imagenet")
    with pytest.raises(UserError, match="no public dataset"):
        download("digits", tmp_path)
    assert not list(tmp_path.iterdir())


def test_torchvision_has_every_class_and_argument():
    import inspect

    for name, (cls, calls, _) in _CALLS.items():
        assert name in FACTS
        parameters = inspect.signature(getattr(torchvision.datasets, cls)).parameters
        assert "download" in parameters
        assert all(set(call) <= set(parameters) for call in calls)


# Plain addresses

steps = Palette(("1", "2"))


class Host(http.server.BaseHTTPRequestHandler):
    """Files with a date and ranges; ``breaks`` says after how many bytes each of the next answers ends."""

    files: dict[str, bytes]
    asked: list[str]
    breaks: list[int]

    def do_GET(self):
        self.asked.append(f"{self.path} {self.headers.get('Range', '')}".strip())
        content = self.files.get(self.path.strip("/"))
        if content is None:
            return self.send_error(404)
        start = int(re.findall(r"\d+", self.headers["Range"])[0]) if "Range" in self.headers else 0
        self.send_response(206 if start else 200)
        self.send_header("Last-Modified", "Mon, 02 Mar 2020 10:00:00 GMT")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:][: self.breaks.pop(0) if self.breaks else None])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def host(monkeypatch):
    handler = type("Here", (Host,), {"files": {}, "asked": [], "breaks": []})
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transfer, "_PAUSE", 0.01)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        handler.home = f"http://127.0.0.1:{server.server_port}"
        yield handler
        server.shutdown()


def thor_steps(folder):
    files = {}
    for part in ("train", "val"):
        for i, name in enumerate(steps.names * 2):
            files[f"thor_num_steps/{part}/F{part}/{i}_rgb.jpg"] = picture(steps, name)
        files[f"thor_num_steps/{part}_labels.txt"] = "".join(f"{part}/F{part}/{i} {name}\n" for i, name in enumerate(steps.names * 2))
    return zipped(folder / "thor_num_steps.zip", files).read_bytes()


def serve(host, monkeypatch, dataset, table, **files):
    """The dataset's addresses, at this host, with the content given."""
    host.files.update({name.replace("__", "."): content for name, content in files.items()})
    sums = {name: hashlib.md5(content).hexdigest() for name, content in host.files.items()}
    addresses = tuple(Address(f"{host.home}/{name}", sums.get(name)) for name in map(file_of, table[dataset]))
    monkeypatch.setattr(module, "ARCHIVES" if table is ARCHIVES else "LISTS", {**table, dataset: addresses})
    return addresses


def file_of(address):
    return address.url.rpartition("/")[2]


def test_archives_from_plain_addresses_are_fetched_and_unpacked(host, tmp_path, monkeypatch):
    content = thor_steps(tmp_path)
    serve(host, monkeypatch, "thor-num-steps", ARCHIVES, thor_num_steps__zip=content)
    host.breaks += [len(content) // 3, len(content) // 3]
    said, told = [], []
    root = tmp_path / "data"
    dataset = download("thor-num-steps", root, said.append, lambda *what: told.append(what))
    check_planted(dataset, steps)
    third = len(content) // 3
    assert host.asked == ["/thor_num_steps.zip", f"/thor_num_steps.zip bytes={third}-", f"/thor_num_steps.zip bytes={2 * third}-"]
    assert (root / "downloads/thor-num-steps/thor_num_steps.zip").read_bytes() == content
    assert sorted(path.name for path in (root / "downloads/thor-num-steps").iterdir()) == ["thor_num_steps.zip"]
    assert ("fetching thor_num_steps.zip", len(content), len(content)) in told
    assert FACTS["thor-num-steps"].licence in said[0]
    assert said[-1] == f"the archives in {root / 'downloads/thor-num-steps'} are no longer needed"
    download("thor-num-steps", root)
    assert len(host.asked) == 3  # what is there is not fetched again
    (root / "thor_num_steps/train_labels.txt").unlink()
    check_planted(download("thor-num-steps", root), steps)  # nor is an archive that is there
    assert len(host.asked) == 3


def test_a_later_command_goes_on(host, tmp_path, monkeypatch):
    content = bytes(range(256)) * 40
    host.files["x.tar"] = content
    address = Address(f"{host.home}/x.tar", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    host.breaks.append(1000)
    with pytest.raises(ViRBError, match=r"the connection broke after 1 kB of 10.2 kB; 1 kB are kept, run the same command again"):
        fetch(address, tmp_path)
    assert not (tmp_path / "x.tar").exists()  # whole or not at all
    assert fetch(address, tmp_path).read_bytes() == content
    assert host.asked == ["/x.tar", "/x.tar bytes=1000-"]


def test_another_md5_sum_is_refused(host, tmp_path):
    host.files["x.tar"] = b"not what was published"
    address = Address(f"{host.home}/x.tar", "0" * 32)
    with pytest.raises(UserError, match=r"x.tar gave has the md5 sum [0-9a-f]{32} \(22 bytes\), published is 0{32}: it is not kept"):
        fetch(address, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "x.tar").write_bytes(b"somebody's own")
    with pytest.raises(UserError, match=r"x.tar is there, but has the md5 sum .*: move it away to go on"):
        fetch(address, tmp_path)
    with pytest.raises(UserError, match=r"cannot download .*/y.tar: the file is not there"):
        fetch(Address(f"{host.home}/y.tar"), tmp_path)


def test_nuscenes_lists_come_and_the_images_do_not(host, tmp_path, monkeypatch):
    serve(host, monkeypatch, "nuscenes-actions", LISTS, nuScenes_train__json=b"[]", nuScenes_test__json=b"[1]")
    assert lists_only("nuscenes-actions")
    folder = tmp_path / "downloads/nuscenes-actions"
    with pytest.raises(
        UserError, match=rf"ViRB's lists are in {folder}; .*Then: virb data prepare nuscenes-actions --source {folder} FOLDER"
    ):
        download("nuscenes-actions", tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["nuScenes_test.json", "nuScenes_train.json"]


def test_caltech_comes_with_virbs_split_or_by_the_rule_where_its_lists_are_gone(host, tmp_path, monkeypatch):
    palette = Palette((BACKGROUND, "accordion", "ant"))
    folder = tmp_path / "caltech101/101_ObjectCategories"
    for name in palette.names:
        for i in range(4):
            palette.put(folder / name / f"image_{i}.jpg", name)
    train, test = ([f"{name}/image_{i}.jpg" for name in palette.names] for i in (0, 3))
    serve(host, monkeypatch, "caltech101", LISTS)
    said = []
    assert "by the fixed rule" in download("caltech101", tmp_path, said.append).note
    assert re.match(r"ViRB's lists cannot be had \(cannot download .*404.*\); split: 30 per class by the fixed rule", said[0])
    write(tmp_path / "train.json", train)
    write(tmp_path / "test.json", test)
    contents = {f"caltech101_{split}__json": Path(tmp_path / f"{split}.json").read_bytes() for split in ("train", "test")}
    serve(host, monkeypatch, "caltech101", LISTS, **contents)
    dataset = download("caltech101", tmp_path, said.append)
    assert dataset.note == "split: the JSON lists of ViRB 2021"
    assert [len(samples) for samples in dataset.samples.values()] == [3, 3]
    asked = len(host.asked)
    download("caltech101", tmp_path)
    assert len(host.asked) == asked


def test_every_address_is_of_an_archive_that_a_recipe_wants():
    for name, addresses in {**ARCHIVES, **LISTS}.items():
        assert name in FACTS
        wanted = [part for recipe in recipes_of(name) for part in recipe.parts]
        for address in addresses:
            assert address.url.startswith("https://")
            assert any(Path(file_of(address)).match(pattern) for part in wanted for pattern in part.names), address
            assert address.md5 is None or re.fullmatch("[0-9a-f]{32}", address.md5)
    for name, addresses in ARCHIVES.items():
        have = [file_of(address) for address in addresses]
        assert any(all(any(Path(n).match(p) for n in have for p in part.names) for part in r.needed) for r in recipes_of(name)), name
        assert downloadable(name)
