"""The eighteen cases by our own client: against grpcio's server on trio and on asyncio, and against our transport."""

import importlib

import anyio
import pytest
from test_interop_grpcio import NAMES

from actorserve.client import Channel


async def call(name, port):
    """Run one case over a channel of its own."""
    cases, stubs = (importlib.import_module(module) for module in ("cases_channel", "interop_grpc"))
    async with Channel(f"127.0.0.1:{port}") as channel:
        await getattr(cases, name)(stubs.TestServiceStub(channel), channel)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.parametrize("name", NAMES)
def test_our_channel_calls_grpcios_server(stubs, name, backend):
    """The case ends as its description says."""
    with importlib.import_module("grpcio_service").serve() as port:
        anyio.run(call, name, port, backend=backend)


@pytest.mark.parametrize("name", NAMES)
async def test_our_channel_calls_our_server(interop_server, name):
    """The case ends as its description says."""
    async with interop_server() as port:
        await call(name, port)
