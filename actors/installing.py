"""The server's end of an installation: install_main.py runs as a process, its output goes to the log.

What must not live here: what a venv is, and how it is built (install_main.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import structlog
import trio

from actorserve.actors.environment import install_environment
from actorserve.actors.forkserver import WorkerProcess
from actorserve.actors.messages import ModelSpec
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
    with os.fdopen(os.memfd_create("order"), "wb") as file:  # not on the command line: a URL may hold a password
        file.write(json.dumps(order).encode())
        file.flush()
        file.seek(0)
        popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "actorserve.actors.install_main", str(os.getpid())],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=install_environment(environment),
            start_new_session=True,
        )
    assert popen.stdout is not None  # noqa: S101  # narrows the type: PIPE
    assert popen.stderr is not None  # noqa: S101  # as above
    out, err = (os.dup(stream.fileno()) for stream in (popen.stdout, popen.stderr))
    popen.stdout.close()
    popen.stderr.close()
    return WorkerProcess(popen.pid, os.pidfd_open(popen.pid), out, err, popen)


def _result(said: list[str]) -> str:
    """The interpreter that the last line names; LoadFailed with the reason that it gives."""
    try:
        result = json.loads(said[-1])
    except (IndexError, ValueError):
        raise LoadFailed("installing its requirements failed; the log has more") from None
    if "failed" in result:
        raise LoadFailed(f"its requirements cannot be installed: {result['failed']}")
    return str(result["python"])
