"""A file from an address, whole or not at all: what a broken connection leaves is kept and gone on with, also by a later run.

The rooms that download things say what the files are; here is how they come. Nothing calls this unasked.
"""

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

from virb.errors import UserError, ViRBError
from virb.io import Held, Lease, write_json, writing
from virb.share_links import confirmed, direct, drive_id, looks_like_html, why_a_page

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


def is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


class _Broken(Exception):
    """The connection broke, or the server is busy; what has arrived is kept."""


@contextmanager
def alone(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
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


def transfer(url: str, part: Path, tell: Tell) -> str:
    """Fills ``part`` with the whole file; the name that the server gives it."""
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar := CookieJar()))
    broken = 0
    while True:
        before = size_of(part)
        try:
            return _attempt(url, opener, jar, part, tell)
        except _Broken as error:
            broken = 1 if size_of(part) > before else broken + 1  # a slow but moving download may take any number of connections
            if broken >= ATTEMPTS:
                kept = f"; {amount(size_of(part))} are kept, run the same command again to go on" if size_of(part) else ""
                raise ViRBError(f"cannot download {url}: {error}{kept}") from error
            time.sleep(_PAUSE * 2 ** (broken - 1))


def _attempt(url: str, opener: urllib.request.OpenerDirector, jar: CookieJar, part: Path, tell: Tell) -> str:
    address, asked = direct(url), 0
    while True:
        response = _open(opener, address, part, url)
        if response is None:  # everything had arrived, only the answer to the last attempt was lost
            return safe_name(json.loads(note_of(part).read_text())["name"])
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
    done, note = size_of(part), read_note(part)
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
    start = size_of(part) if response.status == 206 else 0
    length = response.headers.get("Content-Length")
    total = start + int(length) if length and length.isdigit() else None
    if response.status == 206 and not re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")):
        part.unlink(missing_ok=True)
        raise _Broken("the server sent another part of the file than was asked for")
    name = _name_of(response.headers) or name_in(url) or name_in(response.url) or "weights"
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise ViRBError(f"the disk is full: {url} has {amount(total - start)} to go, {part.parent} has {amount(free)} left")
    write_json(note_of(part), {"validator": _validator(response.headers), "total": total, "name": name})
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
        raise _Broken(f"the connection broke after {amount(done)} of {amount(total)}")
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


def _read(response: Any, most: int) -> bytes:
    """What has arrived, at most ``most`` bytes; empty at the end. Not ``read``: it would lose what it has when the connection breaks."""
    try:
        return response.read1(most)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"the connection broke ({error or type(error).__name__})") from error


def _validator(headers: Message) -> str | None:
    """What tells whether the file is still the same one: a strong ETag, else its date."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _name_of(headers: Message) -> str | None:
    given = headers.get_filename()
    return safe_name(given) if given else None


def name_in(url: str) -> str | None:
    """The file name that an address ends with; None for share links that do not tell."""
    if drive_id(url) is not None:
        return None
    last = unquote(urlsplit(url).path).rpartition("/")[2]
    return safe_name(last) if last else None


def safe_name(text: str) -> str:
    """A name that is one file below the folder, whatever a server says."""
    last = re.split(r"[/\\]", text)[-1]
    name = re.sub(r"[^\w.+@=-]", "_", last).lstrip(".")[-120:] or "weights"
    return f"{name}.weights" if name.endswith(_OWN_ENDINGS) else name


def note_of(part: Path) -> Path:
    """Where it stands which file ``part`` is the beginning of."""
    return part.with_name(f"{part.name}.json")


def read_record(record: Path) -> dict[str, Any]:
    """A small JSON file; empty when it is not there or not whole."""
    with suppress(OSError, ValueError):
        content = json.loads(record.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def read_note(part: Path) -> dict[str, Any]:
    return read_record(note_of(part))


def size_of(part: Path) -> int:
    try:
        return part.stat().st_size
    except OSError:
        return 0


def hash_of(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digits of the file's sha256 or md5."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def amount(size: int) -> str:
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= least:
            return f"{size / least:.3g} {unit}"
    return f"{size} bytes"
