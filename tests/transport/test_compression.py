"""Compression both ways: what a service sees and says, what crosses the wire, what a bomb costs."""

import gzip
import os
import tracemalloc
import zlib
from collections import deque
from itertools import pairwise

import h2.events
import pytest
import trio
from echo_service import framed
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, ProtocolError
from hypothesis import given
from hypothesis import strategies as st
from rig import Rig, stub, value

from actorserve.client import Channel
from actorserve.services.transport import compression
from actorserve.services.transport.compression import TURN
from actorserve.services.transport.memory import memory_pair
from actorserve.services.transport.messages import MessageReader

ZEROS = value(bytes(10_000))
CHAT = Cardinality.STREAM_STREAM


async def tell(stream):
    """Answer each message with how it came."""
    async for _ in stream:
        await stream.send_message(value(b"%s %d" % (stream.request_encoding.encode(), stream.received_compressed)))


async def reply(stream):
    """Answer as the metadata ask: an encoding, and whether to use it for this message."""
    message = await stream.recv_message()
    stream.reply_encoding = stream.metadata["x-encoding"]
    compress = {"yes": True, "no": False}.get(stream.metadata.get("x-compress"))
    await stream.send_message(message, compress=compress)


def read_all(reader, inbox):
    """Take one message, with as many pauses as it asks for."""
    while True:
        message = reader.next_message(inbox)
        if message is not None or not reader.more:
            return message


# --- the parts ---------------------------------------------------------------------------------


@given(st.binary(max_size=2000), st.sampled_from([b"gzip", b"deflate"]), st.lists(st.integers(0, 2100), max_size=5))
def test_what_is_compressed_comes_back_however_it_is_cut(body, encoding, cuts):
    """Compressed, framed, cut anywhere: the reader gives the message and says how it came."""
    wire = framed(b"".join(compression.pieces(body, encoding)), flag=1)
    cuts = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    reader, inbox, message = MessageReader(3000, encoding), deque(), None
    for start, end in pairwise(cuts):
        if start < end:
            inbox.append(wire[start:end])
            message = read_all(reader, inbox)

    assert body == message
    assert reader.compressed
    assert reader.between_messages
    assert len(wire) == reader.taken


@pytest.mark.parametrize("size", [0, 1, TURN - 1, TURN, TURN + 1, 3 * TURN + 7])
def test_pieces_are_one_stream_of_the_standard_library(size):
    """Gzip and zlib read what the pieces make, at every edge of a turn."""
    body = os.urandom(size)

    assert body == gzip.decompress(b"".join(compression.pieces(body, b"gzip")))
    assert body == zlib.decompress(b"".join(compression.pieces(body, b"deflate")))


@pytest.mark.parametrize(
    ("packed", "text"),
    [
        (b"", "does not end"),
        (b"no gzip at all", "not valid gzip"),
        (gzip.compress(b"x" * 500)[:-1], "does not end"),
        (gzip.compress(b"x" * 500) + b"more", "does not end where"),
        (gzip.compress(b"x" * 500)[:-8] + bytes(8), "not valid gzip"),
        (zlib.compress(b"x"), "not valid gzip"),
    ],
)
def test_what_is_not_the_encoding_is_internal(packed, text):
    """Junk, a cut, a wrong checksum, something after the end: INTERNAL, again and again."""
    reader, inbox = MessageReader(1000, b"gzip"), deque([framed(packed, flag=1)])
    for _ in range(2):
        with pytest.raises(GRPCError, match=text) as caught:
            read_all(reader, inbox)
        assert Status.INTERNAL is caught.value.status
        inbox.append(b"more")


