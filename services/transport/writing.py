"""Writing to a socket: several buffers in one system call, and how much the kernel takes before it is sent.

What lives here: `send_parts`, `let_ahead`, `forget_unsent`, `linger`, `close_now`.
What must not: what is written, and when (outgoing.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress

import trio

from actorserve.services.transport.pieces import Octets

AHEAD = 131_072  # octets that the kernel takes beyond what it has sent; trio's 16 KiB make large answers wait for us
NO_LINGER = struct.pack("ii", 1, 0)  # on, for no time
LINGER_S, LINGER_READS, LINGER_SIZE = 1.0, 64, 65_536
PORTION = 65_536  # sent at a time where there is no bare socket


def let_ahead(stream: trio.SocketStream) -> None:
    """Have the kernel take AHEAD octets (TCP_NOTSENT_LOWAT); what has no such option takes what it likes."""
    if hasattr(trio.socket, "TCP_NOTSENT_LOWAT"):
        with suppress(OSError):
            stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NOTSENT_LOWAT, AHEAD)


def forget_unsent(stream: trio.abc.Stream) -> None:
    """Have the kernel drop what it holds for a peer that does not read: closing is then a reset (RFC 9293 §3.10.4).

    Else it would keep that, and try again and again, for minutes after the connection is closed here.
    """
    bare = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if isinstance(bare, trio.SocketStream):
        with suppress(OSError):
            bare.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, NO_LINGER)


async def linger(stream: trio.abc.Stream) -> None:
    """End our side, and let the peer read our last frames before the socket goes; LINGER_S at most."""
    bare = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if isinstance(bare, trio.abc.HalfCloseableStream):
        with trio.move_on_after(LINGER_S):
            try:
                await bare.send_eof()
                for _ in range(LINGER_READS):
                    if not await bare.receive_some(LINGER_SIZE):
                        break
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass


async def close_now(stream: trio.abc.Stream) -> None:
    """Close without a word, as `trio.aclose_forcefully` does; a bare socket without its detour over a cancellation."""
    if isinstance(stream, trio.SocketStream):
        stream.socket.close()
    else:
        await trio.aclose_forcefully(stream)


async def send_parts(stream: trio.abc.Stream, parts: list[Octets], progress: Callable[[int], None]) -> None:
    """Send all parts, in order; `progress` gets the octets of each portion that the peer's side took.

    Cancelled, it may have sent some, as `send_all` may. `parts` is used up.

    Raises:
        trio.BrokenResourceError: the peer has gone.
        trio.ClosedResourceError: this side was closed.
    """
    if isinstance(stream, trio.SocketStream):
        await _send_gathered(stream.socket, parts, progress)
        return
    whole = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
    for start in range(0, len(whole), PORTION):
        portion = whole[start : start + PORTION]
        await stream.send_all(portion)
        progress(len(portion))


async def _send_gathered(socket: trio.socket.SocketType, parts: list[Octets], progress: Callable[[int], None]) -> None:
    """Send without putting the parts together."""
    while parts:
        try:
            sent = await (socket.send(parts[0]) if len(parts) == 1 else socket.sendmsg(parts))
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        progress(sent)
        _forget(parts, sent)


def _forget(parts: list[Octets], sent: int) -> None:
    """Take the first `sent` octets off."""
    whole = 0
    for part in parts:
        if sent < len(part):
            break
        sent -= len(part)
        whole += 1
    del parts[:whole]
    if sent:
        parts[0] = memoryview(parts[0])[sent:]
