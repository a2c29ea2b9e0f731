"""Weights from an address: downloaded once, whole or not at all, into ``pretrained_weights/`` below the current folder."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from virb.encoders.share_links import confirmed, direct, drive_id, looks_like_html, why_a_page
from virb.encoders.sniff import why_no_weights
from virb.errors import UserError, ViRBError
from virb.io import Held, Lease, make_folder, write_json, writing

FOLDER = Path("pretrained_weights")
ATTEMPTS = 4  # connections in a row that may break before a download gives up
_PAUSE = 1.0  # seconds before the first new attempt; doubles
_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte
_OWN_ENDINGS = (".part", ".part.json", ".source.json", ".lease", ".refused")
_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # answers that may be better a little later


@dataclass(frozen=True)
class Progress:
    """How far a download is, in bytes; ``total`` is None where the server does not say."""

    url: str
    path: Path
    done: int
    total: int | None
    finished: bool = False


Tell = Callable[[Progress], None]


class NotDownloaded(UserError):
    """Something that a run would download is not on this machine yet; ``address`` is where it is from."""

    def __init__(self, message: str, address: str) -> None:
        self.address = address
        super().__init__(message)


class _Broken(Exception):
    """The connection broke, or the server is busy; what has arrived is kept."""


def is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def weights_file(
    url: str,
    *,
    path: Path | None = None,
    sha256: str | None = None,
    offline: bool = False,
    progress: Tell | None = None,
) -> Path:
    """The local file of ``url``, downloaded unless it is there. ``path`` says where it goes; without one, ``pretrained_weights/`` and the
    name that the server or the address gives. ``offline``: NotDownloaded instead of a download. With ``sha256`` another content is
    refused, whether it was there or has just arrived."""
    there = _existing(url, path)
    if there is None:
        if offline:
            raise NotDownloaded(_missing(url, path), url)
        return _download(url, path, sha256, progress or (lambda state: None))
    check_sha256(there, sha256)
    return there


def check_sha256(path: Path, sha256: str | None) -> None:
    """UserError when the file is not the one that was meant; nothing is removed."""
    if sha256 is None:
        return
    found = _sha256(path)
    if found != sha256.lower():
        raise UserError(
            f"{path} has sha256 {found}, expected {sha256.lower()}; it is another file, or a damaged one: move it away to go on"
        )


def _existing(url: str, path: Path | None) -> Path | None:
    """The file that came from ``url``, or that somebody has put where it would go."""
    if path is not None:
        return path if path.exists() else None
    for record in sorted(FOLDER.glob("*.source.json")) if FOLDER.is_dir() else ():
        if _source(record).get("url") == url:
            file = FOLDER / record.name.removesuffix(".source.json")
            if file.is_file():
                return file
    name = _name_in(url)
    if name is None:
        return None
    file = FOLDER / name
    return file if file.is_file() and _source(_record_of(file)).get("url", url) == url else None


def _missing(url: str, path: Path | None) -> str:
    name = _name_in(url)
    if path is None and name is None:
        return (
            f"not downloaded yet: {url}\n  without a network, put the file anywhere and name it with `weights:` (`url:` keeps the address)"
        )
    return f"not downloaded yet: {url}\n  a run puts it at {path or FOLDER / str(name)}; without a network, put it there yourself"


# Downloading


def _download(url: str, path: Path | None, sha256: str | None, tell: Tell) -> Path:
    folder = make_folder(FOLDER if path is None else path.parent)
    label = path.name if path is not None else _name_in(url) or "download"
    part = folder / f"{label}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part"
    with _alone(part.with_suffix(".lease"), lambda: tell(Progress(url, part, _size(part), _read_note(part).get("total")))):
        there = _existing(url, path)  # another process may have been faster
        if there is not None:
            check_sha256(there, sha256)
            return there
        name = _transfer(url, part, tell)
        found = _sha256(part)
        if sha256 is not None:
            wrong = None if found == sha256.lower() else f"a file with sha256 {found}, expected {sha256.lower()}"
        else:
            why = why_no_weights(part, whole=_read_note(part).get("total") == _size(part))
            wrong = f"no weights: {why}" if why else None
        if wrong is not None:
            refused = folder / f"{label}.refused"
            with writing(refused):
                part.replace(refused)
                _note(part).unlink(missing_ok=True)
            raise UserError(f"{url} gave {wrong}\n  it is not used; it lies at {refused}")
        return _publish(url, part, path or folder / name, found, fixed=path is not None)


def _publish(url: str, part: Path, target: Path, sha256: str, *, fixed: bool) -> Path:
    """The finished file under its name, with a record of where it is from beside it. Two addresses never share a name."""
    with _alone(target.parent / ".publish.lease"), writing(target):
        if target.exists() and not fixed:
            stem, dot, ending = target.name.partition(".")
            target = target.with_name(f"{stem}-{hashlib.sha256(url.encode()).hexdigest()[:8]}{dot}{ending}")
        write_json(
            _record_of(target), {"url": url, "sha256": sha256, "bytes": part.stat().st_size, "downloaded": time.strftime("%Y-%m-%d")}
        )
        part.replace(target)
        _note(part).unlink(missing_ok=True)
    return target


@contextmanager
def _alone(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Waits for another process that is at the same download; ``waiting`` is called now and then."""
    while True:
        try:
            lease = Lease(path)
            break
        except Held:
            waiting()
            time.sleep(0.2)
    with lease:
        yield


