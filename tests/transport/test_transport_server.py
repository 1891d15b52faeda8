"""The server and the client over an in-memory pipe, in virtual time."""

import h2.events
import pytest
import structlog.testing
import trio
from echo_service import Echo, RawClient, framed
from google.protobuf.wrappers_pb2 import BytesValue
from grpclib.client import StreamStreamMethod, StreamUnaryMethod, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from actorserve.client import Channel
from actorserve.services.transport import frames, grpc
from actorserve.services.transport.connection import Connection
from actorserve.services.transport.memory import memory_pair
from actorserve.services.transport.server import CallRecord, GrpcServer, Limits
from actorserve.services.transport.streams import GoawayReceived

KINDS = {
    "Unary": UnaryUnaryMethod,
    "Metadata": UnaryUnaryMethod,
    "Wait": UnaryUnaryMethod,
    "Remaining": UnaryUnaryMethod,
    "Fail": UnaryUnaryMethod,
    "Nothing": UnaryUnaryMethod,
    "Many": UnaryStreamMethod,
    "Chat": StreamStreamMethod,
    "Total": StreamUnaryMethod,
}


def method(channel, name):
    """Give a stub's method, as grpclib generates it."""
    return KINDS[name](channel, f"/test.Echo/{name}", BytesValue, BytesValue)


def value(octets):
    return BytesValue(value=octets)


class House:
    """One server in the test's nursery; makes channels and raw clients to it."""

    def __init__(self, nursery):
        self.nursery = nursery
        self.echo = Echo()
        self.records: list[CallRecord] = []
        self.ended = trio.Event()
        self.server = GrpcServer([])
        self.began = trio.current_time()

    @property
    def elapsed(self):
        return trio.current_time() - self.began

    def start(self, **limits):
        self.server = GrpcServer(
            [self.echo],
            limits=Limits(**limits),
            translate=lambda error, _call: (
                GRPCError(Status.NOT_FOUND, "known") if isinstance(error, KeyError) else None
            ),
            on_end=self.records.append,
        )
        return self

    async def _serve(self, stream):
        await self.server.serve_connection(stream, "tester")
        self.ended.set()

    def pipe(self):
        client, server = memory_pair()
        self.nursery.start_soon(self._serve, server)
        return client

    def channel(self, **limits):
        return Channel.over(self.pipe(), **limits)

    def raw(self, **settings):
        return RawClient(self.pipe(), **settings)


@pytest.fixture
async def house(nursery):
    return House(nursery)


async def test_all_four_kinds_of_call(house, autojump_clock):
    """Unary, server, client and bidirectional streaming carry their messages in order."""
    async with house.start().channel() as channel:
        messages = [value(b"%d" % number) for number in range(5)]

        assert value(b"hello") == await method(channel, "Unary")(value(b"hello"))
        assert [value(b"x")] * 100 == await method(channel, "Many")(value(b"x"))
        assert value(b"5") == await method(channel, "Total")(messages)
        assert messages == await method(channel, "Chat")(messages)


async def test_many_calls_share_a_connection(house, autojump_clock):
    """Concurrent calls above the server's limit wait for room instead of failing."""
    async with house.start(max_concurrent_streams=4).channel() as channel:
        answers = []

        async def call(number):
            answers.append((await method(channel, "Unary")(value(b"%d" % number))).value)

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(call, number)

    assert {b"%d" % number for number in range(40)} == set(answers)
    assert [record.status for record in house.records] == [0] * 40


async def test_large_messages_cross_small_windows(house, autojump_clock):
    """A message many times larger than every window arrives whole, both ways."""
    async with house.start(stream_window=1000, connection_window=65_535).channel() as channel:
        body = bytes(range(256)) * 4000

        assert value(body) == await method(channel, "Unary")(value(body))


