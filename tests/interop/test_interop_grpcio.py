"""gRPC's eighteen interoperability cases by grpcio's client, and what it does not show, by an HTTP/2 client."""

import gzip
import importlib

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
import trio

NAMES = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "custom_metadata",
    "status_code_and_message",
    "special_status_message",
    "unimplemented_method",
    "unimplemented_service",
    "client_compressed_unary",
    "server_compressed_unary",
    "client_compressed_streaming",
    "server_compressed_streaming",
]


def run(name, port):
    """Run one case with grpcio's sync client."""
    cases, stubs = (importlib.import_module(module) for module in ("cases_grpcio", "interop_pb2_grpc"))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        getattr(cases, name)(stubs.TestServiceStub(channel), channel)


@pytest.mark.parametrize("name", NAMES)
async def test_case(interop_server, name):
    """The case ends as its description says."""
    async with interop_server() as port:
        await trio.to_thread.run_sync(run, name, port)


async def compressions(port, path, message):
    """The encoding that the server announces, and the flag of each message of its answer, as they are on the wire."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        client.initiate_connection()
        headers = {":method": "POST", ":scheme": "http", ":path": f"/grpc.testing.TestService/{path}"}
        headers |= {":authority": "localhost", "te": "trailers", "content-type": "application/grpc"}
        client.send_headers(1, [*headers.items(), ("grpc-accept-encoding", "gzip")])
        body = message.SerializeToString()
        client.send_data(1, b"\0" + len(body).to_bytes(4, "big") + body, end_stream=True)
        encoding, data = None, b""
        while True:
            await stream.send_all(client.data_to_send())
            for event in client.receive_data(await stream.receive_some(65_536)):
                match event:
                    case h2.events.ResponseReceived():
                        encoding = dict(event.headers).get("grpc-encoding")
                    case h2.events.DataReceived():
                        data += event.data
                        client.acknowledge_received_data(event.flow_controlled_length, 1)
                    case h2.events.StreamEnded():
                        return encoding, [*messages_in(data)]


def messages_in(data):
    """Flag and inflated size of each length-prefixed message."""
    while data:
        size = int.from_bytes(data[1:5], "big")
        body = data[5 : 5 + size]
        yield bool(data[0]), len(gzip.decompress(body) if data[0] else body)
        data = data[5 + size :]


async def test_unary_answers_are_compressed_as_asked(interop_server):
    """server_compressed_unary on the wire: compressed where the request says so, plain where it does not."""
    pb = importlib.import_module("interop_pb2")
    async with interop_server() as port:
        for flag in (True, False):
            request = pb.SimpleRequest(response_size=314_159, response_compressed=pb.BoolValue(value=flag))
            size = len(pb.SimpleResponse(payload=pb.Payload(body=bytes(314_159))).SerializeToString())
            assert await compressions(port, "UnaryCall", request) == ("gzip", [(flag, size)])


async def test_streamed_answers_are_compressed_one_by_one(interop_server):
    """server_compressed_streaming on the wire: the first message is compressed, the second is not."""
    pb = importlib.import_module("interop_pb2")
    wanted = [(31_415, True), (92_653, False)]
    parameters = [pb.ResponseParameters(size=size, compressed=pb.BoolValue(value=flag)) for size, flag in wanted]
    request = pb.StreamingOutputCallRequest(response_parameters=parameters)
    sizes = [
        len(pb.StreamingOutputCallResponse(payload=pb.Payload(body=bytes(size))).SerializeToString())
        for size, _ in wanted
    ]
    async with interop_server() as port:
        seen = await compressions(port, "StreamingOutputCall", request)
    assert seen == ("gzip", [(True, sizes[0]), (False, sizes[1])])
