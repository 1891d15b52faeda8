"""Scripted workers: trio-native fakes of the worker protocol, for tests of rules in virtual time.

They speak the same frames over an in-memory stream, so everything above the process is the real code.
Subclass `ScriptedWorker` and hand a `ScriptedWorkers` to `actorserve.testing.serve(workers=...)`.
What must not live here: processes, threads, files, sockets; real time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import trio
import trio.testing

from actorserve.actors import wire
from actorserve.actors.messages import ChildSpec
from actorserve.actors.wire import CREDIT_BYTES, CREDIT_CHUNKS, Data, Frame, FrameReader, Item, Kind, Outcome, Result
from actorserve.actors.worker_process import Worker
from actorserve.errors import BadInput, HandlerStatus, LoadFailed

SIGKILL = -9


class ScriptedProcess:
    """Stands for a process: something to wait for and to kill."""

    sees_all_devices = False

    def __init__(self, pid: int) -> None:
        self.pid: int | None = pid
        self.status: int | None = None
        self.stuck = False
        self.ended = trio.Event()
        self.scope = trio.CancelScope()

    def end(self, status: int) -> None:
        """The process has ended; the first status counts."""
        if self.status is None:
            self.status = status
            self.ended.set()
            self.scope.cancel()

    async def wait(self) -> int:
        """See `Process.wait`."""
        await self.ended.wait()
        return self.status or 0

    def kill(self) -> None:
        """See `Process.kill`."""
        self.end(SIGKILL)

    def outputs(self) -> list[tuple[str, int]]:
        """A scripted worker prints nothing."""
        return []


class _Stream:
    """Credit of one stream."""

    def __init__(self) -> None:
        self.chunks = CREDIT_CHUNKS
        self.bytes = CREDIT_BYTES
        self.changed = trio.Event()
        self.scope = trio.CancelScope()
        self.items, self.item_queue = trio.open_memory_channel[dict[str, bytes]](float("inf"))  # of a sequence


class ScriptedWorker:
    """Echoes `data` at once. Override `load`, `infer`, `generate`, `feed` and `describe`; these may sleep, raise or
    `crash`.

    `answers_ping = False` makes it as silent as a stopped process. Time slept in `infer`, or before a chunk of
    `generate`, is time inside the handler: PONG tells of it, as a real worker's does.
    """

    can_infer = True
    can_generate = True
    can_sequences = False

    def __init__(self, child: ChildSpec, process: ScriptedProcess, stream: trio.abc.Stream) -> None:
        self.child = child
        self.process = process
        self.cancelled: set[int] = set()
        self.answers_ping = True
        self._calls: dict[object, float] = {}
        self._stream = stream
        self._lock = trio.Lock()
        self._batches, self._batch_queue = trio.open_memory_channel[tuple[int, list[Item]]](16)
        self._streams: dict[int, _Stream] = {}

    # --- what a test overrides -----------------------------------------------------------------

    async def load(self, content: dict[str, Any]) -> None:
        """Become READY when this returns; LoadFailed or any other exception is FAILED."""

    async def infer(self, items: Sequence[Item]) -> Sequence[bytes | Exception]:
        """Answer a batch: same length, same order."""
        return [item.inputs.get("data", b"") for item in items]

    async def generate(self, item: Item) -> AsyncGenerator[bytes, None]:
        """Answer a stream: `count` times `data`."""
        for _ in range(int(item.inputs.get("count", b"1"))):
            yield item.inputs.get("data", b"")

    async def feed(self, id: int, inputs: Mapping[str, bytes]) -> bytes | Exception:
        """Answer the next item of a sequence; raising ends the sequence."""
        return inputs.get("data", b"")

    async def describe(self) -> bytes:
        """What it says of itself, as JSON; nothing by default."""
        return b""

    @property
    def open_streams(self) -> int:
        """How many streams and sequences it has."""
        return len(self._streams)

    def crash(self, status: int = SIGKILL) -> None:
        """Die now, with nothing more said."""
        self.process.end(status)

    # --- the protocol ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Live until STOP, the end of the socket, or the end of the process."""
        with self.process.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_batches)
                await self._read(nursery)
                nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)
        self.process.end(0)

    async def _read(self, nursery: trio.Nursery) -> None:
        reader = FrameReader()
        try:
            while data := await self._stream.receive_some(1 << 16):
                for frame in reader.feed(data):
                    if frame.kind == Kind.STOP:
                        return
                    await self._hear(frame, nursery)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def _hear(self, frame: Frame, nursery: trio.Nursery) -> None:
        match frame.kind:
            case Kind.LOAD:
                nursery.start_soon(self._load, wire.read_note(frame.payload))
            case Kind.BATCH:
                await self._batches.send((frame.id, wire.read_batch(frame.payload)))
            case Kind.OPEN | Kind.OPEN_SEQUENCE | Kind.DESCRIBE:
                self._streams[frame.id] = _Stream()
                answer = {Kind.OPEN: self._generate, Kind.DESCRIBE: self._describe}.get(Kind(frame.kind), self._feed)
                nursery.start_soon(self._run_stream, wire.read_open(frame.payload), answer)
            case Kind.ITEM | Kind.END if frame.id in self._streams:
                self._hear_item(frame)
            case Kind.CREDIT if frame.id in self._streams:
                stream = self._streams[frame.id]
                chunks, size = wire.read_credit(frame.payload)
                stream.chunks += chunks
                stream.bytes += size
                stream.changed.set()
            case Kind.CANCEL:
                self.cancelled.add(frame.id)
                if frame.id in self._streams:
                    self._streams[frame.id].scope.cancel()
            case Kind.PING:
                if self.answers_ping:
                    began = min(self._calls.values(), default=trio.current_time())
                    await self._say(wire.pong(trio.current_time() - began))

    def _hear_item(self, frame: Frame) -> None:
        items = self._streams[frame.id].items
        if frame.kind == Kind.END:
            items.close()
        else:
            items.send_nowait(wire.read_item(frame.payload))

    async def _say(self, data: Data) -> None:
        """Write; where the server has gone this is the end, as of a real worker."""
        try:
            async with self._lock:
                for part in data if isinstance(data, list) else (data,):
                    await self._stream.send_all(part)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.process.end(1)

    @contextmanager
    def _handler_call(self) -> Iterator[None]:
        call = object()
        self._calls[call] = trio.current_time()
        try:
            yield
        finally:
            del self._calls[call]

    async def _load(self, content: dict[str, Any]) -> None:
        try:
            await self.load(content)
        except Exception as error:  # noqa: BLE001  # as a real worker: whatever load raises is why it failed
            permanent = isinstance(error, LoadFailed) and error.permanent
            await self._say(wire.note(Kind.FAILED, {"reason": str(error), "permanent": permanent}))
            self.process.end(1)
            return
        ready = {"infer": self.can_infer, "generate": self.can_generate, "sequences": self.can_sequences}
        await self._say(wire.note(Kind.READY, ready))

    async def _run_batches(self) -> None:
        async for batch_id, items in self._batch_queue:
            await self._say(wire.frame(Kind.BEGUN, batch_id))
            running = [item for item in items if item.id not in self.cancelled]
            results = [Result(item.id, Outcome.CANCELLED, b"", {}) for item in items if item.id in self.cancelled]
            answers = await self._infer(running) if running else ()
            for item, answer in zip(running, answers, strict=True):
                results.append(_result(item.id, answer))
            await self._say(wire.result(batch_id, results))

    async def _infer(self, items: Sequence[Item]) -> Sequence[bytes | Exception]:
        """Answers or exceptions, one each; BadInput raised for a batch is found out item by item."""
        try:
            with self._handler_call():
                return await self.infer(items)
        except BadInput as error:
            if len(items) == 1:
                return [error]
            return [(await self._infer([item]))[0] for item in items]
        except Exception as error:  # noqa: BLE001  # the script's
            return [error] * len(items)

    async def _generate(self, item: Item, stream: _Stream) -> bytes:
        """Send the chunks of one stream within its credit; gives the frame that ends it."""
        async with aclosing(self.generate(item)) as chunks:
            while True:
                while stream.chunks <= 0 or stream.bytes <= 0:
                    stream.changed = trio.Event()
                    await stream.changed.wait()
                with self._handler_call():
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return wire.done(item.id)
                stream.chunks -= 1
                stream.bytes -= len(chunk)
                await self._say(wire.chunk(item.id, chunk))

    async def _describe(self, item: Item, stream: _Stream) -> bytes:
        """Say what the script says of itself."""
        with self._handler_call():
            said = await self.describe()
        await self._say(wire.chunk(item.id, said))
        return wire.done(item.id)

    async def _feed(self, item: Item, stream: _Stream) -> bytes:
        """Answer the items of one sequence within its credit; gives the frame that ends it."""
        async for inputs in stream.item_queue:
            while stream.chunks <= 0 or stream.bytes <= 0:
                stream.changed = trio.Event()
                await stream.changed.wait()
            with self._handler_call():
                answer = await self.feed(item.id, inputs)
            stream.chunks -= 1
            if isinstance(answer, Exception):
                await self._say(wire.fault(item.id, *_failure(answer)))
            else:
                stream.bytes -= len(answer)
                await self._say(wire.chunk(item.id, answer))
        return wire.done(item.id)

    async def _run_stream(self, item: Item, answer: Callable[[Item, _Stream], Awaitable[bytes]]) -> None:
        stream = self._streams[item.id]
        last = wire.error(item.id, Outcome.CANCELLED, b"")
        with stream.scope:
            await trio.lowlevel.checkpoint()  # a cancelled one never reaches the script
            try:
                last = await answer(item, stream)
            except Exception as error:  # noqa: BLE001  # the script's
                last = wire.error(item.id, *_failure(error))
        del self._streams[item.id]
        await self._say(last)


