"""URLs that a model may be fetched from: their shape, the allow-list, which addresses may be asked, redirects.

A URL is matched, shown and fetched in one and the same spelling: what two readers could read in two ways is refused
(a backslash, a name before the host, `..` also where it is escaped, what is not ASCII). Pure: it decides about texts.
What must not live here: sockets, names being resolved, files (downloading.py, fetching.py).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote, urljoin

from actorserve.config_types import PACKED
from actorserve.errors import BadInput, DownloadFailed, Unsupported, UrlNotAllowed

MOST_URL = 2048
"""Characters of a URL: patterns are the operator's, and meet no text longer than this."""
MOST_NAME = 200
FETCHED = {"http": 80, "https": 443, "file": 0}
"""The schemes that are fetched, with their ports."""

_SHAPE = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]*)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^?]*)?(?P<query>\?.*)?",
    re.IGNORECASE | re.ASCII,
)
_CHARACTERS = re.compile(r"(?:[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")
_NAMED = re.compile(
    r"://((?:\\[.-]|[A-Za-z0-9._-])+|\\\[(?:\\[.:]|[0-9A-Fa-f:.])+\\\])(?=/|\\/|:|\\:|\(:|\(\?::|\$|\||\)|$)"
)


@dataclass(frozen=True, slots=True)
class Url:
    """A URL of which there is one reading. `text`: as it came; `host`: lower case, without brackets; `path`: escaped.

    `target`: path and query, as a request line has them.
    """

    text: str
    scheme: str
    host: str
    port: int
    path: str
    target: str

    @property
    def authority(self) -> str:
        """The Host header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == FETCHED[self.scheme] else f"{host}:{self.port}"


def is_url(text: str) -> bool:
    """Whether it is a URL rather than a name or a path of the model store."""
    return "://" in text


def shown(text: str) -> str:
    """A URL as errors, logs and the registry have it: without its query and without credentials before the host."""
    bare = re.split(r"[?#]", text, maxsplit=1)[0]
    return re.sub(r"://[^/]*@", "://", bare)


def parse(text: str) -> Url:
    """A URL in its parts. BadInput of `url` says what is wrong with it; Unsupported: its scheme is not fetched."""
    _check_first(text)
    if "@" in re.split(r"[/?#\\]", text.partition("://")[2], maxsplit=1)[0]:
        raise BadInput("url", f"{shown(text)!r} had credentials before its host, and these are never sent")
    if not _CHARACTERS.fullmatch(text) or not unquote(text, errors="ignore").isprintable():
        raise BadInput("url", f"{shown(text)!r} holds what does not belong into a URL; it can be escaped as %XX")
    parts = _SHAPE.fullmatch(text)
    if parts is None:
        raise BadInput("url", f"{shown(text)!r} is not scheme://host:port/path")
    scheme = parts["scheme"].lower()
    if scheme not in FETCHED:
        raise Unsupported(f"url {shown(text)!r}: models are fetched by {', '.join(FETCHED)}, and not by {scheme}")
    path, host, port = parts["path"] or "/", parts["host"].lower().strip("[]"), int(parts["port"] or FETCHED[scheme])
    _check_authority(text, scheme, host, port)
    return Url(text, scheme, host, port, path, path + (parts["query"] or ""))


def _check_first(text: str) -> None:
    if len(text) > MOST_URL:
        raise BadInput("url", f"has {len(text)} characters; a URL may have {MOST_URL}")
    if ".." in text or ".." in unquote(text):
        raise BadInput("url", f"Relative path is not allowed in url: {shown(text)}")


def _check_authority(text: str, scheme: str, host: str, port: int) -> None:
    if scheme == "file" and (host not in ("", "localhost") or port):
        raise BadInput("url", f"{shown(text)!r} names a host; a file is on this machine: file:///path")
    if scheme != "file" and (not host or len(host) > 253 or not 0 < port < 65536):
        raise BadInput("url", f"{shown(text)!r} names no host and port")


def file_name(text: str) -> str:
    """The name that a URL's file has in the model store: one plain part. BadInput: no archive, no model's file."""
    base = unquote(shown(text)).rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9_.+-]", "_", base).lstrip(".-")
    if not name.lower().endswith(PACKED):
        raise BadInput(
            "url", f"{shown(text)!r} does not end in the name of an archive or a model ({', '.join(PACKED)})"
        )
    if len(name) > MOST_NAME:
        raise BadInput("url", f"names a file of {len(name)} characters; {MOST_NAME} are allowed")
    return name


# --- what the operator allows ----------------------------------------------------------------------


def hosts_named(pattern: str) -> frozenset[str]:
    """The hosts that a pattern names literally: `://`, a host without wildcards, and its end."""
    found = (match[1].replace("\\", "").strip("[]").lower() for match in _NAMED.finditer(pattern))
    return frozenset(map(_canonical, found))


def _canonical(host: str) -> str:
    try:
        return ipaddress.ip_address(host).compressed
    except ValueError:
        return host


class AllowList:
    """`server.allowed_urls`: regular expressions that match a whole URL, without regard to case."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._rules = [(re.compile(pattern, re.IGNORECASE), hosts_named(pattern)) for pattern in patterns]

    def names(self, url: Url) -> bool:
        """Whether a pattern that matches names the URL's host literally. UrlNotAllowed: none matches."""
        matching = [named for pattern, named in self._rules if pattern.fullmatch(url.text)]
        if not matching:
            raise UrlNotAllowed(shown(url.text))
        return any(_canonical(url.host) in named for named in matching)

    def check(self, text: str) -> Url:
        """A caller's URL in its parts. UrlNotAllowed: no pattern matches it; BadInput, Unsupported: as `parse`.

        What is too long or holds `..` is told first; what matches nothing, whatever else is wrong with it, next.
        """
        _check_first(text)
        if not any(pattern.fullmatch(text) for pattern, _ in self._rules):
            raise UrlNotAllowed(shown(text))
        return parse(text)


