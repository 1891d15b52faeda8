"""Streams of handlers that push: who shares a call, who waits for whom, and how a call ends early."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorserve.errors import HandlerStatus
from actorserve.handlers.base import Request
from actorserve.handlers.torchserve.rows import Row, settle
from actorserve.handlers.torchserve.runs import Runs, StreamClosed


class Processor:
    """As ts.context.RequestProcessor, with nothing set."""

    def get_response_headers(self):
        return {}

    def get_response_status_code(self):
        return 200

    def get_response_status_phrase(self):
        return ""


class Bench:
    """Runs around one function, which gets the number of rows and a way to push."""

    def __init__(self, body, *, most=4, limit=1 << 20):
        self.body = body
        self.widths = []
        self.context = SimpleNamespace(call=None)
        self.runs = Runs(self.context, self.make_call, self.handle, (most, limit))

    def make_call(self, rows):
        return SimpleNamespace(request_ids={index: row.request.id for index, row in enumerate(rows)})

    def handle(self, rows, call):
        self.widths.append(len(rows))

        def push(value, code=200):
            assert self.context.call is call
            self.runs.push([value] * len(rows), call.request_ids, "message", code)

        try:
            answers = self.body(len(rows), push)
        except Exception as error:  # noqa: BLE001  # as the loader
            answers = error
        settle(rows, [Processor() for _ in rows], answers)

    def open(self, id="a", **more):
        return self.runs.open(Request({}, id=id, **more))


def three(width, push):
    for word in ("one", "two", "three"):
        push(word)
    return ["end"] * width


@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_any_order_gives_each_stream_all_its_parts(most, count, data):
    """However the streams take turns, and however many share a call, each gets its parts in order, then ends."""
    bench = Bench(three, most=most)
    streams = {index: bench.open(str(index)) for index in range(count)}
    got = {index: [] for index in streams}
    while streams:
        index = data.draw(st.sampled_from(sorted(streams)))
        try:
            got[index].append(next(streams[index]))
        except StopIteration:
            streams.pop(index).close()
    assert set(map(tuple, got.values())) == {(b"one", b"two", b"three", b"end")}
    assert sum(bench.widths) == count
    assert max(bench.widths) <= most


def test_streams_that_wait_share_a_call():
    """Those that are open when the first is asked go into its call, up to the limit; the cancelled stay out."""
    bench = Bench(three, most=2)
    gone = bench.open("gone", cancelled=lambda: True)
    streams = [bench.open(str(index)) for index in range(3)]
    gone.close()
    assert [len(list(stream)) for stream in streams] == [4, 4, 4]
    assert bench.widths == [2, 1]


def test_same_ids():
    """Two requests with one id do not get each other's parts."""
    bench = Bench(lambda width, push: push(str(width)) or ["end"], most=1)
    one, two = bench.open("same"), bench.open("same")
    assert (next(one), next(two)) == (b"1", b"1")
    assert (next(one), next(two)) == (b"end", b"end")


def test_nothing_runs_ahead():
    """The handler stands still until the stream that has taken everything asks for more."""
    reached = []

    def body(width, push):
        for step in range(3):
            reached.append(step)
            push(str(step))
        return ["end"]

    stream = Bench(body).open()
    assert reached == []
    assert next(stream) == b"0"
    assert reached == [0]
    assert next(stream) == b"1"
    assert reached == [0, 1]


def test_last_to_close_ends_the_call():
    """While one stream of a call is read it goes on; when the last closes, the push raises and the thread is gone."""
    ended = []

    def body(width, push):
        try:
            while True:
                push("tick")
        except StreamClosed:
            ended.append("closed")
            raise
        finally:
            ended.append("finally")

    before = threading.active_count()
    bench = Bench(body)
    one, two = bench.open("1"), bench.open("2")
    assert (next(one), next(two)) == (b"tick", b"tick")
    one.close()
    assert next(two) == b"tick"
    assert ended == []
    two.close()
    assert ended == ["closed", "finally"]
    assert threading.active_count() == before


def test_slow_stream_is_cut_off():
    """A stream that leaves more than the limit unread ends with RESOURCE_EXHAUSTED's code; its neighbour goes on."""

    def body(width, push):
        for _ in range(10):
            push("x" * 100)
        return ["end"] * width

    bench = Bench(body, limit=350)
    quick, slow = bench.open("1"), bench.open("2")
    assert len(list(quick)) == 11
    with pytest.raises(HandlerStatus) as error:
        next(slow)
    assert (error.value.code, str(error.value)) == (
        429,
        "400 bytes of the stream wait for the client; the limit is 350",
    )


def test_error_comes_after_what_was_sent():
    """What the handler pushed before it raised is read first."""

    def body(width, push):
        push("before")
        raise ValueError("broken")

    stream = Bench(body).open()
    assert next(stream) == b"before"
    with pytest.raises(ValueError, match="broken"):
        next(stream)


def test_bad_code_of_a_part_ends_its_stream():
    """A part with an error's code is the end of its stream, with the part's message."""
    stream = Bench(lambda _, push: push("x", 503) or ["end"]).open()
    with pytest.raises(HandlerStatus, match="message") as error:
        next(stream)
    assert error.value.code == 503
    stream.close()


def test_too_few_parts():
    """A push with fewer values than requests is the handler's mistake, and it is told."""
    bench = Bench(lambda *_: bench.runs.push([], {0: "a"}, "", 200))
    with pytest.raises(ValueError, match="0 intermediate answers for 1 requests"):
        next(bench.open())


def test_exit_reaches_the_main_thread():
    """SystemExit of a handler ends the worker as it would without a thread of its own."""
    with pytest.raises(SystemExit):
        next(Bench(lambda *_: sys.exit(3)).open())


def test_push_from_another_thread():
    """A handler may push from a thread of its own while `handle` waits for it."""

    def body(width, push):
        other = threading.Thread(target=lambda: [push("1"), push("2")])
        other.start()
        other.join()
        return ["end"]

    assert list(Bench(body).open()) == [b"1", b"2", b"end"]


def test_whole_of_a_unary_call():
    """A unary call gets its parts joined, or the error."""
    row = Row(Request({}))
    row.add("a")
    row.add({"b": 1})
    assert row.whole() == b'a{\n  "b": 1\n}'
    row.add(object())
    assert isinstance(row.whole(), TypeError)
