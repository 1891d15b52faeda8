"""When a worker is pinged, and when it is taken for dead, decided purely: no trio, no clock.

The rules (contracts §2):
1. `beat` is called once a second. A worker with work is pinged at every beat, one without at every fifth: a
   process that was stopped while it had nothing to do is found too.
2. What was asked stays asked: an unanswered ping is followed by one at each beat.
3. Ten beats without an answer: dead. Beats are counted, not seconds: a server that was itself stopped or starved
   for a minute has heard nothing meanwhile, which is no fault of its workers.
"""

from __future__ import annotations

from enum import Enum

IDLE_BEATS = 5
NO_PONG_BEATS = 10


class Beat(Enum):
    """What to do at this beat."""

    NOTHING = "nothing"
    PING = "ping"
    DEAD = "dead"


class Pulse:
    """See the module's docstring. One per incarnation."""

    def __init__(self) -> None:
        self._unanswered = 0
        self._idle = 0

    def heard(self) -> None:
        """A PONG has come."""
        self._unanswered = 0

    def beat(self, *, busy: bool) -> Beat:
        """One second has passed; `busy`: the worker has work in hand."""
        if self._unanswered >= NO_PONG_BEATS:
            return Beat.DEAD
        self._idle = 0 if busy else self._idle + 1
        if not (busy or self._unanswered or self._idle >= IDLE_BEATS):
            return Beat.NOTHING
        self._idle = 0
        self._unanswered += 1
        return Beat.PING
