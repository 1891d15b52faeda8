"""The channel: what it repeats, where calls go, when it gives a connection up, TLS. In virtual time, over memory."""

import ssl
from collections import defaultdict

import anyio
import h2.config
import h2.connection
import h2.events
import pytest
import trio
import trustme
from echo_service import framed
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from rig import Rig, settle, stub, value

from actorserve.client import Channel, Retry
from actorserve.services.transport import frames
from actorserve.services.transport.memory import memory_pair

HEADERS = [(":status", "200"), ("content-type", "application/grpc")]


class Peer:
    """A server on the h2 library. `answers[n]` is what the n-th request of all gets; after them: an echo."""

    def __init__(self, nursery, *answers, pongs=True):
        self.nursery = nursery
        self.answers = list(answers)
        self.pongs = pongs
        self.opened: list[str] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.bodies: dict[int, bytes] = defaultdict(bytes)  # by the number of the request
        self.pings = 0
        self.down: set[str] = set()
        self.silent: set[str] = set()
        self.streams: list[trio.abc.Stream] = []

    async def connect(self, target):
        self.opened.append(target)
        if target in self.down:
            raise OSError("nobody there")
        if target in self.silent:
            await trio.sleep_forever()
        client, server = memory_pair()
        self.streams.append(server)
        self.nursery.start_soon(self.serve, server, target)
        return client

    def channel(self, target="a:1", **options):
        return Channel(target, connect=self.connect, **options)

    async def serve(self, stream, target):
        peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        peer.initiate_connection()
        await stream.send_all(peer.data_to_send())
        numbers = {}
        while data := await received(stream):
            for event in peer.receive_data(data):
                match event:
                    case h2.events.RequestReceived():
                        numbers[event.stream_id] = len(self.requests)
                        self.requests.append((target, dict(event.headers)))
                    case h2.events.DataReceived():
                        self.bodies[numbers[event.stream_id]] += event.data
                    case h2.events.PingReceived():
                        self.pings += 1
                if isinstance(event, h2.events.StreamEnded):
                    number = numbers[event.stream_id]
                    answer = self.answers[number] if number < len(self.answers) else echo
                    await answer(stream, peer, event.stream_id, self.bodies[number])
            out = peer.data_to_send()
            if self.pongs or not out.startswith(frames.encode(frames.PING, frames.ACK, 0, bytes(8))[:4]):
                await stream.send_all(out)


async def received(stream):
    try:
        return await stream.receive_some()
    except trio.ClosedResourceError:  # an answer has closed it
        return b""


async def echo(stream, peer, number, body):
    peer.send_headers(number, HEADERS)
    peer.send_data(number, body)
    peer.send_headers(number, [("grpc-status", "0")], end_stream=True)


def reset(code):
    async def answer(stream, peer, number, body):
        peer.reset_stream(number, code)

    return answer


async def reset_after_headers(stream, peer, number, body):
    peer.send_headers(number, HEADERS)
    peer.reset_stream(number, frames.REFUSED_STREAM)


async def vanish(stream, peer, number, body):
    await stream.aclose()


async def nothing(stream, peer, number, body):
    pass


async def go_away(stream, peer, number, body):
    await stream.send_all(frames.encode_goaway(0, frames.NO_ERROR))


REFUSE = reset(frames.REFUSED_STREAM)


async def status_of(call):
    with pytest.raises(GRPCError) as caught:
        await call
    return caught.value.status


# --- what is repeated ---------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [REFUSE, go_away])
async def test_a_refused_call_is_repeated_at_once(nursery, autojump_clock, refusal):
    """REFUSED_STREAM, and a GOAWAY that leaves the stream out: the call goes again; its caller sees nothing."""
    peer = Peer(nursery, refusal)
    began = trio.current_time()
    async with peer.channel() as channel:
        assert value(b"hello") == await stub(channel)(value(b"hello"))

    assert trio.current_time() == began
    assert len(peer.requests) == 2
    assert peer.bodies[0] == peer.bodies[1]
    assert len(peer.opened) == (2 if refusal is go_away else 1)


