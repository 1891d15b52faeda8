"""A deployment of two replicas, each with room for one model and one request; files say what happens, and when."""

import asyncio
import os
from pathlib import Path

from actorserve import serve
from actorserve.serve.generated import serve_pb2

FILES = Path(os.environ.get("MARKS", "."))


async def until(condition):
    """Wait for a file to come or to go."""
    while not condition():
        await asyncio.sleep(0.005)


@serve.deployment(num_replicas=2, max_ongoing_requests=1)
class Holder:
    @serve.multiplexed(max_num_models_per_replica=1)
    async def model(self, model_id):
        """Fails where somebody loads the same at the same time; ends once nobody keeps it."""
        loading, kept = FILES / f"{model_id}.loading", FILES / f"{model_id}.kept"
        loading.touch(exist_ok=False)
        await until(lambda: not kept.exists())
        loading.unlink()
        return model_id

    async def __call__(self, message, grpc_context):
        """Use the model; where the message says "again", hold it until told, have it evicted, and ask once more."""
        await self.model()
        if message.foo == "again":
            (FILES / "held").touch()
            await until((FILES / "go").exists)
            await self.model("another")
            await self.model()
        return serve_pb2.UserDefinedResponse(greeting=str(os.getpid()))


app = Holder.bind()
