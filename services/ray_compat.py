"""`compatibility = "ray"`: an error of ours -> Ray Serve's status and text. Pure.

Measured on Ray Serve 2.60. What Ray has no row for keeps our status and text; its faults are not repeated: no remote
tracebacks, INVALID_ARGUMENT for bytes that are no request, a hint when to come again. docs/migrating-from-ray-serve.md
has the table. What must not live here: our own table (status.py), what a user's code says (it travels as it is).
"""

from __future__ import annotations

from collections.abc import Callable

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve import errors
from actorserve.services import status as ours
from actorserve.services.applications import Taken
from actorserve.services.transport.server_stream import ServerStream

PING = "Ping /ray.serve.RayServeAPIService/ListApplications for available applications."

UNKNOWN = "Method not found!"
"""Of a method outside the schemas: grpcio's text."""


def said_of(error: Exception, about: object = None) -> tuple[Status, str] | None:
    """Ray's row for an error; None: it has none. `about`: the application that the call meant, where it is known."""
    match error:
        case errors.NoSuchApplication(name=""):
            return Status.NOT_FOUND, f"Application metadata not set. {PING}"
        case errors.NoSuchApplication(name=name):
            return Status.NOT_FOUND, f"Application '{name}' not found. {PING}"
        case errors.Overloaded(limit=limit):
            numbers = f"(num_queued_requests={limit}, max_queued_requests={limit})"
            return Status.RESOURCE_EXHAUSTED, f"Request dropped due to backpressure {numbers}."
        case errors.ActorGone() | errors.NoWorkers():
            who = f"Deployment(name={about.ingress!r}, app={about.name!r})" if isinstance(about, Taken) else str(error)
            return Status.UNAVAILABLE, f"{who} is unavailable because it failed to deploy."
        case errors.Draining():
            return Status.UNAVAILABLE, "This node is being drained."
    return None


def timed_out(seconds: float) -> str:
    """The text of a call that ran into the listener's `request_timeout_s`."""
    return f"Request timed out after {seconds}s."


def translating(request_timeout_s: float) -> Callable[[Exception, ServerStream], GRPCError | None]:
    """What a listener's server asks for each error."""

    def translate(error: Exception, call: ServerStream) -> GRPCError | None:
        known = ours.translate(error, call)
        if isinstance(error, errors.Expired) and request_timeout_s:
            return GRPCError(Status.DEADLINE_EXCEEDED, timed_out(request_timeout_s))
        said = said_of(error, call.about)
        if said is None:
            return known
        return GRPCError(said[0], said[1], None if known is None else known.details)

    return translate
