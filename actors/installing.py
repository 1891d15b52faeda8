"""The server's end of an installation: install_main.py runs as a process, its output goes to the log.

What must not live here: what a venv is, and how it is built (install_main.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import structlog
import trio

from actorserve.actors.environment import install_environment
from actorserve.actors.messages import ModelSpec
from actorserve.actors.process import WorkerProcess, pipe
from actorserve.actors.worker_process import LineLimit, OutputPump
from actorserve.errors import LoadFailed

log = structlog.get_logger("actorserve.install")
Installer = Callable[[ModelSpec, Path, Mapping[str, str]], Awaitable[str]]


async def install(model: ModelSpec, cache_dir: Path, environment: Mapping[str, str]) -> str:
    """Have a model's requirements in a venv below `cache_dir`; gives the path of its interpreter.

    At once where it is there already. LoadFailed with the reason where it fails or takes longer than
    `install_timeout_s`. Cancelling kills the installation; what it had begun is removed by the next one.
    """
    limit = model.environment.install_timeout_s
    bound = log.bind(model=model.key)
    said: list[str] = []
    process = _start(model, cache_dir, environment)
    ended = trio.Event()
    timeout = trio.CancelScope(deadline=trio.current_time() + limit)
    async with trio.open_nursery() as pumps:
        emits = said.append, bound.info
        for (_, descriptor), emit in zip(process.outputs(), emits, strict=True):
            pumps.start_soon(OutputPump(descriptor, emit, LineLimit()).run, ended.wait)
        try:
            with timeout:
                await process.wait()
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
            ended.set()
    if timeout.cancelled_caught:
        raise LoadFailed(f"installing its requirements took longer than install_timeout_s = {limit:g}")
    return _result(said)


def _start(model: ModelSpec, cache_dir: Path, environment: Mapping[str, str]) -> WorkerProcess:
    """In trio's own thread: the process asks to die with the thread that started it (forkserver.py)."""
    wanted = model.environment
    order = {
        "root": str(cache_dir.absolute() / "venvs"),
        "requirements": list(wanted.requirements),
        "file": wanted.requirements_file,
        "base": wanted.base,
    }
    with contextlib.ExitStack() as kept, contextlib.ExitStack() as given:
        file = given.enter_context(os.fdopen(os.memfd_create("order"), "wb"))  # no argument: a URL may hold a password
        file.write(json.dumps(order).encode())
        file.flush()
        file.seek(0)
        out_read, out_write = pipe(kept, given)
        err_read, err_write = pipe(kept, given)
        popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "actorserve.actors.install_main", str(os.getpid())],
            stdin=file,
            stdout=out_write,
            stderr=err_write,
            env=install_environment(environment),
            start_new_session=True,
        )
        process = WorkerProcess.of(popen, out_read, err_read)
        kept.pop_all()  # they are the pumps' now
        return process


def _result(said: list[str]) -> str:
    """The interpreter that the last line names; LoadFailed with the reason that it gives."""
    try:
        result = json.loads(said[-1])
    except (IndexError, ValueError):
        raise LoadFailed("installing its requirements failed; the log has more") from None
    if "failed" in result:
        raise LoadFailed(f"its requirements cannot be installed: {result['failed']}")
    return str(result["python"])