async def test_metadata_goes_both_ways(house, autojump_clock):
    """Initial and trailing metadata, repeated keys and octets; the peer is known."""
    sent = [("x-key", "a"), ("x-key", "b"), ("x-octets-bin", b"\0\xff")]
    async with house.start().channel() as channel:
        async with method(channel, "Metadata").open(metadata=sent) as stream:
            await stream.send_message(value(b""))
            reply = await stream.recv_message()
            await stream.recv_trailing_metadata()

        assert value(b"tester") == reply
        assert sent == list(stream.initial_metadata.items())
        assert sent == list(stream.trailing_metadata.items())


@pytest.mark.parametrize(
    ("cause", "status", "text"),
    [
        (b"status", Status.NOT_FOUND, "no 100 % such thing: å"),
        (b"key", Status.NOT_FOUND, "known"),
        (b"group", Status.ABORTED, "inner"),
        (b"late", Status.DATA_LOSS, "late"),
    ],
)
async def test_errors_become_status_and_message(house, autojump_clock, cause, status, text):
    """What a method raises reaches the client, before and after the response headers."""
    async with house.start().channel() as channel:
        with pytest.raises(GRPCError) as caught:
            await method(channel, "Fail")(value(cause))

    assert (status, text) == (caught.value.status, caught.value.message)
    assert [status.value] == [record.status for record in house.records]


async def test_error_details_cross(house, autojump_clock):
    """GRPCError.details come back as messages."""
    async with house.start().channel() as channel:
        with pytest.raises(GRPCError) as caught:
            await method(channel, "Fail")(value(b"status"))

    assert [detail.value for detail in caught.value.details] == ["detail"]


@pytest.mark.parametrize("cause", [b"bug", b"silent"])
async def test_bugs_tell_the_client_nothing_and_the_log_everything(house, autojump_clock, cause):
    """INTERNAL without internals; the log has the method, and the request id that the client has too."""
    with structlog.testing.capture_logs() as logs:
        async with house.start().channel() as channel, method(channel, "Fail").open() as stream:
            await stream.send_message(value(cause))
            with pytest.raises(GRPCError) as caught:
                await stream.recv_initial_metadata()
            trailers = dict(stream.trailing_metadata)

    assert Status.INTERNAL is caught.value.status
    assert "secret" not in caught.value.message
    assert logs[0]["method"] == "/test.Echo/Fail"
    assert trailers["x-request-id"]
    assert logs[0].get("request_id", trailers["x-request-id"]) == trailers["x-request-id"]


async def test_the_request_id_is_echoed_only_to_who_sent_one(house, autojump_clock):
    """A client's id comes back in the trailers of a good answer, under either name; otherwise there is none."""
    async with house.start().channel() as channel:
        for metadata, expected in [
            ({"x-request-id": "a"}, "a"),
            ({"request_id": "b"}, "b"),
            ({"request_id": "b", "x-request-id": "a"}, "a"),
            ({"other": "c"}, None),
        ]:
            async with method(channel, "Unary").open(metadata=metadata) as stream:
                await stream.send_message(value(b""))
                await stream.recv_message()
                await stream.recv_trailing_metadata()

            assert expected == stream.trailing_metadata.get("x-request-id")

    assert [record.request_id for record in house.records] == ["a", "b", "a", ""]


async def test_an_unknown_method_is_unimplemented(house, autojump_clock):
    """The status names the method."""
    async with house.start().channel() as channel:
        with pytest.raises(GRPCError, match=r"/test\.Echo/Nothing") as caught:
            await method(channel, "Nothing")(value(b""))

    assert Status.UNIMPLEMENTED is caught.value.status


async def test_messages_above_the_limits_are_refused(house, autojump_clock):
    """Received and sent, on the server and on the client: RESOURCE_EXHAUSTED with both sizes; the connection lives."""
    async with house.start(max_receive_bytes=1000, max_send_bytes=500).channel() as channel:
        for size, text in [(2000, "received message of 2003 bytes .* 1000"), (800, "to send of 803 bytes .* 500")]:
            with pytest.raises(GRPCError, match=text) as caught:
                await method(channel, "Unary")(value(b"x" * size))
            assert Status.RESOURCE_EXHAUSTED is caught.value.status

        assert value(b"x") == await method(channel, "Unary")(value(b"x"))
    async with house.channel(max_receive_bytes=100) as channel:
        with pytest.raises(GRPCError, match=r"received message of 202 bytes .* 100"):
            await method(channel, "Unary")(value(b"x" * 199))


