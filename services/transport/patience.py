"""What we bear from a peer: counts of frames that cost us work and help nobody (RFC 9113 §10.5; docs/security.md).

What lives here: the bounds, and the counters of one connection. What must not: frames, sockets, clocks.

Rules
1. Counts are of one connection and of one window of WINDOW_S; the driver says what time it is. Above a bound the
   connection ends with ENHANCE_YOUR_CALM, which only its own client feels.
2. A reset is counted where it is cheap for the peer and dear for us: within QUICK_S of the stream's opening, with
   nothing sent yet. Whoever cancels later, or has had an answer, may do so as often as calls may be made.
3. Frames without effect are forgiven whenever we send something of a stream: a busy connection may have many of them.
4. PINGs closer than the interval are strikes; so are none that follow something sent, as gRPC's own servers have it.
"""

from __future__ import annotations

from dataclasses import dataclass

from actorserve.services.transport.frames import ENHANCE_YOUR_CALM, ConnectionFault

WINDOW_S = 10.0
QUICK_S = 1.0
STRIKES = 2

RESETS, FAULTS, SETTINGS, IDLE = range(4)
_TEXTS = ("too many resets", "too many stream errors", "too many settings", "too many frames without effect")


@dataclass(frozen=True, slots=True)
class Patience:
    """How many of each a connection may send in WINDOW_S."""

    max_resets: int = 500  # quick ones (rule 2), and streams refused above max_concurrent_streams
    max_stream_faults: int = 100  # that make us send RST_STREAM or 431, stalled answers too
    max_settings: int = 50  # frames; one with more settings than any peer needs counts as several
    max_idle_frames: int = 1000  # PRIORITY, unknown, empty DATA, WINDOW_UPDATE and the like between two answers


class Counters:
    """What one connection has used of its patience."""

    __slots__ = ("_began", "_bounds", "_counts", "_interval", "_pinged_at", "_strikes")

    def __init__(self, patience: Patience, min_ping_interval_s: float) -> None:
        self._bounds = (
            patience.max_resets,
            patience.max_stream_faults,
            patience.max_settings,
            patience.max_idle_frames,
        )
        self._interval = min_ping_interval_s
        self._counts = [0, 0, 0, 0]
        self._began = float("-inf")
        self._pinged_at = float("-inf")
        self._strikes = 0

    def tick(self, now: float | None) -> bool:
        """Say what time it is, None where nobody knows; give whether a new window began."""
        if now is not None:
            if now - self._began < WINDOW_S:
                return False
            self._began = now
        self._counts = [0, 0, 0, 0]
        return True

    def count(self, kind: int, times: int = 1) -> None:
        """Count one, or more at once; ConnectionFault above the bound."""
        self._counts[kind] += times
        if self._counts[kind] > self._bounds[kind]:
            raise ConnectionFault(ENHANCE_YOUR_CALM, _TEXTS[kind])

    def check_tiny(self, count: int) -> None:
        """Raise where the peer's windows made so many DATA frames tiny."""
        if count > self._bounds[IDLE]:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "windows of a few octets")

    def forgive(self) -> None:
        """Something was sent (rules 3 and 4)."""
        self._counts[IDLE] = 0
        self._strikes = 0
        self._pinged_at = float("-inf")

    def ping(self, now: float) -> None:
        """Count a PING of the peer."""
        if now - self._pinged_at < self._interval:
            self._strikes += 1
            if self._strikes > STRIKES:
                raise ConnectionFault(ENHANCE_YOUR_CALM, "too_many_pings")
        self._pinged_at = now