async def test_what_a_stream_has_sent_goes_again(nursery, autojump_clock):
    """All messages so far, and the end of the request, in order."""
    peer = Peer(nursery, REFUSE, REFUSE)
    messages = [value(b"%d" % number) for number in range(20)]
    async with peer.channel() as channel:
        assert messages == await stub(channel, Cardinality.STREAM_STREAM)(messages)

    assert [b"".join(framed(message.SerializeToString()) for message in messages)] * 3 == list(peer.bodies.values())


async def test_the_sender_may_be_the_one_who_finds_out(nursery, autojump_clock):
    """A request that is refused before its end: the next message begins it anew, with the first."""
    first, seen = value(b"first"), []

    async def method(stream):
        seen.append([message.value async for message in stream])

    rig, calls = Rig(nursery, method, Cardinality.STREAM_STREAM), 0
    async with rig.channel() as channel, rig.stub(channel).open() as stream:
        await stream.send_message(first)
        await settle()
        connection = await channel.connected()
        call = next(iter(connection.core.streams.values()))
        connection.core.reset(call, frames.REFUSED_STREAM)  # as a GOAWAY would
        calls = len(connection.core.streams)
        await stream.send_message(value(b"second"))
        await stream.end()
        assert await stream.recv_message() is None

    assert calls == 0
    assert seen[-1] == [b"first", b"second"]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (reset(frames.INTERNAL_ERROR), Status.INTERNAL),
        (reset_after_headers, Status.UNAVAILABLE),
        (vanish, Status.UNAVAILABLE),
    ],
)
async def test_nothing_else_is_repeated(nursery, autojump_clock, answer, status):
    """Another reset, a refusal after the response headers, a lost connection: the server may have begun."""
    peer = Peer(nursery, answer)
    async with peer.channel() as channel:
        assert status is await status_of(stub(channel)(value(b"")))
        assert len(peer.requests) == 1
        assert value(b"") == await stub(channel)(value(b""))


async def test_repetitions_are_bounded_and_spread(nursery, autojump_clock):
    """Five attempts, the first repetition at once, then delays that double, with jitter; then the refusal."""
    peer, began = Peer(nursery, *[REFUSE] * 10), trio.current_time()
    async with peer.channel() as channel:
        with pytest.raises(GRPCError, match="refused the call before it began") as caught:
            await stub(channel)(value(b""))

    assert Status.UNAVAILABLE is caught.value.status
    assert len(peer.requests) == 5
    assert 0.8 * 0.7 <= trio.current_time() - began <= 1.2 * 0.7


@pytest.mark.parametrize(("options", "attempts"), [({"retry": None}, 1), ({"retry": Retry(attempts=2)}, 2)])
async def test_retry_is_an_option(nursery, autojump_clock, options, attempts):
    """`None` repeats nothing; `attempts` counts the first."""
    peer = Peer(nursery, *[REFUSE] * 10)
    async with peer.channel(**options) as channel:
        assert Status.UNAVAILABLE is await status_of(stub(channel)(value(b"")))

    assert attempts == len(peer.requests)


async def test_what_is_too_much_to_keep_is_not_repeated(nursery, autojump_clock):
    """A call that has sent more than `buffer_bytes` ends with the refusal."""
    peer = Peer(nursery, REFUSE)
    async with peer.channel(retry=Retry(buffer_bytes=100)) as channel:
        assert Status.UNAVAILABLE is await status_of(stub(channel)(value(bytes(200))))

    assert len(peer.requests) == 1


