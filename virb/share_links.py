"""Share links that answer with a page for people: what to ask for instead, and what such a page says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

DRIVE = "https://drive.google.com"
DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
DROPBOX_HOSTS = ("dropbox.com", "www.dropbox.com")
_DRIVE_FILE = re.compile(r"/file/d/([\w-]+)")
_HTML = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--", b"<script")


def direct(url: str) -> str:
    """The address that gives the file itself: Google Drive's ``uc?export=download``, Dropbox's ``dl=1``; other addresses as they are."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    host = (parts.hostname or "").lower()
    if host in DROPBOX_HOSTS:
        return urlunsplit(parts._replace(query=urlencode({**query, "dl": "1"}), fragment=""))
    file = drive_id(url)
    if file is not None:
        key = {"resourcekey": query["resourcekey"]} if "resourcekey" in query else {}
        return f"{DRIVE}/uc?{urlencode({'export': 'download', 'id': file, **key})}"
    return url


def drive_id(url: str) -> str | None:
    """The id of the file that a Google Drive link shares; None for other links."""
    parts = urlsplit(url)
    if (parts.hostname or "").lower() not in DRIVE_HOSTS:
        return None
    found = _DRIVE_FILE.search(parts.path)
    return found[1] if found else dict(parse_qsl(parts.query)).get("id")


def looks_like_html(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_HTML)


def confirmed(page: str, url: str, cookies: dict[str, str]) -> str | None:
    """What Drive's "too large to scan for viruses" page at ``url`` leads to: its form (``confirm`` and ``uuid``), its link, or its
    cookie; None when the page is something else."""
    found = _Page()
    found.feed(page)
    if found.action is not None and "confirm" in found.inputs:
        target = urlsplit(urljoin(url, found.action))
        query = {**dict(parse_qsl(target.query)), **found.inputs}
        return urlunsplit(target._replace(query=urlencode(query)))
    if found.link is not None:
        return urljoin(url, found.link)
    token = next((value for name, value in cookies.items() if name.startswith("download_warning")), None)
    if token is None:
        return None
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query=urlencode({**dict(parse_qsl(parts.query)), "confirm": token})))


def why_a_page(page: str, final_url: str) -> str:
    """What a page in place of a file most likely means."""
    text = page.lower()
    if "quota exceeded" in text or "too many users have" in text:
        return "Google Drive says that too many people downloaded it lately; try again tomorrow, or download it in a browser"
    if "accounts.google.com" in final_url or "you need access" in text or "request access" in text:
        return "the file is not shared with everyone; ask its owner, or download it in a browser"
    return "open the address in a browser: it may ask to log in or to confirm"


class _Page(HTMLParser):
    """The download form of a page and its hidden fields, and the first link with a ``confirm``."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.inputs: dict[str, str] = {}
        self.link: str | None = None
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form" and self.action is None and "download" in values.get("id", "") + values.get("action", ""):
            self.action, self._inside = values.get("action", ""), True
        elif tag == "input" and self._inside and values.get("name"):
            self.inputs[values["name"]] = values.get("value", "")
        elif tag == "a" and self.link is None and re.search(r"[?&]confirm=", values.get("href", "")):
            self.link = values["href"]

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False
