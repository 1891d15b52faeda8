"""What a servicer with `async def`s is given: its context, on the loop and in a thread, and the requests that stream.

By grpc.aio 1.85's own (grpcio_aio.py has the rules). What must not live here: running a method.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc.aio import EOF, AbortError, UsageError

from actorserve.actors.messages import Ending
from actorserve.handlers.rpc.call import RpcCall
from actorserve.handlers.rpc.grpcio_peer import (
    CANCELLED,
    ENCODINGS,
    UNKNOWN,
    Asked,
    number_of,
    pairs_of,
    split_trailers,
)

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
