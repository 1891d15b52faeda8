"""The calls of one connection: begun, run, ended, recorded.

What lives here: `ServerCalls`: one task a call, what an exception and a cancellation become, the record of what ended.
What must not: reading, writing, timeouts of the connection (server_connection.py); what a method sees
(server_stream.py).

Rules
1. A call ends once: by its trailers, by its deadline (DEADLINE_EXCEEDED), by RST_STREAM, or with the connection.
2. Cancelled is never caught; an exception of a service method never leaves its call.
3. When the connection ends, calls are cancelled a few at a time, and other tasks run in between: hundreds of calls that
   end in one tick would hold the loop for milliseconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
import trio
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError

from actorserve.services.transport import frames, grpc
from actorserve.services.transport import streams as s
from actorserve.services.transport.connection import Connection
from actorserve.services.transport.interceptors import Proceed
from actorserve.services.transport.limits import Limits
from actorserve.services.transport.server_stream import ServerStream
from actorserve.services.transport.tls import PeerIdentity

ANY = b"*"
"""The key of the handler for methods that no other has, where there is one."""
MOST_SHOWN = 1000  # characters of an error in the record of its call
CUT_AT_ONCE = 8  # calls cancelled between two checkpoints (rule 3)

log = structlog.get_logger(__name__)

Translate = Callable[[Exception, ServerStream], GRPCError | None]
"""The status that an exception of a method stands for; None: as it is where it is a GRPCError, else a bug."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call that has ended."""

    method: str
    peer: str
    status: int
    message: str
    seconds: float
    request_id: str


OnEnd = Callable[[CallRecord], None]


