"""The application of Ray Serve 2.1's guide, by its import path: a plain grpcio client, Ray's schema, real processes."""

import socket
import struct
from pathlib import Path

import grpc
import pytest
import trio

from actorserve import testing
from actorserve.serve.generated import serve_pb2, serve_pb2_grpc

APPS = Path(__file__).parent / "apps"
PACKED = {name: struct.pack("f", value) for name, value in {"a": 1.5, "b": 2.0, "c": 4.0}.items()}


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def config(port, **more):
    return {
        "listeners": {"predict": {"address": "127.0.0.1:0", "services": ["predict", "ray", "reflection"]}},
        "applications": {
            "sums": {"import_path": "sums:app", "path": [str(APPS)], "env": {"SUMS_PORT": str(port)}, **more}
        },
    }


def predict(address, inputs, metadata=()):
    with grpc.insecure_channel(address) as channel:
        stub = serve_pb2_grpc.PredictAPIsServiceStub(channel)
        reply, call = stub.Predict.with_call(serve_pb2.PredictRequest(input=inputs), timeout=20, metadata=metadata)
        return struct.unpack("f", reply.prediction)[0], dict(call.trailing_metadata())


async def test_sums():
    """The driver's port and the listener of the file answer alike, with the request's id in the trailers."""
    port = free_port()
    async with testing.serve(config(port)) as app:
        for address in (f"127.0.0.1:{port}", app.address("predict")):
            answer, trailers = await trio.to_thread.run_sync(predict, address, PACKED, (("request_id", "mine"),))
            assert answer == 8.0
            assert trailers["request_id"] == "mine"


async def test_an_answer_that_is_no_bytes(monkeypatch):
    """What the graph raises comes back with its type and its text, and with the request's id."""
    async with testing.serve(config(free_port())) as app:
        with pytest.raises(grpc.RpcError) as caught:
            await trio.to_thread.run_sync(predict, app.address("predict"), {"a": b"xx"}, (("request_id", "mine"),))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert caught.value.details() == "error: unpack requires a buffer of 4 bytes"
        assert dict(caught.value.trailing_metadata())["request_id"] == "mine"
