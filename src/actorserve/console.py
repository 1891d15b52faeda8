"""The server as a person runs it: progress and one screen on stdout, signals, and the exit code.

What must not live here: the command line (__main__.py), how a server runs (server.py).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import structlog
import trio

from actorserve import config, screen
from actorserve.actors.tree_text import render
from actorserve.collecting import collect_garbage
from actorserve.errors import ActorserveError, ConfigError
from actorserve.server import Server

PROGRESS_EVERY_S = 1.0
DRAINED, FAILED, KILLED = 0, 1, 130

log = structlog.get_logger("actorserve")


class Console:
    """One run. `run` gives the exit code. `on_ready` is called once models are served, after the screen."""

    def __init__(
        self,
        settings: config.Config,
        reread: Callable[[], config.Config] | None = None,
        *,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """`reread` blocks; it gives the configuration as its file says it now, or ConfigError. None: there is none."""
        self._settings = settings
        self._reread = reread
        self._on_ready = on_ready
        self._code = DRAINED
        self._stopping = False
        self._reading = trio.Lock()

    async def run(self) -> int:
        """Serve until the first SIGINT or SIGTERM, then drain; a second one kills.

        SIGUSR1 logs the tree, SIGHUP takes up what the file says now.

        StartFailed before that.
        """
        server = Server(self._settings)
        await server.open()
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, signals, server, nursery)
                nursery.start_soon(self._show, server)
                nursery.start_soon(collect_garbage)
                await server.run()
                nursery.cancel_scope.cancel()
        if self._code == DRAINED:
            say("drained, good bye")
        return self._code

    async def _obey(self, signals: object, server: Server, nursery: trio.Nursery) -> None:
        """Do what signals say; `nursery` is the run's, to reload in and to be cancelled."""
        async for number in signals:  # type: ignore[attr-defined]  # trio keeps the type private
            if number == signal.SIGUSR1:
                self._log_tree(server)
                continue
            if number == signal.SIGHUP:
                nursery.start_soon(self._reload, server)
                continue
            if self._stopping:
                self._code = KILLED
                say("killed by a second signal")
                nursery.cancel_scope.cancel()
                return
            self._stopping = True
            say(f"{signal.Signals(number).name}: draining, up to {self._settings.server.grace_s:g} s; again to kill")
            server.stop()

    async def _reload(self, server: Server) -> None:
        """Take up what the file says now; where it is wrong, say so in one line and change nothing."""
        if self._reread is None:
            log.warning("there is no config file to read again")
            return
        await server.wait_begun()  # before the file is read: two that wait here go on in any order
        if self._stopping:
            return
        try:
            async with self._reading:  # so that what was read later is taken up later
                new = await trio.to_thread.run_sync(self._reread)  # TorchServe's: it may look into every archive
            await server.reload(new)
        except ActorserveError as error:
            key, why = (error.key, error.text) if isinstance(error, ConfigError) else ("", str(error))
            log.error("configuration not reloaded, nothing has changed", key=key, why=why)  # noqa: TRY400  # one line

    def _log_tree(self, server: Server) -> None:
        """Log the tree at the lowest level that is shown: who asks for it shall see it."""
        getattr(log, self._settings.log.level)("supervision tree\n" + render(server.observe()))

    async def _show(self, server: Server) -> None:
        """Progress until every model is READY or FAILED, then the screen."""
        say(screen.listening(server.bound))
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report, server, began)
            while len(server.loading) < server.to_load:
                await trio.lowlevel.checkpoint()
            failures = await server.wait_loaded()
            nursery.cancel_scope.cancel()
        if self._stopping:
            return  # what had not loaded yet was stopped, and has not failed
        for name, error in failures:
            where = place_of(name, server)
            say(f"actorserve: {where}.{name}: {screen.one_line(str(error))}", sys.stderr)
        if failures and not server.is_serving():
            self._code = FAILED
            say("actorserve: no model could be loaded", sys.stderr)
            server.stop()
            return
        say(screen.screen(server.bound, server.observe(), Path.cwd()))
        self._on_ready()

    @staticmethod
    async def _report(server: Server, began: float) -> None:
        while True:
            await trio.sleep(PROGRESS_EVERY_S)
            say(screen.progress(server.observe(), trio.current_time() - began))


def place_of(name: str, server: Server) -> str:
    """The table of the file that has what is called so."""
    if name in server.servicers:
        return "servicers"
    return "applications" if name in server.settings.applications else "models"


def say(text: str, stream: TextIO | None = None) -> None:
    """Tell the person at the terminal; one who has gone (`| head`) does not end the server."""
    stream = sys.stdout if stream is None else stream
    try:
        print(text, file=stream, flush=True)  # stdout is the screen; the log goes to stderr
    except OSError:
        with suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())  # what is left in the buffer goes nowhere, now and at exit