# --- deadlines and cancellation ------------------------------------------------------------


async def test_a_deadline_ends_the_call_on_both_sides(house, autojump_clock):
    """DEADLINE_EXCEEDED after exactly the time asked for; the method was cancelled."""
    async with house.start().channel() as channel:
        with pytest.raises(GRPCError) as caught:
            await method(channel, "Wait")(value(b""), timeout=7)

        assert Status.DEADLINE_EXCEEDED is caught.value.status
        assert pytest.approx(7) == house.elapsed
    await trio.testing.wait_all_tasks_blocked()

    assert house.echo.log == ["began", "cancelled"]


async def test_the_server_keeps_the_deadline_alone(house, autojump_clock):
    """A client that only sends grpc-timeout gets DEADLINE_EXCEEDED as trailers-only, with its content-type."""
    client = house.start().raw()
    number = await client.request("/test.Echo/Wait", framed(b""), [("grpc-timeout", "3S")])
    last = await client.ended(number)

    assert (last["grpc-status"], last["content-type"], last[":status"]) == ("4", "application/grpc", "200")
    assert pytest.approx(3) == house.elapsed
    assert [(record.status, pytest.approx(record.seconds)) for record in house.records] == [(4, 3.0)]


async def test_request_timeout_bounds_every_call(house, autojump_clock):
    """A listener's request_timeout_s holds where the client asks for more, or for nothing."""
    async with house.start(request_timeout_s=2).channel() as channel:
        for timeout in (None, 50):
            with pytest.raises(GRPCError) as caught:
                await method(channel, "Wait")(value(b""), timeout=timeout)
            assert Status.DEADLINE_EXCEEDED is caught.value.status

    assert pytest.approx(4) == house.elapsed


async def test_the_method_sees_its_deadline_in_virtual_time(house, autojump_clock):
    """Stream.deadline counts on trio's clock; without a timeout there is none."""
    async with house.start().channel() as channel:
        assert value(b"8.000") == await method(channel, "Remaining")(value(b""), timeout=10)
        assert value(b"none") == await method(channel, "Remaining")(value(b""))


async def test_an_invalid_timeout_is_refused(house, autojump_clock):
    """A grpc-timeout out of form never starts the method."""
    client = house.start().raw()
    last = await client.ended(await client.request("/test.Echo/Wait", framed(b""), [("grpc-timeout", "1.5S")]))

    assert (last["grpc-status"], house.echo.log) == ("13", [])


async def test_a_reset_cancels_the_method(house, autojump_clock):
    """RST_STREAM of the client reaches the method as Cancelled; the connection lives."""
    async with house.start().channel() as channel:
        async with method(channel, "Wait").open() as stream:
            await stream.send_message(value(b""))
            await trio.testing.wait_all_tasks_blocked()
            await stream.cancel()
        await trio.testing.wait_all_tasks_blocked()

        assert house.echo.log == ["began", "cancelled"]
        assert value(b"x") == await method(channel, "Unary")(value(b"x"))
    assert [Status.CANCELLED.value, 0] == [record.status for record in house.records]


async def test_leaving_the_block_early_cancels_the_call(house, autojump_clock):
    """An exception in the client's block resets the stream and goes on as it is."""
    async with house.start().channel() as channel:

        async def leave():
            async with method(channel, "Wait").open() as stream:
                await stream.send_message(value(b""))
                await trio.testing.wait_all_tasks_blocked()
                raise LookupError

        with pytest.raises(LookupError):
            await leave()
        await trio.testing.wait_all_tasks_blocked()

        assert house.echo.log == ["began", "cancelled"]


