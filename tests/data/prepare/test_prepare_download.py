"""Downloading, from a server on this machine in place of the net, through torchvision's own code with its check sums."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading

import pytest
import torchvision.datasets
from prepare_support import picture, tar
from sets_support import Palette, check_planted

from virb.data.datasets.facts import FACTS
from virb.data.prepare.download import _CALLS, download, downloadable
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
    for name in set(FACTS) - set(_CALLS):
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