@pytest.mark.parametrize("size", [1001, 200_000_000])
def test_a_bomb_is_never_held(size):
    """Both sizes are named; no more than the limit and a turn is held on the way, whatever it would inflate to."""
    compress = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1_000_000)
    packed = b"".join(compress.compress(zeros[: min(size - at, 1_000_000)]) for at in range(0, size, 1_000_000))
    packed += compress.flush()
    limit = max(1000, len(packed))
    inbox = deque([framed(packed, flag=1)])
    tracemalloc.start()
    try:
        with pytest.raises(GRPCError, match=f"of {len(packed)} bytes inflates to more than .* {limit} bytes") as caught:
            read_all(MessageReader(limit, b"gzip"), inbox)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert Status.RESOURCE_EXHAUSTED is caught.value.status
    assert peak < 4 * (limit + TURN) + len(packed)


@pytest.mark.parametrize("size", [10, 10 * TURN])
def test_a_message_at_the_limit_is_taken(size):
    """The limit is the largest size allowed, compressed or not."""
    reader, inbox = MessageReader(size, b"gzip"), deque([framed(gzip.compress(bytes(size)), flag=1)])
    if size > 100:  # ten octets do not become fewer
        assert bytes(size) == read_all(reader, inbox)
        inbox.append(framed(gzip.compress(bytes(size + 1)), flag=1))
        with pytest.raises(GRPCError, match="inflates to more"):
            read_all(reader, inbox)
    else:
        with pytest.raises(GRPCError, match="is larger than the limit"):
            read_all(reader, inbox)


def test_a_reader_inflates_in_turns():
    """A large message is not inflated at one go: the reader asks for pauses in between."""
    reader, inbox, turns = MessageReader(20 * TURN, b"gzip"), deque([framed(gzip.compress(bytes(20 * TURN)), 1)]), 1
    while reader.next_message(inbox) is None:
        assert reader.more
        turns += 1

    assert 15 <= turns <= 30


# --- requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_the_service_sees_how_each_message_came(nursery, autojump_clock, encoding):
    """The flag is per message; the encoding is the call's."""
    rig = Rig(nursery, tell, CHAT)
    async with rig.channel(compression=encoding) as channel, rig.stub(channel).open() as stream:
        seen = []
        for compress in (None, False, True):
            await stream.send_message(ZEROS, compress=compress)
            seen.append((await stream.recv_message()).value)
        await stream.end()

    name = encoding.encode()
    assert [name + b" 1", name + b" 0", name + b" 1"] == seen


async def test_a_call_may_choose_its_own_encoding(nursery, autojump_clock):
    """The channel's compression is a default; after the request it is fixed; unknown names are refused at once."""
    rig = Rig(nursery, tell, CHAT)
    async with rig.channel() as channel, rig.stub(channel).open() as stream:
        stream.request_encoding = "deflate"
        with pytest.raises(ValueError, match="'br' is unknown"):
            stream.request_encoding = "br"
        await stream.send_message(ZEROS)
        with pytest.raises(ProtocolError):
            stream.request_encoding = "gzip"
        assert (await stream.recv_message()).value == b"deflate 1"
        await stream.end()
    with pytest.raises(ValueError, match="'br' is unknown"):
        Channel("localhost:1", compression="br")


async def test_what_does_not_become_smaller_is_sent_as_it_is(nursery, autojump_clock):
    """Compression by default is for what it helps; `compress=True` insists."""
    rig = Rig(nursery, tell, CHAT)
    async with rig.channel(compression="gzip") as channel, rig.stub(channel).open() as stream:
        seen = []
        for compress in (None, True):
            await stream.send_message(value(b"abc"), compress=compress)
            seen.append((await stream.recv_message()).value)
        await stream.end()

    assert seen == [b"gzip 0", b"gzip 1"]


async def test_an_unknown_encoding_is_unimplemented_with_the_list(nursery, autojump_clock):
    """Before any message is read, with grpc-accept-encoding and the names in the text."""
    client = Rig(nursery, tell, CHAT).raw()
    last = await client.ended(await client.request("/test.T/M", framed(b"x", 1), [("grpc-encoding", "br")]))

    assert (last["grpc-status"], last["grpc-accept-encoding"]) == ("12", "identity,deflate,gzip")
    assert "'br' is not supported; identity, deflate and gzip are" in last["grpc-message"]


