"""A web server on loopback for tests of downloads: each page is the very octets that it answers with, or acts."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

Act = Callable[[Any], Awaitable[None]]


def answer(body: bytes = b"", status: str = "200 OK", **headers: object) -> bytes:
    """An HTTP/1.1 answer with its true length; `_` in the name of a header is "-", None leaves it out."""
    given = {"content_length": len(body), "connection": "close", **headers}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items() if value is not None]
    return f"HTTP/1.1 {status}\r\n{''.join(lines)}\r\n".encode() + body


def redirect(location: str, status: str = "302 Found", **headers: object) -> bytes:
    """A redirect."""
    return answer(status=status, location=location, **headers)


class Web:
    """`pages` by target or path; the heads of the `requests` that came; how many are answered `now`, and at `most`."""

    def __init__(self, port: int, scheme: str) -> None:
        self.port = port
        self.scheme = scheme
        self.pages: dict[str, bytes | Act] = {}
        self.requests: list[str] = []
        self.now = self.most = 0

    @property
    def targets(self) -> list[str]:
        """What was asked for, in order."""
        return [request.split(" ")[1] for request in self.requests]

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """A page's URL."""
        return f"{self.scheme}://{host}:{self.port}{path}"

    def pattern(self, host: str = r"127\.0\.0\.1") -> str:
        """The pattern of an allow-list that has every page and names the host."""
        return f"{self.scheme}://{host}:{self.port}/.*"

    async def serve(self, stream: Any) -> None:
        """One connection, one request."""
        async with stream:
            try:
                head = b""
                while b"\r\n\r\n" not in head:
                    received = await stream.receive_some()
                    if not received:
                        return
                    head += received
                self.requests.append(head.decode())
                await self._answer(stream, self.targets[-1])
            except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
                pass  # the client went away, or did not like the certificate

    async def _answer(self, stream: Any, target: str) -> None:
        page = self.pages.get(target) or self.pages.get(target.partition("?")[0], answer(status="404 Not Found"))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if isinstance(page, bytes):
                await stream.send_all(page)
            else:
                await page(stream)
        finally:
            self.now -= 1


@asynccontextmanager
async def web(context: ssl.SSLContext | None = None) -> AsyncIterator[Web]:
    """Serve until the block ends; with a context, over TLS."""
    listeners: list[Any] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    site = Web(listeners[0].socket.getsockname()[1], "https" if context else "http")
    if context:
        listeners = [trio.SSLListener(one, context) for one in listeners]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, site.serve, listeners)
        yield site
        nursery.cancel_scope.cancel()


class Names(trio.abc.HostnameResolver):
    """A name service: each lookup of a name takes its next answer, the last one again and again."""

    def __init__(self, **answers: list[list[str]]) -> None:
        """`answers`: by name, with `_` for "."."""
        self.answers = {name.replace("_", "."): list(given) for name, given in answers.items()}
        self.asked: list[str] = []

    async def getaddrinfo(self, host: Any, port: Any, *_: int) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append(name)
        if name not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        given = self.answers[name]
        addresses = given.pop(0) if len(given) > 1 else given[0]
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port, 0, 0) if ":" in address else (address, port),
            )
            for address in addresses
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError
