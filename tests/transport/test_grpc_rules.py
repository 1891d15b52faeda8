"""gRPC's own documents, rule by rule, at wire level: what a request may be, what an answer may be, metadata, sizes.

P is PROTOCOL-HTTP2, H http-grpc-status-mapping, S statuscodes. Compression has a file of its own.
"""

import h2.config
import h2.connection
import h2.events
import pytest
import structlog.testing
import trio
from echo_service import framed
from google.protobuf.wrappers_pb2 import StringValue
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from multidict import MultiDict
from rig import Rig, stub, value

from actorserve.client import Channel
from actorserve.services.transport import values
from actorserve.services.transport.memory import memory_pair

CHAT, UPLOAD = Cardinality.STREAM_STREAM, Cardinality.STREAM_UNARY
OK = [("grpc-status", "0")]


async def echo(stream):
    await stream.send_message(await stream.recv_message())


async def echo_all(stream):
    async for message in stream:
        await stream.send_message(message)


async def ask(client, headers, body=b"\0\0\0\0\0"):
    """Send one request with these headers in place of the usual ones; give the last headers of the answer."""
    number = client.h2.get_next_available_stream_id()
    usual = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/test.T/M",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    client.h2.send_headers(number, [item for item in (usual | headers).items() if item[1] is not None])
    client.h2.send_data(number, body, end_stream=True)
    await client.flush()
    return await client.ended(number)


# --- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "http"),
    [
        ("application/grpc", None),
        ("application/grpc+proto", None),
        ("application/grpc;charset=utf-8", None),
        ("application/grpc+proto; charset=utf-8", None),
        ("Application/gRPC", None),
        ("application/grpc+json", "415"),
        ("application/grpc-web", "415"),
        ("application/grpcx", "415"),
        ("application/json", "415"),
        ("text/html", "415"),
        (None, "415"),
    ],
)
async def test_content_types(nursery, autojump_clock, content_type, http):
    """P, Requests: what is not gRPC's gets HTTP status 415, so that no HTTP client takes it for a success."""
    last = await ask(Rig(nursery, echo).raw(), {"content-type": content_type})

    assert (http, "13" if http else "0") == (last.get(":status"), last["grpc-status"])


@pytest.mark.parametrize("unit", "HMSmun")
async def test_timeouts_in_every_unit_reach_the_method(nursery, autojump_clock, unit):
    """P, TimeoutUnit: the method sees what is left, on trio's clock."""
    seen = []

    async def method(stream):
        seen.append(stream.deadline.time_remaining())
        await echo(stream)

    last = await ask(Rig(nursery, method).raw(), {"grpc-timeout": f"99{unit}"})
    seconds = 99 * {"H": 3600, "M": 60, "S": 1, "m": 1e-3, "u": 1e-6, "n": 1e-9}[unit]

    assert last["grpc-status"] == "0"
    assert [pytest.approx(seconds)] == seen


@pytest.mark.parametrize("text", ["", "S", "1", "-1S", "1.5S", "1s", "1h", "123456789S", "1 S", "S1", "0x1S"])
async def test_timeouts_out_of_form_never_start_the_method(nursery, autojump_clock, text):
    """P, TimeoutValue: INTERNAL that names the value."""
    started = []

    async def method(stream):
        started.append(1)

    last = await ask(Rig(nursery, method).raw(), {"grpc-timeout": text})

    assert (last["grpc-status"], started) == ("13", [])
    assert "grpc-timeout" in last["grpc-message"]


async def test_a_timeout_of_nothing_is_over_at_once(nursery, autojump_clock):
    """Zero is a deadline that has passed."""

    async def method(stream):
        await trio.sleep_forever()

    assert (await ask(Rig(nursery, method).raw(), {"grpc-timeout": "0n"}))["grpc-status"] == "4"


@pytest.mark.parametrize(
    ("cardinality", "body", "status"),
    [
        (Cardinality.UNARY_UNARY, b"", "12"),  # S: request cardinality violation
        (Cardinality.UNARY_STREAM, b"", "12"),
        (Cardinality.UNARY_UNARY, framed(b"") * 2, "12"),
        (Cardinality.UNARY_STREAM, framed(b"") * 2, "12"),
        (UPLOAD, b"", "0"),
        (CHAT, b"", "0"),
        (CHAT, framed(b"") * 2, "0"),
        *[(cardinality, framed(b"abc")[:cut], "13") for cardinality in Cardinality for cut in (1, 4, 5, 7)],
        (CHAT, framed(b"") + framed(b"abc")[:-1], "13"),
        (CHAT, framed(b"\xff"), "3"),
    ],
)
async def test_requests_of_too_few_octets_or_messages(nursery, autojump_clock, cardinality, body, status):
    """No message, one too many, a message cut short: always an answer, and the right one."""

    async def method(stream):
        received = (
            [message async for message in stream] if cardinality.client_streaming else [await stream.recv_message()]
        )
        await stream.send_message(value(b"%d" % len(received)))

    assert status == (await ask(Rig(nursery, method, cardinality).raw(), {}, body))["grpc-status"]


