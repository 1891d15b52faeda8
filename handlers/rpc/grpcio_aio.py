"""A servicer with `async def`s, run on the loop as grpcio's asyncio server runs it: the same answers, codes, metadata.

The rules, found by asking grpc.aio 1.85's server (tests/rpc compares):
1. An exception: "Unexpected <class 'X'>: TEXT", with the status that was set, UNKNOWN where none was.
2. `abort` sends the status at once and raises AbortError; suppressing that changes nothing.
3. A method that streams is an async generator, or a coroutine that uses `context.read` and `context.write`.
4. A plain `def` beside them runs in a thread, with a context that waits instead of awaiting.
5. A caller who has gone: the task is cancelled.
What must not live here: servicers without `async` (grpcio_sync.py), frames.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc
from grpc.aio import EOF, AbortError, UsageError

from actorserve.actors.messages import Ending
from actorserve.handlers.rpc.call import CallCancelled, RpcCall
from actorserve.handlers.rpc.grpcio_peer import (
    CANCELLED,
    ENCODINGS,
    UNKNOWN,
    Asked,
    number_of,
    pairs_of,
    split_trailers,
)
from actorserve.handlers.rpc.methods import Method, cardinality

log = logging.getLogger("actorserve.rpc")
FINISHED = "RPC already finished."


class Context(Asked, grpc.aio.ServicerContext):  # type: ignore[misc]  # grpc has no types
    """The context that an asyncio servicer gets."""

    def __init__(self, call: RpcCall, decode: Any, encode: Any) -> None:
        super().__init__(call)
        self._decode = decode
        self._encode = encode
        self._code: Any = None
        self._number = 0
        self._details = ""
        self._trailers: Any = ()
        self._encoding = ""
        self._initial_sent = False
        self.callbacks: list[Callable[[Any], None]] = []
        self.aborting: AbortError | None = None

    # --- messages -----------------------------------------------------------------------------

    async def read(self) -> Any:
        """The next request, or grpc.aio.EOF."""
        self.check()
        data = await self._call.receive()
        self.check()
        return EOF if data is None else decoded(self._decode, data)

    async def write(self, message: Any) -> None:
        """Send one answer, once there is room for it."""
        self.check()
        data = packed(self._encode, message)
        await self._call.room()
        self.begin_answer()
        self._call.send(data)

    def check(self) -> None:
        """Raise what ended the call, if it has ended."""
        if self.aborting is not None:
            raise self.aborting
        if self._call.ended:
            raise UsageError(FINISHED)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send it now; UsageError where it was sent."""
        self.send_initial(initial_metadata)

    def send_initial(self, metadata: Any) -> None:
        """The same, for any thread."""
        self.check()
        if self._initial_sent:
            raise UsageError("Send initial metadata failed: already sent")
        self._initial_sent = True
        self._call.send_initial(pairs_of(metadata), self._encoding)

    def begin_answer(self) -> None:
        """Before the first message: an encoding that was set must be said."""
        if not self._initial_sent:
            self._initial_sent = True
            if self._encoding:
                self._call.send_initial((), self._encoding)

    # --- the status ---------------------------------------------------------------------------

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> None:
        """End the call now, and raise."""
        self.end_by_abort(code, details, trailing_metadata)

    async def abort_with_status(self, status: Any) -> None:
        """As `abort`."""
        self.end_by_abort(status.code, status.details, status.trailing_metadata)

    def end_by_abort(self, code: Any, details: str, trailing_metadata: Any) -> None:
        """The same, for any thread (rule 2)."""
        if self.aborting is not None:
            raise UsageError("Abort already called!")
        self.aborting = AbortError("Locally aborted.")
        if trailing_metadata or not self._trailers:
            self._trailers = _checked(trailing_metadata)
        if details or not self._details:
            self._details = _text(details)
        self.set_code(code)
        self._end(self._number, self._details)
        raise self.aborting

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set what comes with the status."""
        self._trailers = _checked(trailing_metadata)

    def trailing_metadata(self) -> Any:
        """What was set."""
        return self._trailers

    def set_code(self, code: Any) -> None:
        """Set the status: a grpc.StatusCode, or its number."""
        self._number = _number(code)
        self._code = code

    def code(self) -> Any:
        """What was set."""
        return self._code

    def set_details(self, details: str) -> None:
        """Set the text of the status."""
        self._details = _text(details)

    def details(self) -> str:
        """What was set."""
        return self._details

    def set_compression(self, compression: Any) -> None:
        """Compress the answers, where the client takes that (grpc.aio's own server says so and does not)."""
        if self._initial_sent:
            raise RuntimeError("Compression setting must be specified before sending initial metadata")
        self._encoding = ENCODINGS.get(compression, "")

    def disable_next_message_compression(self) -> None:
        """No effect: an answer is compressed only where that makes it smaller."""

    # --- the call -------------------------------------------------------------------------------

    def time_remaining(self) -> float | None:
        """Seconds until the deadline; None where there is none."""
        return self._call.time_remaining()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Have it called with this context when the call is over."""
        self.callbacks.append(callback)

    def done(self) -> bool:
        """Whether its status was sent."""
        return self._call.ended

    def cancelled(self) -> bool:
        """Whether its status is CANCELLED."""
        return self._number == CANCELLED

    # --- this module's --------------------------------------------------------------------------

    def finish(self, answer: Any = None, *, unary: bool) -> None:
        """End the call as it stands."""
        data = packed(self._encode, answer) if unary and not self._number else None
        if data is not None:
            self.begin_answer()
        self._end(self._number, self._details, data)

    def fail(self, error: BaseException) -> None:
        """End by an exception (rule 1)."""
        self._end(self._number or UNKNOWN, f"Unexpected {type(error)}: {error}")

    def _end(self, number: int, details: str, data: bytes | None = None) -> None:
        trailers, rich = split_trailers(self._trailers)
        self._call.end(Ending(number, details, trailers, rich, data))


class BlockingContext:
    """The context of a plain `def` beside `async def`s (rule 4); it is used in a thread."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.callbacks: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        if name in _SHARED:
            return getattr(self._context, name)
        raise AttributeError(name)

    def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> None:
        """End the call now, and raise."""
        self._context.end_by_abort(code, details, trailing_metadata)

    def abort_with_status(self, status: Any) -> None:
        """As `abort`."""
        self._context.end_by_abort(status.code, status.details, status.trailing_metadata)

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send it now."""
        self._context.send_initial(initial_metadata)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Have it called when the method has returned."""
        self.callbacks.append(callback)
        return True

    def is_active(self) -> bool:
        """Whether somebody waits for the answer still."""
        return self._context._call.is_active  # noqa: SLF001  # the other half of one context


_SHARED = frozenset(
    (
        *("set_trailing_metadata", "trailing_metadata", "invocation_metadata", "set_code", "code", "set_details"),
        *("details", "set_compression", "disable_next_message_compression", "peer", "peer_identities"),
        *("peer_identity_key", "auth_context", "time_remaining"),
    )
)


def _checked(trailers: Any) -> Any:
    """The pairs; TypeError for what is none, in the words that grpc.aio has for it."""
    pairs = tuple(trailers) if isinstance(trailers, (tuple, list, grpc.aio.Metadata)) else None
    if pairs is None or not all(_is_pair(pair) for pair in pairs):
        expected = "Tuple[Tuple[str, Union[str, bytes]]...]"
        raise TypeError(f"Invalid trailing metadata type, expected {expected}: {trailers}")
    return pairs


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], (str, bytes))


