"""Codes that a handler ends an item with, from the worker to the status of the call."""

from __future__ import annotations

import pytest
from grpclib.const import Status
from hypothesis import given
from hypothesis import strategies as st

from actorserve.actors.in_hand import failure as read_failure
from actorserve.actors.worker_items import failure
from actorserve.errors import HandlerStatus
from actorserve.services.status import coded, translate


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (400, Status.INVALID_ARGUMENT),
        (401, Status.UNAUTHENTICATED),
        (403, Status.PERMISSION_DENIED),
        (404, Status.NOT_FOUND),
        (409, Status.ABORTED),
        (413, Status.RESOURCE_EXHAUSTED),
        (416, Status.OUT_OF_RANGE),
        (418, Status.FAILED_PRECONDITION),
        (429, Status.RESOURCE_EXHAUSTED),
        (499, Status.CANCELLED),
        (500, Status.INTERNAL),
        (501, Status.UNIMPLEMENTED),
        (503, Status.UNAVAILABLE),
        (504, Status.DEADLINE_EXCEEDED),
        (507, Status.INTERNAL),
        (302, Status.UNKNOWN),
        (0, Status.UNKNOWN),
        (-400, Status.UNKNOWN),
    ],
)
def test_statuses(code, status):
    """Each code has TorchServe's status."""
    assert coded(code) == status


@given(st.integers(-(10**9), 10**9), st.text(max_size=100))
def test_code_and_text_reach_the_call(code, text):
    """What the worker says about an item arrives as it was, and any code gives a status other than OK."""
    error = read_failure(*failure(HandlerStatus(code, text)))
    assert isinstance(error, HandlerStatus)
    assert (error.code, error.text) == (code, text)
    assert translate(error).status is not Status.OK
