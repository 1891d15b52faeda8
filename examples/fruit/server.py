"""A fruit stand of three deployments behind a schema of its own: `python server.py [PORT]`.

First, once:

    python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. fruit.proto

FruitMarket answers FruitService; it asks OrangeStand and AppleStand, each in replicas of its own. Stop it with Ctrl-C.
"""

import asyncio
import sys
from collections.abc import AsyncIterator

import fruit_pb2

from actorserve import serve
from actorserve.serve.handle import DeploymentHandle


@serve.deployment
class Stand:
    """One fruit at one price; a batch of questions is answered at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.price = 0.0

    def reconfigure(self, config: dict[str, float]) -> None:
        """Take the price from user_config."""
        self.price = config["price"]

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.005)
    async def costs(self, amounts: list[int]) -> list[float]:
        """What so many fruits cost."""
        return [amount * self.price for amount in amounts]


@serve.deployment(num_replicas=2)
class FruitMarket:
    """Answers FruitService."""

    def __init__(self, stands: dict[str, DeploymentHandle]) -> None:
        self.stands = stands

    async def FruitStand(self, basket: fruit_pb2.FruitAmounts) -> fruit_pb2.FruitCosts:
        """What a basket costs: both stands are asked at the same time."""
        costs = await asyncio.gather(
            *(stand.costs.remote(getattr(basket, name)) for name, stand in self.stands.items())
        )
        return fruit_pb2.FruitCosts(costs=sum(costs))

    async def Receipts(self, basket: fruit_pb2.FruitAmounts) -> AsyncIterator[fruit_pb2.Receipt]:
        """A line a fruit."""
        for name, stand in self.stands.items():
            amount = getattr(basket, name)
            yield fruit_pb2.Receipt(line=f"{amount} {name}: {await stand.costs.remote(amount):.2f}")


app = FruitMarket.bind(
    {
        "orange": Stand.options(name="OrangeStand", user_config={"price": 2.5}).bind("orange"),
        "apple": Stand.options(name="AppleStand", user_config={"price": 1.0}).bind("apple"),
    }
)

if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    functions = ["fruit_pb2_grpc.add_FruitServiceServicer_to_server"]
    serve.start(grpc_options={"port": port, "grpc_servicer_functions": functions})
    serve.run(app, name="fruit")
    print(f"the market is open on 127.0.0.1:{port}", flush=True)