class ServerCalls(ABC):
    """The calls' side of a connection; `ServerConnection` adds the octets. It is the `Wire` of its calls."""

    def __init__(  # noqa: PLR0917  made by the server alone
        self,
        peer: str,
        handlers: Mapping[bytes, tuple[str, Handler]],
        limits: Limits,
        translate: Translate,
        on_end: OnEnd | None,
        invoke: Proceed | None,
        identity: PeerIdentity | None,
    ) -> None:
        """`handlers`: path -> its name and handler. `invoke`: the interceptors, if there are any."""
        self.core = Connection(client=False, settings=limits.settings())
        self.peer = peer
        self.identity = identity
        self.is_secure = False
        self.max_receive_bytes = limits.max_receive_bytes
        self.max_send_bytes = limits.max_send_bytes
        self.send_buffer = limits.send_buffer
        self.inflating = trio.Lock()
        self.calls: set[ServerStream] = set()
        self._handlers = handlers
        self._limits = limits
        self._translate = translate
        self._on_end = on_end
        self._invoke = invoke
        self._draining = False
        self._nursery: trio.Nursery  # of the connection; set before the first call begins

    @abstractmethod
    def flush(self) -> None:
        """Have what is queued written in the next tick."""

    @abstractmethod
    def blame(self) -> None:
        """Count a message that inflates beyond its limit as a fault of the client."""

    async def _cancel_calls(self) -> None:
        """Cancel every call (rule 3). No new one may begin meanwhile."""
        for number, call in enumerate(list(self.calls), 1):
            call.scope.cancel()
            if not number % CUT_AT_ONCE:
                await trio.lowlevel.checkpoint()

    def _start(self, stream: s.Stream) -> None:
        if stream.state == s.CLOSED:  # reset within the same turn: nothing was begun, nothing is to be cancelled
            return
        fields = stream.fields
        if len(self.calls) >= 2 * self._limits.max_concurrent_streams:  # resets outrun what they cancel (§10.5)
            self.core.reset(stream, frames.ENHANCE_YOUR_CALM)
            return
        try:
            timeout = grpc.check_call(fields)
            found = self._handlers.get(fields[b":path"])
            if found is None:
                path = fields[b":path"].decode("latin-1")
                found = self._handlers.get(ANY)
                if found is not None:
                    found = (path, found[1])
            if found is None:
                raise grpc.Refusal(200, Status.UNIMPLEMENTED, f"unknown method {path}")
        except grpc.Refusal as refusal:
            self._refuse(stream, refusal)
            return
        limit = self._limits.request_timeout_s
        if limit and (timeout is None or limit < timeout):
            timeout = limit
        expires = None if timeout is None else trio.current_time() + timeout
        stream.owner = call = ServerStream(self, stream, found[1], found[0], expires)
        self.calls.add(call)
        self._nursery.start_soon(self._run, call, name=call.method)

    def _refuse(self, stream: s.Stream, refusal: grpc.Refusal) -> None:
        self.core.send_headers(stream, grpc.refusal_block(refusal), end=True)
        if self._on_end is not None:
            path = stream.fields.get(b":path", b"").decode("latin-1")
            self._on_end(CallRecord(path, self.peer, refusal.status.value, refusal.text, 0.0, ""))

    async def _run(self, call: ServerStream) -> None:
        began = trio.current_time() if self._on_end is not None else 0.0
        try:
            try:
                with call.scope:
                    if self._invoke is None:
                        await call.handler.func(call)
                    else:
                        await self._invoke(call)
                    if call.status is None:
                        self._finish(call)
                    if call.stream.queued:
                        await call.drained()
            except Exception as error:  # noqa: BLE001  rule 2
                self._fail(call, error)
            if call.scope.cancelled_caught:
                self._cut(call)
        finally:
            self.calls.discard(call)
            call.stream.owner = None  # no cycle is left for the collector
            if self._draining:
                self.flush()
            if self._on_end is not None:
                self._record(call, self._on_end, trio.current_time() - began)

    def _finish(self, call: ServerStream) -> None:
        if call.answered:
            call.finish()
        else:
            log.error("service method returned without a message", method=call.method)
            call.end(Status.INTERNAL, "the method gave no answer", None, b"")

    def _fail(self, call: ServerStream, error: Exception) -> None:
        """Turn what a service method raised into trailers."""
        if call.status is not None or call.stream.state == s.CLOSED:
            return
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        known = told = self._translate(error, call) or (error if isinstance(error, GRPCError) else None)
        if known is None:
            request_id = call.ensure_request_id()
            log.error("service method failed", method=call.method, request_id=request_id, exc_info=error)
            known = GRPCError(Status.INTERNAL, "internal error")
        call.end(known.status, known.message, known.details, b"")
        if told is not None and told is not error:
            call.status_message = str(error)[:MOST_SHOWN]  # the record says what happened, whatever the client is told

    def _cut(self, call: ServerStream) -> None:
        """End a call whose scope was cancelled (rule 1)."""
        status, text = Status.CANCELLED, "the call was cancelled"
        if call.expires is not None and trio.current_time() >= call.expires:
            status, text = Status.DEADLINE_EXCEEDED, "the deadline passed"
        if call.stream.state == s.CLOSED:
            code = call.stream.reset_code
            if code not in {None, frames.NO_ERROR, frames.CANCEL}:
                call.status, _ = grpc.from_reset(code)
                call.status_message = f"the stream was reset with {grpc.code_name(code)}"
            elif call.status is None or code == frames.CANCEL:
                call.status, call.status_message = Status.CANCELLED, "the client went away"
        elif call.status is None:
            call.end(status, text, None, b"")
        else:  # the trailers are queued behind DATA that the client does not take
            call.abort(frames.CANCEL)
            call.status, call.status_message = status, f"{text} before the client took the answer"

    def _record(self, call: ServerStream, on_end: OnEnd, seconds: float) -> None:
        status = Status.CANCELLED if call.status is None else call.status
        text = call.status_message if call.status is not None else "the connection was lost"
        on_end(CallRecord(call.method, self.peer, status.value, text, seconds, call.request_id))
