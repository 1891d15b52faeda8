"""grpc.testing.TestService as a grpcio servicer, on grpcio's own server: the other side for our client."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from interop_pb2 import Empty, Payload, SimpleResponse, StreamingInputCallResponse, StreamingOutputCallResponse
from interop_pb2_grpc import TestServiceServicer, add_TestServiceServicer_to_server

INITIAL = "x-grpc-test-echo-initial"
TRAILING = "x-grpc-test-echo-trailing-bin"
CODES = {code.value[0]: code for code in grpc.StatusCode}


def begin(context):
    """Compress, and echo what the cases ask for."""
    context.set_compression(grpc.Compression.Gzip)
    metadata = {key: value for key, value in context.invocation_metadata() if key in (INITIAL, TRAILING)}
    if INITIAL in metadata:
        context.send_initial_metadata([(INITIAL, metadata[INITIAL])])
    if TRAILING in metadata:
        context.set_trailing_metadata([(TRAILING, metadata[TRAILING])])


def answer(context, kind, size, compressed):
    """`size` zeros, compressed only where that was asked for."""
    if not compressed.value:
        context.disable_next_message_compression()
    return kind(payload=Payload(body=bytes(size)))


def end(request, context):
    """Fail as the request asks."""
    if request.response_status.code:
        context.abort(CODES[request.response_status.code], request.response_status.message)


class Service(TestServiceServicer):
    """See the module's docstring."""

    def EmptyCall(self, request, context):  # noqa: N802  # the rpcs' names
        return Empty()

    def UnaryCall(self, request, context):  # noqa: N802
        begin(context)
        end(request, context)
        return answer(context, SimpleResponse, request.response_size, request.response_compressed)

    def StreamingOutputCall(self, request, context):  # noqa: N802
        begin(context)
        for wanted in request.response_parameters:
            yield answer(context, StreamingOutputCallResponse, wanted.size, wanted.compressed)

    def StreamingInputCall(self, requests, context):  # noqa: N802
        return StreamingInputCallResponse(aggregated_payload_size=sum(len(one.payload.body) for one in requests))

    def FullDuplexCall(self, requests, context):  # noqa: N802
        begin(context)
        for request in requests:
            for wanted in request.response_parameters:
                yield answer(context, StreamingOutputCallResponse, wanted.size, wanted.compressed)
            end(request, context)


@contextmanager
def serve():
    """Serve on a free port; give it."""
    server = grpc.server(ThreadPoolExecutor(8))
    add_TestServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()
