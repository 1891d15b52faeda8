"""The log of each test, as data."""

import pytest
import structlog


@pytest.fixture(autouse=True)
def logged():
    """What was logged, as dictionaries. A bug in an actor is logged, and fails the test."""
    with structlog.testing.capture_logs() as lines:
        yield lines
    assert [line for line in lines if "bug in the server" in str(line)] == []
