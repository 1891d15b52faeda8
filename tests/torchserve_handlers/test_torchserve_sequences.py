"""Sequences and continuous batches of TorchServe's handlers, driven as a worker drives them."""

import json

from actorserve.errors import HandlerStatus
from actorserve.handlers.base import Request, Step
from actorserve.handlers.torchserve.continuous import Continuous
from actorserve.handlers.torchserve.rows import Row, settle
from actorserve.handlers.torchserve.stateful import Stateful


class Processor:
    """As ts.context.RequestProcessor."""

    def __init__(self):
        self.response = {}

    def get_response_headers(self):
        return self.response

    def get_response_header(self, key):
        return self.response.get(key)

    def get_response_status_code(self):
        return 200

    def get_response_status_phrase(self):
        return ""


class Bench:
    """A context and a way to call `body(rows, processors)` for rows."""

    header_key_sequence_id = "ts_request_sequence_id"
    header_key_sequence_start = "ts_request_sequence_start"
    header_key_sequence_end = "ts_request_sequence_end"
    stopping_criteria = None

    def __init__(self, body):
        self.body = body
        self.calls = []

    def run(self, rows):
        self.request_processor = [Processor() for _ in rows]
        self.calls.append([row.id for row in rows])
        try:
            answers = self.body(rows, self.request_processor)
        except Exception as error:  # noqa: BLE001  # as the loader
            answers = error
        settle(rows, self.request_processor, answers)
        self.answers = answers
        return self


def stateful(body):
    bench = Bench(body)
    return Stateful(bench, bench.run)


def opened(handler, id, **metadata):
    return handler.open(Request({"sequence_id": id.encode()}, metadata))


def headers(rows, _):
    return [json.dumps(row.headers) for row in rows]


def test_headers_of_a_sequence():
    """Each row has its sequence's id; the first has the start, and the one whose input says so the end."""
    handler = stateful(headers)
    one, two = opened(handler, "a"), opened(handler, "b")
    told = handler.feed([one, two], [Request({}), Request({})])
    assert [json.loads(one) for one in told] == [
        {"ts_request_sequence_id": "a", "ts_request_sequence_start": "true"},
        {"ts_request_sequence_id": "b", "ts_request_sequence_start": "true"},
    ]
    assert handler.ended() == []
    told = handler.feed([one, two], [Request({"ts_request_sequence_end": b"True"}), Request({})])
    assert [json.loads(one) for one in told] == [
        {"ts_request_sequence_id": "a", "ts_request_sequence_end": "true"},
        {"ts_request_sequence_id": "b"},
    ]
    assert handler.ended() == [one]
    assert handler.ended() == []


def test_a_client_cannot_forge_headers():
    """Metadata that has the name of a header of ours does not reach the handler, in a sequence or outside."""
    forged = dict.fromkeys(("ts_request_sequence_id", "ts_request_sequence_end", "describe"), "b") | {"mine": "1"}
    handler = stateful(headers)
    one = opened(handler, "a")
    (told,) = handler.feed([one], [Request({}, forged)])
    assert json.loads(told) == {"mine": "1", "ts_request_sequence_id": "a", "ts_request_sequence_start": "true"}
    assert Row(Request({}, forged)).headers == {"mine": "1"}
    assert handler.ended() == []


def test_same_ids_of_two_clients():
    """While two sequences of one id are open the handler knows them apart; an id that is free is given as it is."""
    handler = stateful(headers)
    one, two, three = (opened(handler, "a") for _ in range(3))
    assert [one.id, two.id, three.id] == ["a", "a-2", "a-3"]
    handler.release(one)
    assert opened(handler, "a").id == "a"


def test_a_handler_closes_sequences():
    """A response header names those that end, any that are open; ids that nobody has are nothing."""

    def close(rows, processors):
        processors[0].response["ts_request_sequence_end"] = "b; c;nobody;"
        return ["x"] * len(rows)

    handler = stateful(close)
    _, two, three = (opened(handler, id) for id in "abc")
    handler.feed([two], [Request({})])
    assert handler.ended() == [two, three]


def test_a_sequence_outlives_errors():
    """What `handle` raises fails the items of its batch; the sequences go on, and have had their start."""

    def fail_once(rows, processors):
        if "ts_request_sequence_start" in rows[0].headers:
            raise ValueError("not yet")
        return ["well"] * len(rows)

    handler = stateful(fail_once)
    states = [opened(handler, id) for id in "ab"]
    assert [str(one) for one in handler.feed(states, [Request({})] * 2)] == ["not yet"] * 2
    assert handler.ended() == []
    assert handler.feed(states, [Request({})] * 2) == [b"well", b"well"]


