"""The servers that the same classes were written for: grpcio's, grpc.aio's (twice), grpclib's. Says their ports."""

import asyncio
import json
from concurrent import futures

import async_servicer
import blocking_servicer
import diff_pb2_grpc
import grpc
import grpclib.server
import grpclib_service

HOST = "127.0.0.1"


async def main():
    """Serve all four until killed."""
    ports = {}
    blocking = grpc.server(futures.ThreadPoolExecutor(8))
    diff_pb2_grpc.add_DiffServicer_to_server(blocking_servicer.Servicer(), blocking)
    ports["blocking"] = blocking.add_insecure_port(f"{HOST}:0")
    blocking.start()
    for name, servicer in (("async", async_servicer.Servicer()), ("mixed", async_servicer.Mixed())):
        server = grpc.aio.server()
        diff_pb2_grpc.add_DiffServicer_to_server(servicer, server)
        ports[name] = server.add_insecure_port(f"{HOST}:0")
        await server.start()
        globals()[name] = server  # kept
    theirs = grpclib.server.Server([grpclib_service.Service()])
    await theirs.start(HOST, 0)
    ports["grpclib"] = theirs._server.sockets[0].getsockname()[1]
    print(json.dumps(ports), flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
