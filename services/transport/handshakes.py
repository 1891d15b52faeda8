"""TLS handshakes that have not ended: how long each may take, how many there may be.

What lives here: `Handshakes`: the wait for the first octets, the handshake's time and its place.
What must not: certificates and what TLS is allowed (tls.py), HTTP/2, calls.

Rules
1. A peer that says nothing costs a task and a socket: what TLS needs (some 165 KB) is made with its first octets.
2. At most `max_handshakes` are under way. One more, and the oldest goes: an honest handshake takes milliseconds, so
   the oldest is the one that somebody holds open. Nobody waits for a place.
3. Before TLS is up nothing can be said: what does not get through is closed.
"""

from __future__ import annotations

import trio

from actorserve.services.transport.limits import Limits
from actorserve.services.transport.tls import Certificates, Secured, handshake


class Handshakes:
    """The handshakes of one server, on all of its listeners."""

    def __init__(self, certificates: Certificates, limits: Limits) -> None:
        self.open = 0  # handshakes that have not ended, begun or not
        self._certificates = certificates
        self.limits = limits
        self._begun: dict[trio.CancelScope, None] = {}  # in the order of their first octets

    async def shake(self, stream: trio.SocketStream) -> Secured | None:
        """Secure a connection; None where that fails or takes too long. The stream is closed then, and if cancelled."""
        secured = None
        self.open += 1
        try:
            with trio.move_on_after(self.limits.handshake_timeout_s or float("inf")) as scope:
                await trio.lowlevel.wait_readable(stream.socket)
                self._begin(scope)
                secured = await handshake(stream, self._certificates)
        finally:
            self.open -= 1
            self._begun.pop(scope, None)
            if secured is None:
                await trio.aclose_forcefully(stream)
        return secured

    def _begin(self, scope: trio.CancelScope) -> None:
        """Take a place (rule 2)."""
        if len(self._begun) >= self.limits.max_handshakes:
            oldest = next(iter(self._begun))
            del self._begun[oldest]
            oldest.cancel()
        self._begun[scope] = None