async def test_no_delay_passes_the_deadline(nursery, autojump_clock):
    """The error comes now, where the next attempt would be after the deadline, and says what was wrong."""
    peer, began = Peer(nursery), trio.current_time()
    peer.down.add("a:1")
    async with peer.channel(retry=Retry(attempts=100, initial_s=1, max_s=100, jitter=0)) as channel:
        with pytest.raises(GRPCError, match="cannot connect to a:1: nobody there") as caught:
            await stub(channel)(value(b""), timeout=10)

    assert Status.UNAVAILABLE is caught.value.status
    assert len(peer.opened) == 4  # at 0, 1, 3 and 7 seconds
    assert trio.current_time() - began == pytest.approx(7)


async def test_a_server_that_comes_back_is_found(nursery, autojump_clock):
    """Connecting is repeated within a call; the grpc-timeout that is sent is what is left."""
    peer = Peer(nursery)
    peer.down.add("a:1")
    async with peer.channel(retry=Retry(initial_s=1, jitter=0)) as channel:

        async def come_back():
            await trio.sleep(2.5)
            peer.down.clear()

        nursery.start_soon(come_back)
        assert value(b"x") == await stub(channel)(value(b"x"), timeout=10)

    assert peer.requests[0][1]["grpc-timeout"] in {"7000000u", "7000001u"}


# --- several addresses ----------------------------------------------------------------------------


async def test_calls_go_round(nursery, autojump_clock):
    """One connection to each address, taken in turns; :authority is the address's own."""
    peer = Peer(nursery)
    async with peer.channel("a:1, b:2,c:3") as channel:
        assert await channel.connect() == ("a:1", "b:2", "c:3")
        for _ in range(6):
            await stub(channel)(value(b""))

    assert [target for target, _ in peer.requests[:3]] * 2 == [target for target, _ in peer.requests]
    assert {"a:1", "b:2", "c:3"} == {target for target, _ in peer.requests}
    assert all(target == headers[":authority"] for target, headers in peer.requests)
    assert sorted(peer.opened) == ["a:1", "b:2", "c:3"]


async def test_an_address_that_fails_is_passed_over_and_tried_again(nursery, autojump_clock):
    """Calls go on over the other, the failed one is tried at growing distances, and used when it is back."""
    peer = Peer(nursery)
    peer.down.add("b:2")
    async with peer.channel(["a:1", "b:2"]) as channel:
        for _ in range(100):
            await stub(channel)(value(b""))
            await trio.sleep(0.1)
        assert {"a:1"} == {target for target, _ in peer.requests}
        assert 4 <= peer.opened.count("b:2") <= 8
        peer.down.clear()
        for _ in range(100):
            await stub(channel)(value(b""))
            await trio.sleep(0.2)

    assert peer.opened.count("a:1") + 1 == 2
    assert "b:2" in {target for target, _ in peer.requests}


async def test_an_address_that_does_not_answer_costs_nothing(nursery, autojump_clock):
    """While one connection is being opened, calls take the other."""
    peer, began = Peer(nursery), trio.current_time()
    peer.silent.add("a:1")
    async with peer.channel("a:1,b:2") as channel:
        for _ in range(3):
            await stub(channel)(value(b""))

    assert trio.current_time() == began
    assert sorted(peer.opened) == ["a:1", "b:2"]


async def test_all_addresses_down_is_unavailable(nursery, autojump_clock):
    """The error names each address and what was wrong with it."""
    peer = Peer(nursery)
    peer.down.add("a:1")
    peer.silent.add("b:2")
    async with peer.channel("a:1,b:2", connect_timeout_s=3, retry=None) as channel:
        with pytest.raises(GRPCError, match=r"a:1: nobody there; .*b:2: no answer within 3 s") as caught:
            await channel.connect()
        assert Status.UNAVAILABLE is caught.value.status
        assert Status.UNAVAILABLE is await status_of(stub(channel)(value(b"")))


async def test_a_server_without_settings_is_no_server(nursery, autojump_clock):
    """A connection that is accepted and stays mute is given up after connect_timeout_s."""

    async def mute(_target):
        return memory_pair()[0]

    async with Channel("a:1", connect=mute, connect_timeout_s=3, retry=None) as channel:
        with pytest.raises(GRPCError, match="no answer within 3 s"):
            await stub(channel)(value(b""))