async def test_a_message_that_is_too_large_is_refused_by_its_length(nursery, autojump_clock):
    """Five octets are enough: the answer comes before the message does, and the upload is stopped."""
    client = Rig(nursery, echo, max_receive_bytes=1000).raw()
    number = await client.request("/test.T/M", b"\0" + (4_000_000_000).to_bytes(4, "big"), end=False)
    last = await client.ended(number)

    assert last["grpc-status"] == "8"
    assert "4000000000 bytes" in last["grpc-message"]
    assert "1000 bytes" in last["grpc-message"]


async def test_a_service_that_goes_on_after_a_broken_message_gets_no_more(nursery, autojump_clock):
    """The error comes again, and what follows is never held."""
    seen = []

    async def method(stream):
        for _ in range(3):
            try:
                await stream.recv_message()
            except GRPCError as error:
                seen.append(error.status)
        await stream.send_message(value(b""))

    body = framed(bytes(2000)) + framed(b"")
    await ask(Rig(nursery, method, CHAT, max_receive_bytes=1000).raw(), {}, body)

    assert seen == [Status.RESOURCE_EXHAUSTED] * 3


# --- metadata -----------------------------------------------------------------------------------------


async def test_metadata_of_a_client_as_a_service_sees_it(nursery, autojump_clock):
    """P, Custom-Metadata: -bin values split at commas and decoded, others not; reserved names left out."""
    seen = []

    async def method(stream):
        seen.extend(stream.metadata.items())
        await echo(stream)

    client = Rig(nursery, method).raw()
    extra = [("x-a", "1, 2"), ("x-b-bin", "AAE,AAI="), ("x-a", "3"), ("x-b-bin", ""), ("grpc-other", "x"), ("x-c", "")]
    await client.ended(await client.request("/test.T/M", framed(b""), extra))

    assert seen == [
        ("x-a", "1, 2"),
        ("x-b-bin", b"\0\1"),
        ("x-b-bin", b"\0\2"),
        ("x-a", "3"),
        ("x-b-bin", b""),
        ("x-c", ""),
    ]


async def test_what_a_service_reads_it_may_also_send(nursery, autojump_clock):
    """P, ASCII-Value: a tab, which HTTP allows and gRPC does not, becomes a space; no error on either way."""

    async def method(stream):
        received = [item for item in stream.metadata.items() if item[0].startswith("x-")]
        await stream.send_initial_metadata(metadata=received)
        await echo(stream)
        await stream.send_trailing_metadata(metadata=received)

    client = Rig(nursery, method).raw()
    extra = [("x-b", "b\tb"), ("x-c", "~ c")]
    last = await client.ended(await client.request("/test.T/M", framed(b""), extra))

    assert last == {"grpc-status": "0", "x-b": "b b", "x-c": "~ c"}


async def test_a_value_that_is_not_ascii_is_thrown_away(nursery, autojump_clock):
    """P, ASCII-Value: what HTTP allows in an answer and gRPC does not is no error."""
    answer = answering(nursery, head(x_a="å", x_b="b"), framed(b""), OK)
    async with answer as channel, stub(channel).open() as stream:
        await stream.send_message(value(b""))
        await stream.recv_message()

    assert MultiDict({"x-b": "b"}) == stream.initial_metadata


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"x-a": "å"}, "x-a: printable ASCII"),
        ({"x-a": "a\nb"}, "x-a: printable ASCII"),
        ({"x-a": "a\0b"}, "x-a: printable ASCII"),
        ({"x-a": b"octets"}, "x-a: str expected"),
        ({"x-a-bin": "text"}, "x-a-bin: bytes expected"),
        ({"X-A": "a"}, "'X-A': lower-case"),
        ({"": "a"}, "'': lower-case"),
        ({"x a": "a"}, "'x a': lower-case"),
        ({b"x-a": "a"}, "str expected"),
        ({"grpc-status": "0"}, "'grpc-status' is reserved"),
        ({"content-type": "a"}, "'content-type' is reserved"),
        ({":status": "200"}, "':status': lower-case"),
    ],
)
async def test_metadata_that_a_service_may_not_send(nursery, autojump_clock, metadata, text):
    """The service's mistake is in the log, with the key; the client gets INTERNAL, and nothing of it."""

    async def method(stream):
        await stream.recv_message()
        await stream.send_initial_metadata(metadata=metadata)

    with structlog.testing.capture_logs() as logs:
        last = await ask(Rig(nursery, method).raw(), {})

    assert (last["grpc-status"], last["grpc-message"]) == ("13", "internal error")
    assert text in str(logs[0]["exc_info"])