@pytest.mark.parametrize(
    ("extra", "body"),
    [
        ([], framed(b"x", 1)),
        ([("grpc-encoding", "identity")], framed(b"x", 1)),
        ([("grpc-encoding", "gzip")], framed(gzip.compress(b""), 2)),
        ([("grpc-encoding", "gzip")], framed(b"junk", 1)),
        ([("grpc-encoding", "gzip")], framed(gzip.compress(b"")[:-1], 1)),
    ],
)
async def test_a_flag_that_is_not_true_is_internal(nursery, autojump_clock, extra, body):
    """Flag without an encoding, an unknown flag, and bytes that are not what the flag says."""
    client = Rig(nursery, tell, CHAT).raw()

    assert (await client.ended(await client.request("/test.T/M", body, extra)))["grpc-status"] == "13"


async def test_a_server_that_takes_an_encoding_says_which_it_takes(nursery, autojump_clock):
    """grpc-accept-encoding goes to those who announce an encoding, and to no one else."""
    rig = Rig(nursery, tell, CHAT)
    for extra, expected in [([], None), ([("grpc-encoding", "gzip")], "identity,deflate,gzip")]:
        client = rig.raw()
        await client.request("/test.T/M", framed(b""), extra)
        answer = await client.until(lambda event: isinstance(event, h2.events.ResponseReceived))

        assert expected == dict(answer.headers).get("grpc-accept-encoding")


async def test_the_inflated_size_is_limited(nursery, autojump_clock):
    """RESOURCE_EXHAUSTED on the server and on the client; the connection lives."""

    async def echo(stream):
        stream.reply_encoding = "gzip"
        await stream.recv_message()
        await stream.send_message(value(bytes(5000)))

    rig = Rig(nursery, echo, max_receive_bytes=1000)
    async with rig.channel(compression="gzip", max_receive_bytes=2000) as channel:
        for size, limit in [(5000, 1000), (10, 2000)]:
            with pytest.raises(GRPCError, match=f"inflates to more than the limit of {limit}") as caught:
                await rig.stub(channel)(value(bytes(size)))
            assert Status.RESOURCE_EXHAUSTED is caught.value.status


# --- replies -----------------------------------------------------------------------------------


async def wire_reply(client, **asked):
    """Give the response headers and the DATA of one call."""
    extra = [(key.replace("_", "-"), text) for key, text in asked.items()]
    number = await client.request("/test.T/M", framed(ZEROS.SerializeToString()), extra)
    await client.ended(number)
    headers = next(event.headers for event in client.events if isinstance(event, h2.events.ResponseReceived))
    data = b"".join(event.data for event in client.events if isinstance(event, h2.events.DataReceived))
    return dict(headers), data


@pytest.mark.parametrize(("encoding", "bits"), [("gzip", 31), ("deflate", 15)])
@pytest.mark.parametrize("cardinality", [Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM])
async def test_replies_are_compressed_where_the_service_asks(nursery, autojump_clock, encoding, bits, cardinality):
    """The header names the encoding, the flag is set, and the standard library inflates it."""
    client = Rig(nursery, reply, cardinality).raw()
    headers, data = await wire_reply(client, grpc_accept_encoding="br, gzip,deflate", x_encoding=encoding)

    assert encoding == headers["grpc-encoding"]
    assert (1, len(data) - 5) == (data[0], int.from_bytes(data[1:5], "big"))
    assert ZEROS.SerializeToString() == zlib.decompress(data[5:], bits)


