"""What user code is given of a gRPC call, under Ray Serve's names: RayServegRPCContext and gRPCInputStream.

What lives here: the call's metadata, and the code, details and trailers that user code sets. What must not: grpc; the
code may be a `grpc.StatusCode` or its number, which is read without importing anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

__all__ = ["RayServegRPCContext", "gRPCInputStream"]

REQUEST_ID = "request_id"
STATUSES = 17
"""gRPC has the codes 0 to 16."""
Pairs = list[tuple[str, str | bytes]]


class RayServegRPCContext:
    """The call that a method runs for: given to a parameter that is named `grpc_context`. It can be pickled."""

    def __init__(
        self,
        *,
        metadata: Iterable[tuple[str, str | bytes]] = (),
        peer: str = "",
        request_id: str = "",
        auth: Mapping[str, Iterable[bytes]] | None = None,
        deadline: Callable[[], float | None] | None = None,
    ) -> None:
        self._metadata: Pairs = list(metadata)
        self._peer = peer
        self._request_id = request_id
        self._auth = {key: tuple(values) for key, values in (auth or {}).items()}
        self._deadline = deadline
        self._code: Any = None
        self._details = ""
        self._trailers: Pairs = []
        self._compression: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_deadline": None}

    def _value(self, key: str) -> str | None:
        found = [value for name, value in self._metadata if name == key]
        return str(found[-1]) if found else None

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What is known of the peer and of the transport, as gRPC has it."""
        return self._auth

    def code(self) -> Any:
        """The code that was set; None: none was."""
        return self._code

    def details(self) -> str:
        """The details that were set; empty: none were."""
        return self._details

    def request_id(self) -> str:
        """The request's id: the client's, else one that was made for it."""
        return self._request_id

    def application(self) -> str | None:
        """The client's metadata `application`."""
        return self._value("application")

    def multiplexed_model_id(self) -> str | None:
        """The client's metadata `multiplexed_model_id`."""
        return self._value("multiplexed_model_id")

    def session_id(self) -> str | None:
        """The client's metadata `session_id`."""
        return self._value("session_id")

    def traceparent(self) -> str | None:
        """The client's metadata `traceparent`."""
        return self._value("traceparent")

    def tracestate(self) -> str | None:
        """The client's metadata `tracestate`."""
        return self._value("tracestate")

    def invocation_metadata(self) -> Pairs:
        """The client's metadata, in order."""
        return list(self._metadata)

    def peer(self) -> str:
        """Where the client is, as gRPC writes it: `ipv4:127.0.0.1:50000`."""
        return self._peer

    def peer_identities(self) -> Iterable[bytes] | None:
        """Who the client is, by its certificate."""
        key = self.peer_identity_key()
        return None if key is None else self._auth.get(key)

    def peer_identity_key(self) -> str | None:
        """Which of `auth_context` says who the client is."""
        return next((key for key in ("x509_subject_alternative_name", "x509_common_name") if key in self._auth), None)

    def trailing_metadata(self) -> Pairs:
        """The trailers that were set, with the request's id."""
        return [*self._trailers, *([(REQUEST_ID, self._request_id)] if self._request_id else [])]

    def set_code(self, code: Any) -> None:
        """Set the code: a `grpc.StatusCode`, or its number. Also a call that returns ends with it."""
        status_number(code)
        self._code = code

    def set_details(self, details: str) -> None:
        """Set the text that goes with the code."""
        self._details = details

    def set_compression(self, compression: Any) -> None:
        """Ask for compressed answers; a server compresses what the client accepts."""
        self._compression = compression

    def set_trailing_metadata(self, trailers: Iterable[tuple[str, str | bytes]]) -> None:
        """Set the trailers, in place of those set before; the request's id stays."""
        self._trailers = [(key, value) for key, value in trailers if key != REQUEST_ID]

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline; None: there is none. Ray has not got this."""
        return None if self._deadline is None else self._deadline()


def status_number(code: Any) -> int:
    """The number of a status: of a `grpc.StatusCode`, whose value begins with it, or itself. ValueError: none."""
    value = getattr(code, "value", code)
    number = value[0] if isinstance(value, tuple) else value
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < STATUSES:
        raise ValueError(f"{code!r} is no gRPC status")
    return number


class gRPCInputStream:  # noqa: N801  # Ray's name
    """What the client streams in: `async for`, and `for` in a plain def. The client's end or cancel ends it quietly."""

    def __init__(
        self,
        take: Callable[[], Awaitable[Any]],
        *,
        end: Any,
        take_blocking: Callable[[], Any] | None = None,
        is_gone: Callable[[], bool] = lambda: False,
    ) -> None:
        """`take` and `take_blocking` give the next message, or `end`. `is_gone`: whether the client is."""
        self._take = take
        self._take_blocking = take_blocking
        self._is_gone = is_gone
        self._end = end
        self._exhausted = False
        self._cancelled = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._exhausted or self._cancelled.is_set():
            raise StopAsyncIteration
        found = await self._take()
        if found is self._end:
            self._exhausted = True
            raise StopAsyncIteration
        return found

    def __iter__(self) -> Iterator[Any]:
        if self._take_blocking is None:
            raise TypeError("gRPCInputStream: `for` is for plain defs; here it is `async for`")
        return self

    def __next__(self) -> Any:
        if self._take_blocking is None or self._exhausted or self._cancelled.is_set():
            raise StopIteration
        found = self._take_blocking()
        if found is self._end:
            self._exhausted = True
            raise StopIteration
        return found

    def is_cancelled(self) -> bool:
        """Whether the client has gone, or `cancel` was called."""
        return self._is_gone() or self._cancelled.is_set()

    def cancel(self) -> None:
        """Take no more messages."""
        self._cancelled.set()

    def is_exhausted(self) -> bool:
        """Whether the client has sent its last message, and it was taken."""
        return self._exhausted