async def test_a_lost_connection_is_opened_anew(nursery, autojump_clock):
    """By the next call; the one in hand fails."""
    peer = Peer(nursery)
    async with peer.channel() as channel:
        await stub(channel)(value(b""))
        await peer.streams[0].aclose()
        await settle()
        await stub(channel)(value(b""))

    assert peer.opened == ["a:1", "a:1"]


@pytest.mark.parametrize("target", ["", "a", "a:", "a:b", "a:70000", "[::1]", "a:1,,b:2", "a:1,b"])
def test_targets_that_make_no_sense_are_refused(target):
    """When the channel is made, with what a target looks like."""
    with pytest.raises(ValueError, match="host:port"):
        Channel(target)


def test_options_that_make_no_sense_are_refused():
    """A word that is not an option, and a channel to nowhere."""
    with pytest.raises(TypeError, match="compresion"):
        Channel("a:1", compresion="gzip")
    with pytest.raises(ValueError, match="needs a target"):
        Channel([])


# --- keepalive -------------------------------------------------------------------------------------


async def test_a_server_without_a_sign_of_life_is_given_up(nursery, autojump_clock):
    """A ping after keepalive_s, the end keepalive_timeout_s later: UNAVAILABLE, and the next call connects anew."""
    peer, began = Peer(nursery, nothing, pongs=False), trio.current_time()
    async with peer.channel(keepalive_s=10, keepalive_timeout_s=5) as channel:
        with pytest.raises(GRPCError, match="no sign of life for 5 s") as caught:
            await stub(channel)(value(b""))

        assert Status.UNAVAILABLE is caught.value.status
        assert trio.current_time() - began == pytest.approx(15)
        assert (peer.pings, len(peer.requests)) == (1, 1)
        await stub(channel)(value(b""))
    assert len(peer.opened) == 2


async def test_answered_pings_keep_a_call_alive(nursery, autojump_clock):
    """As long as its deadline lasts; and none is sent while no call is open."""
    peer = Peer(nursery, nothing)
    async with peer.channel(keepalive_s=10) as channel:
        assert Status.DEADLINE_EXCEEDED is await status_of(stub(channel)(value(b""), timeout=95))
        assert peer.pings == 9
        await trio.sleep(1000)

    assert peer.pings == 9


async def test_who_is_told_of_too_many_pings_sends_half_as_many(nursery, autojump_clock):
    """GOAWAY with too_many_pings ends the connection; the next one pings at twice the distance; the error says why."""

    async def enough(stream, peer, number, body):
        await stream.send_all(frames.encode_goaway(number, frames.ENHANCE_YOUR_CALM, "too_many_pings"))
        await stream.aclose()

    peer = Peer(nursery, enough, nothing)
    async with peer.channel(keepalive_s=10) as channel:
        with pytest.raises(GRPCError, match="ENHANCE_YOUR_CALM too_many_pings"):
            await stub(channel)(value(b""))
        assert Status.DEADLINE_EXCEEDED is await status_of(stub(channel)(value(b""), timeout=95))

    assert peer.pings == 4


# --- a call's life -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (frames.NO_ERROR, Status.INTERNAL),
        (frames.PROTOCOL_ERROR, Status.INTERNAL),
        (frames.INTERNAL_ERROR, Status.INTERNAL),
        (frames.FLOW_CONTROL_ERROR, Status.INTERNAL),
        (frames.SETTINGS_TIMEOUT, Status.INTERNAL),
        (frames.STREAM_CLOSED, Status.INTERNAL),
        (frames.FRAME_SIZE_ERROR, Status.INTERNAL),
        (frames.REFUSED_STREAM, Status.UNAVAILABLE),
        (frames.CANCEL, Status.CANCELLED),
        (frames.COMPRESSION_ERROR, Status.INTERNAL),
        (frames.CONNECT_ERROR, Status.INTERNAL),
        (frames.ENHANCE_YOUR_CALM, Status.RESOURCE_EXHAUSTED),
        (frames.INADEQUATE_SECURITY, Status.PERMISSION_DENIED),
        (frames.HTTP_1_1_REQUIRED, Status.INTERNAL),
        (77, Status.INTERNAL),
    ],
)
async def test_each_code_of_a_reset_has_its_status(nursery, autojump_clock, code, status):
    """The table of PROTOCOL-HTTP2; other codes count as INTERNAL_ERROR does. It is grpclib's error too."""
    peer = Peer(nursery, reset(code))
    async with peer.channel(retry=None) as channel:
        with pytest.raises(GRPCError) as caught:
            await stub(channel)(value(b""))

    assert status is caught.value.status
    assert isinstance(caught.value, StreamTerminatedError) is (code != frames.REFUSED_STREAM)