@pytest.mark.parametrize(
    ("accepted", "asked", "compress"),
    [("gzip", "gzip", "no"), ("identity,deflate", "gzip", "yes"), ("gzip", "identity", "")],
)
async def test_replies_stay_as_they_are(nursery, autojump_clock, accepted, asked, compress):
    """A message that is not to be compressed, a client that does not take the encoding, and identity."""
    client = Rig(nursery, reply).raw()
    headers, data = await wire_reply(client, grpc_accept_encoding=accepted, x_encoding=asked, x_compress=compress)

    assert framed(ZEROS.SerializeToString()) == data
    assert (asked if asked in accepted.split(",") else None) == headers.get("grpc-encoding")


async def test_nobody_compresses_unasked(nursery, autojump_clock):
    """A client that takes gzip gets plain messages where the service says nothing: compression has its price."""
    client = Rig(nursery, tell, CHAT).raw()
    headers, data = await wire_reply(client, grpc_accept_encoding="gzip", grpc_encoding="gzip")

    assert "grpc-encoding" not in headers
    assert data[0] == 0


async def test_the_encoding_of_an_answer_is_fixed_once_it_began(nursery, autojump_clock):
    """Before: settable, and an unknown name is the service's mistake. After: ProtocolError."""
    seen = []

    async def method(stream):
        await stream.recv_message()
        for name in ("br", "gzip"):
            try:
                stream.reply_encoding = name
            except (ValueError, ProtocolError) as error:
                seen.append(type(error))
        seen.append(stream.reply_encoding)
        await stream.send_message(ZEROS)
        try:
            stream.reply_encoding = "deflate"
        except ProtocolError as error:
            seen.append(type(error))

    rig = Rig(nursery, method)
    async with rig.channel() as channel:
        assert await rig.stub(channel)(ZEROS) == ZEROS

    assert [ValueError, "gzip", ProtocolError] == seen


async def test_the_client_sees_how_each_message_came(nursery, autojump_clock):
    """`received_compressed` on the client's side of a stream."""

    async def method(stream):
        stream.reply_encoding = "deflate"
        async for message in stream:
            await stream.send_message(message, compress=message.value == b"pack")

    rig = Rig(nursery, method, CHAT)
    async with rig.channel() as channel, rig.stub(channel).open() as stream:
        seen = []
        for body in (b"pack", b"plain", b"pack"):
            await stream.send_message(value(body))
            assert value(body) == await stream.recv_message()
            seen.append(stream.received_compressed)
        await stream.end()

    assert seen == [True, False, True]


@pytest.mark.parametrize(
    ("head", "text"),
    [([("grpc-encoding", "br")], "'br' is not supported; identity"), ([], "no grpc-encoding was sent")],
)
async def test_a_reply_in_an_unknown_encoding_is_internal(nursery, autojump_clock, head, text):
    """The client names the encoding, or the want of one."""
    client, server = memory_pair()

    async def answer():
        peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        peer.initiate_connection()
        await server.send_all(peer.data_to_send())
        while True:
            for event in peer.receive_data(await server.receive_some()):
                if isinstance(event, h2.events.RequestReceived):
                    headers = [(":status", "200"), ("content-type", "application/grpc"), *head]
                    peer.send_headers(event.stream_id, headers)
                    peer.send_data(event.stream_id, framed(b"x", 1))
            await server.send_all(peer.data_to_send())

    nursery.start_soon(answer)
    async with Channel.over(client) as channel:
        with pytest.raises(GRPCError, match=text) as caught:
            await stub(channel)(ZEROS)
        assert Status.INTERNAL is caught.value.status
    nursery.cancel_scope.cancel()


async def test_large_messages_do_not_hold_the_loop(nursery, autojump_clock):
    """While megabytes are compressed and inflated, both ways, other tasks have their turns."""
    steps, size = 0, 40 * TURN

    async def echo(stream):
        stream.reply_encoding = "gzip"
        await stream.send_message(await stream.recv_message())

    async def count():
        nonlocal steps
        while True:
            await trio.lowlevel.checkpoint()
            steps += 1

    rig = Rig(nursery, echo)
    async with rig.channel(compression="gzip") as channel:
        await channel.connect()
        nursery.start_soon(count)
        assert size == len((await rig.stub(channel)(value(bytes(size)))).value)

    nursery.cancel_scope.cancel()
    assert steps >= 4 * 40


