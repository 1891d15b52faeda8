"""Ray 2.1's drivers: one with a schema of its own, over a graph; `serve.run` at the top level, as its page has it."""

import os

from actorserve import serve
from actorserve.serve.drivers import gRPCIngress
from actorserve.serve.generated import serve_pb2, serve_pb2_grpc


@serve.deployment
class Greeter:
    async def greet(self, name):
        return f"hello {name}"


@serve.deployment(is_driver_deployment=True)
class Driver(serve_pb2_grpc.UserDefinedServiceServicer, gRPCIngress):
    def __init__(self, greeter, port=9000):
        super().__init__(port)
        self.greeter = greeter

    async def Method1(self, request, context):
        if request.foo == "abort":
            await context.abort(5, "not here")
        context.set_trailing_metadata((("seen", request.name),))
        return serve_pb2.UserDefinedResponse(greeting=await (await self.greeter.greet.remote(request.name)))

    async def Streaming(self, request, context):
        for number in range(request.num):
            yield serve_pb2.UserDefinedResponse(num_x2=2 * number)


app = Driver.bind(Greeter.bind(), port=int(os.environ.get("DRIVER_PORT", "9000")))
handle = serve.run(app)  # does nothing in a worker
