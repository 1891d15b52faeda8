"""Opens the listeners' addresses: TCP over IPv4 and IPv6, Unix sockets; and closes what it opened.

What must not live here: what is served on them (listener_services.py), which are allowed (config_listener.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from actorserve.config_listener import Listener
from actorserve.config_types import UNIX, split_address
from actorserve.errors import StartFailed

BACKLOG = 4096
Opened = dict[str, list[trio.SocketListener]]
"""What listens for each listener of the configuration, by its name."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A listener that is open: its name, its services, its addresses with the ports in use."""

    name: str
    services: tuple[str, ...]
    addresses: tuple[str, ...]


async def open_all(listeners: Mapping[str, Listener]) -> Opened:
    """Listen on every address of every listener, or on none. StartFailed: one cannot be had."""
    opened: Opened = {}
    try:
        for name, listener in listeners.items():
            opened[name] = []
            for address in listener.addresses:
                if "applications" in listener.services:
                    check_private(name, address)
                opened[name] += await open_address(name, address, reuse_port=listener.reuse_port)
    except BaseException:
        close_opened(opened)
        raise
    return opened


def bound_of(listeners: Mapping[str, Listener], opened: Opened) -> tuple[Bound, ...]:
    """Where each of them listens."""
    return tuple(
        Bound(name, listeners[name].services, tuple(address_of(one) for one in some)) for name, some in opened.items()
    )


def close_opened(opened: Opened) -> None:
    """Close what `open_all` gave, if it was never served."""
    for listeners in opened.values():
        close_all(listeners)


async def open_address(name: str, address: str, *, reuse_port: bool = False) -> list[trio.SocketListener]:
    """Listen on one address of the listener `name`; StartFailed says why not. A host name may mean several."""
    try:
        if address.startswith(UNIX):
            return [_open_unix(address.removeprefix(UNIX))]
        return await _open_tcp(*split_address(address), reuse_port=reuse_port)
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE and not address.startswith(UNIX):
            host, port = split_address(address)
            host = f"[{host}]" if ":" in host else host
            why = f"port {port} is in use; choose another with --set listeners.{name}.address={host}:PORT"
        raise StartFailed(f"listeners.{name}.address: cannot listen on {address}: {why}") from None


async def _open_tcp(host: str, port: int, *, reuse_port: bool) -> list[trio.SocketListener]:
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    opened: list[trio.SocketListener] = []
    try:
        for family, _, _, _, where in dict.fromkeys(found):
            sock = socket.socket(family, socket.SOCK_STREAM)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.append(_listen(sock, where))
    except BaseException:
        close_all(opened)
        raise
    return opened


def _listen(sock: socket.socket, where: str | tuple[object, ...]) -> trio.SocketListener:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)  # numeric, or a path: nothing to look up
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def _open_unix(name: str) -> trio.SocketListener:
    """A socket file that only its owner may use. A stale one, which nobody listens on, is replaced."""
    path = Path(name).expanduser()
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
            path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        return _listen(sock, str(path))
    finally:
        os.umask(before)


def check_private(name: str, address: str) -> None:
    """StartFailed unless the folder of a Unix socket is this user's, and nobody else may enter it."""
    folder = Path(address.removeprefix(UNIX)).expanduser().absolute().parent
    try:
        found = folder.stat()
    except OSError as error:
        raise StartFailed(f"listeners.{name}.address: {folder}: {error.strerror}") from None
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise StartFailed(f"listeners.{name}.address: others may enter {folder}: it must be yours, with mode 0700")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def address_of(listener: trio.SocketListener) -> str:
    """Where a listener listens, with the port that it got."""
    name = listener.socket.getsockname()
    if not isinstance(name, tuple):
        return f"{UNIX}{name}"
    host, port, *_ = name
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def close_all(listeners: list[trio.SocketListener]) -> None:
    """Close listeners that were never served; a Unix socket's file goes, too."""
    for listener in listeners:
        address = address_of(listener)
        listener.socket.close()
        remove_file(address)


def remove_file(address: str) -> None:
    """Remove the file of a Unix socket that is not listened on any more."""
    if address.startswith(UNIX):
        Path(address.removeprefix(UNIX)).unlink(missing_ok=True)