async def test_a_cancel_by_the_servers_clock_is_a_deadline(nursery, autojump_clock):
    """CANCELLED that comes when the deadline has passed is DEADLINE_EXCEEDED to the caller."""

    async def late(stream, peer, number, body):
        await trio.sleep(5)
        peer.reset_stream(number, frames.CANCEL)

    peer = Peer(nursery, late)
    async with peer.channel() as channel:
        assert Status.DEADLINE_EXCEEDED is await status_of(stub(channel)(value(b""), timeout=5))


async def test_a_call_sends_while_it_receives(nursery, autojump_clock):
    """Full duplex: a sender that waits for the window and a receiver that waits for messages, in two tasks."""

    async def method(stream):
        await stream.send_message(value(b"hello"))
        async for message in stream:
            await stream.send_message(message)

    rig, count, big = Rig(nursery, method, Cardinality.STREAM_STREAM), 30, value(bytes(100_000))
    async with rig.channel() as channel, rig.stub(channel).open() as stream:
        await stream.send_request()

        async def send():
            for _ in range(count):
                await stream.send_message(big)
            await stream.end()

        async with trio.open_nursery() as both:
            assert value(b"hello") == await stream.recv_message()
            both.start_soon(send)
            assert [big] * count == [message async for message in stream]


async def test_a_server_that_answers_early_is_heard(nursery, autojump_clock):
    """What is still to be sent goes nowhere, and the answer or its error comes."""

    async def method(stream):
        message = await stream.recv_message()
        if message.value == b"fail":
            raise GRPCError(Status.OUT_OF_RANGE, "enough")
        await stream.send_message(value(b"enough"))

    rig = Rig(nursery, method, Cardinality.STREAM_UNARY)
    async with rig.channel() as channel:

        async def call(first):
            async with rig.stub(channel).open() as stream:
                await stream.send_message(value(first))
                await settle()
                for _ in range(3):
                    await stream.send_message(value(bytes(100_000)))
                await stream.end()
                return await stream.recv_message()

        assert value(b"enough") == await call(b"ok")
        with pytest.raises(GRPCError, match="enough"):
            await call(b"fail")


# --- TLS -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authorities():
    return trustme.CA(), trustme.CA()


class Secure:
    """The echo behind TLS, in memory."""

    def __init__(self, nursery, authority, *, alpn=("h2",), clients=None):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("server.test").configure_cert(self.context)
        self.context.set_alpn_protocols(list(alpn))
        if clients is not None:
            clients.configure_trust(self.context)
            self.context.verify_mode = ssl.CERT_REQUIRED
        self.nursery = nursery
        self.seen = []

        async def method(stream):
            self.seen.append(stream.stream.fields[b":scheme"])
            await stream.send_message(await stream.recv_message())

        self.rig = Rig(nursery, method)

    async def serve(self, stream):
        await self.rig.server.serve_connection(trio.SSLStream(stream, self.context, server_side=True), "tls")

    async def connect(self, _target):
        client, server = memory_pair()
        self.nursery.start_soon(self.serve, server)
        return client

    def channel(self, tls, **options):
        return Channel("server.test:443", connect=self.connect, tls=tls, retry=None, **options)


