"""The server that a script starts, and the way to it: a child process and a private Unix socket.

What lives here: `Server`, which starts and stops the child, and `ScriptLink`, over which handles of the script call.
The socket stands in a folder that only this user may enter. What must not: what `serve.run` does when (running.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from actorserve import errors
from actorserve.serve.config import MOST_BYTES, gRPCOptions
from actorserve.serve.context import OutCall
from actorserve.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RequestCancelledError,
    ServeError,
    gRPCStatusError,
)

if TYPE_CHECKING:
    from actorserve.client import Channel

T = TypeVar("T")
READY = b"ready"
LEAST_BUFFERED = 1 << 28
"""Bytes that a connection may hold unfinished at least: a listener's default."""
STOP_S = 60.0
ITEMS_AHEAD = 16
CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE = 1, 4, 8, 14


def configuration(folder: Path, options: gRPCOptions | None) -> str:
    """The child's config.toml. JSON's texts and lists are TOML's."""
    lines = [
        "[server]",
        'state_dir = ""',
        "[log]",
        'level = "warning"',
        "[listeners.script]",
        f"address = {json.dumps(f'unix:{folder}/socket')}",
        'services = ["applications"]',
        f"max_receive_bytes = {MOST_BYTES}",
        f"max_send_bytes = {MOST_BYTES}",
    ]
    if options is not None:
        services = ["predict", "ray", "health", "servicers", *(["reflection"] if options.enable_reflection else [])]
        lines += [
            "[listeners.grpc]",
            f'address = "127.0.0.1:{options.port}"',
            f"services = {json.dumps(services)}",
            'compatibility = "ray"',
            f"request_timeout_s = {float(options.request_timeout_s or 0.0)}",
            f"max_receive_bytes = {options.max_receive_bytes}",
            f"max_send_bytes = {options.max_send_bytes}",
            f"max_buffered_bytes = {2 * max(options.max_receive_bytes, options.max_send_bytes, LEAST_BUFFERED >> 1)}",
        ]
        for function in options.grpc_servicer_functions:
            module, _, name = function.rpartition(":" if ":" in function else ".")
            lines += ["[[servicers]]", f"functions = [{json.dumps(f'{module}:{name}')}]"]
            lines += [f"path = {json.dumps([one for one in search_path() if one])}"]
    return "\n".join(lines) + "\n"


def search_path() -> list[str]:
    """The script's sys.path, as absolute folders."""
    return [str(Path(one or ".").resolve()) for one in sys.path if Path(one or ".").is_dir()]


