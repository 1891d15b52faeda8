"""Errors -> gRPC status: the one table (contracts §5), and the details that travel with it.

Details are messages of googleapis-common-protos, packed by grpclib's codec: only bytes cross between
protobuf's default pool and ours. What must not live here: who raised what, and the wire.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpclib.const import Status
from grpclib.encoding.proto import ProtoStatusDetailsCodec
from grpclib.exceptions import GRPCError

from actorserve import errors

DOMAIN = "actorserve"
LONGEST = 1000
"""Bytes of a text that travels in trailers: clients refuse trailers of more than 8 KiB, and then lose the status."""

TABLE: dict[type[Exception], Status] = {
    errors.BadInput: Status.INVALID_ARGUMENT,
    errors.NoSuchModel: Status.NOT_FOUND,
    errors.NoSuchApplication: Status.NOT_FOUND,
    errors.NoSuchSequence: Status.NOT_FOUND,
    errors.UrlNotAllowed: Status.NOT_FOUND,
    errors.DownloadFailed: Status.INVALID_ARGUMENT,
    errors.ModelFileExists: Status.ALREADY_EXISTS,
    errors.AlreadyRegistered: Status.ALREADY_EXISTS,
    errors.WrongState: Status.FAILED_PRECONDITION,
    errors.Unauthenticated: Status.UNAUTHENTICATED,
    errors.NotAllowed: Status.PERMISSION_DENIED,
    errors.ModelApiDisabled: Status.PERMISSION_DENIED,
    errors.Unsupported: Status.UNIMPLEMENTED,
    errors.NotStateful: Status.UNIMPLEMENTED,
    errors.TooLarge: Status.RESOURCE_EXHAUSTED,
    errors.Overloaded: Status.RESOURCE_EXHAUSTED,
    errors.TooManySequences: Status.RESOURCE_EXHAUSTED,
    errors.ActorCrashed: Status.UNAVAILABLE,
    errors.ActorGone: Status.UNAVAILABLE,
    errors.NoWorkers: Status.UNAVAILABLE,
    errors.Draining: Status.UNAVAILABLE,
    errors.Unavailable: Status.UNAVAILABLE,
    errors.StateFailed: Status.UNAVAILABLE,
    errors.Expired: Status.DEADLINE_EXCEEDED,
    errors.HandlerRaised: Status.INTERNAL,
    errors.HandlerStatus: Status.UNKNOWN,  # and by its code: `coded`
    errors.LoadFailed: Status.FAILED_PRECONDITION,
    errors.StartupTimeout: Status.DEADLINE_EXCEEDED,
}

CODES = {
    400: Status.INVALID_ARGUMENT,
    401: Status.UNAUTHENTICATED,
    403: Status.PERMISSION_DENIED,
    404: Status.NOT_FOUND,
    409: Status.ABORTED,
    413: Status.RESOURCE_EXHAUSTED,
    416: Status.OUT_OF_RANGE,
    429: Status.RESOURCE_EXHAUSTED,
    499: Status.CANCELLED,
    501: Status.UNIMPLEMENTED,
    503: Status.UNAVAILABLE,
    504: Status.DEADLINE_EXCEEDED,
}
"""The codes that a handler may end an item with, in HTTP's numbers, as TorchServe translates them."""


def coded(code: int) -> Status:
    """The status of a handler's own code: by `CODES`, else by its class; what is no error is UNKNOWN."""
    return CODES.get(code) or {4: Status.FAILED_PRECONDITION, 5: Status.INTERNAL}.get(code // 100, Status.UNKNOWN)


def translate(error: Exception, _call: object = None) -> GRPCError | None:
    """The status that an error stands for; None: not one of ours, so a bug. Whatever was asked, it is the same."""
    if isinstance(error, GRPCError):
        return error
    status = coded(error.code) if isinstance(error, errors.HandlerStatus) else TABLE.get(type(error))
    if status is None:
        return None
    return GRPCError(status, shorten(str(error)), _details(error))


def status_bytes(error: Exception, _about: object = None) -> bytes:
    """A google.rpc.Status in its bytes: what the error would have been as the status of a call."""
    known = translate(error) or GRPCError(Status.INTERNAL, "internal error")
    return ProtoStatusDetailsCodec().encode(known.status, known.message, known.details)


def shorten(text: str) -> str:
    """A text that fits into trailers; a cut one ends in "..."."""
    data = text.encode(errors="replace")
    if len(data) <= LONGEST:
        return data.decode()
    return data[: LONGEST - 3].decode(errors="ignore") + "..."


def _details(error: Exception) -> Sequence[Any] | None:
    match error:
        case errors.BadInput(field=field, text=text):
            return [
                BadRequest(
                    field_violations=[BadRequest.FieldViolation(field=shorten(field), description=shorten(text))]
                )
            ]
        case errors.Unavailable(reason=reason):
            return [ErrorInfo(reason=reason, domain=DOMAIN)]
        case errors.LoadFailed():
            return [ErrorInfo(reason="LOAD_FAILED", domain=DOMAIN)]
        case errors.Overloaded(retry_after_s=seconds):
            fraction, whole = math.modf(seconds)
            return [RetryInfo(retry_delay=Duration(seconds=int(whole), nanos=int(fraction * 1e9)))]
        case _:
            return None
