"""grpc.testing.TestService on grpclib's generated base, over our transport: what gRPC's interop clients call."""

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from interop_grpc import TestServiceBase
from interop_pb2 import (
    Empty,
    Payload,
    SimpleResponse,
    StreamingInputCallResponse,
    StreamingOutputCallResponse,
)

INITIAL = "x-grpc-test-echo-initial"
TRAILING = "x-grpc-test-echo-trailing-bin"


async def echo_metadata(stream):
    """Answer the two keys that the cases ask for: one with the headers, one with the trailers."""
    if INITIAL in stream.metadata:
        await stream.send_initial_metadata(metadata={INITIAL: stream.metadata[INITIAL]})


async def finish(stream, request):
    """End as the request asks: with its status, with the echoed trailer, or plainly."""
    if request is not None and request.HasField("response_status"):
        raise GRPCError(Status(request.response_status.code), request.response_status.message)
    if TRAILING in stream.metadata:
        await stream.send_trailing_metadata(metadata={TRAILING: stream.metadata[TRAILING]})


def check_compressed(stream, request):
    """Refuse a message whose compression is not what it says."""
    if request.HasField("expect_compressed") and request.expect_compressed.value != stream.received_compressed:
        raise GRPCError(Status.INVALID_ARGUMENT, "the message's compression is not as it says")


async def respond(stream, kind, size, compressed):
    """Send `size` zeros; `compressed`: a BoolValue that may be unset."""
    await stream.send_message(kind(payload=Payload(body=bytes(size))), compress=compressed.value)


class TestService(TestServiceBase):
    """See the module's docstring."""

    __test__ = False  # a service, not a set of tests

    async def EmptyCall(self, stream):  # noqa: N802  # the rpcs' names
        await stream.recv_message()
        await stream.send_message(Empty())

    async def UnaryCall(self, stream):  # noqa: N802
        stream.reply_encoding = "gzip"
        request = await stream.recv_message()
        check_compressed(stream, request)
        await echo_metadata(stream)
        if request.HasField("response_status") and request.response_status.code:
            await finish(stream, request)
        await respond(stream, SimpleResponse, request.response_size, request.response_compressed)
        await finish(stream, None)

    async def StreamingOutputCall(self, stream):  # noqa: N802
        stream.reply_encoding = "gzip"
        request = await stream.recv_message()
        await echo_metadata(stream)
        await self._send_all(stream, request)
        await finish(stream, request)

    async def StreamingInputCall(self, stream):  # noqa: N802
        total = 0
        async for request in stream:
            check_compressed(stream, request)
            total += len(request.payload.body)
        await stream.send_message(StreamingInputCallResponse(aggregated_payload_size=total))

    async def FullDuplexCall(self, stream):  # noqa: N802
        stream.reply_encoding = "gzip"
        await echo_metadata(stream)
        async for request in stream:
            await self._send_all(stream, request)
            if request.HasField("response_status"):
                await finish(stream, request)
        await finish(stream, None)

    async def _send_all(self, stream, request):
        for wanted in request.response_parameters:
            if wanted.interval_us:
                await trio.sleep(wanted.interval_us / 1e6)
            await respond(stream, StreamingOutputCallResponse, wanted.size, wanted.compressed)
