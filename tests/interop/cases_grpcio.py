"""gRPC's eighteen interoperability cases for a grpcio client, written from their published descriptions.

Each takes a channel and raises if the server is wrong. What grpcio does not show, the compression of an answer,
test_interop_wire.py looks at.
"""

import queue
import random

import grpc
import pytest
from interop_pb2 import (
    BoolValue,
    EchoStatus,
    Empty,
    Payload,
    ResponseParameters,
    SimpleRequest,
    SimpleResponse,
    StreamingInputCallRequest,
    StreamingOutputCallRequest,
)

REQUEST, RESPONSE = 271_828, 314_159
UP = (27_182, 8, 1_828, 45_904)
DOWN = (31_415, 9, 2_653, 58_979)
METADATA = (("x-grpc-test-echo-initial", "test_initial_metadata_value"), ("x-grpc-test-echo-trailing-bin", b"\xab" * 3))
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
TIMEOUT = 30
GZIP = grpc.Compression.Gzip
NOISE = random.Random(1).randbytes(45_904)  # noqa: S311  # gzip cannot shrink it, so grpcio sends it as it is


def zeros(size):
    return Payload(body=bytes(size))


def unary_request(**more):
    return SimpleRequest(response_size=RESPONSE, payload=zeros(REQUEST), **more)


def duplex_request(up, down, **more):
    return StreamingOutputCallRequest(
        payload=zeros(up), response_parameters=[ResponseParameters(size=down, **more)] if down is not None else []
    )


class Turns:
    """Requests that are given one at a time: grpcio takes them in a thread of its own."""

    def __init__(self):
        self._queue = queue.SimpleQueue()
        self.put = self._queue.put

    def end(self):
        self._queue.put(None)

    def __iter__(self):
        return iter(self._queue.get, None)


def failure(call):
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def empty_unary(stub, channel):
    assert stub.EmptyCall(Empty(), timeout=TIMEOUT) == Empty()


def large_unary(stub, channel):
    assert stub.UnaryCall(unary_request(), timeout=TIMEOUT) == SimpleResponse(payload=zeros(RESPONSE))


def client_compressed_unary(stub, channel):
    probe = failure(lambda: stub.UnaryCall(unary_request(expect_compressed=BoolValue(value=True)), timeout=TIMEOUT))
    assert probe.code() is grpc.StatusCode.INVALID_ARGUMENT
    for compression in (GZIP, None):
        request = unary_request(expect_compressed=BoolValue(value=compression is not None))
        answer = stub.UnaryCall(request, timeout=TIMEOUT, compression=compression)
        assert len(answer.payload.body) == RESPONSE


def server_compressed_unary(stub, channel):
    for compressed in (True, False):
        request = unary_request(response_compressed=BoolValue(value=compressed))
        assert len(stub.UnaryCall(request, timeout=TIMEOUT).payload.body) == RESPONSE


def client_streaming(stub, channel):
    requests = [StreamingInputCallRequest(payload=zeros(size)) for size in UP]
    assert stub.StreamingInputCall(iter(requests), timeout=TIMEOUT).aggregated_payload_size == sum(UP)


def client_compressed_streaming(stub, channel):
    first = StreamingInputCallRequest(payload=zeros(27_182), expect_compressed=BoolValue(value=True))
    second = StreamingInputCallRequest(payload=Payload(body=NOISE), expect_compressed=BoolValue(value=False))
    probe = failure(lambda: stub.StreamingInputCall(iter([first]), timeout=TIMEOUT))
    assert probe.code() is grpc.StatusCode.INVALID_ARGUMENT
    answer = stub.StreamingInputCall(iter([first, second]), timeout=TIMEOUT, compression=GZIP)
    assert answer.aggregated_payload_size == 73_086