def redirected(url: Url, location: str) -> Url:
    """Where a redirect leads. DownloadFailed: to nowhere, or away from http and https. Its allowance is not checked."""
    try:
        target = parse(urljoin(url.text, location))
    except (BadInput, Unsupported, ValueError):  # the last is urljoin's
        raise DownloadFailed(shown(url.text), "it was redirected to what is no proper URL") from None
    if target.scheme == "file":
        raise DownloadFailed(shown(url.text), "it was redirected to a file")
    return target


# --- which addresses may be asked --------------------------------------------------------------------


class Reach(Enum):
    """Who can have an address: anybody on the internet; a network of one's own; this machine, its host, or nobody."""

    PUBLIC = "public"
    PRIVATE = "private"
    SPECIAL = "special"


def _networks(*texts: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))


# IANA's registries of special-purpose addresses (IPv4 and IPv6), and where clouds tell instances their secrets
_SECRETS = _networks("100.100.100.200/32", "168.63.129.16/32", "fd00:ec2::/32")
_PRIVATE = _networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
_SPECIAL = _networks(
    *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24"),
    *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
)
_INTERNET_6 = ipaddress.IPv6Network("2000::/3")
"""All global unicast that is given out. Mapped addresses (::ffff:0:0/96) and NAT64 (64:ff9b::/96) are outside."""


def reach(address: str) -> Reach:
    """Who can have an address, as getaddrinfo gives it. ValueError: it is none."""
    one = ipaddress.ip_address(address)
    if any(one in network for network in _SECRETS):
        return Reach.SPECIAL
    if any(one in network for network in _PRIVATE):
        return Reach.PRIVATE
    if any(one in network for network in _SPECIAL) or (one.version == 6 and one not in _INTERNET_6):
        return Reach.SPECIAL
    return Reach.PUBLIC


def may_ask(address: str, host: str, *, named: bool) -> bool:
    """Whether a host may be asked at an address that its name resolves to. `named`: a pattern names it literally.

    A private address needs a pattern that names the host; a special one (loopback, link-local, a cloud's metadata)
    one that names the very address, or localhost: whoever runs a host's name service must not choose them.
    """
    match reach(address):
        case Reach.PUBLIC:
            return True
        case Reach.PRIVATE:
            return named
        case Reach.SPECIAL:
            loopback = host == "localhost" and ipaddress.ip_address(address).is_loopback
            return named and (loopback or _canonical(host) == _canonical(address))