class Server:
    """A child process, and a loop in a thread of this process that talks to it."""

    def __init__(self, options: gRPCOptions | None = None) -> None:
        """Start it; returns once it listens. ServeError: it cannot."""
        self.options = options
        self.pid = os.getpid()
        self._folder = Path(tempfile.mkdtemp(prefix="actorserve-"))  # 0700
        self._process: subprocess.Popen[bytes] | None = None
        try:
            (self._folder / "config.toml").write_text(configuration(self._folder, options))
            self._process = self._start()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="actorserve", daemon=True)
        self._thread.start()
        self._closing = asyncio.Event()
        self._open: asyncio.Future[Channel] = self._loop.create_future()
        self._holding = asyncio.run_coroutine_threadsafe(self._hold(), self._loop)
        self.link = ScriptLink(self._loop, self._open)

    def _start(self) -> subprocess.Popen[bytes]:
        reads, writes = os.pipe()
        command = [sys.executable, "-m", "actorserve.serve_child", str(self._folder / "config.toml"), str(writes)]
        with os.fdopen(reads, "rb") as said:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(writes,), start_new_session=True)
            os.close(writes)
            answer = said.read()
        if answer != READY:
            process.kill()
            process.wait()
            raise ServeError(f"the server could not start: {answer.decode() or 'see what it said on stderr'}")
        return process

    async def _hold(self) -> None:
        """Keep the channel open until the end, in one task."""
        from actorserve.client import Channel  # noqa: PLC0415  # only where a server runs

        address = f"unix:{self._folder}/socket"
        async with Channel(address, max_receive_bytes=MOST_BYTES, max_send_bytes=MOST_BYTES) as channel:
            self._open.set_result(channel)
            await self._closing.wait()

    def ask(self, rpc: str, **fields: Any) -> Any:
        """One question of the private service; blocks. ServeError with the server's text."""
        return asyncio.run_coroutine_threadsafe(self._ask(rpc, fields), self._loop).result()

    async def _ask(self, rpc: str, fields: Mapping[str, Any]) -> Any:
        from grpclib.exceptions import GRPCError  # noqa: PLC0415  # only where a server runs

        from actorserve.proto import applications_pb2  # noqa: PLC0415
        from actorserve.proto.applications_grpc import ApplicationsStub  # noqa: PLC0415

        stub = ApplicationsStub(await asyncio.shield(self._open))
        try:
            return await getattr(stub, rpc)(getattr(applications_pb2, f"{rpc}Request")(**fields))
        except GRPCError as error:
            raise ServeError(f"{error.message}") from None

    def is_alive(self) -> bool:
        """Whether the child runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Let the child drain, and wait for it. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        self._loop.call_soon_threadsafe(self._closing.set)
        self._holding.result(STOP_S)
        assert process.stdin is not None  # noqa: S101  # a pipe
        process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class ScriptLink:
    """The way of the script's handles: see serve.context.Link."""

    def __init__(self, loop: asyncio.AbstractEventLoop, opening: asyncio.Future[Channel]) -> None:
        self.loop = loop
        self._opening = opening

    def call(self, call: OutCall) -> ScriptAnswer:
        """Begin a call, at once."""
        return ScriptAnswer(self._opening, call)

    def hold(self, cache: str, held: Sequence[str], loading: Sequence[str]) -> None:
        """A script holds no models."""

    def turn(self, cache: str, model: str) -> contextlib.AbstractAsyncContextManager[None]:
        """Nobody else loads what a script loads."""
        return contextlib.nullcontext()


class ScriptAnswer:
    """The answer to one call; a task of its own reads it, a few items ahead."""

    def __init__(self, opening: asyncio.Future[Channel], call: OutCall) -> None:
        self._items: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(ITEMS_AHEAD)
        self._task = asyncio.get_running_loop().create_task(self._read(opening, call))
        self._over = False

    def __aiter__(self) -> ScriptAnswer:
        return self

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        item = await self._items.get()
        if isinstance(item, bytes):
            return item
        self._over = True
        if item is None:
            raise StopAsyncIteration
        raise item

    async def aclose(self) -> None:
        """Cancel it, if it runs."""
        self._over = True
        self._task.cancel()

    async def _read(self, opening: asyncio.Future[Channel], call: OutCall) -> None:
        from grpclib.const import Cardinality  # noqa: PLC0415  # only where a server runs
        from grpclib.exceptions import GRPCError  # noqa: PLC0415

        from actorserve.proto.applications_pb2 import CallRequest, CallResponse  # noqa: PLC0415

        last: Exception | None = None
        request = CallRequest(
            application=call.application,
            deployment=call.deployment,
            method=call.method,
            stream=call.stream,
            payload=call.payload,
            multiplexed_model_id=str(call.metadata.get("multiplexed_model_id", "")),
            session_id=str(call.metadata.get("session_id", "")),
        )
        try:
            channel = await asyncio.shield(opening)
            path, cardinality = "/actorserve.Applications/Call", Cardinality.UNARY_STREAM
            async with channel.request(path, cardinality, CallRequest, CallResponse) as stream:
                await stream.send_message(request, end=True)
                async for message in stream:
                    await self._items.put(message.item)
        except GRPCError as error:
            last = raised_of(error.status.value, error.message or "")
        except Exception as error:  # noqa: BLE001  # whatever the channel has: for who waits, not for the log
            last = DeploymentUnavailableError(f"the server has gone: {error!r}")
        await self._items.put(last)


def raised_of(code: int, text: str) -> Exception:
    """What a handle raises for a status of the server's."""
    if code == RESOURCE_EXHAUSTED:
        return BackPressureError(text)
    if code == UNAVAILABLE:
        return DeploymentUnavailableError(text)
    if code == DEADLINE_EXCEEDED:
        return errors.Expired(text)
    if code == CANCELLED:
        return RequestCancelledError(text)
    return gRPCStatusError(code, text)
