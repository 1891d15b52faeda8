"""Sequences, continuous batches, streams that share a call, and what a model says of itself, from archives."""

import queue

import grpc
import pytest
from dropin_site import Site, message, text_of


def test_two_sequences_of_one_call(site):
    """Two sequences in one call, two workers: each is summed by itself, in order, and its end is its end."""
    with site.registered("sum.mar", "sum", workers=2):
        words = [message("sum", id, str(number)) for number in range(1, 6) for id in ("one", "two")]
        replies = site.talk(*words, message("sum", "one", "100", ts_request_sequence_end=b"true"))
        assert [text for id, text in replies if id == "one"] == ["1", "3", "6", "10", "15", "115"]
        assert [text for id, text in replies if id == "two"] == ["1", "3", "6", "10", "15"]
        assert site.talk(message("sum", "one", "7")) == [("one", "7")]


def test_a_sequence_without_an_id(site):
    """Messages without an id belong to one sequence, whose id the server makes and every reply carries."""
    with site.registered("sum.mar", "sum"):
        replies = site.talk(*(message("sum", "", str(number)) for number in (1, 2)))
    assert [text for _, text in replies] == ["1", "3"]
    assert len({id for id, _ in replies}) == 1
    assert replies[0][0]


def test_what_was_sent_is_answered_after_the_half_close(site):
    """A client that ends its call at once gets the answer to each message, more than may wait at once."""
    with site.registered("sum.mar", "sum"):
        replies = site.talk(*(message("sum", "s", "1") for _ in range(50)))
    assert [text for _, text in replies] == [str(one) for one in range(1, 51)]


def test_a_handler_closes_sequences(site):
    """The response header ends the sequences that it names, and what still comes for them is NOT_FOUND; another
    client's sequence of the same id goes on. An item's own exception is its reply, and its sequence goes on.
    """
    with site.registered("closing.mar", "closing"):
        one, other = Conversation(site), Conversation(site)
        assert one.say("a", "one") == ("a", "a true one", 0)
        assert one.say("b", "one") == ("b", "b true one", 0)
        assert other.say("a", "one") == ("a", "a-2 true one", 0)
        assert one.say("a", "fail") == ("a", "", grpc.StatusCode.INTERNAL.value[0])
        assert one.say("a", "two") == ("a", "a None two", 0)
        assert one.say("b", "close a;b") == ("b", "b None close", 0)
        assert one.say("a", "three") == ("a", "", grpc.StatusCode.NOT_FOUND.value[0])
        assert one.say("b", "three") == ("b", "", grpc.StatusCode.NOT_FOUND.value[0])
        assert one.say("c", "four") == ("c", "c true four", 0)
        assert other.say("a", "two") == ("a", "a-2 None two", 0)
        one.end()
        other.end()


class Conversation:
    """One call of StreamPredictions2 that goes message by message."""

    def __init__(self, site: Site) -> None:
        self._sent = queue.SimpleQueue()
        self._replies = site.conversations(iter(self._sent.get, None), timeout=120)

    def say(self, id: str, word: str) -> tuple[str, str, int]:
        """Send one message; its reply's sequence, text and code."""
        self._sent.put(message("closing", id, word))
        reply = next(self._replies)
        return reply.sequence_id, text_of(reply), reply.status.code

    def end(self) -> None:
        """Half-close; nothing more may come."""
        self._sent.put(None)
        assert list(self._replies) == []


def test_continuous_batch(site):
    """Streams and unary calls of a continuous batch join and leave, and each gets all its parts."""
    with site.registered("countdown.mar", "countdown"):
        calls = {count: site.stream("countdown", str(count)) for count in (3, 50, 7)}
        unary = site.ask("countdown", "4")
        for count, call in calls.items():
            assert [text_of(one) for one in call] == [str(left) for left in range(count, -1, -1)]
        assert text_of(unary.result()) == "43210"


def test_streams_share_a_call(site):
    """Streams that wait while the worker is busy share the next call of the handler, up to the batch's size."""
    with site.registered("sharing.mar", "sharing"):
        assert any(max(widths_of_three(site, turn)) > 1 for turn in range(20))


def widths_of_three(site: Site, turn: int) -> list[int]:
    """Open three streams behind a call that waits for a gate; how many shared each one's call."""
    gate = site.folder / f"gate {turn}"
    first = site.stream("sharing", str(gate))
    streams = [site.stream("sharing") for _ in range(3)]
    site.describe("sharing")
    gate.touch()
    assert len(list(first)) == 2
    widths = []
    for stream in streams:
        said = [text_of(one) for one in stream]
        assert len(said) == 2
        assert said[0] == said[1]
        widths.append(int(said[0]))
    return widths


def test_customized_metadata(site):
    """DescribeModel asks the handler of the version that is meant; a handler's exception is the call's status, and a
    client's own metadata does not make a prediction a description.
    """
    with site.registered("1/talk.mar", "talk"):
        said = site.describe("talk", customized=True)
        assert said["customizedMetadata"] == {"version": "1.0", "languages": ["en"]}
        assert "customizedMetadata" not in site.describe("talk")
        answer = site.ask("talk", metadata=[("describe", "True")]).result()
        assert text_of(answer).startswith('{\n  "version": "1.0",\n  "of": 1')
    with site.registered("sharing.mar", "sharing"), pytest.raises(grpc.RpcError) as error:
        site.describe("sharing", customized=True)
    assert (error.value.code(), error.value.details()) == (
        grpc.StatusCode.INTERNAL,
        "RuntimeError: nothing to say",
    )


def test_nobody_to_describe(site):
    """A model without workers has nobody who could say something of it: UNAVAILABLE."""
    site.manage("RegisterModel", url="1/talk.mar", model_name="idle")
    try:
        with pytest.raises(grpc.RpcError) as error:
            site.describe("idle", customized=True)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    finally:
        site.manage("UnregisterModel", model_name="idle")