def server_streaming(stub, channel):
    request = StreamingOutputCallRequest(response_parameters=[ResponseParameters(size=size) for size in DOWN])
    answers = stub.StreamingOutputCall(request, timeout=TIMEOUT)
    assert [len(answer.payload.body) for answer in answers] == [*DOWN]


def server_compressed_streaming(stub, channel):
    wanted = [(31_415, True), (92_653, False)]
    parameters = [ResponseParameters(size=size, compressed=BoolValue(value=flag)) for size, flag in wanted]
    answers = stub.StreamingOutputCall(StreamingOutputCallRequest(response_parameters=parameters), timeout=TIMEOUT)
    assert [len(answer.payload.body) for answer in answers] == [31_415, 92_653]


def ping_pong(stub, channel):
    answers, turns = [], Turns()
    call = stub.FullDuplexCall(iter(turns), timeout=TIMEOUT)
    for up, down in zip(UP, DOWN, strict=True):
        turns.put(duplex_request(up, down))
        answers.append(len(next(call).payload.body))
    turns.end()
    assert [*call] == []
    assert answers == [*DOWN]


def empty_stream(stub, channel):
    assert list(stub.FullDuplexCall(iter([]), timeout=TIMEOUT)) == []


def timeout_on_sleeping_server(stub, channel):
    turns = Turns()
    turns.put(duplex_request(27_182, None))
    error = failure(lambda: next(stub.FullDuplexCall(iter(turns), timeout=0.001)))
    turns.end()
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def cancel_after_begin(stub, channel):
    turns = Turns()
    call = stub.StreamingInputCall.future(iter(turns), timeout=TIMEOUT)
    call.cancel()
    turns.end()
    assert call.cancelled()
    assert call.code() is grpc.StatusCode.CANCELLED


def cancel_after_first_response(stub, channel):
    turns = Turns()
    call = stub.FullDuplexCall(iter(turns), timeout=TIMEOUT)
    turns.put(duplex_request(UP[0], DOWN[0]))
    assert len(next(call).payload.body) == DOWN[0]
    call.cancel()
    error = failure(lambda: next(call))
    turns.end()
    assert error.code() is grpc.StatusCode.CANCELLED


def custom_metadata(stub, channel):
    _, unary = stub.UnaryCall.with_call(unary_request(), metadata=METADATA, timeout=TIMEOUT)
    duplex = stub.FullDuplexCall(iter([duplex_request(REQUEST, RESPONSE)]), metadata=METADATA, timeout=TIMEOUT)
    assert [len(answer.payload.body) for answer in duplex] == [RESPONSE]
    for call in (unary, duplex):
        assert METADATA[0] in [tuple(item) for item in call.initial_metadata()]
        assert METADATA[1] in [tuple(item) for item in call.trailing_metadata()]


def status_code_and_message(stub, channel):
    status = EchoStatus(code=2, message="test status message")
    unary = failure(lambda: stub.UnaryCall(SimpleRequest(response_status=status), timeout=TIMEOUT))
    requests = iter([StreamingOutputCallRequest(response_status=status)])
    duplex = failure(lambda: list(stub.FullDuplexCall(requests, timeout=TIMEOUT)))
    for error in (unary, duplex):
        assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, "test status message")


def special_status_message(stub, channel):
    status = EchoStatus(code=2, message=SPECIAL)
    error = failure(lambda: stub.UnaryCall(SimpleRequest(response_status=status), timeout=TIMEOUT))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, SPECIAL)


def _unimplemented(channel, path):
    call = channel.unary_unary(path, request_serializer=Empty.SerializeToString, response_deserializer=Empty.FromString)
    assert failure(lambda: call(Empty(), timeout=TIMEOUT)).code() is grpc.StatusCode.UNIMPLEMENTED


def unimplemented_method(stub, channel):
    _unimplemented(channel, "/grpc.testing.TestService/UnimplementedCall")


def unimplemented_service(stub, channel):
    _unimplemented(channel, "/grpc.testing.UnimplementedService/UnimplementedCall")
