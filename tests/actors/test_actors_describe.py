"""What a handler says of itself: DESCRIBE in the worker's loop, and Describe in a mailbox with weights."""

# ruff: noqa: SIM300  # expected == actual

from __future__ import annotations

from queue import SimpleQueue

import pytest

from actorserve.actors import wire
from actorserve.actors.claims import Claims
from actorserve.actors.messages import Describe
from actorserve.actors.wire import FrameReader, Item, Kind, Outcome
from actorserve.actors.worker_engine import Engine
from actorserve.actors.worker_items import Arrival, Flags
from actorserve.errors import BadInput


class Plain:
    """Says nothing of itself; keeps account of its calls."""

    def __init__(self):
        self.calls = []

    def infer(self, batch):
        self.calls.append(len(batch))
        return [b"" for _ in batch]


class Told(Plain):
    """Says something, or raises it."""

    def __init__(self, said):
        super().__init__()
        self.said = said

    def describe(self):
        self.calls.append("describe")
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


def item(id, deadline_ns=0):
    return Item(id, deadline_ns, "r", {}, {})


def drive(handler, *arrivals, cancelled=()):
    """Run an engine on one group of arrivals, then STOP; gives the frames it sent."""
    flags, sent = Flags(), []
    inbox: SimpleQueue = SimpleQueue()
    flags.add([id for _, id, _ in arrivals])
    for id in cancelled:
        flags.cancel(id)
    inbox.put([Arrival(*one) for one in arrivals])
    inbox.put([Arrival(Kind.STOP, 0, b"")])
    Engine(handler, inbox=inbox, flags=flags, send=sent.append).run()
    return FrameReader().feed(b"".join(sent))


@pytest.mark.parametrize(
    ("handler", "kinds", "payload"),
    [
        (Told({"a": 1}), [Kind.CHUNK, Kind.DONE], b'{"a": 1}'),
        (Told(b"as it is"), [Kind.CHUNK, Kind.DONE], b"as it is"),
        (Plain(), [Kind.DONE], wire.done(1)[wire.HEADER_BYTES :]),
        (Told(ValueError("no")), [Kind.ERROR], bytes((Outcome.RAISED,)) + wire.error_data("ValueError", "no")),
        (Told(BadInput("a", "no")), [Kind.ERROR], bytes((Outcome.BAD_INPUT,)) + wire.error_data("a", "no")),
    ],
)
def test_what_is_said(handler, kinds, payload):
    """One chunk of what `describe` gives and an end; no chunk from a handler without it; its exception is an error."""
    frames = drive(handler, (Kind.DESCRIBE, 1, item(1)))
    assert kinds == [one.kind for one in frames]
    assert payload == frames[0].payload


def test_what_json_does_not_take():
    """An object that is no JSON is the handler's error, and the worker lives on."""
    frames = drive(Told(object()), (Kind.DESCRIBE, 1, item(1)), (Kind.DESCRIBE, 2, item(2)))
    assert [(1, Kind.ERROR), (2, Kind.ERROR)] == [(one.id, one.kind) for one in frames]


def test_one_call_at_a_time():
    """Descriptions take turns with batches: each waits for at most one of the other kind, and all are answered."""
    handler = Told({})
    batches = [(Kind.BATCH, 10 + n, [item(100 + n)]) for n in range(3)]
    frames = drive(handler, *batches, *((Kind.DESCRIBE, n, item(n)) for n in (1, 2)))
    assert [1, "describe", 1, "describe", 1] == handler.calls
    assert [1, 2] == [one.id for one in frames if one.kind == Kind.DONE]


def test_nobody_waits():
    """Who has gone, or whose deadline has passed, costs the handler nothing."""
    handler = Told({})
    frames = drive(handler, (Kind.DESCRIBE, 1, item(1)), (Kind.DESCRIBE, 2, item(2, deadline_ns=1)), cancelled=[1])
    assert [] == handler.calls
    assert [Outcome.CANCELLED, Outcome.EXPIRED] == [one.payload[0] for one in frames]


def test_no_weight():
    """A description goes through no forward: it is not weighed where requests are, and needs no metadata."""
    claims = Claims(tenant_key="tenant", weight="metadata:tokens", max_weight=9)
    assert ("", 1) == claims.read(Describe())
