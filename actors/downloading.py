"""One download over http or https: resolve, check, connect to what was checked, follow redirects, hand out bytes.

A host is resolved once a hop, and the connection goes to the very addresses that were checked (a name that changes
in between changes nothing). The certificate is checked for the host's name, by the system's authorities
(SSL_CERT_FILE names others). Nothing comes from the environment (proxies, netrc), nothing is kept between hops (no
cookies), nothing is inflated. httpx is imported with the first download: it takes a tenth of a second.
What must not live here: what is allowed (urls.py), files, limits in all (fetching.py).
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio

from actorserve.actors.urls import AllowList, Url, may_ask, redirected, shown
from actorserve.config_types import TARS
from actorserve.errors import DownloadFailed, UrlNotAllowed

if TYPE_CHECKING:
    import httpx

MOST_REDIRECTS = 5
MOST_ADDRESSES = 4
"""Addresses of a host that are tried, one after the other, where one cannot be connected to."""
REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "actorserve"}
log = structlog.get_logger("actorserve.downloading")


@dataclass(frozen=True, slots=True)
class Body:
    """What a server sends. `total`: bytes, as far as it says; it may be wrong."""

    total: int | None
    chunks: AsyncIterator[bytes]


@asynccontextmanager
async def opened(url: Url, allow: AllowList, stall_s: float) -> AsyncIterator[Body]:
    """A URL's content, by up to 5 redirects. `stall_s`: for each connect, and for each pause between bytes.

    UrlNotAllowed: it, or where it leads, must not be asked. DownloadFailed: what came, or did not. Cancelling closes
    the connection.
    """
    _quiet()
    first = shown(url.text)
    context = ssl.create_default_context()
    for _ in range(MOST_REDIRECTS + 1):
        addresses = await resolve(url, allow, first, stall_s)
        with _told(shown(url.text), stall_s):
            async with _answer(url, addresses, context, stall_s) as response:
                if response.status_code in REDIRECTS and "location" in response.headers:
                    url = redirected(url, response.headers["location"])
                    log.info("download redirected", url=first, to=shown(url.text))
                    continue
                _check(url, response)
                length = response.headers.get("content-length")
                chunks = response.aiter_raw()
                try:
                    yield Body(None if length is None else int(length), chunks)
                finally:
                    await _end(chunks)
                return
    raise DownloadFailed(first, f"more than {MOST_REDIRECTS} redirects")


async def resolve(url: Url, allow: AllowList, first: str, stall_s: float) -> list[str]:
    """The addresses of a URL's host, once each is found to be allowed. UrlNotAllowed, DownloadFailed.

    `first`: the URL that was asked for, where this is one that it leads to.
    """
    text = shown(url.text)
    try:
        named = allow.names(url)
    except UrlNotAllowed:
        raise UrlNotAllowed(text, f"{first} leads there" if text != first else "") from None
    try:
        with trio.fail_after(stall_s):
            found = await trio.socket.getaddrinfo(url.host, url.port, type=trio.socket.SOCK_STREAM)
    except (OSError, UnicodeError, trio.TooSlowError):
        raise DownloadFailed(text, "its host's name cannot be resolved") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if not may_ask(address, url.host, named=named):
            log.warning("download refused", url=text, address=address, why="the address is not public")
            raise UrlNotAllowed(
                text, f"{url.host} is not public, and no pattern says that it may be asked all the same"
            )
    return addresses[:MOST_ADDRESSES]


@asynccontextmanager
async def _answer(
    url: Url, addresses: list[str], context: ssl.SSLContext, stall_s: float
) -> AsyncIterator[httpx.Response]:
    """The answer of the first address that can be connected to. A client of its own: nothing is kept."""
    import httpx  # noqa: PLC0415  # see the module's docstring

    timeout = httpx.Timeout(stall_s)
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout, verify=context) as client:
        for address in addresses:
            request = client.build_request(
                "GET",
                httpx.URL(scheme=url.scheme, host=address, port=url.port, path="/"),
                headers={"host": url.authority, **HEADERS},
                extensions={"target": url.target.encode(), "sni_hostname": url.host},
            )
            try:
                response = await client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure: Exception = error
                continue
            try:
                yield response
            finally:
                await response.aclose()
            return
        raise failure


@contextmanager
def _told(text: str, stall_s: float) -> Iterator[None]:
    """Errors of httpx, as DownloadFailed of a URL."""
    import httpx  # noqa: PLC0415  # see the module's docstring

    try:
        yield
    except httpx.TimeoutException:
        raise DownloadFailed(text, f"nothing came for {stall_s:g} s (download_stall_timeout_s)") from None
    except httpx.ConnectError as error:
        raise DownloadFailed(text, f"its host cannot be connected to{_tls_fault(error)}") from None
    except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
        raise DownloadFailed(text, f"the connection broke: {error or type(error).__name__}") from None


async def _end(chunks: AsyncIterator[bytes]) -> None:
    """Have the generators of httpx, one in another, end by themselves: only the innermost's error ends them all."""
    with trio.CancelScope() as scope:
        scope.cancel()
        async for _ in chunks:
            pass


def _tls_fault(error: BaseException | None) -> str:
    """What TLS said, where an error comes of it."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return f": {getattr(error, 'verify_message', '') or error.reason or 'TLS failed'}"
        error = error.__cause__ or error.__context__
    return ""


def _check(url: Url, response: httpx.Response) -> None:
    """DownloadFailed unless this is the file itself. A gzipped tar may say that it is gzipped."""
    if response.status_code != 200:
        raise DownloadFailed(shown(url.text), f"the answer was {response.status_code}")
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    own = coding in ("gzip", "x-gzip") and url.path.lower().endswith(TARS)
    if coding != "identity" and not own:
        raise DownloadFailed(shown(url.text), f"it came in the encoding {coding!r}, which was not asked for")


def _quiet() -> None:
    """The libraries log whole URLs, queries included; what is worth logging is logged here."""
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
