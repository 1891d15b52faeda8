"""How a call of a deployment ends that has not gone well: the code, the text, what goes with them. Decided purely.

What must not live here: calls (deployment_calls.py, client_calls.py), what a handle raises (links.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from actorserve import errors
from actorserve.actors.messages import Ending, Pairs
from actorserve.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RequestCancelledError,
    gRPCStatusError,
)
from actorserve.serve.grpc_util import RayServegRPCContext, status_number

CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 1, 3, 4, 8, 13, 14
CODES: Mapping[type[BaseException], int] = {
    RequestCancelledError: CANCELLED,
    errors.BadInput: INVALID_ARGUMENT,
    errors.Expired: DEADLINE_EXCEEDED,
    errors.TooLarge: RESOURCE_EXHAUSTED,
    BackPressureError: RESOURCE_EXHAUSTED,
    DeploymentUnavailableError: UNAVAILABLE,
}
MOST_DETAILS = 4096
"""Characters of an exception's text that travel, as in Ray."""
TRUNCATED = "... [truncated]"
"""What stands at the end of one that was longer; Ray's."""


def trailers_of(said: RayServegRPCContext) -> Pairs:
    """The trailers that user code has set; the request's id is the ingress's to add."""
    return tuple((key, value) for key, value in said.trailing_metadata() if key != "request_id")


def failed(error: BaseException, said: RayServegRPCContext) -> Ending:
    """How a client's call ends that raised (rules 1 and 2 of client_calls.py)."""
    code = 0 if said.code() is None else status_number(said.code())
    if code:
        return Ending(code, said.details() or cut(str(error)), trailers_of(said))
    if isinstance(error, gRPCStatusError):
        return Ending(error.code, error.details, trailers_of(said))
    for kind, code in CODES.items():
        if isinstance(error, kind):
            return Ending(code, cut(str(error)), trailers_of(said), rich_of(error, code))
    return Ending(INTERNAL, text_of(error), trailers_of(said))


def rich_of(error: BaseException, code: int) -> bytes:
    """A google.rpc.Status in its bytes, where there is more to say: when to come again, why nobody answers."""
    from google.protobuf.duration_pb2 import Duration  # noqa: PLC0415  # only where something went wrong
    from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo  # noqa: PLC0415
    from google.rpc.status_pb2 import Status  # noqa: PLC0415

    status = Status(code=code, message=cut(str(error)))
    if isinstance(error, BackPressureError) and error.retry_after_s:
        nanos = int(error.retry_after_s * 1e9)
        status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)))
    elif isinstance(error, DeploymentUnavailableError) and error.reason:
        status.details.add().Pack(ErrorInfo(reason=error.reason, domain="actorserve"))
    else:
        return b""
    return bytes(status.SerializeToString())


def text_of(error: BaseException) -> str:
    """An exception's type and text."""
    text = str(error)
    return cut(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def cut(text: str) -> str:
    """A text that travels: one that is too long is cut, and says so."""
    return text if len(text) <= MOST_DETAILS else text[: MOST_DETAILS - len(TRUNCATED)] + TRUNCATED
