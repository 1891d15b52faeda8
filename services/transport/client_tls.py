"""How a client's bytes travel: TCP or a Unix socket, with TLS where a context is given.

What lives here: `connect`, `secure`, the parts of a target.
What must not: HTTP/2, calls, which address comes next.

Rules
1. HTTP/2 over TLS is agreed by ALPN: `h2` or nothing (RFC 9113 §3.2). The context's own ALPN list is replaced by it.
2. Certificates and names are checked as the context says; the default one checks both. TLS 1.2 at least (§9.2).
3. TLS may have something to say while it reads. Sends are therefore taken one by one, in the order of their records.
"""

from __future__ import annotations

import ssl

import anyio
import anyio.abc
from anyio.streams.tls import TLSAttribute, TLSStream


def split(target: str) -> tuple[str, int]:
    """Give host and port of a target that is no Unix socket. ValueError says what a target looks like."""
    host, _, port = target.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536 or ("]" in port):
        raise ValueError(f"{target!r} is no target: host:port, [address]:port or unix:PATH expected")
    return host.strip("[]") or "127.0.0.1", int(port)


def authority(target: str) -> bytes:
    """Give :authority for a target."""
    return b"localhost" if target.startswith("unix:") else target.encode()


async def connect(target: str) -> anyio.abc.ByteStream:
    """Open a byte stream to a target."""
    if target.startswith("unix:"):
        return await anyio.connect_unix(target.removeprefix("unix:"))
    return await anyio.connect_tcp(*split(target))


def context(tls: ssl.SSLContext | bool) -> ssl.SSLContext | None:
    """Give the context that a channel uses (rules 1 and 2)."""
    if tls is False:
        return None
    made = ssl.create_default_context() if tls is True else tls
    if made.minimum_version < ssl.TLSVersion.TLSv1_2 and tls is True:
        made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["h2"])
    return made


async def secure(stream: anyio.abc.ByteStream, made: ssl.SSLContext, hostname: str) -> anyio.abc.ByteStream:
    """Shake hands. OSError (ssl.SSLError) where the certificate or the protocol is not what was asked for."""
    try:
        wrapped = await TLSStream.wrap(
            _OneByOne(stream), server_side=False, hostname=hostname, ssl_context=made, standard_compatible=False
        )
    except BaseException:
        with anyio.CancelScope(shield=True):
            await anyio.aclose_forcefully(stream)
        raise
    if wrapped.extra(TLSAttribute.alpn_protocol, None) != "h2":  # noqa: S610  anyio's extra
        with anyio.CancelScope(shield=True):
            await anyio.aclose_forcefully(wrapped)
        raise OSError("the server does not offer HTTP/2 by ALPN")
    return wrapped


class _OneByOne(anyio.abc.ByteStream):
    """A byte stream whose sends wait for each other (rule 3)."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._lock = anyio.Lock()

    async def send(self, item: bytes) -> None:
        """Send after those who came before."""
        async with self._lock:
            await self._stream.send(item)

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        """Give what has come."""
        return await self._stream.receive(max_bytes)

    async def send_eof(self) -> None:
        """End the outgoing direction."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close."""
        await self._stream.aclose()
