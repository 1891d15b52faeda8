"""What is due on a connection as time passes: keepalive, age, idleness, and peers that hold things up.

What lives here: decisions, made from the core and the time that the driver tells.
What must not: tasks, clocks, sockets.

Rules
1. The driver looks when something may be due (`next_look`): often while something is under way; at a quiet connection,
   when it will have been silent, idle or old for long enough. What is read from a quiet one may ask for an earlier look
   (`is_quiet`, `busy_pause`): thousands of connections that say nothing cost next to nothing.
2. A stream is stalled when the side that should move has moved less than PROGRESS octets in its timeout: our answer
   that the peer's windows hold back; a unary request of which we have taken all that came.
3. A connection that is old or idle is drained, when its place comes (pace.py) and it still is; one that is dead, or
   holds a frame up, is ended.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from actorserve.services.transport import frames as f
from actorserve.services.transport import streams as s
from actorserve.services.transport.connection import Connection
from actorserve.services.transport.limits import Limits
from actorserve.services.transport.pace import at_once

PROGRESS = 1024
BUSY_S, SHORTEST_S = 2.5, 0.05  # the longest pause while something is under way, and the shortest ever
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class End:
    """Say GOAWAY with this code and close; `reason` is for the statistics."""

    reason: str
    code: int
    text: str


class Ping:
    """Ask the peer for a sign of life."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Say GOAWAY, let the calls end."""

    reason: str


class Watch:
    """Looks at one connection."""

    def __init__(self, core: Connection, limits: Limits, now: float, place: Callable[[float], float] = at_once) -> None:
        """`place` takes a place among those that are told to go, and gives when it is (pace.py)."""
        self._core = core
        self._limits = limits
        self._place = place
        self._leaves: tuple[float, str] | None = None  # when, and why
        self._idle_since = now
        age = limits.max_connection_age_s
        self._expires = now + age * random.uniform(0.9, 1.1) if age else NEVER  # noqa: S311  spread, no secret
        self._drained_at: float | None = None
        self._pinged_at = -NEVER
        self._highest = 0
        self._marks: dict[int, tuple[float, bool, int]] = {}  # stream -> since when, sending?, octets then
        self._written: tuple[float, int] | None = None  # since when, octets written then; while something is
        stalls = (limits.write_stall_timeout_s, limits.body_stall_timeout_s, limits.handshake_timeout_s)
        grace = limits.max_connection_age_grace_s if age else 0.0
        lives = (limits.keepalive_interval_s, limits.keepalive_timeout_s, limits.max_idle_s, age, grace)
        self.busy_pause = _quarter(BUSY_S, *lives, *stalls)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is under way that could stall, but for a write that is the driver's."""
        core = self._core
        return not (
            core.streams or core.wants_write or core.unfinished_since is not None or core.block_since is not None
        )

    def next_look(self, now: float, heard_at: float, *, quiet: bool) -> float:
        """Give when to look again (rule 1)."""
        if not quiet:
            return now + self.busy_pause
        limits = self._limits
        if self._drained_at is not None:
            leaves = self._drained_at + limits.max_connection_age_grace_s
        elif self._leaves is not None:
            leaves = self._leaves[0]
        else:
            leaves = min(self._expires, self._idle_since + (limits.max_idle_s or NEVER))
        if heard_at < self._pinged_at:
            sign = self._pinged_at + (limits.keepalive_timeout_s or NEVER)
        else:
            sign = heard_at + (limits.keepalive_interval_s or NEVER)
        return max(now + SHORTEST_S, min(leaves, sign))

    def due(self, now: float, heard_at: float) -> End | Drain | Ping | None:
        """Give what is to be done now; `heard_at`: when something was last read."""
        return self._too_slow(now) or self._too_old(now) or self._silent(now, heard_at)

    def _too_slow(self, now: float) -> End | None:
        core, limits = self._core, self._limits
        if core.more:  # the rest may be among the frames that wait for us
            return None
        if core.block_since is not None and _past(now, core.block_since, limits.handshake_timeout_s):
            return End("slow", f.ENHANCE_YOUR_CALM, "a header block took too long")
        if core.unfinished_since is not None and _past(now, core.unfinished_since, limits.body_stall_timeout_s):
            return End("slow", f.ENHANCE_YOUR_CALM, "a frame took too long")
        return None

    def _too_old(self, now: float) -> End | Drain | None:
        if self._drained_at is not None:
            over = _past(now, self._drained_at, self._limits.max_connection_age_grace_s)
            return End("age", f.NO_ERROR, "max_connection_age") if over else None
        idle = self.idle(now)
        if self._leaves is None and (idle or now >= self._expires):
            self._leaves = self._place(now), "age" if now >= self._expires else "idle"
        if self._leaves is None or now < self._leaves[0]:
            return None
        _, reason = self._leaves
        self._leaves = None
        if reason == "age":
            self._drained_at = now
        elif not idle:  # it has got a call meanwhile
            return None
        return Drain(reason)

    def _silent(self, now: float, heard_at: float) -> End | Ping | None:
        if heard_at < self._pinged_at:
            over = _past(now, self._pinged_at, self._limits.keepalive_timeout_s)
            return End("keepalive", f.NO_ERROR, "keepalive_timeout") if over else None
        if _past(now, heard_at, self._limits.keepalive_interval_s):
            self._pinged_at = now
            return Ping()
        return None

    def idle(self, now: float) -> bool:
        """Whether there has been no call for too long."""
        core = self._core
        if core.streams or core.highest != self._highest:
            self._highest = core.highest
            self._idle_since = now
        return _past(now, self._idle_since, self._limits.max_idle_s)

    def stalled(self, now: float) -> Iterator[s.Stream]:
        """Give the streams that the peer holds up (rule 2)."""
        marks: dict[int, tuple[float, bool, int]] = {}
        for stream in list(self._core.streams.values()):
            sending = stream.queued
            if not sending and not _receiving(stream):
                continue
            octets = stream.sent if sending else stream.received
            since, kind, then = self._marks.get(stream.id, (now, sending, octets))
            if kind is not sending or octets - then >= PROGRESS:
                since, then = now, octets
            limits = self._limits
            if _past(now, since, limits.write_stall_timeout_s if sending else limits.body_stall_timeout_s):
                yield stream
            else:
                marks[stream.id] = since, sending, then
        self._marks = marks

    def write_stalled(self, now: float, octets: int, *, writing: bool) -> bool:
        """Whether less than PROGRESS of a write was taken in its timeout; `octets`: what was taken since ever."""
        if not writing:
            self._written = None
            return False
        since, then = self._written or (now, octets)
        if octets - then >= PROGRESS:
            since, then = now, octets
        self._written = since, then
        return _past(now, since, self._limits.write_stall_timeout_s)


def _quarter(longest: float, *timeouts: float) -> float:
    """Give a pause that finds each timeout soon enough."""
    return max(SHORTEST_S, min(longest, *(timeout / 4 for timeout in timeouts if timeout), longest))


def _past(now: float, since: float, limit: float) -> bool:
    return bool(limit) and now - since >= limit


def _receiving(stream: s.Stream) -> bool:
    """Whether a unary request is not whole, and it is the peer's turn."""
    owner = stream.owner
    return (
        not stream.ended and not stream.unread and owner is not None and not owner.handler.cardinality.client_streaming
    )
