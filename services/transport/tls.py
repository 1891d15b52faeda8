"""TLS for a listener: certificates from files, HTTP/2 by ALPN, client certificates where a CA is given.

The files are looked at again when a connection comes in, at most once a second: a renewed certificate serves
the next connection, without a restart. Files that do not load keep the old certificate and log one error.
Rules: TLS 1.2 or newer with RFC 9113 §9.2's ciphers (the ssl module's defaults leave out what Appendix A bans
for TLS 1.2 once restricted to ECDHE with AEAD), no compression, no renegotiation, ALPN must agree on "h2".
What must not live here: sockets, HTTP/2, who may call what (tokens.py).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import trio

from actorserve.errors import StartFailed

LOOK_EVERY_S = 1.0
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

log = structlog.get_logger("actorserve.tls")


@dataclass(frozen=True, slots=True)
class Files:
    """PEM files. `client_ca`: clients must show a certificate that it signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who a client certificate is for: its common name, and its alternative names as "DNS:..." or "URI:..."."""

    common_name: str
    names: tuple[str, ...]


def build(files: Files) -> ssl.SSLContext:
    """A context from the files; StartFailed names the file that is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["h2"])
    for path in (files.certificate, files.key, *([files.client_ca] if files.client_ca else [])):
        if not path.is_file():
            raise StartFailed(f"tls: there is no file {path}")
    try:
        context.load_cert_chain(files.certificate, files.key)
    except (ssl.SSLError, OSError) as error:
        raise StartFailed(f"tls: {files.certificate} and {files.key} are no certificate and its key: {error}") from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise StartFailed(f"tls: {files.client_ca} holds no certificate: {error}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Certificates:
    """The context for the next connection, made anew when its files have changed."""

    def __init__(self, files: Files, clock: Callable[[], float] = trio.current_time) -> None:
        """StartFailed: the files do not load."""
        self._files = files
        self._clock = clock
        self._looked_at = float("-inf")
        self._stamp = self._stamps()
        self._context = build(files)

    def context(self) -> ssl.SSLContext:
        """The context to use now."""
        now = self._clock()
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            stamp = self._stamps()
            if stamp != self._stamp:
                self._stamp = stamp
                self._reload()
        return self._context

    def _reload(self) -> None:
        try:
            self._context = build(self._files)
        except StartFailed as error:
            log.error("certificate not reloaded, the old one stays", why=str(error))  # noqa: TRY400  # one line
        else:
            log.info("certificate reloaded", certificate=str(self._files.certificate))

    def _stamps(self) -> tuple[object, ...]:
        """What changes when a file is written or replaced."""
        stamps: list[object] = []
        for path in (self._files.certificate, self._files.key, self._files.client_ca):
            if path is not None:
                try:
                    status = os.stat(path)  # noqa: PTH116  # one call, no Path
                    stamps.append((status.st_mtime_ns, status.st_ino, status.st_size))
                except OSError:
                    stamps.append(None)
        return tuple(stamps)


def identity_of(certificate: dict[str, Any] | None) -> PeerIdentity | None:
    """Who `SSLObject.getpeercert()` describes; None without a client certificate."""
    if not certificate:
        return None
    subject = {key: value for part in certificate.get("subject", ()) for key, value in part}
    names = tuple(f"{kind}:{value}" for kind, value in certificate.get("subjectAltName", ()))
    return PeerIdentity(subject.get("commonName", ""), names)


Secured = tuple[trio.SSLStream[trio.SocketStream], PeerIdentity | None]


async def handshake(stream: trio.SocketStream, certificates: Certificates) -> Secured | None:
    """Shake hands; None if the peer does not speak TLS, is not allowed in, or wants no HTTP/2. The caller bounds it."""
    secure = trio.SSLStream(stream, certificates.context(), server_side=True, https_compatible=True)
    agreed = False
    try:
        await secure.do_handshake()
        agreed = secure.selected_alpn_protocol() == "h2"
        if not agreed:
            log.info("tls peer does not offer h2 by ALPN")
            return None
        return secure, identity_of(secure.getpeercert())
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        log.info("tls handshake failed", why=str(error.__cause__ or error))
        return None
    finally:
        if not agreed:
            release(secure)


def release(secure: trio.SSLStream[trio.SocketStream]) -> None:
    """Let go of what a stream that nobody uses any more holds.

    trio's SSLStream refers to itself: its 165 KB would stay until the collector comes, and a peer could heap them up.
    """
    vars(secure).clear()