async def test_a_lost_connection_cancels_its_calls(house, autojump_clock):
    """When the client goes, every method of the connection is cancelled and serve_connection returns."""
    client = house.start().raw()
    await client.request("/test.Echo/Wait", framed(b""))
    await client.request("/test.Echo/Wait", framed(b""))
    await trio.testing.wait_all_tasks_blocked()
    await client.stream.aclose()
    await house.ended.wait()

    assert house.echo.log == ["began", "began", "cancelled", "cancelled"]
    assert [record.status for record in house.records] == [1, 1]
    assert house.server.statistics().connections == 0


async def test_a_lost_connection_fails_the_clients_calls(house, autojump_clock):
    """Open calls and new ones end with UNAVAILABLE."""
    client, server = memory_pair()
    async with Channel.over(client) as channel:
        async with trio.open_nursery() as nursery:

            async def call():
                with pytest.raises(GRPCError) as caught:
                    await method(channel, "Wait")(value(b""))
                assert Status.UNAVAILABLE is caught.value.status

            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            await server.aclose()
        await call()


# --- back-pressure ---------------------------------------------------------------------------


async def test_a_client_that_does_not_read_stops_the_method(house, autojump_clock):
    """send_message waits when the stream's unsent bytes pass the bound; reading on lets it finish."""
    client = house.start(send_buffer=10_000).raw()
    message = value(b"x" * 9_000).SerializeToString()
    number = await client.request("/test.Echo/Many", framed(message))
    for _ in range(20):
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await client.until(lambda _: False, acknowledge=False)

    assert 7 <= house.echo.sent <= 9  # 65,535 octets of window and 10,000 of buffer hold eight
    for event in client.events:
        if isinstance(event, h2.events.DataReceived):
            client.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
    await client.flush()
    assert (await client.ended(number))["grpc-status"] == "0"
    assert house.echo.sent == 100


async def test_a_slow_stream_does_not_hold_up_its_neighbours(house, autojump_clock):
    """While one stream's window is closed, another call on the connection is answered."""
    async with house.start().channel() as channel, method(channel, "Many").open() as slow:
        await slow.send_message(value(b"x" * 50_000))
        await slow.recv_message()

        assert value(b"y") == await method(channel, "Unary")(value(b"y"))
        await slow.cancel()


async def test_a_method_that_does_not_read_stops_the_client(house, autojump_clock):
    """Flow control is given back only for messages taken: the client's send waits, and the server holds a window."""
    sent = 0
    async with (
        house.start(stream_window=100_000).channel() as channel,
        StreamStreamMethod(channel, "/test.Echo/Idle", BytesValue, BytesValue).open() as stream,
    ):
        with trio.move_on_after(5):
            while True:
                await stream.send_message(value(b"x" * 10_000))
                sent += 1
        await stream.cancel()

    assert 10 <= sent <= 20


async def test_an_answer_that_nobody_takes_ends_with_its_deadline(house, autojump_clock):
    """A unary answer that the client's window has no room for keeps its call open, until the deadline resets it."""
    client = house.start().raw()
    await client.until(lambda event: isinstance(event, h2.events.WindowUpdated))
    body = framed(value(b"x" * 15_000).SerializeToString())
    for _ in range(5):  # the connection's window holds four of them
        await client.request("/test.Echo/Unary", body, [("grpc-timeout", "3S")])
    await client.until(lambda event: isinstance(event, h2.events.StreamReset), acknowledge=False)

    assert [0] * 4 + [Status.DEADLINE_EXCEEDED.value] == [record.status for record in house.records]


