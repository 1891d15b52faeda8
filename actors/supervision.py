"""What happens when a child ends, decided purely: no trio, no clock.

The rules (design §4, contracts §3):
1. A Stop wins over everything: a child that was told to stop is never started again.
2. permanent: started again whatever its Exit. transient: only after a crash. temporary: never.
   A temporary or a transient child that ended well is gone; a temporary one that crashed is FAILED.
3. A crash that no restart can mend (`Crashed.permanent`) gives up at once.
4. Counted are failed starts, and incarnations that ended before they answered one batch. More than
   `max_restarts` of those in a row: give up. An answer, or `stable_after_s` in READY, resets count and backoff.
5. The backoff doubles from 0.1 s to 30 s, with +-20 % jitter so that children do not restart in step.
"""

from __future__ import annotations

from dataclasses import dataclass

from actorserve.actors.messages import Crashed, Drained, Exit, Finished, Killed, Restart

BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 30.0
JITTER = 0.2
ENDS: dict[type[Exit], str] = {
    Finished: "it ended by itself",
    Drained: "it was drained",
    Killed: "it was killed",
}


@dataclass(frozen=True, slots=True)
class RestartAfter:
    """Start the next incarnation after so many seconds; `failures` is the new count in a row."""

    delay_s: float
    failures: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """FAILED: do not start it again by itself."""

    reason: str
    failures: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The child has ended as it should; forget it."""


Verdict = RestartAfter | GiveUp | Gone


def backoff(failures: int, luck: float) -> float:
    """Seconds before the next try after `failures` in a row. `luck` in [0, 1) chooses within the jitter."""
    base = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2.0 ** min(max(0, failures - 1), 16))
    return base * (1 - JITTER + 2 * JITTER * luck)


def judge(
    exit: Exit,
    *,
    restart: Restart,
    stopping: bool,
    proven: bool,
    failures: int,
    max_restarts: int,
    luck: float,
) -> Verdict:
    """Decide after an incarnation ended.

    `proven`: it answered a batch or stayed READY for `stable_after_s`; `failures`: in a row before it.
    """
    if stopping:
        return Gone()
    if not isinstance(exit, Crashed):
        if restart is not Restart.PERMANENT:
            return Gone()
        if proven:
            return RestartAfter(0.0, 0)
    elif exit.permanent or restart is Restart.TEMPORARY:
        return GiveUp(exit.cause, failures + 1)
    failures = 0 if proven else failures + 1
    if failures > max_restarts:
        return GiveUp(f"{failures} failures in a row, the last: {cause_of(exit)}", failures)
    return RestartAfter(backoff(failures, luck), failures)


def cause_of(exit: Exit) -> str:
    """Why an incarnation ended, in words."""
    return exit.cause if isinstance(exit, Crashed) else ENDS[type(exit)]
