"""A server in the test's own nursery, and ways to it in memory: channels and raw clients."""

from collections.abc import Mapping

import trio
from echo_service import RawClient
from google.protobuf.wrappers_pb2 import BytesValue
from grpclib.client import StreamStreamMethod, StreamUnaryMethod, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Cardinality, Handler

from actorserve.client import Channel
from actorserve.services.transport.memory import memory_pair
from actorserve.services.transport.server import GrpcServer, Limits

STUBS = {
    Cardinality.UNARY_UNARY: UnaryUnaryMethod,
    Cardinality.UNARY_STREAM: UnaryStreamMethod,
    Cardinality.STREAM_UNARY: StreamUnaryMethod,
    Cardinality.STREAM_STREAM: StreamStreamMethod,
}


class Service:
    """A service of one method, /test.T/M."""

    def __init__(self, func, cardinality=Cardinality.UNARY_UNARY):
        self.handler = Handler(func, cardinality, BytesValue, BytesValue)

    def __mapping__(self) -> Mapping[str, Handler]:
        return {"/test.T/M": self.handler}


class Rig:
    """One method, served; `pipe()` is a new connection to it."""

    def __init__(self, nursery, func, cardinality=Cardinality.UNARY_UNARY, **limits):
        self.nursery = nursery
        self.cardinality = cardinality
        self.server = GrpcServer([Service(func, cardinality)], limits=Limits(**limits))

    def pipe(self):
        client, server = memory_pair()
        self.nursery.start_soon(self.server.serve_connection, server, "tester")
        return client

    def raw(self):
        return RawClient(self.pipe())

    def channel(self, **options):
        return Channel.over(self.pipe(), **options)

    def stub(self, channel):
        return stub(channel, self.cardinality)


def stub(channel, cardinality=Cardinality.UNARY_UNARY):
    """Give /test.T/M as grpclib's generated code does."""
    return STUBS[cardinality](channel, "/test.T/M", BytesValue, BytesValue)


def value(octets: bytes) -> BytesValue:
    return BytesValue(value=octets)


async def settle() -> None:
    """Let everything that can run, run."""
    await trio.testing.wait_all_tasks_blocked()
