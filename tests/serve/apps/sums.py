"""An application that sums its inputs, in the shape of Ray Serve 2.1's guide; the port comes from the environment."""

import os
import struct

from actorserve import serve
from actorserve.serve.deployment_graph import InputNode
from actorserve.serve.drivers import DefaultgRPCDriver


@serve.deployment
class Adder:
    def __init__(self, offset: float):
        self.offset = offset

    async def add(self, inputs: dict[str, bytes]) -> float:
        return self.offset + sum(struct.unpack("f", value)[0] for value in inputs.values())


@serve.deployment
def pack(total: float) -> bytes:
    return struct.pack("f", total)


with InputNode() as given:
    total = Adder.bind(0.5).add.bind(given)
    app = DefaultgRPCDriver.bind(pack.bind(total), port=int(os.environ.get("SUMS_PORT", "9000")))
