"""The server of a script: `python -m actorserve.serve_child CONFIG FD`, started by `serve.run` (serve/process.py).

It says on the descriptor FD that it listens ("ready"), or why it cannot, and drains when its standard input ends: with
the script, however that ended. What must not live here: what a script asks of it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import structlog
import trio

from actorserve import config, log
from actorserve.errors import ActorserveError
from actorserve.server import Server

logger = structlog.get_logger("actorserve")
READY = b"ready"


def main() -> None:
    """See the module's docstring. Exit code 1: it could not start."""
    descriptor = int(sys.argv[2])
    try:
        settings = config.load(Path(sys.argv[1]), [])
        log.configure(settings.log)
        trio.run(serve, settings, descriptor)
    except ActorserveError as error:
        os.write(descriptor, str(error).encode()[:4000])
        sys.exit(1)


async def serve(settings: config.Config, descriptor: int) -> None:
    """Serve until the script has gone, or until SIGTERM."""
    server = Server(settings)
    await server.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_end, server)
        nursery.start_soon(_until_signal, server)
        await nursery.start(_run, server, nursery.cancel_scope)
        os.write(descriptor, READY)
        os.close(descriptor)


async def _run(server: Server, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    await server.run(task_status=task_status)
    scope.cancel()


async def _until_end(server: Server) -> None:
    """Standard input is a pipe that the script never writes to."""
    async with trio.lowlevel.FdStream(os.dup(0)) as pipe:
        while await pipe.receive_some(1024):
            pass
    server.stop()


async def _until_signal(server: Server) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            server.stop()


if __name__ == "__main__":
    main()
