"""TestService as a driver of Ray Serve 2.1: `python driver.py` answers on 127.0.0.1:9000, and Ctrl-C ends it.

First, once:

    python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. ping.proto

A driver is a servicer of a schema of your own that is a gRPCIngress, too; the deployments that it is bound with arrive
as handles. ping_client.py calls it. PORT in the environment: elsewhere.
"""

import asyncio
import os

import grpc
import ping_pb2
import ping_pb2_grpc

from actorserve import serve
from actorserve.serve.drivers import gRPCIngress


@serve.deployment
class Counter:
    """Counts the pings of all replicas of the driver."""

    def __init__(self) -> None:
        self.pings = 0

    async def add(self) -> int:
        """One more; how many there are now."""
        self.pings += 1
        return self.pings


@serve.deployment(is_driver_deployment=True)
class PingDriver(ping_pb2_grpc.TestServiceServicer, gRPCIngress):
    """Answers TestService."""

    def __init__(self, counter, port: int = 9000) -> None:  # noqa: ANN001  # a handle of 2.1
        super().__init__(port)
        self.counter = counter

    async def Ping(self, request: ping_pb2.PingRequest, context: grpc.aio.ServicerContext) -> ping_pb2.PingReply:
        """Answer with the count in the trailers, unless the request says otherwise."""
        pings = await (await self.counter.add.remote())
        context.set_trailing_metadata((("pings", str(pings)),))
        if request.no_reply:
            await asyncio.Event().wait()  # until the caller has gone: then this is cancelled
        return ping_pb2.PingReply()

    async def PingTimeout(
        self, _: ping_pb2.PingTimeoutRequest, context: grpc.aio.ServicerContext
    ) -> ping_pb2.PingTimeoutReply:
        """Take longer than anybody waits."""
        await asyncio.sleep(3600)
        return ping_pb2.PingTimeoutReply()


app = PingDriver.bind(Counter.bind(), port=int(os.environ.get("PORT", "9000")))
serve.run(app)
print("the driver answers", flush=True)