async def test_drained_waits_for_flow_control(house, autojump_clock):
    """`drained` returns when the client's windows have taken all that was sent, not before."""
    done = []

    class Drains:
        async def drain(self, stream):
            await stream.recv_message()
            await stream.send_message(value(b"x" * 100_000))
            done.append("sent")
            await stream.drained()
            done.append("drained")

        def __mapping__(self):
            return {"/test.Echo/Many": Echo().__mapping__()["/test.Echo/Many"]._replace(func=self.drain)}

    pipe, server = memory_pair()
    house.nursery.start_soon(GrpcServer([Drains()]).serve_connection, server)
    client = RawClient(pipe)
    number = await client.request("/test.Echo/Many", framed(b""))
    await client.until(lambda event: isinstance(event, h2.events.DataReceived), acknowledge=False)
    await trio.testing.wait_all_tasks_blocked()

    assert done == ["sent"]
    client.h2.increment_flow_control_window(100_000)
    client.h2.increment_flow_control_window(100_000, number)
    await client.flush()
    assert (await client.ended(number))["grpc-status"] == "0"
    assert done == ["sent", "drained"]


async def test_resets_cannot_outrun_what_they_cancel(house, autojump_clock):
    """Calls that are reset but still unwinding are bounded: further streams are told to calm down."""
    alive = []

    class Stubborn:
        async def hold(self, stream):
            alive.append(1)
            with trio.CancelScope(shield=True):
                await trio.sleep(100)

        def __mapping__(self):
            return {"/test.Echo/Unary": Echo().__mapping__()["/test.Echo/Unary"]._replace(func=self.hold)}

    pipe, server = memory_pair()
    house.nursery.start_soon(GrpcServer([Stubborn()], limits=Limits(max_concurrent_streams=2)).serve_connection, server)
    client = RawClient(pipe)
    for _ in range(20):
        client.h2.reset_stream(await client.request("/test.Echo/Unary", framed(b"")))
        await client.flush()
        await trio.testing.wait_all_tasks_blocked()

    assert len(alive) == 4


# --- what HTTP/2 and gRPC ask ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"content-type": "text/plain"}, "415"),
        ({":method": "GET"}, "405"),
        ({"te": None}, "400"),
    ],
)
async def test_requests_that_are_no_gRPC_get_an_http_status(house, autojump_clock, change, status):  # noqa: N802
    """The answer has the HTTP status, and a gRPC one for those who look."""
    client = house.start().raw()
    number = client.h2.get_next_available_stream_id()
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/test.Echo/Unary",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    } | change
    client.h2.send_headers(number, [item for item in headers.items() if item[1]], end_stream=True)
    await client.flush()
    last = await client.ended(number)

    assert (status, "13") == (last[":status"], last["grpc-status"])


async def test_headers_above_the_limit_cost_their_own_call_only(house, autojump_clock):
    """431 for a list that is too large; the connection lives."""
    client = house.start().raw()
    number = await client.request("/test.Echo/Unary", None, [("x-big", "x" * 20_000)])

    assert (await client.ended(number))[":status"] == "431"
    number = await client.request("/test.Echo/Unary", framed(b""))
    assert (await client.ended(number))["grpc-status"] == "0"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (None, "12"),
        (framed(b"") * 2, "12"),
        (framed(b"\xff\xff"), "3"),
        (framed(b"", flag=1), "13"),
        (framed(b"abc")[:-1], "13"),
    ],
)
async def test_unary_requests_that_are_not_one_message(house, autojump_clock, body, status):
    """None, two, broken, compressed and cut short: each has its status, and the service is not blamed."""
    client = house.start().raw()

    assert status == (await client.ended(await client.request("/test.Echo/Unary", body)))["grpc-status"]


async def test_an_early_error_stops_the_upload(house, autojump_clock):
    """An answer before the request's end is followed by RST_STREAM with NO_ERROR."""
    client = house.start().raw()
    number = await client.request("/test.Echo/Nothing", framed(b"x"), end=False)
    reset = await client.until(lambda event: isinstance(event, h2.events.StreamReset))

    assert (number, 0) == (reset.stream_id, reset.error_code)


