"""Buys fruit: `python examples/fruit/client.py [HOST:PORT]`. A plain grpcio client; nothing of actorserve is needed."""

import sys

import fruit_pb2
import fruit_pb2_grpc
import grpc


def main(address: str) -> None:
    """Ask for a price, then for the receipt."""
    basket = fruit_pb2.FruitAmounts(orange=4, apple=8)
    with grpc.insecure_channel(address) as channel:
        market = fruit_pb2_grpc.FruitServiceStub(channel)
        reply = market.FruitStand(basket, timeout=10, metadata=(("application", "fruit"),))
        print(f"{reply.costs:.2f} in all")
        for receipt in market.Receipts(basket, timeout=10, metadata=(("application", "fruit"),)):
            print(receipt.line)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9000")