async def test_metadata_above_the_peers_limit_is_refused_by_its_sender(nursery, autojump_clock):
    """P, Requests and RFC 9113 §6.5.2: both sizes are named, on either side; the connection lives."""

    async def method(stream):
        await stream.recv_message()
        await stream.send_trailing_metadata(metadata={"x-a": "a" * 20_000}, status=Status.ABORTED)

    rig = Rig(nursery, method)
    async with rig.channel() as channel:
        with pytest.raises(GRPCError, match=r"metadata of 20035 bytes .* 16384 bytes") as caught:
            await rig.stub(channel)(value(b""), metadata={"x-a": "a" * 20_000})
        assert Status.RESOURCE_EXHAUSTED is caught.value.status
        with pytest.raises(GRPCError, match=r"metadata of 20035 bytes .* 16384 bytes") as caught:
            await rig.stub(channel)(value(b""))
        assert Status.RESOURCE_EXHAUSTED is caught.value.status


# --- status -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " ", "100 %", "å∫😀", "a\r\nb\0", "\ud800", "%41", "~" * 10_000, "å" * 10_000])
async def test_a_status_message_is_text_on_the_other_side(nursery, autojump_clock, text):
    """P, Status-Message: any text crosses as printable ASCII; a very long one is cut, between characters."""

    async def method(stream):
        await stream.recv_message()
        raise GRPCError(Status.ABORTED, text)

    rig = Rig(nursery, method)
    async with rig.channel() as channel:
        with pytest.raises(GRPCError) as caught:
            await rig.stub(channel)(value(b""))
    received, sent = caught.value.message or "", text.encode(errors="replace").decode()

    assert sent == received or (len(text) == 10_000 and received.endswith("...") and sent.startswith(received[:-4]))


@pytest.mark.parametrize("wire", [b"%", b"%4", b"%zz", b"a%41%", b"%ff%fe", b"%E2%88"])
def test_a_broken_status_message_is_not_thrown_away(wire):
    """P, Responses: what decodes is decoded, the rest stays or is replaced."""
    text = values.decode_text(wire)

    assert text
    assert ("A" in text) is (b"%41" in wire)


async def test_status_details_cross_in_both_roles(nursery, autojump_clock):
    """grpc-status-details-bin is a google.rpc.Status in base64 without padding."""

    async def method(stream):
        await stream.recv_message()
        raise GRPCError(Status.ABORTED, "text", [StringValue(value="first"), value(b"second")])

    rig = Rig(nursery, method)
    last = await ask(rig.raw(), {})
    assert not last["grpc-status-details-bin"].endswith("=")
    async with rig.channel() as channel:
        with pytest.raises(GRPCError) as caught:
            await rig.stub(channel)(value(b""))

    assert [StringValue(value="first"), value(b"second")] == caught.value.details


# --- answers, as the client reads them ------------------------------------------------------------------


def answering(nursery, *steps):
    """Give a channel to a peer that answers the first request with these header lists and octets."""
    client, server = memory_pair()

    async def serve():
        config = h2.config.H2Configuration(client_side=False, validate_outbound_headers=False)
        peer = h2.connection.H2Connection(config)
        peer.initiate_connection()
        await server.send_all(peer.data_to_send())
        while data := await server.receive_some():
            for event in peer.receive_data(data):
                if isinstance(event, h2.events.StreamEnded):
                    for at, step in enumerate(steps):
                        last = at == len(steps) - 1
                        if isinstance(step, bytes):
                            peer.send_data(event.stream_id, step, end_stream=last)
                        else:
                            peer.send_headers(event.stream_id, step, end_stream=last)
            await server.send_all(peer.data_to_send())

    nursery.start_soon(serve)
    return Channel.over(client)


def head(http="200", content_type="application/grpc", **more):
    pairs = [(":status", http), ("content-type", content_type), *((k.replace("_", "-"), v) for k, v in more.items())]
    return [pair for pair in pairs if pair[1] is not None]


async def outcome(channel, cardinality=Cardinality.UNARY_UNARY):
    async with channel:
        try:
            return await stub(channel, cardinality)([value(b"")] if cardinality.client_streaming else value(b""))
        except GRPCError as error:
            return error.status