def _text(details: Any) -> str:
    if details is not None and not isinstance(details, str):
        raise TypeError(f"Argument 'details' has incorrect type (expected str, got {type(details).__name__})")
    return details or ""


def _number(code: Any) -> int:
    if isinstance(code, int):
        return code
    if isinstance(code, tuple):
        return int(code[0])
    if not isinstance(code, grpc.StatusCode):
        return UNKNOWN
    return number_of(code)


def decoded(decode: Callable[[bytes], Any] | None, data: bytes) -> Any:
    """A request of its bytes; what `decode` raises goes through."""
    return data if decode is None else decode(data)


def packed(encode: Callable[[Any], bytes] | None, answer: Any) -> bytes:
    """An answer's bytes; what `encode` raises goes through. Text becomes bytes first, as with grpc.aio."""
    if isinstance(answer, str):
        answer = answer.encode()
    return answer if encode is None else encode(answer)


async def _requests(context: Context) -> AsyncIterator[Any]:
    while (message := await context.read()) is not EOF:
        yield message


class Requests:
    """The request iterator of a client that streams."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._found: AsyncIterator[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._found is None:
            self._found = _requests(self._context)
        return self._found

    async def __anext__(self) -> Any:
        return await self.__aiter__().__anext__()


class BlockingRequests:
    """The same in a thread."""

    def __init__(self, call: RpcCall, decode: Any) -> None:
        self._call = call
        self._decode = decode

    def __iter__(self) -> BlockingRequests:
        return self

    def __next__(self) -> Any:
        data = self._call.receive_blocking()
        if data is None:
            raise StopIteration
        return decoded(self._decode, data)


# --- running -------------------------------------------------------------------------------------


def behavior_of(handler: Any) -> Any:
    """The servicer's method."""
    name = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    return getattr(handler, name)


