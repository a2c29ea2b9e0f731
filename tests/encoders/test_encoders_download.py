"""Downloads, against a server on this machine that behaves like the hosts that weights come from."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import safetensors.torch
import torch

from virb import share_links, transfer
from virb.encoders.download import NotDownloaded, check_sha256, weights_file
from virb.encoders.load import load_encoder
from virb.errors import UserError, ViRBError
from virb.io import Lease

BODY = b"\x80\x02" + bytes(range(256)) * 2000  # 512 kB that begin like a pickle
OTHER = b"\x80\x04" + BODY[:1:-1]
SHA = hashlib.sha256(BODY).hexdigest()
FORM = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body><p>too large to scan</p>
<form id="download-form" action="{action}" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="FILE_1"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="12-ab"></form></body></html>"""
LINK = '<html><body><a href="/uc?export=download&amp;confirm=Ab1_&amp;id=FILE_2">Download anyway</a></body></html>'


class Host(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server: Any = self.server
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        server.asked.append((self.path, self.headers.get("Range")))
        server.asked_headers.append(dict(self.headers))
        getattr(self, "at_" + parts.path.strip("/").replace("/", "_").replace(".", "_").replace("-", "_"))(query)

    def answer(self, body: bytes = b"", status: int = 200, kind: str = "application/octet-stream", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def ranged(self, **headers: str) -> None:
        """The body from where it was asked for, as a real file server does it."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        tag = headers.get("ETag", '"v1"')
        if not found or self.headers.get("If-Range") != tag:
            return self.answer(BODY, **{"ETag": tag, **headers})
        start = int(found[1])
        if start >= len(BODY):
            return self.answer(b"", 416, Content_Range=f"bytes */{len(BODY)}")
        return self.answer(BODY[start:], 206, **{"ETag": tag, "Content_Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}", **headers})

    def broken(self, sent: int, tag: str = '"v1"') -> None:
        """Announces the whole body and hangs up in the middle."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(BODY[:sent])
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    def at_files_model_pth_tar(self, _: Any) -> None:
        self.ranged()

    def at_files_named(self, _: Any) -> None:
        self.ranged(Content_Disposition="attachment; filename=\"../../etc/my weights.pth\"; filename*=UTF-8''..%2F..%2Fmy%20weights.pth")

    def at_files_flaky_pth(self, _: Any) -> None:
        if "Range" not in self.headers:
            self.broken(200_000)
        else:
            self.ranged()

    def at_files_replaced_pth(self, _: Any) -> None:
        server: Any = self.server
        if len(server.asked) == 1:
            self.broken(200_000, tag='"old"')
        else:
            self.ranged(ETag='"new"')

    def at_files_truncated_pth(self, _: Any) -> None:
        self.broken(1000)

    def at_files_busy_pth(self, _: Any) -> None:
        server: Any = self.server
        self.answer(status=503) if len(server.asked) < 3 else self.ranged()

    def at_files_page_pth(self, _: Any) -> None:
        self.answer(b"\n<!DOCTYPE html><html>please log in</html>", kind="application/octet-stream")

    def at_files_labelled_pth(self, _: Any) -> None:
        self.answer(BODY, kind="text/html; charset=utf-8")

    def at_files_empty_pth(self, _: Any) -> None:
        self.answer(b"")

    def at_files_gone_pth(self, _: Any) -> None:
        self.answer(b"<html>not here</html>", 404, "text/html")

    def at_files_private_pth(self, _: Any) -> None:
        self.answer(b"", 403)

    def at_files_checkpoint_pth(self, _: Any) -> None:
        self.answer(BODY)

    def at_other_checkpoint_pth(self, _: Any) -> None:
        self.answer(OTHER)

    def at_unmeasured_it_pt(self, _: Any) -> None:
        """Without Content-Length: the body ends where the connection does."""
        server: Any = self.server
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(server.tiny)
        self.close_connection = True

    def at_weights_tiny_pt(self, _: Any) -> None:
        server: Any = self.server
        self.answer(server.tiny)

    # Google Drive: a small file at once, a large one after a page with a form (today), a link, or a cookie (before).

    def at_uc(self, query: dict[str, str]) -> None:
        server: Any = self.server
        name = {"Content_Disposition": 'attachment; filename="backbone.pth"'}
        if query.get("id") == "SMALL":
            self.ranged(**name)
        elif query.get("id") == "FILE_1":
            self.answer(FORM.format(action=f"{server.home}/download").encode(), kind="text/html; charset=utf-8")
        elif query.get("id") == "FILE_2":
            self.ranged(**name) if query.get("confirm") == "Ab1_" else self.answer(LINK.encode(), kind="text/html")
        elif query.get("id") == "FILE_3":
            if query.get("confirm") == "Zz9" and "download_warning_1=Zz9" in self.headers.get("Cookie", ""):
                self.ranged(**name)
            else:
                self.answer(b"<html>scan warning</html>", kind="text/html", Set_Cookie="download_warning_1=Zz9")
        elif query.get("id") == "BUSY":
            self.answer(b"<html><title>Google Drive - Quota exceeded</title></html>", kind="text/html")
        else:
            self.answer(b"<html>You need access</html>", kind="text/html")

    def at_download(self, query: dict[str, str]) -> None:
        assert query == {"id": "FILE_1", "export": "download", "confirm": "t", "uuid": "12-ab"}
        self.ranged(Content_Disposition='attachment; filename="backbone.pth"')

    # Dropbox: a page, or with dl=1 a redirect to the file.

    def at_scl_fi_abc_TimeT_pth(self, query: dict[str, str]) -> None:
        if query.get("dl") == "1" and query.get("rlkey") == "k":
            self.answer(status=302, Location="/dropbox_content")
        else:
            self.answer(b"<!DOCTYPE html><html>preview</html>", kind="text/html")

    def at_dropbox_content(self, _: Any) -> None:
        self.answer(BODY, Content_Disposition='attachment; filename="TimeT.pth"')


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server, a fresh current folder, and nothing between them."""
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.home, server.asked, server.asked_headers = f"http://127.0.0.1:{server.server_port}", [], []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transfer, "_PAUSE", 0.01)
    yield server
    server.shutdown()
    server.server_close()


def left_over() -> list[str]:
    return sorted(path.name for path in Path("pretrained_weights").iterdir())


def test_a_file_is_downloaded_once(host) -> None:
    told: list[transfer.Progress] = []
    url = f"{host.home}/files/model.pth.tar?download=true#top"
    path = weights_file(url, progress=told.append)
    assert path == Path("pretrained_weights/model.pth.tar")
    assert path.read_bytes() == BODY
    assert left_over() == ["model.pth.tar", "model.pth.tar.source.json"]
    assert (told[-1].done, told[-1].total, told[-1].finished) == (len(BODY), len(BODY), True)
    assert [state.done for state in told] == sorted(state.done for state in told)
    assert weights_file(url, sha256=SHA.upper()) == path
    assert len(host.asked) == 1
    assert host.asked_headers[0]["User-Agent"].startswith("virb/")


def test_a_path_of_ones_own(host) -> None:
    path = weights_file(f"{host.home}/files/model.pth.tar", path=Path("here/MoCo.pt"), sha256=SHA)
    assert (path, path.read_bytes()) == (Path("here/MoCo.pt"), BODY)
    assert not Path("pretrained_weights").exists()


def test_a_file_put_there_by_hand_is_used(host) -> None:
    Path("pretrained_weights").mkdir()
    Path("pretrained_weights/model.pth.tar").write_bytes(b"mine")
    assert weights_file(f"{host.home}/files/model.pth.tar").read_bytes() == b"mine"
    with pytest.raises(UserError, match=r"has sha256 .* expected"):
        weights_file(f"{host.home}/files/model.pth.tar", sha256=SHA)
    assert Path("pretrained_weights/model.pth.tar").read_bytes() == b"mine"
    assert host.asked == []


def test_the_servers_name_stays_inside_the_folder(host) -> None:
    url = f"{host.home}/files/named"
    assert weights_file(url) == Path("pretrained_weights/my_weights.pth")
    assert weights_file(url, offline=True) == Path("pretrained_weights/my_weights.pth")  # found again by its record
    assert len(host.asked) == 1


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("..\\..\\a b.pth", "a_b.pth"),
        (".bashrc", "bashrc"),
        ("a;rm -rf.pt", "a_rm_-rf.pt"),
        ("..", "weights"),
        ("x.part", "x.part.weights"),
        ("x.source.json", "x.source.json.weights"),
        ("ViT@1+2=3.pt", "ViT@1+2=3.pt"),
        ("x" * 300 + ".pth", "x" * 116 + ".pth"),
    ],
)
def test_names(given: str, safe: str) -> None:
    assert transfer.safe_name(given) == safe


def test_two_addresses_with_one_name(host) -> None:
    first = weights_file(f"{host.home}/files/checkpoint.pth")
    second = weights_file(f"{host.home}/other/checkpoint.pth")
    assert first == Path("pretrained_weights/checkpoint.pth")
    assert re.fullmatch(r"checkpoint-[0-9a-f]{8}\.pth", second.name)
    assert (first.read_bytes(), second.read_bytes()) == (BODY, OTHER)
    assert weights_file(f"{host.home}/other/checkpoint.pth") == second
    assert weights_file(f"{host.home}/files/checkpoint.pth") == first
    assert len(host.asked) == 2


def test_resumes_by_range_after_a_broken_connection(host) -> None:
    assert weights_file(f"{host.home}/files/flaky.pth", sha256=SHA).read_bytes() == BODY
    assert [asked[1] for asked in host.asked] == [None, "bytes=200000-"]
    assert left_over() == ["flaky.pth", "flaky.pth.source.json"]


def test_resumes_in_a_later_run(host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    with pytest.raises(ViRBError, match=r"broke .*200 kB are kept, run the same command again to go on"):
        weights_file(f"{host.home}/files/flaky.pth")
    assert not Path("pretrained_weights/flaky.pth").exists()
    assert weights_file(f"{host.home}/files/flaky.pth").read_bytes() == BODY
    assert host.asked[-1][1] == "bytes=200000-"


def test_a_file_that_changed_meanwhile_starts_over(host) -> None:
    assert weights_file(f"{host.home}/files/replaced.pth").read_bytes() == BODY
    assert host.asked[-1][1] == "bytes=200000-"
    assert host.asked_headers[-1]["If-Range"] == '"old"'


def test_only_the_answer_was_lost(host) -> None:
    url = f"{host.home}/files/model.pth.tar"
    folder = Path("pretrained_weights")
    folder.mkdir()
    part = folder / f"model.pth.tar.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part"
    part.write_bytes(BODY)
    part.with_name(part.name + ".json").write_text(f'{{"validator": "\\"v1\\"", "total": {len(BODY)}, "name": "model.pth.tar"}}')
    assert weights_file(url, sha256=SHA).read_bytes() == BODY
    assert [asked[1] for asked in host.asked] == [f"bytes={len(BODY)}-"]


def test_truncated_for_good(host) -> None:
    with pytest.raises(ViRBError, match=r"cannot download http.*truncated.pth: the connection broke after 1 kB of 512 kB"):
        weights_file(f"{host.home}/files/truncated.pth")
    assert not any(name.endswith(".pth") for name in left_over())


def test_a_busy_server_is_asked_again(host) -> None:
    assert weights_file(f"{host.home}/files/busy.pth").read_bytes() == BODY
    assert len(host.asked) == 3


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/files/page.pth", "answers with a web page, not with a file; open the address in a browser"),
        ("/files/labelled.pth", "answers with a web page"),
        ("/files/gone.pth", r"the file is not there \(any more\) \(404 Not Found\)"),
        ("/files/private.pth", r"it refuses; is it public\? \(403 Forbidden\)"),
        ("/files/empty.pth", "is an empty file"),
    ],
)
def test_what_is_no_weights_file_is_never_saved(host, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        weights_file(host.home + path)
    assert left_over() == [] or not any(name.endswith(".pth") for name in left_over())
    assert len(host.asked) == 1


def weights_of(kind: str) -> bytes:
    """A file of that kind with two tensors."""
    state, buffer = {"a": torch.arange(4000.0), "b": torch.ones(3)}, io.BytesIO()
    if kind == "safetensors":
        return safetensors.torch.save(state)
    if kind.startswith("pickle"):
        return pickle.dumps({name: tensor.numpy() for name, tensor in state.items()}, protocol=int(kind[-1]))
    torch.save(state, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


KINDS = ("zip", "legacy", "pickle 2", "pickle 5", "safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["unmeasured/it.pt", "weights/tiny.pt"])
def test_weights_of_every_kind_arrive(host, kind: str, place: str) -> None:
    host.tiny = weights_of(kind)
    assert weights_file(f"{host.home}/{place}").read_bytes() == host.tiny


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_cut_short_without_a_length_is_refused(host, kind: str) -> None:
    whole = weights_of(kind)
    for cut in (len(whole) // 2, len(whole) - 1):
        host.tiny = whole[:cut]
        with pytest.raises(UserError, match=r"unmeasured/it.pt gave no weights: it .*(end is missing|header says)") as caught:
            weights_file(f"{host.home}/unmeasured/it.pt")
        assert "it lies at pretrained_weights/it.pt.refused" in str(caught.value)
        assert left_over() == ["it.pt.refused"]
    host.tiny = whole  # the next run starts anew
    assert weights_file(f"{host.home}/unmeasured/it.pt").read_bytes() == whole


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            b'{"message": "API rate limit exceeded"}',
            r"it begins with '{\"message\": \"API rate limit exceeded\"}'; weights are torch files",
        ),
        (b"Rate limit exceeded", "it begins with 'Rate limit exceeded'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "it begins with 'version https://git-lfs"),
        (b"\x1f\x8b\x08" + bytes(100), "it is of another kind"),
        (b"\x80", "it is of another kind"),
        (b"\x10\0\0\0\0\0\0\0{not json}", "it begins like safetensors, but its header is not whole"),
    ],
)
@pytest.mark.parametrize("place", ["unmeasured/it.pt", "weights/tiny.pt"])
def test_what_is_no_weights_is_kept_apart(host, body: bytes, says: str, place: str) -> None:
    host.tiny = body
    name = place.rpartition("/")[2]
    with pytest.raises(UserError, match=f"{place} gave no weights: {says}"):
        weights_file(f"{host.home}/{place}")
    assert left_over() == [f"{name}.refused"]
    assert Path(f"pretrained_weights/{name}.refused").read_bytes() == body
    with pytest.raises(NotDownloaded):
        weights_file(f"{host.home}/{place}", offline=True)


def test_wrong_sha256(host) -> None:
    url = f"{host.home}/files/model.pth.tar"
    with pytest.raises(UserError, match=rf"gave a file with sha256 {SHA}, expected {'0' * 64}\n  it is not used; it lies at .*refused"):
        weights_file(url, sha256="0" * 64)
    assert left_over() == ["model.pth.tar.refused"]
    with pytest.raises(NotDownloaded):
        weights_file(url, offline=True)
    path = weights_file(url, sha256=SHA)
    path.write_bytes(b"changed")
    with pytest.raises(UserError, match="another file, or a damaged one"):
        check_sha256(path, SHA)
    assert path.read_bytes() == b"changed"


def test_no_network(host) -> None:
    host.shutdown()
    host.server_close()
    with pytest.raises(ViRBError, match=r"cannot download http.*: no connection \(.*refused"):
        weights_file(f"{host.home}/files/model.pth.tar")


def test_disk_full(host, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{host.home}/files/model.pth.tar"
    with monkeypatch.context() as patch:
        patch.setattr(transfer.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
        with pytest.raises(ViRBError, match=r"the disk is full: .* has 512 kB to go, pretrained_weights has 1 kB left"):
            weights_file(url)
    part = Path("pretrained_weights") / f"model.pth.tar.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part"
    part.unlink(missing_ok=True)
    part.symlink_to("/dev/full")
    with pytest.raises(ViRBError, match="the disk is full: cannot write"):
        weights_file(url)


@pytest.mark.parametrize("file", ["SMALL", "FILE_1", "FILE_2", "FILE_3"])
def test_google_drive(host, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    monkeypatch.setattr(share_links, "DRIVE", host.home)
    share = f"https://drive.google.com/file/d/{file}/view?usp=sharing"
    with pytest.raises(NotDownloaded, match="put the file anywhere") as missing:
        weights_file(share, offline=True)
    assert missing.value.address == share
    path = weights_file(share, sha256=SHA)
    assert path == Path("pretrained_weights/backbone.pth")
    asked = len(host.asked)
    assert weights_file(share, offline=True) == path
    assert len(host.asked) == asked


def test_google_drive_says_no(host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share_links, "DRIVE", host.home)
    with pytest.raises(UserError, match="too many people downloaded it lately"):
        weights_file("https://drive.google.com/uc?id=BUSY")
    with pytest.raises(UserError, match="not shared with everyone"):
        weights_file("https://drive.google.com/open?id=SECRET")


def test_dropbox(host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share_links, "DROPBOX_HOSTS", ("127.0.0.1",))
    assert weights_file(f"{host.home}/scl/fi/abc/TimeT.pth?rlkey=k&dl=0", sha256=SHA) == Path("pretrained_weights/TimeT.pth")


@pytest.mark.parametrize(
    ("link", "direct"),
    [
        ("https://drive.google.com/file/d/1-A_b/view?usp=sharing", "https://drive.google.com/uc?export=download&id=1-A_b"),
        ("https://drive.google.com/uc?id=1-A_b&export=view", "https://drive.google.com/uc?export=download&id=1-A_b"),
        ("https://drive.google.com/open?id=1&resourcekey=0-x", "https://drive.google.com/uc?export=download&id=1&resourcekey=0-x"),
        ("https://drive.usercontent.google.com/download?id=1", "https://drive.google.com/uc?export=download&id=1"),
        ("https://www.dropbox.com/s/abc/a.pth?dl=0", "https://www.dropbox.com/s/abc/a.pth?dl=1"),
        ("https://www.dropbox.com/scl/fi/a/b.pth?rlkey=r&dl=0", "https://www.dropbox.com/scl/fi/a/b.pth?rlkey=r&dl=1"),
        ("https://www.dropbox.com/s/abc/a.pth", "https://www.dropbox.com/s/abc/a.pth?dl=1"),
        ("https://dl.fbaipublicfiles.com/a/b.pth", "https://dl.fbaipublicfiles.com/a/b.pth"),
        ("https://drive.google.com.evil.org/file/d/1/view", "https://drive.google.com.evil.org/file/d/1/view"),
    ],
)
def test_share_links(link: str, direct: str) -> None:
    assert share_links.direct(link) == direct


def test_processes_do_not_clash(host) -> None:
    url = f"{host.home}/files/flaky.pth"
    code = f"from virb.encoders.download import weights_file; print(weights_file({url!r}))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        assert [process.communicate(timeout=60)[0].strip() for process in processes] == ["pretrained_weights/flaky.pth"] * 3
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert Path("pretrained_weights/flaky.pth").read_bytes() == BODY
    assert len(host.asked) == 2  # one of them downloaded, in two pieces
    assert left_over() == ["flaky.pth", "flaky.pth.source.json"]


def test_waits_for_another_process_and_tells_its_progress(host) -> None:
    url = f"{host.home}/files/model.pth.tar"
    stem = f"pretrained_weights/model.pth.tar.{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    lease = Lease(Path(f"{stem}.lease"))
    Path(f"{stem}.part").write_bytes(b"12345")
    told: list[transfer.Progress] = []

    def tell(state: transfer.Progress) -> None:
        told.append(state)
        if len(told) == 1:
            Path(f"{stem}.part").rename("pretrained_weights/model.pth.tar")  # the other one is done
            lease.release()

    weights_file(url, progress=tell)
    assert told[0].done == 5
    assert host.asked == []


def test_an_encoder_from_an_address(host) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18()
    torch.save(network.state_dict(), "tiny.pt")
    host.tiny = Path("tiny.pt").read_bytes()
    url = f"{host.home}/weights/tiny.pt"
    with pytest.raises(
        NotDownloaded, match=r"not downloaded yet: http.*tiny.pt\n  a run puts it at pretrained_weights/tiny.pt; without a network"
    ):
        load_encoder(url, offline=True)
    assert host.asked == []
    told: list[transfer.Progress] = []
    encoder = load_encoder(url, progress=told.append)
    assert encoder.spec.architecture == "resnet18"
    assert encoder.spec.name == "tiny"
    assert told[-1].finished
    assert load_encoder({"weights": "w/a.pt", "url": url}).spec.encoder_id == encoder.spec.encoder_id
    assert Path("w/a.pt").exists()
    assert load_encoder({"weights": url, "sha256": hashlib.sha256(host.tiny).hexdigest()}, offline=True).spec.name == "tiny"
    with pytest.raises(UserError, match="has sha256"):
        load_encoder({"weights": "w/a.pt", "sha256": "0" * 64})
    assert len(host.asked) == 2


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"arch": "vit_tiny", "weights": "random", "url": "https://a.b/c.pt"}, "url is of a weights file, but no file is given"),
        ({"timm": "resnet18", "sha256": "0" * 64}, "sha256 is of a weights file, but no file is given"),
        ({"weights": "https://a.b/c.pt", "url": "https://a.b/c.pt"}, "weights and url are both addresses"),
        ({"weights": "a.pt", "sha256": "123"}, "expected 64 hexadecimal digits"),
    ],
)
def test_mistakes(entry: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_encoder(entry)
