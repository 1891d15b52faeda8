"""The applications of the file: begun with the server, and changed when the file is read again.

What is of the file are those that it has said last; what a script has sent is its own (sent_apps.py).
What must not live here: starting and ending one (apps.py), reading the file.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import structlog
import trio

from actorserve.actors.reply import Reply
from actorserve.app_running import Running, source_of
from actorserve.apps import Apps
from actorserve.config_application import Application
from actorserve.errors import ActorserveError

log = structlog.get_logger("actorserve.applications")


class FileApps:
    """See the module's docstring. `folder` is what relative paths mean."""

    def __init__(self, apps: Apps, folder: Path) -> None:
        self._apps = apps
        self._folder = folder
        self._wanted: dict[str, Application] = {}
        self._applied: dict[str, Application] = {}  # those that run as the file says
        self._applying = trio.Lock()

    async def begin(self, applications: Mapping[str, Application], loading: Mapping[str, Reply[None]]) -> None:
        """Start them, one after another, and wait until they are READY. `loading`: each one's reply."""
        async with trio.open_nursery() as nursery, self._applying:
            for name, application in applications.items():
                try:
                    running = await self._deploy(name, application)
                except ActorserveError as error:
                    log.error("application not served", application=name, why=str(error))  # noqa: TRY400  # the user's code
                    loading[name].fail(error)
                    continue
                self._applied[name] = application
                nursery.start_soon(self._settle, name, running, loading[name])
            self._apps.board.settled.set()

    async def _deploy(self, name: str, application: Application) -> Running:
        return await self._apps.deploy(source_of(name, application, self._folder))

    async def _settle(self, name: str, running: Running, loading: Reply[None]) -> None:
        try:
            await running.wait_ready()
            loading.set(None)
        except ActorserveError as error:
            self._applied.pop(name, None)
            loading.fail(error)

    def want(self, applications: Mapping[str, Application]) -> None:
        """The file says so now; `apply` does it."""
        self._wanted = dict(applications)

    async def apply(self) -> None:
        """Make those that run those that the file wants. Returns when they are, or cannot be.

        One that cannot be is told in the log, and tried again the next time; what it was to change goes on.
        """
        await self._apps.board.settled.wait()
        async with self._applying:
            wanted = self._wanted
            for name in [name for name in self._applied if name not in wanted]:
                del self._applied[name]
                await _try(name, partial(self._apps.delete, name))
            async with trio.open_nursery() as nursery:
                for name, application in wanted.items():
                    if self._applied.get(name) != application:
                        nursery.start_soon(_try, name, partial(self._apply_one, name, application))

    async def _apply_one(self, name: str, application: Application) -> None:
        running = await self._deploy(name, application)
        await running.wait_ready()
        self._applied[name] = application


async def _try(name: str, change: Callable[[], Awaitable[None]]) -> None:
    try:
        await change()
    except ActorserveError as error:
        log.error("application not changed", application=name, why=str(error))  # noqa: TRY400  # the user's code
