"""Who works for a model: its children are begun, placed on devices and run, as many as are wanted.

What must not live here: how many those are (scaling.py, autoscaling.py), a child's life (child.py), which models there
are (roster.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import trio

from actorserve.actors.child import Child
from actorserve.actors.device import Ledger
from actorserve.actors.messages import ChildSpec, ModelSpec, Placement, State
from actorserve.actors.model import Model
from actorserve.actors.model_actor import ActorSettings
from actorserve.actors.reply import Reply
from actorserve.actors.rollout import Rollout
from actorserve.actors.roster import Roster
from actorserve.errors import ActorserveError


class Staffing:
    """See the module's docstring. `nursery` is the supervisor's: every child has its task in it."""

    def __init__(
        self,
        settings: ActorSettings,
        roster: Roster,
        ledger: Ledger,
        *,
        stable_after_s: float,
        grace_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self.nursery: trio.Nursery | None = None
        self._settings = settings
        self._roster = roster
        self._ledger = ledger
        self._stable_after_s = stable_after_s
        self._grace_s = grace_s
        self._on_change = on_change

    def start_soon(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start a task beside the children."""
        assert self.nursery is not None  # noqa: S101  # narrows the type: the supervisor's run has set it
        self.nursery.start_soon(task, *args)

    def grow(self, model: Model, count: int) -> list[Child]:
        """Start children until `count` are alive; those that were started."""
        started = []
        while model.alive < count:
            child = self.hire(model, model.spec)
            model.children[child.spec.index] = child
            started.append(child)
        return started

    def hire(self, model: Model, spec: ModelSpec, rollout: Rollout | None = None) -> Child:
        """Start one child by a spec. The caller enters it, before anything else runs."""

        def changed() -> None:
            model.refresh()
            self._on_change()
            if rollout is not None:
                rollout.news.set()

        child = Child(
            ChildSpec(spec, model.free_index(), self._place(spec), restart=spec.restart, grace_s=self._grace_s),
            model.mailbox,
            self._settings,
            stable_after_s=self._stable_after_s,
            on_change=changed,
            turn=model.turn,
            gate=None if rollout is None else rollout.gate,
        )
        self.start_soon(self._run, model, child)
        return child

    def _place(self, spec: ModelSpec) -> Placement:
        children = [child for one in self._roster.everyone() for child in one.everyone()]
        loading = [child.spec.placement for child in children if child.state is not State.READY]
        return self._ledger.assign(spec.key, spec.devices, loading)

    async def _run(self, model: Model, child: Child) -> None:
        await child.run()
        self._ledger.release(child.spec.placement)
        if child.state is not State.FAILED and model.children.get(child.spec.index) is child:
            del model.children[child.spec.index]
        model.dismissed.discard(child)
        model.refresh()
        self._on_change()

    def resize(self, model: Model, target: int) -> None:
        """Have so many. Those that leave finish what they have in hand, however long that takes."""
        self.grow(model, target)
        alive = model.staff()
        alive.sort(key=lambda child: (child.state is not State.READY, -child.view().in_hand, child.spec.index))
        for child in alive[target:]:
            child.retire()
        model.refresh()
        self._on_change()


async def answer_when_ready(children: Iterable[Child], reply: Reply[None]) -> None:
    """Give the reply once every child is READY; it fails as the first fails that cannot be."""
    try:
        for child in children:
            await child.ready.wait()
    except ActorserveError as error:
        reply.fail(error)
    else:
        reply.set(None)