# --- continuous batches --------------------------------------------------------------------------


class Counter:
    """Counts each request down from its data; forgets, as TorchServe's example does, whom it does not see."""

    def __init__(self):
        self.left = {}

    def __call__(self, rows, processors):
        self.left = {row.id: self.left[row.id] if row.seen else int(row.request.inputs["data"]) for row in rows}
        if 13 in self.left.values():
            raise ValueError("unlucky")
        for id in self.left:
            self.left[id] -= 1
        self.bench.stopping_criteria = [lambda said: said == 0] * len(rows)
        return [self.left[row.id] for row in rows]


def continuous(body=None, limit=1 << 20):
    body = body or Counter()
    bench = body.bench = Bench(body)
    return bench, Continuous(bench, lambda rows: bench.run(rows).answers, limit)


def begun(handler, count, id=""):
    state, step = handler.prefill(Request({"data": b"%d" % count}, id=id))
    assert step == Step()
    return state


def test_newcomers_join_the_next_call():
    """Each call has everybody who runs; who is done is told so with his last part, and leaves."""
    bench, handler = continuous()
    one = begun(handler, 2, "one")
    assert handler.step([one]) == [Step(b"1")]
    two = begun(handler, 3, "two")
    assert handler.step([one, two]) == [Step(b"0", done=True), Step(b"2")]
    handler.release(one)
    assert handler.step([two]) == [Step(b"1")]
    assert handler.step([two]) == [Step(b"0", done=True)]
    assert bench.calls == [["one"], ["one", "two"], ["two"], ["two"]]


def test_who_sits_out_is_not_forgotten():
    """A state that is left out of a step is in its call all the same, and later gets every part in order."""
    bench, handler = continuous()
    slow, quick = begun(handler, 3, "slow"), begun(handler, 3, "quick")
    assert [handler.step([quick]) for _ in range(3)] == [[Step(b"2")], [Step(b"1")], [Step(b"0", done=True)]]
    assert len(bench.calls) == 3
    assert [handler.step([slow]) for _ in range(3)] == [[Step(b"2")], [Step(b"1")], [Step(b"0", done=True)]]
    assert len(bench.calls) == 3


def test_a_slow_reader_is_cut_off():
    """More than `limit` bytes that wait end that one with 429; the other goes on."""
    _, handler = continuous(limit=20)
    slow, quick = begun(handler, 100), begun(handler, 100)
    for _ in range(30):
        (step,) = handler.step([quick])
        assert isinstance(step, Step)
    (error,) = handler.step([slow])
    assert isinstance(error, HandlerStatus)
    assert (error.code, "the limit is 20" in str(error)) == (429, True)


def test_one_id_of_two_requests():
    """Two requests of one id are two to the handler."""
    bench, handler = continuous()
    states = [begun(handler, 2, "same") for _ in range(2)]
    assert handler.step(states) == [Step(b"1"), Step(b"1")]
    assert len(set(bench.calls[0])) == 2


def test_no_criterion_is_one_answer():
    """Without stopping criteria, or with None for one, the first answer is the last; a criterion that raises fails."""
    bench, handler = continuous(lambda_of(None))
    assert handler.step([begun(handler, 1)]) == [Step(b"a", done=True)]
    bench, handler = continuous(lambda_of([None, lambda said: said / 0]))
    first, (second, _) = begun(handler, 1), handler.prefill(Request({}))
    assert handler.step([first, second]) == [Step(b"a", done=True), Step(b"a")]
    (error,) = handler.step([second])
    assert isinstance(error, TypeError)
    assert bench.calls[1:] == []


def lambda_of(criteria):
    class Body:
        def __call__(self, rows, processors):
            self.bench.stopping_criteria = criteria
            return ["a"] * len(rows)

    return Body()


def test_what_a_call_raises_ends_all_of_it():
    """An exception ends everybody in that call, and nobody after."""
    bench, handler = continuous()
    states = [begun(handler, 13), begun(handler, 5)]
    assert [str(one) for one in handler.step(states)] == ["unlucky", "unlucky"]
    for state in states:
        handler.release(state)
    assert handler.step([begun(handler, 1)]) == [Step(b"0", done=True)]
    assert len(bench.calls) == 2