def trusting(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_calls_over_tls(nursery, autojump_clock, authorities):
    """A context that trusts the server's authority, ALPN h2, the scheme is https; large messages both ways."""
    secure, big = Secure(nursery, authorities[0]), value(bytes(1_000_000))
    async with secure.channel(trusting(authorities[0])) as channel:
        assert [big] * 3 == [await stub(channel)(big) for _ in range(3)]

    assert secure.seen == [b"https"] * 3


async def test_the_name_in_the_certificate_may_be_another(nursery, autojump_clock, authorities):
    """server_hostname is what is checked; without it the target's host is."""
    secure, context = Secure(nursery, authorities[0]), trusting(authorities[0])
    async with Channel("10.0.0.1:1", connect=secure.connect, tls=context, server_hostname="server.test") as channel:
        assert value(b"x") == await stub(channel)(value(b"x"))
    async with secure.channel(context, server_hostname="other.test") as channel:
        with pytest.raises(GRPCError, match="TLS: CERTIFICATE_VERIFY_FAILED") as caught:
            await stub(channel)(value(b"x"))
    assert Status.UNAVAILABLE is caught.value.status


@pytest.mark.parametrize("tls", [True, "other"])
async def test_an_authority_that_is_not_trusted(nursery, autojump_clock, authorities, tls):
    """The system's authorities and another's own: UNAVAILABLE, and the error says that it is the certificate."""
    secure = Secure(nursery, authorities[0])
    async with secure.channel(trusting(authorities[1]) if tls == "other" else True) as channel:
        with pytest.raises(GRPCError, match=r"server\.test:443: TLS: CERTIFICATE_VERIFY_FAILED"):
            await stub(channel)(value(b"x"))


async def test_a_server_without_http2_is_not_spoken_to(nursery, autojump_clock, authorities):
    """ALPN must agree on h2."""
    secure = Secure(nursery, authorities[0], alpn=["http/1.1"])
    async with secure.channel(trusting(authorities[0])) as channel:
        with pytest.raises(GRPCError, match="HTTP/2 by ALPN"):
            await stub(channel)(value(b"x"))


async def test_a_client_shows_its_certificate(nursery, autojump_clock, authorities):
    """mTLS: the context's own certificate is shown; without one there is no connection."""
    secure, context = Secure(nursery, authorities[0], clients=authorities[1]), trusting(authorities[0])
    async with secure.channel(context) as channel:
        assert Status.UNAVAILABLE is await status_of(stub(channel)(value(b"x")))
    authorities[1].issue_cert("client.test").configure_cert(context)
    async with secure.channel(context) as channel:
        assert value(b"x") == await stub(channel)(value(b"x"))


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_tls_over_tcp_on_both_loops(backend, authorities):
    """Anyio's TLS on sockets: a certificate, a handshake, and frames of HTTP/2 after it."""

    async def main():
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610  anyio's extra
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authorities[0].issue_cert("localhost").configure_cert(context)
        context.set_alpn_protocols(["h2"])

        async def handle(stream):
            async with await anyio.streams.tls.TLSStream.wrap(
                stream, server_side=True, ssl_context=context, standard_compatible=False
            ) as secured:
                peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
                peer.initiate_connection()
                while True:
                    await secured.send(peer.data_to_send() or b"")
                    try:
                        events = peer.receive_data(await secured.receive())
                    except (anyio.EndOfStream, anyio.BrokenResourceError):
                        return
                    for event in events:
                        if isinstance(event, h2.events.StreamEnded):
                            await echo(secured, peer, event.stream_id, framed(b""))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, handle)
            target = f"127.0.0.1:{port}"
            async with Channel(target, tls=trusting(authorities[0]), server_hostname="localhost") as channel:
                assert value(b"") == await stub(channel)(value(b""), timeout=30)
            tasks.cancel_scope.cancel()
        await listener.aclose()

    anyio.run(main, backend=backend)
