"""What a servicer of blocking `def`s is given: its context, and the requests that stream. Used in threads.

By grpcio 1.85's own (grpcio_sync.py has the rules). What must not live here: running a method.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import grpc

from actorserve.actors.messages import Ending
from actorserve.handlers.rpc.call import CallCancelled, RpcCall
from actorserve.handlers.rpc.grpcio_peer import (
    CANCELLED,
    ENCODINGS,
    INTERNAL,
    Asked,
    number_of,
    pairs_of,
    split_trailers,
)

log = logging.getLogger("actorserve.rpc")
NEVER = float(2**63 - 1)  # what grpcio says, about: a number that can be converted


class Context(Asked, grpc.ServicerContext):  # type: ignore[misc]  # grpc has no types
    """The context that a blocking servicer gets."""

    def __init__(self, call: RpcCall) -> None:
        super().__init__(call)
        self._lock = threading.Lock()
        self._code: Any = None
        self._details: bytes | None = None
        self._trailers: Any = None
        self._encoding = ""
        self._initial_sent = False
        self._callbacks: list[Callable[[], None]] | None = []
        self.aborted = False
        self.rpc_error: Exception | None = None  # of ours: no fault of the servicer
        call.on_cancel = self._cancelled

    # --- grpc.RpcContext ----------------------------------------------------------------------

    def is_active(self) -> bool:
        """See grpc.RpcContext."""
        return self._call.is_active

    def time_remaining(self) -> float:
        """Seconds until the deadline; a call without one has for ever."""
        left = self._call.time_remaining()
        return NEVER if left is None else left

    def cancel(self) -> None:
        """End the call: the client sees CANCELLED."""
        self._call.cancelled = True
        self._call.end(Ending(CANCELLED, "CANCELLED"))
        self._run_callbacks()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Have it called once the call is over; False: it is over."""
        with self._lock:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
            return True

    def _cancelled(self) -> None:
        """On the loop: the caller has gone. Callbacks may block, so they have a thread of their own."""
        if self._callbacks:
            threading.Thread(target=self._run_callbacks, name="callbacks", daemon=True).start()
        else:
            self._run_callbacks()

    def _run_callbacks(self) -> None:
        with self._lock:
            callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            try:
                callback()
            except Exception:
                log.exception("a callback of a call failed")

    # --- grpc.ServicerContext -----------------------------------------------------------------

    def set_compression(self, compression: Any) -> None:
        """Compress the answers, where the client takes that. Before anything is sent."""
        self._encoding = ENCODINGS.get(compression, "")

    def disable_next_message_compression(self) -> None:
        """No effect: an answer is compressed only where that makes it smaller."""

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send it now; ValueError where it was sent."""
        if self._call.cancelled:
            self.rpc_error = grpc.RpcError()
            raise self.rpc_error
        if self._initial_sent:
            raise ValueError("Initial metadata no longer allowed!")
        self._initial_sent = True
        self._call.send_initial(pairs_of(initial_metadata), self._encoding)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set what comes with the status."""
        self._trailers = trailing_metadata

    def trailing_metadata(self) -> Any:
        """What was set."""
        return self._trailers

    def abort(self, code: Any, details: str) -> None:
        """End the call by raising."""
        if code == grpc.StatusCode.OK:
            log.error("abort() called with StatusCode.OK; the call ends with UNKNOWN")
            code, details = grpc.StatusCode.UNKNOWN, ""
        self._code = code
        self._details = _encoded(details)
        self.aborted = True
        raise Exception  # noqa: TRY002  # as grpcio's: a servicer may catch nothing narrower

    def abort_with_status(self, status: Any) -> None:
        """As `abort`, with trailing metadata."""
        self._trailers = status.trailing_metadata
        self.abort(status.code, status.details)

    def set_code(self, code: Any) -> None:
        """Set the status; UNKNOWN where it is no grpc.StatusCode."""
        self._code = code

    def code(self) -> Any:
        """What was set."""
        return self._code

    def set_details(self, details: str) -> None:
        """Set the text of the status."""
        self._details = _encoded(details)

    def details(self) -> bytes | None:
        """What was set, as bytes: so does grpcio."""
        return self._details

    # --- this module's --------------------------------------------------------------------------

    def begin_answer(self) -> None:
        """Before the first message: an encoding that was set must be said."""
        if not self._initial_sent:
            self._initial_sent = True
            if self._encoding:
                self._call.send_initial((), self._encoding)

    def fail(self, code: int, text: str) -> None:
        """End by an exception (rule 1)."""
        self.finish(None, code if self._code is None else number_of(self._code), text.encode(errors="replace"))

    def finish(self, data: bytes | None, code: int | None = None, text: bytes = b"") -> None:
        """End the call as it stands, unless its caller has gone."""
        if code is None:
            code = 0 if self._code is None else number_of(self._code)
        details = text if self._details is None else self._details
        trailers, rich = split_trailers(self._trailers)
        if data is not None and not code:
            self.begin_answer()
        self._call.end(Ending(code, details.decode(errors="replace"), trailers, rich, None if code else data))
        self._run_callbacks()


def _encoded(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


class Requests:
    """The request iterator of a client that streams."""

    def __init__(self, call: RpcCall, context: Context, decode: Callable[[bytes], Any]) -> None:
        self._call = call
        self._context = context
        self._decode = decode

    def __iter__(self) -> Requests:
        return self

    def __next__(self) -> Any:
        try:
            data = self._call.receive_blocking()
        except CallCancelled:
            self._context.rpc_error = grpc.RpcError()
            raise self._context.rpc_error from None
        if data is None:
            raise StopIteration
        request = decoded(self._decode, data)
        if request is None:
            self._context.fail(INTERNAL, "Exception deserializing request!")
            raise StopIteration
        return request

    next = __next__


def decoded(decode: Callable[[bytes], Any] | None, data: bytes) -> Any:
    """None for what does not decode."""
    if decode is None:
        return data
    try:
        return decode(data)
    except Exception:
        log.exception("a request cannot be decoded")
        return None


def packed(encode: Callable[[Any], bytes] | None, answer: Any) -> bytes | None:
    """None for what does not encode."""
    if encode is None:
        return answer  # type: ignore[no-any-return]  # bytes, as the servicer has it
    try:
        return encode(answer)
    except Exception:
        log.exception("an answer cannot be encoded")
        return None