async def test_streams_above_the_limit_are_refused(house, autojump_clock):
    """REFUSED_STREAM, while the others go on."""
    client = house.start(max_concurrent_streams=1).raw()
    first = await client.request("/test.Echo/Wait", framed(b""))
    second = await client.request("/test.Echo/Unary", framed(b""))
    reset = await client.until(lambda event: isinstance(event, h2.events.StreamReset))
    house.echo.gate.set()

    assert (second, frames.REFUSED_STREAM) == (reset.stream_id, reset.error_code)
    assert (await client.ended(first))["grpc-status"] == "0"


async def test_a_peer_of_another_protocol_is_sent_away(house, autojump_clock):
    """GOAWAY and the end of the connection, no exception."""
    stream = house.start().pipe()
    await stream.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    received = b"".join([part async for part in stream])

    assert frames.encode(frames.GOAWAY, 0, 0, b"")[3:9] in received


async def test_a_silent_peer_is_sent_away(house, autojump_clock):
    """Without SETTINGS within handshake_timeout_s the connection ends."""
    house.start(handshake_timeout_s=5).pipe()
    await house.ended.wait()

    assert 5 <= house.elapsed <= 7


# --- draining ------------------------------------------------------------------------------------


async def test_drain_lets_calls_end_and_refuses_new_ones(house, autojump_clock):
    """GOAWAY twice, the call in hand is answered, a new one refused, then the connection ends."""
    pipe, core = house.start().pipe(), Connection(client=True)  # h2 takes nothing after a GOAWAY: our own client's core
    events = []

    async def call(name):
        stream = core.open_stream(grpc.request_block(f"/test.Echo/{name}", b"localhost", b"tests", None))
        core.send_data(stream, framed(b""), end=True)
        await pipe.send(bytes(core.take()))
        await trio.testing.wait_all_tasks_blocked()
        return stream

    async def read():
        async for part in pipe:
            events.extend(core.receive(part))
            await pipe.send(bytes(core.take()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        held = await call("Wait")
        house.server.drain()
        refused = await call("Unary")
        house.echo.gate.set()

    assert [frames.MAX_STREAM_ID, refused.id] == [e.last_stream_id for e in events if isinstance(e, GoawayReceived)]
    assert refused.reset_code == frames.REFUSED_STREAM
    assert held.trailer_fields == {b"grpc-status": b"0"}


async def test_a_drained_server_ends_idle_connections(house, autojump_clock):
    """A connection without calls ends at once; the client's next call is UNAVAILABLE."""
    async with house.start().channel() as channel:
        await method(channel, "Unary")(value(b""))
        house.server.drain()
        await house.ended.wait()
        with pytest.raises(GRPCError) as caught:
            await method(channel, "Unary")(value(b""))

    assert Status.UNAVAILABLE is caught.value.status


async def test_serve_returns_when_drained(nursery):
    """The listeners are closed, calls in hand are answered, then serve returns."""
    echo = Echo()
    server = GrpcServer([echo])
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as inner:
        await inner.start(server.serve, listeners)
        async with Channel(f"127.0.0.1:{port}") as channel, trio.open_nursery() as calls:

            async def call():
                assert value(b"done") == await method(channel, "Wait")(value(b""))

            calls.start_soon(call)
            while not echo.log:
                await trio.lowlevel.checkpoint()
            server.drain()
            echo.gate.set()

    assert server.statistics().draining
    async with Channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(GRPCError) as caught:
            await method(channel, "Unary")(value(b""))
    assert Status.UNAVAILABLE is caught.value.status


async def test_a_reset_by_the_server_is_told_as_grpclib_does(house, autojump_clock):
    """RST_STREAM without trailers is StreamTerminatedError."""

    class Resets:
        async def reset(self, stream):
            await stream.cancel()

        def __mapping__(self):
            return {"/test.Echo/Unary": Echo().__mapping__()["/test.Echo/Unary"]._replace(func=self.reset)}

    client, server = memory_pair()
    house.nursery.start_soon(GrpcServer([Resets()]).serve_connection, server)
    async with Channel.over(client) as channel:
        with pytest.raises(StreamTerminatedError):
            await method(channel, "Unary")(value(b""))
