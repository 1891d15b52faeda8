"""A market that sums what a basket costs, in the shape of Ray Serve 2.1: `python app.py`, and Ctrl-C ends it.

The request's inputs are amounts by fruit. DefaultgRPCDriver hands them as a dict to what it is bound with, and answers
ray.serve.PredictAPIsService on 127.0.0.1:9000 (PORT in the environment: elsewhere). No schema has to be compiled.
As in 2.1 a call is awaited twice, and `serve.run` stands at module level without a guard.
"""

import os
import struct

from actorserve import serve
from actorserve.serve.deployment_graph import InputNode
from actorserve.serve.drivers import DefaultgRPCDriver


@serve.deployment
class Stand:
    """Sells one fruit; user_config has its price."""

    def __init__(self) -> None:
        self.price = 0.0

    def reconfigure(self, config: dict[str, float]) -> None:
        """Take the price."""
        self.price = config["price"]

    def cost(self, amount: int) -> float:
        """What so many cost."""
        return amount * self.price


@serve.deployment(num_replicas=2)
class Market:
    """Asks the stands, and adds up."""

    def __init__(self, plums, quinces) -> None:  # noqa: ANN001  # handles of 2.1
        self.stands = {"plum": plums, "quince": quinces}

    async def check_price(self, inputs: dict[str, bytes]) -> bytes:
        """What the basket costs, as a little-endian float; a driver's answer is bytes."""
        total = 0.0
        for fruit, amount in inputs.items():
            response = await self.stands[fruit].cost.remote(int(amount))
            total += await response
        return struct.pack("<f", total)


with InputNode() as basket:
    plums = Stand.options(name="PlumStand", user_config={"price": 0.25}).bind()
    quinces = Stand.options(name="QuinceStand", user_config={"price": 1.5}).bind()
    market = Market.bind(plums, quinces)
    app = DefaultgRPCDriver.bind(market.check_price.bind(basket), port=int(os.environ.get("PORT", "9000")))

serve.run(app)
print("the market is open", flush=True)