@pytest.mark.parametrize(
    ("http", "status"),
    [
        ("400", Status.INTERNAL),
        ("401", Status.UNAUTHENTICATED),
        ("403", Status.PERMISSION_DENIED),
        ("404", Status.UNIMPLEMENTED),
        ("429", Status.UNAVAILABLE),
        ("502", Status.UNAVAILABLE),
        ("503", Status.UNAVAILABLE),
        ("504", Status.UNAVAILABLE),
        ("204", Status.UNKNOWN),
        ("302", Status.UNKNOWN),
        ("418", Status.UNKNOWN),
        ("500", Status.UNKNOWN),
    ],
)
async def test_http_statuses_of_those_who_are_no_grpc(nursery, autojump_clock, http, status):
    """H: the table; with a grpc-status in the same headers, that one counts."""
    assert status is await outcome(answering(nursery, head(http, "text/html"), b"<html>"))
    assert status is await outcome(answering(nursery, head(http, None)))
    assert Status.DATA_LOSS is await outcome(answering(nursery, head(http, grpc_status="15")))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([head(), framed(b""), OK], value(b"")),
        ([head(content_type="application/grpc+proto"), framed(b""), OK], value(b"")),
        ([head(content_type="application/grpc; x=y"), framed(b""), OK], value(b"")),
        ([head(content_type="application/grpc-web"), framed(b""), OK], Status.UNKNOWN),
        ([head(content_type="text/html"), framed(b""), OK], Status.UNKNOWN),
        ([[(":status", "100")], head(), framed(b""), OK], value(b"")),
        ([head(grpc_status="5")], Status.NOT_FOUND),
        ([head(), [("grpc-status", "5")]], Status.NOT_FOUND),
        ([head(), framed(b""), [("grpc-status", "5")]], Status.NOT_FOUND),
        ([head(), [("grpc-status", "99")]], Status.UNKNOWN),
        ([head(), [("grpc-status", "junk")]], Status.UNKNOWN),
        ([head(), [("x-other", "1")]], Status.UNKNOWN),
        ([head(), framed(b"")], Status.INTERNAL),  # the end without trailers
        ([head(), OK], Status.UNIMPLEMENTED),  # S: response cardinality violation
        ([head(grpc_status="0")], Status.UNIMPLEMENTED),
        ([head(), framed(b"") * 2, OK], Status.UNIMPLEMENTED),
        ([head(), framed(b"abc")[:-1], OK], Status.INTERNAL),
        ([head(), framed(b"abc")[:3], OK], Status.INTERNAL),
        ([head(), framed(b"\xff"), OK], Status.INTERNAL),
        ([head(), framed(b"", 7), OK], Status.INTERNAL),
        ([head(), b"\0" + b"\xff" * 4, OK], Status.RESOURCE_EXHAUSTED),
    ],
)
@pytest.mark.parametrize("cardinality", [Cardinality.UNARY_UNARY, UPLOAD])
async def test_answers_of_one_message(nursery, autojump_clock, steps, expected, cardinality):
    """What a server may say to a call with one answer, and what the caller is told of all else."""
    assert expected == await outcome(answering(nursery, *steps), cardinality)


async def test_a_stream_may_end_without_a_message(nursery, autojump_clock):
    """Trailers-only with OK, and OK after the headers: an empty stream."""
    for steps in ([head(grpc_status="0")], [head(), OK]):
        assert await outcome(answering(nursery, *steps), Cardinality.UNARY_STREAM) == []


async def test_metadata_of_an_answer_is_split_as_it_came(nursery, autojump_clock):
    """Initial and trailing metadata apart; of a trailers-only answer all are trailing."""
    answer = answering(nursery, head(x_a="1", x_b_bin="AAE,AAI"), framed(b""), [*OK, ("x-c", "2")])
    async with answer as channel, stub(channel).open() as stream:
        await stream.send_message(value(b""))
        await stream.recv_message()
        await stream.recv_trailing_metadata()
    assert MultiDict([("x-a", "1"), ("x-b-bin", b"\0\1"), ("x-b-bin", b"\0\2")]) == stream.initial_metadata
    assert MultiDict([("x-c", "2")]) == stream.trailing_metadata
    async with answering(nursery, head(x_a="1", grpc_status="5")) as channel, stub(channel).open() as stream:
        await stream.send_message(value(b""))
        with pytest.raises(GRPCError):
            await stream.recv_initial_metadata()

    assert (MultiDict(), MultiDict([("x-a", "1")])) == (stream.initial_metadata, stream.trailing_metadata)


@pytest.mark.parametrize("cardinality", list(Cardinality))
async def test_what_a_client_says_of_itself(nursery, autojump_clock, cardinality):
    """P, Call-Definition: te, content-type, user-agent and grpc-accept-encoding; no grpc-encoding."""
    seen = []

    async def method(stream):
        seen.append(dict(stream.stream.fields))
        await echo_all(stream)

    rig = Rig(nursery, method, cardinality)
    async with rig.channel() as channel:
        await rig.stub(channel)([value(b"")] if cardinality.client_streaming else value(b""))

    assert seen[0] == {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/test.T/M",
        b":authority": b"localhost",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
        b"user-agent": b"actorserve",
        b"grpc-accept-encoding": b"identity,deflate,gzip",
    }
