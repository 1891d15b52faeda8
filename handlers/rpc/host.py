"""What every rpc worker's handler is: a loop, an engine on it, and the user's object, built on the loop.

worker_main loads it as any handler; then, instead of an engine for batches, `serve_calls` runs until STOP. The options
of the model say what the subclass needs, and `max_ongoing_requests`: the threads of the pool.
What must not live here: servicers (servicer.py), deployments.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any

from actorserve.actors.wire import Data, Frame, FrameReader
from actorserve.handlers.base import Context
from actorserve.handlers.rpc.engine import Engine
from actorserve.handlers.rpc.methods import Method

MAX_ONGOING_REQUESTS = 5


class RpcHost:
    """See the module's docstring. A subclass has `build`, and `schema` where it knows one."""

    def __init__(self) -> None:
        self.methods: Mapping[str, Method] = {}
        self.engine: Engine | None = None
        self.loop: asyncio.AbstractEventLoop
        self.abilities: dict[str, Any] = {"calls": True}
        self._threads = MAX_ONGOING_REQUESTS

    # --- a subclass's --------------------------------------------------------------------------

    async def build(self, context: Context) -> None:
        """Make the user's object, on the running loop, and fill `methods`."""
        raise NotImplementedError

    def schema(self, context: Context) -> dict[str, Any]:
        """What a probe answers: see schema.py. Imports the user's code, and builds nothing."""
        raise NotImplementedError

    async def control(self, content: dict[str, Any]) -> dict[str, Any]:
        """Answer a CONTROL frame."""
        return {"error": f"there is nothing to do for {content.get('do')!r} here"}

    async def shut(self) -> None:
        """The worker ends: nothing is in hand any more."""

    # --- worker_main's ---------------------------------------------------------------------------

    def load(self, context: Context) -> None:
        """Make the loop, then the user's object on it."""
        self._threads = int(context.options.get("max_ongoing_requests", MAX_ONGOING_REQUESTS))
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.build(context))

    def take_over(self, sock: socket.socket, reader: FrameReader, frames: list[Frame]) -> None:
        """The reader thread's last act: the loop reads from now on. READY has been sent, and may be answered."""
        self.loop.call_soon_threadsafe(self._begin, sock, reader, frames)

    def _begin(self, sock: socket.socket, reader: FrameReader, frames: list[Frame]) -> None:
        if self.engine is None:  # the server was quicker than `serve_calls`
            self.loop.call_soon(self._begin, sock, reader, frames)
        else:
            self.engine.begin(sock, reader, frames)

    def serve_calls(self, send: Callable[[Data], None]) -> None:
        """Answer calls until STOP."""
        self.loop.run_until_complete(self._serve(send))

    async def _serve(self, send: Callable[[Data], None]) -> None:
        engine = self.engine = Engine(self, send, threads=self._threads)
        await engine.run()
        await self.shut()
