"""What a reset becomes in the record of a call, and what a client bears from a server."""

import anyio
import h2.errors
import pytest
import trio
from echo_service import RawClient, framed
from grpclib.const import Status
from rig import Service, settle

from actorserve.services.transport import frames
from actorserve.services.transport.client_connection import ClientConnection
from actorserve.services.transport.memory import memory_pair
from actorserve.services.transport.server import GrpcServer


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("CANCEL", Status.CANCELLED),
        ("NO_ERROR", Status.CANCELLED),
        ("REFUSED_STREAM", Status.UNAVAILABLE),
        ("ENHANCE_YOUR_CALM", Status.RESOURCE_EXHAUSTED),
        ("INADEQUATE_SECURITY", Status.PERMISSION_DENIED),
        ("INTERNAL_ERROR", Status.INTERNAL),
        ("PROTOCOL_ERROR", Status.INTERNAL),
    ],
)
async def test_a_reset_by_the_client_is_recorded_as_grpc_maps_its_code(autojump_clock, nursery, code, status):
    """PROTOCOL-HTTP2's table of error codes, for who reads the access log."""

    async def wait(stream):
        await stream.recv_message()
        await trio.sleep_forever()

    records = []
    server = GrpcServer([Service(wait)], on_end=records.append)
    client, theirs = memory_pair()
    nursery.start_soon(server.serve_connection, theirs)
    raw = RawClient(client)
    number = await raw.request("/test.T/M", framed(b""))
    await settle()
    raw.h2.reset_stream(number, h2.errors.ErrorCodes[code])
    await raw.flush()
    await settle()

    assert [(record.status, code in record.message) for record in records] == [
        (status.value, code not in {"CANCEL", "NO_ERROR"})
    ]


async def test_a_client_counts_what_a_server_wastes_over_many_reads(autojump_clock, nursery):
    """A flood of SETTINGS that comes one frame at a time ends the connection all the same."""
    client, server = memory_pair()
    connection = ClientConnection(client)
    nursery.start_soon(connection.run)
    for _ in range(connection.core.settings.patience.max_settings + 1):
        assert connection.error is None
        await server.send_all(frames.encode_settings([]))
        await settle()
        with anyio.move_on_after(0):
            await server.receive_some()

    assert connection.error is not None
    assert "too many settings" in connection.error.message
