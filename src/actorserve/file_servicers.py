"""The servicers of the file: begun with the server, and changed when the file is read again.

A call that comes before their schemas are known waits for them, within its deadline.
What must not live here: serving one, or no longer (servicing.py), reading the file.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import structlog
import trio

from actorserve.actors.reply import Reply
from actorserve.config_servicer import Servicer
from actorserve.errors import ActorserveError
from actorserve.servicer_specs import key_of
from actorserve.servicing import Servicing

log = structlog.get_logger("actorserve.servicers")


class FileServicers:
    """See the module's docstring."""

    def __init__(self, servicing: Servicing, on_failed: Callable[[str], None] = lambda _: None) -> None:
        """`on_failed`: the key of one that will never start."""
        self._servicing = servicing
        self._on_failed = on_failed
        self._expecting = False
        self._settled = trio.Event()

    def expect(self) -> None:
        """Some are on their way: calls of methods that nobody knows wait until `begin` knows them."""
        self._expecting = True
        self._servicing.places.hold(self._settled)

    async def begin(self, servicers: Iterable[Servicer], loading: Mapping[str, Reply[None]]) -> None:
        """Add them, side by side; return once all are READY, or have failed.

        `loading`: each one's reply, by its label, set once it is READY. What fails is told there and in the log; the
        others are served.
        """
        ready: dict[str, Reply[None]] = {}
        async with trio.open_nursery() as nursery:
            for servicer in servicers:
                nursery.start_soon(self._begin_one, servicer, loading[servicer.label], ready)
        self._settled.set()
        self._servicing.places.let_go()
        async with trio.open_nursery() as nursery:
            for label, reply in ready.items():
                nursery.start_soon(_pass_on, reply, loading[label])

    async def _begin_one(self, servicer: Servicer, loading: Reply[None], ready: dict[str, Reply[None]]) -> None:
        try:
            ready[servicer.label] = await self._servicing.add(servicer)
        except ActorserveError as error:
            log.error("servicer not served", servicer=servicer.label, why=str(error))  # noqa: TRY400  # the user's code
            self._on_failed(key_of(servicer))
            loading.fail(error)

    async def wait_known(self) -> None:
        """Wait until the schemas of the file are known, as far as they can be, where there are any to come."""
        if self._expecting:
            await self._settled.wait()

    async def apply(self, running: Iterable[str], wanted: Sequence[Servicer], known: trio.Event) -> None:
        """Make the servicers of the file, `running` by their names, those that it has now. Returns when they are.

        One that cannot be is told in the log; the next time it is tried again. What it was to replace stays.
        `known` is set once the schemas that applications answer are as the file says.
        """
        names = {servicer.label for servicer in wanted}
        for label in running:
            if label not in names and label in self._servicing.served:
                await _try(label, self._servicing.remove, label)
        async with trio.open_nursery() as nursery:
            for servicer in wanted:
                if servicer.servicer:
                    nursery.start_soon(self._make, servicer)
            for servicer in wanted:
                if not servicer.servicer:
                    await self._make(servicer)
            known.set()

    async def _make(self, servicer: Servicer) -> None:
        served = self._servicing.served.get(servicer.label)
        if served is None:
            await _try(servicer.label, self._servicing.add, servicer)
        elif served.servicer != servicer:
            await _try(servicer.label, self._servicing.replace, servicer)


async def _try(label: str, change: Callable[[Any], Awaitable[object]], what: object) -> None:
    try:
        await change(what)
    except ActorserveError as error:
        log.error("servicer not changed", servicer=label, why=str(error))  # noqa: TRY400  # the user's code


async def _pass_on(ready: Reply[None], loading: Reply[None]) -> None:
    try:
        await ready.wait()
        loading.set(None)
    except ActorserveError as error:
        loading.fail(error)