def is_async(behavior: Any) -> bool:
    """Whether a method is `async def`."""
    return inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior)


def method_of(handler: Any) -> Method:
    """One rpc of a servicer that has `async` methods."""
    behavior = behavior_of(handler)
    decode, encode = handler.request_deserializer, handler.response_serializer
    if not handler.response_streaming:
        run = _unary if is_async(behavior) else _unary_in_thread
    elif inspect.iscoroutinefunction(behavior):
        run = _read_and_write
    else:
        run = _generate if inspect.isasyncgenfunction(behavior) else _generate_in_thread

    def begin(call: RpcCall) -> None:
        context = Context(call, decode, encode)
        task = call.engine.spawn(_guarded(call, context, run(call, context, behavior)))
        call.on_cancel = task.cancel
        task.add_done_callback(partial(_tell, context))

    return Method(cardinality(handler), begin)


def _tell(context: Context, _task: asyncio.Task[Any]) -> None:
    for callback in context.callbacks:
        try:
            callback(context)
        except Exception:
            log.exception("a callback of a call failed")


async def _guarded(call: RpcCall, context: Context, work: Any) -> None:
    """Run a method: it ends its call, whatever happens."""
    try:
        await work
    except asyncio.CancelledError:
        pass  # the caller has gone, or the servicer cancelled itself
    except AbortError as error:
        if error is not context.aborting:
            log.exception("%s: the abort was replaced", call.opened.method)
            context.fail(error)
    except CallCancelled:
        pass
    except Exception as error:
        log.exception("%s: unexpected %s", call.opened.method, type(error).__name__)
        context.fail(error)
    finally:
        if not call.ended:
            call.end(Ending(CANCELLED))


def _argument(call: RpcCall, context: Context, *, blocking: bool = False) -> Any:
    decode = context._decode  # noqa: SLF001  # this module's own
    if call.opened.data is not None:
        return decoded(decode, call.opened.data)
    return BlockingRequests(call, decode) if blocking else Requests(context)


async def _unary(call: RpcCall, context: Context, behavior: Any) -> None:
    answer = await behavior(_argument(call, context), context)
    context.check()
    context.finish(answer, unary=True)


async def _unary_in_thread(call: RpcCall, context: Context, behavior: Any) -> None:
    blocking = BlockingContext(context)
    argument = _argument(call, context, blocking=True)
    answer = await in_thread(call, behavior, argument, blocking)
    for callback in blocking.callbacks:
        callback()
    context.check()
    context.finish(answer, unary=True)


async def _read_and_write(call: RpcCall, context: Context, behavior: Any) -> None:
    await behavior(_argument(call, context), context)
    context.check()
    context.finish(unary=False)


async def _generate(call: RpcCall, context: Context, behavior: Any) -> None:
    answers = behavior(_argument(call, context), context)
    try:
        async for answer in answers:
            context.check()
            await context.write(answer)
    finally:
        await answers.aclose()
    context.check()
    context.finish(unary=False)


async def _generate_in_thread(call: RpcCall, context: Context, behavior: Any) -> None:
    answers = behavior(_argument(call, context, blocking=True), BlockingContext(context))
    await in_thread(call, _write_all, call, context, iter(answers))
    context.check()
    context.finish(unary=False)


def _write_all(call: RpcCall, context: Context, answers: Any) -> None:
    """In a thread: send what a plain generator gives."""
    for answer in answers:
        context.check()
        data = packed(context._encode, answer)  # noqa: SLF001  # this module's own
        if not call.room_blocking():
            break
        context.begin_answer()
        call.send(data)
    if call.cancelled:
        close = getattr(answers, "close", None)
        if callable(close):
            close()


async def in_thread(call: RpcCall, run: Any, *args: Any) -> Any:
    """What a plain function gives, run in the pool. The thread of a cancelled one goes on, and nobody listens."""
    loop = call.engine.loop
    done: asyncio.Future[Any] = loop.create_future()

    def work() -> None:
        answer: Any = None
        error: Exception | None = None
        try:
            answer = run(*args)
        except StopIteration as stop:
            error = RuntimeError(f"a plain method raised StopIteration: {stop}")
        except Exception as raised:  # noqa: BLE001  # the servicer's
            error = raised
        except BaseException as raised:  # noqa: BLE001  # such as SystemExit, which would end the thread
            error = RuntimeError(f"a plain method raised {type(raised).__name__}")
        loop.call_soon_threadsafe(_settle, done, answer, error)

    call.engine.pool.submit(work)
    return await done


def _settle(done: asyncio.Future[Any], answer: Any, error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(answer)
    else:
        done.set_exception(error)