def _failure(error: Exception) -> tuple[Outcome, bytes]:
    if isinstance(error, BadInput):
        return Outcome.BAD_INPUT, wire.error_data(error.field, error.text)
    if isinstance(error, HandlerStatus):
        return Outcome.CODED, wire.status_data(error.code, error.text, error.answer)
    return Outcome.RAISED, wire.error_data(type(error).__name__, str(error))


def _result(id: int, answer: bytes | Exception) -> Result:
    if isinstance(answer, bytes):
        return Result(id, Outcome.OK, answer, {})
    return Result(id, *_failure(answer), {})


class ScriptedWorkers:
    """A spawner of scripted workers; `made` lists them all, in the order they were spawned."""

    def __init__(
        self, make: Callable[[ChildSpec, ScriptedProcess, trio.abc.Stream], ScriptedWorker] = ScriptedWorker
    ) -> None:
        self._make = make
        self.made: list[ScriptedWorker] = []
        self.nursery: trio.Nursery | None = None

    async def prepare(self, child: ChildSpec) -> None:
        """See `Spawner.prepare`: nothing is needed."""
        await trio.lowlevel.checkpoint()

    async def spawn(self, child: ChildSpec) -> Worker:
        """See `Spawner.spawn`."""
        if self.nursery is None:
            raise RuntimeError("scripted workers run inside actorserve.testing.serve")
        ours, theirs = trio.testing.memory_stream_pair()
        process = ScriptedProcess(pid=-len(self.made) - 1)
        worker = self._make(child, process, theirs)
        self.made.append(worker)
        self.nursery.start_soon(worker.run)
        await trio.lowlevel.checkpoint()
        return Worker(ours, process)
