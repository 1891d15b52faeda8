"""gRPC's interoperability cases for our own client: grpclib's generated stub on `actorserve.client.Channel`.

Each takes the stub and the channel, on trio or on asyncio, and raises if either side is wrong. A server that does
not show its services whether a message was compressed (grpcio) cannot refuse the probe of the client_compressed
cases: then, as their description says, the probe is not made, and what counts is that the messages arrive.
"""

import pytest
from grpclib.client import UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from interop_pb2 import (
    EchoStatus,
    Empty,
    Payload,
    ResponseParameters,
    SimpleRequest,
    StreamingInputCallRequest,
    StreamingOutputCallRequest,
)

REQUEST, RESPONSE = 271_828, 314_159
UP = (27_182, 8, 1_828, 45_904)
DOWN = (31_415, 9, 2_653, 58_979)
INITIAL, TRAILING = "x-grpc-test-echo-initial", "x-grpc-test-echo-trailing-bin"
METADATA = {INITIAL: "test_initial_metadata_value", TRAILING: b"\xab" * 3}
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"


def zeros(size):
    return Payload(body=bytes(size))


def large(**more):
    return SimpleRequest(response_size=RESPONSE, payload=zeros(REQUEST), **more)


def turn(up, down):
    return StreamingOutputCallRequest(payload=zeros(up), response_parameters=[ResponseParameters(size=down)])


def sizes(answers):
    return [len(answer.payload.body) for answer in answers]


async def empty_unary(stub, channel):
    assert await stub.EmptyCall(Empty()) == Empty()


async def large_unary(stub, channel):
    assert sizes([await stub.UnaryCall(large())]) == [RESPONSE]


async def client_streaming(stub, channel):
    requests = [StreamingInputCallRequest(payload=zeros(size)) for size in UP]
    assert (await stub.StreamingInputCall(requests)).aggregated_payload_size == sum(UP)


async def server_streaming(stub, channel):
    request = StreamingOutputCallRequest(response_parameters=[ResponseParameters(size=size) for size in DOWN])
    assert sizes(await stub.StreamingOutputCall(request)) == [*DOWN]


async def ping_pong(stub, channel):
    async with stub.FullDuplexCall.open() as stream:
        for up, down in zip(UP, DOWN, strict=True):
            await stream.send_message(turn(up, down))
            assert sizes([await stream.recv_message()]) == [down]
        await stream.end()
        assert await stream.recv_message() is None


async def empty_stream(stub, channel):
    assert await stub.FullDuplexCall([]) == []


async def timeout_on_sleeping_server(stub, channel):
    async def ask():
        async with stub.FullDuplexCall.open(timeout=0.001) as stream:
            await stream.send_message(StreamingOutputCallRequest(payload=zeros(27_182)))
            await stream.recv_message()

    with pytest.raises(GRPCError) as caught:
        await ask()
    assert caught.value.status is Status.DEADLINE_EXCEEDED


async def cancel_after_begin(stub, channel):
    async with stub.StreamingInputCall.open() as stream:
        await stream.send_request()
        await stream.cancel()
    await empty_unary(stub, channel)  # the connection lives on


async def cancel_after_first_response(stub, channel):
    async with stub.FullDuplexCall.open() as stream:
        await stream.send_message(turn(UP[0], DOWN[0]))
        assert sizes([await stream.recv_message()]) == [DOWN[0]]
        await stream.cancel()
    await empty_unary(stub, channel)


async def custom_metadata(stub, channel):
    for method, request in [(stub.UnaryCall, large()), (stub.FullDuplexCall, turn(REQUEST, RESPONSE))]:
        async with method.open(metadata=METADATA) as stream:
            await stream.send_message(request, end=True)
            assert sizes([await stream.recv_message()]) == [RESPONSE]
            await stream.recv_trailing_metadata()
        assert stream.initial_metadata[INITIAL] == METADATA[INITIAL]
        assert stream.trailing_metadata[TRAILING] == METADATA[TRAILING]


async def _fails(call, status, message):
    with pytest.raises(GRPCError) as caught:
        await call
    assert (caught.value.status, caught.value.message) == (status, message)


async def status_code_and_message(stub, channel):
    status = EchoStatus(code=2, message="test status message")
    await _fails(stub.UnaryCall(SimpleRequest(response_status=status)), Status.UNKNOWN, status.message)
    await _fails(
        stub.FullDuplexCall([StreamingOutputCallRequest(response_status=status)]), Status.UNKNOWN, status.message
    )


async def special_status_message(stub, channel):
    status = EchoStatus(code=2, message=SPECIAL)
    await _fails(stub.UnaryCall(SimpleRequest(response_status=status)), Status.UNKNOWN, SPECIAL)


async def _unimplemented(channel, path):
    with pytest.raises(GRPCError) as caught:
        await UnaryUnaryMethod(channel, path, Empty, Empty)(Empty())
    assert caught.value.status is Status.UNIMPLEMENTED


async def unimplemented_method(stub, channel):
    await _unimplemented(channel, "/grpc.testing.TestService/UnimplementedCall")


async def unimplemented_service(stub, channel):
    await _unimplemented(channel, "/grpc.testing.UnimplementedService/UnimplementedCall")


async def client_compressed_unary(stub, channel):
    for compressed in (True, False):
        async with stub.UnaryCall.open() as stream:
            stream.request_encoding = "gzip"
            await stream.send_message(large(expect_compressed={"value": compressed}), end=True, compress=compressed)
            assert sizes([await stream.recv_message()]) == [RESPONSE]


async def server_compressed_unary(stub, channel):
    for compressed in (True, False):
        async with stub.UnaryCall.open() as stream:
            await stream.send_message(large(response_compressed={"value": compressed}), end=True)
            assert sizes([await stream.recv_message()]) == [RESPONSE]
            assert stream.received_compressed is compressed


async def client_compressed_streaming(stub, channel):
    async with stub.StreamingInputCall.open() as stream:
        stream.request_encoding = "gzip"
        for size, flag in [(27_182, True), (45_904, False)]:
            request = StreamingInputCallRequest(payload=zeros(size), expect_compressed={"value": flag})
            await stream.send_message(request, compress=flag)
        await stream.end()
        assert (await stream.recv_message()).aggregated_payload_size == 73_086


async def server_compressed_streaming(stub, channel):
    wanted = [(31_415, True), (92_653, False)]
    parameters = [ResponseParameters(size=size, compressed={"value": flag}) for size, flag in wanted]
    async with stub.StreamingOutputCall.open() as stream:
        await stream.send_message(StreamingOutputCallRequest(response_parameters=parameters), end=True)
        seen = []
        while (answer := await stream.recv_message()) is not None:
            seen.append((len(answer.payload.body), stream.received_compressed))
    assert seen == wanted