# --- what inflating costs the connection ------------------------------------------------------------


async def test_messages_that_inflate_too_far_are_faults_of_the_client(nursery, autojump_clock):
    """Each is answered; one more than max_stream_faults ends the connection at once."""
    client = Rig(nursery, tell, CHAT, max_receive_bytes=1000, max_stream_faults=2).raw()
    bomb = framed(gzip.compress(bytes(5000)), 1)
    for _ in range(2):
        last = await client.ended(await client.request("/test.T/M", bomb, [("grpc-encoding", "gzip")]))
        assert last["grpc-status"] == "8"
    began = trio.current_time()
    await client.request("/test.T/M", bomb, [("grpc-encoding", "gzip")])
    octets = b""
    while b"too many stream errors" not in octets:
        octets += await client.stream.receive()

    assert (11).to_bytes(4, "big") + b"too many stream errors" in octets
    assert trio.current_time() - began < 0.1


async def test_the_calls_of_a_connection_inflate_one_after_another(nursery, autojump_clock):
    """However many compressed messages come at once, all together inflate one turn a tick."""
    done, turns, calls, ticks = [], 8, 6, 0

    async def method(stream):
        message = await stream.recv_message()
        done.append((ticks, message.value[:1]))
        await stream.send_message(value(b""))

    async def count():
        nonlocal ticks
        while True:
            await trio.lowlevel.checkpoint()
            ticks += 1

    client = Rig(nursery, method).raw()
    nursery.start_soon(count)
    numbers = []
    for n in range(calls):
        body = value(b"%d" % n + bytes(turns * TURN)).SerializeToString()
        numbers.append(await client.request("/test.T/M", framed(gzip.compress(body), 1), [("grpc-encoding", "gzip")]))
    for number in numbers:
        await client.ended(number)
    nursery.cancel_scope.cancel()

    assert {b"%d" % n for n in range(calls)} == {name for _, name in done}
    assert all(later - earlier >= turns for (earlier, _), (later, _) in pairwise(done))


async def test_a_wait_for_a_message_that_is_cut_loses_nothing(nursery, autojump_clock):
    """Cancelled within a message, the call reads on later; and the connection's other calls can inflate meanwhile."""
    body = os.urandom(TURN) + bytes(6 * TURN)
    cut = 0

    async def patient(stream):
        nonlocal cut
        for steps in range(20):  # each try is cut one tick later
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as helpers:
                    helpers.start_soon(after, steps, scope)
                    message = await stream.recv_message()
                    helpers.cancel_scope.cancel()
                await stream.send_message(message)
                return
            cut += 1

    async def after(steps, scope):
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async def call(channel):
        assert body == (await rig.stub(channel)(value(body))).value

    rig = Rig(nursery, patient)
    async with rig.channel(compression="gzip") as channel, trio.open_nursery() as together:
        for _ in range(3):
            together.start_soon(call, channel)
    nursery.cancel_scope.cancel()

    assert cut > 6


def test_octets_that_inflate_to_nothing_take_turns_too():
    """Empty blocks by the thousand are no way to hold the loop."""
    compress = zlib.compressobj(1, zlib.DEFLATED, 31)
    packed = compress.compress(b"") + b"".join(compress.flush(zlib.Z_FULL_FLUSH) for _ in range(8))
    body = packed + b"\0\0\0\xff\xff" * (4 * TURN // 5) + compress.flush()
    reader, turns = MessageReader(10 * TURN, b"gzip"), 1
    inbox = deque(framed(body, 1)[at : at + 16_384] for at in range(0, len(body) + 5, 16_384))
    while (message := reader.next_message(inbox)) is None:
        assert reader.more
        turns += 1

    assert message == b""
    assert turns >= 4
