"""Methods of one's own under a schema of one's own: `python app.py` answers on 127.0.0.1:9000, and Ctrl-C ends it.

First, once:

    python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. greeter.proto

Each rpc is the method of its name; one has one model for each language, of which a replica keeps two, and one streams.
A parameter named grpc_context gets what there is to know of the call. PORT in the environment: elsewhere.
"""

import asyncio
import os
from collections.abc import AsyncIterator

import greeter_pb2
import grpc

from actorserve import serve
from actorserve.serve.config import gRPCOptions
from actorserve.serve.grpc_util import RayServegRPCContext

SONGS = {"en": "Row, row, row your boat", "fr": "Frère Jacques", "de": "Der Mond ist aufgegangen"}


@serve.deployment
class Greeter:
    """Answers GreeterService."""

    async def __call__(self, guest: greeter_pb2.Guest, grpc_context: RayServegRPCContext) -> greeter_pb2.Greeting:
        """Greet one guest; twice the seats."""
        if not guest.name:
            grpc_context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
            grpc_context.set_details("name: a guest has one")
        grpc_context.set_trailing_metadata([("seats", str(2 * guest.seats))])
        return greeter_pb2.Greeting(words=f"Hello {guest.name} from {guest.home}", seats=2 * guest.seats)

    @serve.multiplexed(max_num_models_per_replica=2)
    async def singer(self, language: str) -> str:
        """Load the model of a language: here, look up its song."""
        await asyncio.sleep(0.01)
        return SONGS[language]

    async def Multiplexing(self, _: greeter_pb2.Anybody) -> greeter_pb2.Song:
        """Sing in the language that the call names."""
        return greeter_pb2.Song(words=await self.singer(serve.get_multiplexed_model_id()))

    async def Streaming(self, guest: greeter_pb2.Guest) -> AsyncIterator[greeter_pb2.Greeting]:
        """Show each seat."""
        for seat in range(1, guest.seats + 1):
            yield greeter_pb2.Greeting(words=f"{guest.name}, seat {seat}", seats=seat)


serve.start(
    grpc_options=gRPCOptions(
        port=int(os.environ.get("PORT", "9000")),
        grpc_servicer_functions=["greeter_pb2_grpc.add_GreeterServiceServicer_to_server"],
    )
)
app = Greeter.bind()
serve.run(app, name="greeter")
print("the greeter is at the door", flush=True)
