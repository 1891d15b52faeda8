"""One incarnation after the other in the same place, without a gap where the first is still good.

A worker that is worn (a limit: wear.py says which) goes on until another is READY beside it; then it drains.
Of a model's replicas one at a time is replaced. If the newcomer fails the old one goes on, and it is tried
again later; if the old one dies meanwhile, the newcomer is its heir.
What must not live here: what an end means (supervision.py, child.py), the worker (model_actor.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import trio

from actorserve.actors.messages import Crashed, Exit, Killed
from actorserve.actors.model_actor import Incarnation
from actorserve.actors.supervision import backoff, cause_of
from actorserve.actors.waiters import Signal


class Life:
    """One incarnation in a task of its own."""

    def __init__(self) -> None:
        self.incarnation: Incarnation
        self.exit: Exit | None = None
        self.over = trio.Event()
        self.scope = trio.CancelScope()
        self.on_over: Callable[[], None] = lambda: None

    @property
    def is_ready(self) -> bool:
        """Whether it has been READY, and lives."""
        return self.incarnation.ready_at is not None and self.exit is None

    @property
    def is_loading(self) -> bool:
        """Whether it lives, and has not been READY yet."""
        return self.incarnation.ready_at is None and self.exit is None


class Succession:
    """See the module's docstring. `live` is called by one task, again and again."""

    def __init__(
        self,
        make: Callable[[Callable[[float], None], Callable[[], None]], Incarnation],
        *,
        on_ready: Callable[[float], None],
        on_end: Callable[[Incarnation, Exit], bool],
        may_replace: Callable[[], bool],
        turn: trio.Lock,
        log: Any,
    ) -> None:
        """`make(on_ready, on_worn)` gives an incarnation; `turn` is shared by a model's replicas.

        `on_end`: one ended with nobody READY in its place; whether there will be a next one.
        """
        self.begun = 0
        self.replaced = 0
        self._make = make
        self._on_ready = on_ready
        self._on_end = on_end
        self._may_replace = may_replace
        self._turn = turn
        self._log = log
        self._lives: list[Life] = []
        self._place: Life | None = None  # whose end is the end, unless another takes its place before
        self._has_ended = False
        self._failed_tries = 0
        self._news = Signal()

    @property
    def current(self) -> Incarnation | None:
        """The one that stands for all; None between two."""
        return None if self._place is None else self._place.incarnation

    @property
    def in_hand(self) -> int:
        """How many envelopes all of its workers have."""
        return sum(life.incarnation.in_hand for life in self._lives)

    def drain(self) -> None:
        """Let those that are READY finish what they have, but for sequences; end those that load."""
        self._finish(Incarnation.drain)

    def retire(self) -> None:
        """As `drain`, sequences included."""
        self._finish(Incarnation.retire)

    def _finish(self, leave: Callable[[Incarnation], None]) -> None:
        for life in self._lives:
            if life.is_ready:
                leave(life.incarnation)
            else:
                life.scope.cancel()

    async def live(self, nursery: trio.Nursery) -> None:
        """Run one, and those that take its place, until one ends with nobody in its place.

        Those that drain stay in the nursery.
        """
        if self._place is None and not self._has_ended:
            self._place = self._begin(nursery)
        while not self._has_ended:
            life = self._place
            if life is not None and life.incarnation.worn and life.is_ready and self._may_replace():
                await self._replace(nursery, life)
            else:
                await self._news.wait()
        self._has_ended = False

    def _begin(self, nursery: trio.Nursery) -> Life:
        life = Life()
        life.incarnation = self._make(lambda seconds: self._ready(life, seconds), self._news.set)
        self.begun += 1
        self._lives.append(life)
        nursery.start_soon(self._run, life)
        return life

    def _ready(self, life: Life, seconds: float) -> None:
        """Its place is its own, or another's that has to leave now."""
        old, self._place = self._place, life
        if old is not None and old is not life:
            old.incarnation.retire()
            self.replaced += 1
            self._failed_tries = 0
        self._on_ready(seconds)
        self._news.set()

    async def _run(self, life: Life) -> None:
        exit: Exit = Killed()
        try:
            with life.scope:
                exit = await life.incarnation.run()
        except Exception as error:  # noqa: BLE001  # an incarnation that fails is a crash, whoever's fault it is
            self._log.exception("worker's actor failed")
            exit = Crashed(f"a bug in the server: {type(error).__name__}: {error}")
        finally:
            self._over(life, exit)

    def _over(self, life: Life, exit: Exit) -> None:
        life.exit = exit
        self._lives.remove(life)
        if self._place is life:
            self._has_ended = True
            loading = [other for other in self._lives if other.is_loading]
            self._place = loading[-1] if loading else None  # the heir, if one was about to take its place
            if not self._on_end(life.incarnation, exit):
                self.drain()
        life.over.set()
        life.on_over()
        self._news.set()

    # --- replacing ------------------------------------------------------------------------------

    async def _replace(self, nursery: trio.Nursery, old: Life) -> None:
        """One try to put another in the place of `old`; returns when that was done, failed, or is in vain."""
        if not await self._take_turn(old):
            return
        try:
            if old.exit is not None or not self._may_replace():
                return
            self._log.info("worker is to be replaced", why=old.incarnation.worn)
            new = self._begin(nursery)
            while new.is_loading and self._place is old:
                await self._news.wait()
        finally:
            self._turn.release()
        if new.exit is not None and self._place is old:
            await self._pause(old, new.exit)

    async def _take_turn(self, old: Life) -> bool:
        """Wait until no other replica is being replaced; False if `old` ended before."""
        with trio.CancelScope() as scope:
            old.on_over = scope.cancel
            await self._turn.acquire()
            return True
        return False

    async def _pause(self, old: Life, exit: Exit) -> None:
        """Wait before the next try; the end of `old` ends the wait."""
        self._failed_tries += 1
        delay = backoff(self._failed_tries, random.random())  # noqa: S311  # jitter, not a secret
        why = cause_of(exit)
        self._log.warning("replacement failed, the old worker goes on", cause=why, again_after_s=round(delay, 2))
        with trio.move_on_after(delay):
            await old.over.wait()
