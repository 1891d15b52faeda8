"""The same noop three ways: what own_schema.py measures under our server and under the one each was written for.

Run by own_schema.py: python benchmarks/own_schema_noop.py {blocking,asyncio,grpclib} PORT serves one with its own.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent import futures
from typing import Any

import grpc
import grpclib.const
import grpclib.server
import ping_pb2  # type: ignore[import-not-found]  # made by own_schema.py from examples/ping/ping.proto
import ping_pb2_grpc  # type: ignore[import-not-found]

THREADS = 100


class Blocking(ping_pb2_grpc.TestServiceServicer):  # type: ignore[misc]  # generated without types
    """For grpcio's own server."""

    def Ping(self, _request: Any, _context: Any) -> Any:  # noqa: N802  # the rpc's name
        """Answer."""
        return ping_pb2.PingReply()


class Asyncio(ping_pb2_grpc.TestServiceServicer):  # type: ignore[misc]
    """For grpc.aio's."""

    async def Ping(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Answer."""
        return ping_pb2.PingReply()


class Grpclib:
    """For grpclib's."""

    async def Ping(self, stream: Any) -> None:  # noqa: N802
        """Answer."""
        await stream.recv_message()
        await stream.send_message(ping_pb2.PingReply())

    def __mapping__(self) -> dict[str, Any]:
        """As generated code has it."""
        unary = grpclib.const.Cardinality.UNARY_UNARY
        return {
            "/ping.TestService/Ping": grpclib.const.Handler(self.Ping, unary, ping_pb2.PingRequest, ping_pb2.PingReply)
        }


async def main(kind: str, port: int) -> None:
    """Serve one under its own server until killed."""
    where = f"127.0.0.1:{port}"
    if kind == "grpclib":
        await grpclib.server.Server([Grpclib()]).start("127.0.0.1", port)
        await asyncio.Event().wait()
    server = grpc.server(futures.ThreadPoolExecutor(THREADS)) if kind == "blocking" else grpc.aio.server()
    ping_pb2_grpc.add_TestServiceServicer_to_server(Blocking() if kind == "blocking" else Asyncio(), server)
    server.add_insecure_port(where)
    if kind == "blocking":
        server.start()
    else:
        await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
