"""The table of errors and statuses (contracts §5), row by row, and what travels with a status."""

import inspect

import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve import errors
from actorserve.services.status import LONGEST, TABLE, shorten, translate

ROWS = [
    (errors.BadInput("data", "is empty"), Status.INVALID_ARGUMENT, "data: is empty"),
    (errors.NoSuchModel("m"), Status.NOT_FOUND, "Model not found: m"),
    (errors.NoSuchModel("m", "2"), Status.NOT_FOUND, "Model version: 2 does not exist for model: m"),
    (errors.NoSuchSequence("expired"), Status.NOT_FOUND, "expired"),
    (errors.UrlNotAllowed("u"), Status.NOT_FOUND, "Given URL u does not match any allowed URL(s)"),
    (errors.UrlNotAllowed("u", "w"), Status.NOT_FOUND, "Given URL u does not match any allowed URL(s): w"),
    (errors.DownloadFailed("u", "w"), Status.INVALID_ARGUMENT, "Failed to download archive from: u: w"),
    (errors.ModelFileExists("f"), Status.ALREADY_EXISTS, "Model file already exists f"),
    (errors.AlreadyRegistered("there"), Status.ALREADY_EXISTS, "there"),
    (errors.WrongState("not now"), Status.FAILED_PRECONDITION, "not now"),
    (errors.Unauthenticated("who?"), Status.UNAUTHENTICATED, "who?"),
    (errors.NotAllowed("not you"), Status.PERMISSION_DENIED, "not you"),
    (errors.ModelApiDisabled(), Status.PERMISSION_DENIED, "Model API disabled"),
    (errors.Unsupported("not yet"), Status.UNIMPLEMENTED, "not yet"),
    (errors.NotStateful("no sequences"), Status.UNIMPLEMENTED, "no sequences"),
    (
        errors.TooManySequences("m", 8),
        Status.RESOURCE_EXHAUSTED,
        "model m: 8 sequences are open already (max_sequences)",
    ),
    (errors.StateFailed("disk full"), Status.UNAVAILABLE, "disk full"),
    (errors.HandlerStatus(404, "not here"), Status.NOT_FOUND, "not here"),
    (errors.HandlerStatus(302, "moved"), Status.UNKNOWN, "moved"),
    (
        errors.TooLarge("the answer", 9, 8),
        Status.RESOURCE_EXHAUSTED,
        "the answer of 9 bytes is larger than the limit of 8 bytes",
    ),
    (
        errors.Overloaded("m", 8, 1.5),
        Status.RESOURCE_EXHAUSTED,
        "model m: 8 requests are waiting already (queue_size)",
    ),
    (errors.ActorCrashed("died"), Status.UNAVAILABLE, "died"),
    (errors.ActorGone("gone"), Status.UNAVAILABLE, "gone"),
    (errors.NoWorkers("none"), Status.UNAVAILABLE, "none"),
    (errors.Draining("going"), Status.UNAVAILABLE, "going"),
    (errors.Expired("late"), Status.DEADLINE_EXCEEDED, "late"),
    (errors.HandlerRaised("KeyError", "'x'"), Status.INTERNAL, "KeyError: 'x'"),
    (errors.HandlerRaised("KeyError", ""), Status.INTERNAL, "KeyError"),
    (errors.LoadFailed("no file"), Status.FAILED_PRECONDITION, "no file"),
    (errors.StartupTimeout("slow"), Status.DEADLINE_EXCEEDED, "slow"),
]


@pytest.mark.parametrize(("error", "status", "text"), ROWS, ids=lambda value: type(value).__name__)
def test_row(error, status, text):
    """An error has its status, and its text is the message."""
    found = translate(error)
    assert found is not None
    assert (found.status, found.message) == (status, text)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.ActorCrashed("x"), "CRASHED"),
        (errors.ActorGone("x"), "GIVEN_UP"),
        (errors.NoWorkers("x"), "NO_WORKERS"),
        (errors.Draining("x"), "DRAINING"),
        (errors.LoadFailed("x"), "LOAD_FAILED"),
    ],
    ids=str,
)
def test_reason(error, reason):
    """What a client may switch on is the reason of an ErrorInfo of this domain."""
    assert translate(error).details == [ErrorInfo(reason=reason, domain="actorserve")]


def test_retry():
    """A full mailbox says when to try again; a message that is too large does not: trying again would not help."""
    (retry,) = translate(errors.Overloaded("m", 8, 1.5)).details
    assert isinstance(retry, RetryInfo)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 500_000_000)
    assert translate(errors.TooLarge("x", 9, 8)).details is None


def test_field():
    """A bad field is named in a BadRequest as well."""
    (details,) = translate(errors.BadInput("data", "is empty")).details
    assert details == BadRequest(field_violations=[BadRequest.FieldViolation(field="data", description="is empty")])


def test_every_error_has_a_row():
    """Every error class that can reach a call has a row; those of the operator stay bugs."""
    classes = {
        value
        for _, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.ActorserveError) and value is not errors.ActorserveError
    }
    assert classes - set(TABLE) == {errors.ConfigError, errors.StartFailed}


def test_others():
    """A GRPCError goes through as it is; any other exception is nobody's row, so a bug."""
    error = GRPCError(Status.ABORTED, "as it is")
    assert translate(error) is error
    assert translate(ValueError("a bug")) is None
    assert translate(errors.ConfigError("key", "text")) is None


@pytest.mark.parametrize("text", ["x" * 5000, "é" * 5000, "\N{PILE OF POO}" * 5000, "\ud800" * 5000])
def test_long_texts_are_cut(text):
    """A text of any length and alphabet is cut to what fits into trailers, at a character's border."""
    message = translate(errors.HandlerRaised("ValueError", text)).message
    assert message.endswith("...")
    assert LONGEST - 8 < len(message.encode()) <= LONGEST
    assert shorten("short") == "short"