def _transfer(url: str, part: Path, tell: Tell) -> str:
    """Fills ``part`` with the whole file; the name that the server gives it."""
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar := CookieJar()))
    broken = 0
    while True:
        before = _size(part)
        try:
            return _attempt(url, opener, jar, part, tell)
        except _Broken as error:
            broken = 1 if _size(part) > before else broken + 1  # a slow but moving download may take any number of connections
            if broken >= ATTEMPTS:
                kept = f"; {_amount(_size(part))} are kept, run the same command again to go on" if _size(part) else ""
                raise ViRBError(f"cannot download {url}: {error}{kept}") from error
            time.sleep(_PAUSE * 2 ** (broken - 1))


def _attempt(url: str, opener: urllib.request.OpenerDirector, jar: CookieJar, part: Path, tell: Tell) -> str:
    address, asked = direct(url), 0
    while True:
        response = _open(opener, address, part, url)
        if response is None:  # everything had arrived, only the answer to the last attempt was lost
            return _name(json.loads(_note(part).read_text())["name"])
        with response:
            head = _head(response)
            page = response.headers.get_content_type() in ("text/html", "application/xhtml+xml") or looks_like_html(head)
            if not page:
                return _save(url, response, head, part, tell)
            text = (head + _read(response, _CHUNK)).decode("utf-8", "replace")
            cookies = {cookie.name: cookie.value or "" for cookie in jar}
            follow = confirmed(text, response.url, cookies) if drive_id(url) is not None else None
            if follow is None or asked or not is_url(follow):
                raise UserError(f"{url} answers with a web page, not with a file; {why_a_page(text, response.url)}")
            address, asked = follow, asked + 1


def _open(opener: urllib.request.OpenerDirector, address: str, part: Path, url: str) -> Any:
    """The response, asked to go on where ``part`` ends; None when the server says that nothing is left."""
    from virb import __version__

    headers = {"User-Agent": f"virb/{__version__}", "Accept-Encoding": "identity"}
    done, note = _size(part), _read_note(part)
    if done and note.get("validator"):  # with no sign of which file it was, the rest may be of another one
        headers |= {"Range": f"bytes={done}-", "If-Range": note["validator"]}
    try:
        return opener.open(urllib.request.Request(address, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                if done and note.get("total") == done:
                    return None
                part.unlink(missing_ok=True)
                raise _Broken("the server has less of the file than was downloaded before") from error
            if error.code in _AGAIN:
                raise _Broken(f"the server answers {error.code} {error.reason}") from error
            advice = {
                404: "the file is not there (any more)",
                410: "the file is not there any more",
                401: "it asks to log in",
                403: "it refuses; is it public?",
            }
            raise UserError(
                f"cannot download {url}: {advice.get(error.code, 'the server refuses')} ({error.code} {error.reason})"
            ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _Broken(f"no connection ({reason or type(error).__name__})") from error
    except ValueError as error:
        raise UserError(f"{url} is not an address: {error}") from error


def _save(url: str, response: Any, head: bytes, part: Path, tell: Tell) -> str:
    """Writes the body after (206) or in place of what is there. _Broken when less arrived than was announced."""
    start = _size(part) if response.status == 206 else 0
    length = response.headers.get("Content-Length")
    total = start + int(length) if length and length.isdigit() else None
    if response.status == 206 and not re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")):
        part.unlink(missing_ok=True)
        raise _Broken("the server sent another part of the file than was asked for")
    name = _name_of(response.headers) or _name_in(url) or _name_in(response.url) or "weights"
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise ViRBError(f"the disk is full: {url} has {_amount(total - start)} to go, {part.parent} has {_amount(free)} left")
    write_json(_note(part), {"validator": _validator(response.headers), "total": total, "name": name})
    done, told = start, 0.0
    chunk = head
    with writing(part):
        file = open(part, "ab" if start else "wb", buffering=0)  # noqa: SIM115 closed below; reading errors are not writing errors
    with file:
        while chunk:
            with writing(part):
                file.write(chunk)
            done += len(chunk)
            if time.monotonic() - told > 0.1:
                tell(Progress(url, part, done, total))
                told = time.monotonic()
            chunk = _read(response, _CHUNK)
    if total is not None and done < total:
        raise _Broken(f"the connection broke after {_amount(done)} of {_amount(total)}")
    if not done:
        part.unlink(missing_ok=True)
        raise UserError(f"{url} is an empty file")
    tell(Progress(url, part, done, total, finished=True))
    return name


def _head(response: Any) -> bytes:
    """The first bytes of a body, enough to see what it is; all of a shorter one."""
    head = b""
    while len(head) < 512 and (chunk := _read(response, _CHUNK)):
        head += chunk
    return head


def _read(response: Any, amount: int) -> bytes:
    """What has arrived, at most ``amount``; empty at the end. Not ``read``: it would lose what it has when the connection breaks."""
    try:
        return response.read1(amount)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"the connection broke ({error or type(error).__name__})") from error


def _validator(headers: Message) -> str | None:
    """What tells whether the file is still the same one: a strong ETag, else its date."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


# Names and records


def _name_of(headers: Message) -> str | None:
    given = headers.get_filename()
    return _name(given) if given else None


def _name_in(url: str) -> str | None:
    """The file name that an address ends with; None for share links that do not tell."""
    if drive_id(url) is not None:
        return None
    last = unquote(urlsplit(url).path).rpartition("/")[2]
    return _name(last) if last else None


def _name(text: str) -> str:
    """A name that is one file below the folder, whatever a server says."""
    last = re.split(r"[/\\]", text)[-1]
    name = re.sub(r"[^\w.+@=-]", "_", last).lstrip(".")[-120:] or "weights"
    return f"{name}.weights" if name.endswith(_OWN_ENDINGS) else name


def _record_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.source.json")


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _source(record: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads(record.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _read_note(part: Path) -> dict[str, Any]:
    return _source(_note(part))


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except OSError:
        return 0


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()  # Python 3.10
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _amount(size: int) -> str:
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= least:
            return f"{size / least:.3g} {unit}"
    return f"{size} bytes"
